"""`python -m flowmon.ipfix`: the table of docs/ipfix-elements.md."""

from collections.abc import Iterator

from flowmon.ipfix.fields import (
    ALWAYS,
    CHOICES,
    IANA,
    NOT_BY_DEFAULT,
    NTOP_PEN,
    OWN_REVERSE_BIT,
    REVERSE_PEN,
    Field,
    Trait,
    fields,
)

OWN = 1  # stands for the user's enterprise number


def markdown() -> str:
    """Every field that a record may have."""
    every = fields(frozenset(CHOICES), "ms", OWN, lists=True)
    lines = [
        "# Elements in IPFIX",
        "",
        "Generated from `flowmon/ipfix/fields.py` (`make docs`): what goes over the wire, from which column. A number after a",
        "dot is under that enterprise: 29305 is the reverse of IANA's (RFC 5103), 35632 nProbe's, PEN yours (`--ipfix-pen`;",
        f"without it these are left out; plus {OWN_REVERSE_BIT} for the reverse direction). NetFlow v9 has the same numbers without",
        "29305 and PEN, nProbe's plus 57472, and the times as 22 and 21. Sent: ● always, ○ by default, blank only with",
        "`--ipfix-elements all` or by the column's name. Element 291 is a basicList (RFC 6313), here with what it is a list of, and",
        "goes out with `--splt` only, not in NetFlow v9.",
        "",
        "| field | number | octets | column | of records with | sent |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(one) for one in every]
    return "\n".join(lines) + "\n"


def _row(one: Field) -> str:
    traits = ", ".join(_traits(one))
    octets = "variable" if one.of_each else one.octets
    return f"| `{one.name}` | {_number(one)} | {octets} | {_column(one)} | {traits} | {_sent(one)} |"


def _number(one: Field) -> str:
    if one.of_each:
        return f"{one.number} of {one.of_each}"
    if one.enterprise == IANA:
        return str(one.number)
    known = {REVERSE_PEN: "29305", NTOP_PEN: "35632"}
    return f"{known.get(one.enterprise, 'PEN')}.{one.number}"


def _column(one: Field) -> str:
    return f"`{one.column}`" if one.column else ""


def _traits(one: Field) -> Iterator[str]:
    words = {
        Trait.IPV4: "IPv4",
        Trait.IPV6: "IPv6",
        Trait.TCP: "TCP",
        Trait.ICMP: "ICMP",
        Trait.IPSEC: "ESP, AH",
        Trait.REVERSE: "both directions",
        Trait.TAGGED: "a VLAN tag",
        Trait.LABELLED: "an MPLS label",
        Trait.OPTIONS: "options or extension headers",
        Trait.OBSERVED: "an interface",
        Trait.TUNNEL: "a tunnel",
        Trait.TUNNEL_IPV4: "outside IPv4",
        Trait.TUNNEL_IPV6: "outside IPv6",
        Trait.DROPPED: "dropped packets",
    }
    return (word for trait, word in words.items() if trait in one.traits)


def _sent(one: Field) -> str:
    if one.column in ALWAYS or not one.column:
        return "●"
    return "" if one.column in NOT_BY_DEFAULT else "○"


if __name__ == "__main__":
    print(markdown(), end="")
