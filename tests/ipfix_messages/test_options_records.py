"""Options records: RFC 7011 section 4, RFC 5610, and what NetFlow v9 has of them."""

from __future__ import annotations

from dataclasses import fields as members
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ipfix import ie

from flowmon.elements import ELEMENTS
from flowmon.ipfix import options_records
from flowmon.ipfix.encoder import Profile
from flowmon.ipfix.fields import CHOICES, fields
from flowmon.ipfix.options_records import INTERFACES, KINDS, TYPES, Kind, OptionsTemplate, Report
from flowmon.ipfix.templates import Register
from ipfix_oracle import EVERY, opened
from ipfix_reader import IANA, IPFIX, NETFLOW9, PEN, SCOPE, Layout, Message, Reader

NO_LIMIT = 65535
MS = 1_000_000
# IANA's registries "IPFIX Information Element Data Types", "… Semantics" and "… Units".
UNSIGNED8, UNSIGNED16, UNSIGNED32, UNSIGNED64, FLOAT64 = 1, 2, 3, 4, 10
DATE_TIME_NANOSECONDS, IPV4_ADDRESS, IPV6_ADDRESS = 17, 18, 19
DEFAULT, QUANTITY, DELTA_COUNTER, IDENTIFIER = 0, 1, 3, 4
NO_UNIT, OCTETS, NANOSECONDS = 0, 2, 8
OWN = {
    1: (UNSIGNED16, IDENTIFIER, NO_UNIT),
    2: (UNSIGNED8, IDENTIFIER, NO_UNIT),
    3: (UNSIGNED32, IDENTIFIER, NO_UNIT),
    4: (IPV4_ADDRESS, DEFAULT, NO_UNIT),
    5: (IPV4_ADDRESS, DEFAULT, NO_UNIT),
    6: (IPV6_ADDRESS, DEFAULT, NO_UNIT),
    7: (IPV6_ADDRESS, DEFAULT, NO_UNIT),
    8: (UNSIGNED64, QUANTITY, NANOSECONDS),
    9: (UNSIGNED64, QUANTITY, NANOSECONDS),
    10: (UNSIGNED64, QUANTITY, NANOSECONDS),
    11: (FLOAT64, QUANTITY, NO_UNIT),
    12: (UNSIGNED64, DELTA_COUNTER, OCTETS),
    13: (DATE_TIME_NANOSECONDS, DEFAULT, NANOSECONDS),
    14: (DATE_TIME_NANOSECONDS, DEFAULT, NANOSECONDS),
}
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=400)


def layout(kind: Kind, version: int = IPFIX) -> Layout:
    """As the reader understands its template."""
    reader = Reader(version, 0)
    template = OptionsTemplate(kind, version, Register())
    padding = b"" if version == IPFIX else bytes(-len(template.record) % 4)
    assert reader._options_templates(template.record + padding, Message(0, {})) == 1
    return reader.layouts[template.identifier]


def read(kind: Kind, values: list[Any], version: int = IPFIX, longest: int = NO_LIMIT) -> dict[Any, Any]:
    template = OptionsTemplate(kind, version, Register())
    record = template.encode(values, longest)
    assert len(record) <= longest
    reader = Reader(version, 0)
    padding = b"" if version == IPFIX else bytes(-len(template.record) % 4)
    reader._options_templates(template.record + padding, Message(0, {}))
    found = Message(0, {})
    assert reader._data(template.identifier, record, found) == 1
    (only,) = found.options
    return only


# --- templates ---


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_elements_are_ianas(kind: Kind) -> None:
    ie.use_iana_default()
    later = {"privateEnterpriseNumber": 346}  # than the package's list of them
    for part in kind.parts:
        element = ie.for_spec(part.name)
        assert part.number == (element.num or later[part.name])
        if element.num:
            assert part.octets == element.length, part.name


@pytest.mark.parametrize(
    ("name", "scope", "rest"),
    [
        ("metering process statistics", [149], [41, 42, 40, 163]),
        ("metering process reliability", [149], [164, 165, 152, 153]),
        ("exporting process reliability", [144], [166, 167, 168, 152, 153]),
        ("flow keys", [145], [173]),
        ("interfaces", [10], [82, 83]),
        ("element types", [346, 303], [339, 344, 345, 342, 343, 341, 340]),
    ],
)
def test_templates_are_the_rfcs(name: str, scope: list[int], rest: list[int]) -> None:
    (kind,) = (kind for kind in KINDS if kind.name == name)
    found = layout(kind)
    numbers = [number for (enterprise, number), _ in found.fields if enterprise == IANA]
    assert (numbers[: found.scopes], numbers[found.scopes :]) == (scope, rest)


def test_netflow9_has_the_scopes_system_and_interface() -> None:
    usable = [kind for kind in KINDS if kind.in_netflow9]
    assert len(usable) == 4
    for kind in usable:
        found = layout(kind, NETFLOW9)
        ((scope, octets), *rest) = found.fields
        assert found.scopes == 1
        assert (scope, octets) == ((SCOPE, 2 if kind is INTERFACES else 1), 4)
        assert all(enterprise == IANA for (enterprise, _), _ in rest)
        assert found.shortest < 64


# --- counts ---


def test_statistics_say_what_was_counted() -> None:
    names = [member.name for member in members(Report) if member.name != "interfaces"]
    values = {name: 2**40 + number for number, name in enumerate(names)}
    values |= {name: value * MS + 999_999 for name, value in values.items() if name.endswith("_ns")}
    report = Report(**values)
    found = {kind.name: read(kind, row) for kind, row in options_records.statistics(report, 77)}
    assert found == {
        "metering process statistics": {
            (IANA, 149): 77,
            (IANA, 41): report.exported_messages,
            (IANA, 42): report.exported_records,
            (IANA, 40): report.exported_octets,
            (IANA, 163): report.observed_flows,
        },
        "metering process reliability": {
            (IANA, 149): 77,
            (IANA, 164): report.ignored_packets,
            (IANA, 165): report.ignored_octets,
            (IANA, 152): report.ignored_first_ns // MS,
            (IANA, 153): report.ignored_last_ns // MS,
        },
        "exporting process reliability": {
            (IANA, 144): 77,
            (IANA, 166): report.not_sent_records,
            (IANA, 167): report.not_sent_packets,
            (IANA, 168): report.not_sent_octets,
            (IANA, 152): report.not_sent_first_ns // MS,
            (IANA, 153): report.not_sent_last_ns // MS,
        },
    }


# --- texts ---


@given(texts, texts)
def test_texts_of_any_length_are_read_back(name: str, description: str) -> None:
    found = read(INTERFACES, [3, name, description])
    assert found == {(IANA, 10): 3, (IANA, 82): name, (IANA, 83): description}


@pytest.mark.parametrize("octets", [0, 1, 253, 254, 255, 256, 65000])
def test_length_of_a_text(octets: int) -> None:
    """The reader refuses three octets of length where one would do."""
    assert read(INTERFACES, [3, "", "x" * octets])[IANA, 83] == "x" * octets


@given(texts, texts, st.integers(6, 900))
def test_texts_are_cut_to_whole_characters_the_last_first(name: str, description: str, longest: int) -> None:
    found = read(INTERFACES, [3, name, description], longest=longest)
    assert name.startswith(found[IANA, 82])
    assert description.startswith(found[IANA, 83])
    raw = [len(text.encode()) for text in (name, description, found[IANA, 82], found[IANA, 83])]
    used = 4 + sum(octets + (1 if octets < 255 else 3) for octets in raw[2:])
    if raw[:2] != raw[2:]:
        assert used > longest - 2 - 4  # no more was cut than had to: a length and a character
    if raw[2] < raw[0]:
        assert found[IANA, 83] == ""


@pytest.mark.parametrize(
    ("longest", "name", "description"),
    [
        (28, "eth0", "over the hills"),
        (20, "eth0", "over the h"),
        (10, "eth0", ""),
        (8, "et", ""),
        (6, "", ""),
    ],
)
def test_descriptions_go_before_names(longest: int, name: str, description: str) -> None:
    found = read(INTERFACES, [3, "eth0", "over the hills"], longest=longest)
    assert (found[IANA, 82], found[IANA, 83]) == (name, description)


@given(texts, texts)
def test_netflow9_texts_have_one_width(name: str, description: str) -> None:
    found = read(INTERFACES, [3, name, description], NETFLOW9)
    assert found[SCOPE, 2] == 3
    for number, text, octets in ((82, name, 16), (83, description, 32)):
        assert text.startswith(found[IANA, number])
        assert len(found[IANA, number].encode()) in range(min(len(text.encode()), octets - 3), octets + 1)


def test_octets_that_are_no_text_become_question_marks() -> None:
    odd = b"up\xfflink".decode(errors="surrogateescape")
    for version in (IPFIX, NETFLOW9):
        assert read(INTERFACES, [3, "eth0", odd], version)[IANA, 83] == "up?link"


def test_interfaces_go_out_by_their_index() -> None:
    report = Report(interfaces={3: ("eth1", ""), 1: ("eth0", "uplink")})
    assert [row for _, row in options_records.interfaces(report)] == [[1, "eth0", "uplink"], [3, "eth1", ""]]


# --- types of our own elements ---


def described(chosen: frozenset[str] = EVERY, pen: int | None = PEN) -> dict[int, dict[Any, Any]]:
    rows = [read(kind, row) for kind, row in options_records.element_types(fields(chosen, "ms", pen))]
    assert all(row[IANA, 346] == PEN for row in rows)
    assert len({row[IANA, 303] for row in rows}) == len(rows)
    return {row[IANA, 303]: row for row in rows}


def test_own_elements_are_described_and_no_others() -> None:
    found = described()
    reverse = {3, 8, 9, 10, 11, 12, 13, 14}
    assert set(found) == set(OWN) | {number | 0x4000 for number in reverse}
    assert described(pen=None) == {}
    assert set(described(frozenset({"icmpIdentifier", "tunnelIdentifier"}))) == {1, 3, 3 | 0x4000}


def test_types_semantics_and_units() -> None:
    for number, row in described().items():
        assert (row[IANA, 339], row[IANA, 344], row[IANA, 345]) == OWN[number & 0x3FFF], row
        assert (row[IANA, 342], row[IANA, 343]) == (0, 0)


def test_types_are_as_wide_as_the_fields() -> None:
    octets = {UNSIGNED8: 1, UNSIGNED16: 2, UNSIGNED32: 4, UNSIGNED64: 8, FLOAT64: 8}
    octets |= {DATE_TIME_NANOSECONDS: 8, IPV4_ADDRESS: 4, IPV6_ADDRESS: 16}
    found = described()
    for field in fields(EVERY, "ms", PEN):
        if field.enterprise == PEN:
            assert octets[found[field.number][IANA, 339]] == field.octets


def test_names_and_meanings() -> None:
    found = described()
    elements = {element.own_number: element for element in ELEMENTS if element.own_number}
    for number, row in found.items():
        name, meaning = row[IANA, 341], row[IANA, 340]
        element = elements.get(number & 0x3FFF)
        if number & 0x4000:
            assert element is not None
            assert name == element.reverse_name
            assert meaning == f"reverse: {element.meaning}"
        elif element is not None and "Address" not in name and name != "tunnelType":
            assert (name, meaning) == (element.name, element.meaning)
        assert meaning
    assert found[6][IANA, 341] == "tunnelSourceIPv6Address"
    assert found[2][IANA, 340].startswith("1 gre, 2 ipip,")
    assert found[2][IANA, 340].endswith(" 8 gtp-u")


def test_element_types_are_not_in_netflow9() -> None:
    assert not TYPES.in_netflow9
    session, _ = opened(Profile(frozenset(CHOICES), NETFLOW9, pen=PEN))
    reader = Reader(NETFLOW9, 0)
    read_now = [reader.read(message) for message in session.refresh(Report(interfaces={1: ("lo", "")}))]
    assert [len(message.options) for message in read_now] == [1]
