"""`python -m flowmon.features`: the tables of docs/packet-feature-columns.md."""

import pyarrow as pa

from flowmon.features.packets import FEATURES, Feature
from flowmon.sinks.features.result_json import ID, MOST_PACKETS, PACKET


def markdown() -> str:
    """The columns of a packet, and the formats that it is written in."""
    lines = [
        "# Columns of packets",
        "",
        "Generated from `flowmon/features/packets.py` and `flowmon/sinks/features/` (`make docs`). A row is a packet on",
        "the wire: the segments of a super-packet (GSO, GRO) are rows of their own, each with its own length, sequence",
        "number and flags. IANA: the element's number in the IPFIX registry; — where IANA has none. Times are UTC.",
        "",
        "| column | IANA | type | what it is | null unless |",
        "|---|---|---|---|---|",
        *(_row(feature) for feature in FEATURES),
        "",
        "## Parquet",
        "",
        "`DIR/date=YYYY-MM-DD/hour=HH/features-….parquet`, in these columns; the hour is that of the writing.",
        "",
        "## result.json",
        "",
        "An array of objects, one a line, one a session (`flowId`, `captureStartNanoseconds` and `captureRound`), in",
        'order of time of its first packet: `{"id": [source, port, destination, port, protocol], "packets": [[…], …]}`.',
        f"`id` is {_named(ID)}.",
        "A packet is a list of integers. Times are nanoseconds since 1970, and what a packet does not have is 0:",
        "",
        "| place | column |",
        "|---|---|",
        *(f"| {place} | `{name}` |" for place, name in enumerate(PACKET)),
        "",
        f"A file holds {MOST_PACKETS:,} packets at most (or one reading of more); those after go to `result-2.json`,",
        "`result-3.json`, …, and a session that goes on then has an object in both. Files of an earlier run with",
        "`-r` in the same directory are replaced; at interfaces they stay, and the next number is the first of the run.",
        "",
        "## A CSV a session",
        "",
        "`DIR/_sessions/SOURCE-PORT___DESTINATION-PORT___TIMESTAMP.csv`, with a header line and all columns; the timestamp is",
        "`captureStartNanoseconds`. Times are nanoseconds since 1970; what a packet does not have is empty. A file of the",
        "run before is begun anew. Sessions of the same addresses, ports and timestamp share a file: `flowId` tells them apart.",
    ]
    return "\n".join(lines) + "\n"


def _row(feature: Feature) -> str:
    number = "—" if feature.number is None else str(feature.number)
    kind = "text" if pa.types.is_dictionary(feature.type) else str(feature.type)
    return f"| `{feature.name}` | {number} | {kind} | {feature.meaning} | {feature.when.value} |"


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(markdown(), end="")
