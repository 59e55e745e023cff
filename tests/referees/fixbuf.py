"""ipfixDump of libfixbuf 2.4.1 (by CERT NetSA, the makers of YAF) as a referee: it prints a stream of messages.

What it makes of IPFIX:
- It reads files and standard input: what came by TCP or UDP is put one after the other into a file.
- Reverse elements (PEN 29305) have names of their own. nProbe's have none: it calls them
  _alienInformationElement, as it does elements of any enterprise that it was not told of.
- With --rfc5610 it learns names from options records, if these have all of RFC 5610's fields, the range
  (342 and 343) among them.
- Times in micro- and nanoseconds are printed cut to the second.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from ipaddress import ip_address
from pathlib import Path

from referees.expected import Flow

UNNAMED = "_alienInformationElement"

_FIELD = re.compile(r"^\t\((?:(\d+)/)?(\d+)\)(?: \(S\))? *(\S+) : (.*)$")
_RECORD = re.compile(r"^--- data record (\d+) ---$")
_SEQUENCE = re.compile(r"sequence number: (\d+) ")
_NS = 1_000_000_000


@dataclass(frozen=True)
class Field:
    """One field of a data record. enterprise: 0 for IANA's."""

    enterprise: int
    number: int
    name: str
    value: str


Record = dict[str, str]


def flows(path: Path) -> list[Flow]:
    """Every flow record of a stream."""
    records = ({field.name: field.value for field in fields} for fields in records_of(path))
    return [_flow(record) for record in records if "octetDeltaCount" in record]


def _flow(record: Record) -> Flow:
    version = "IPv6" if "sourceIPv6Address" in record else "IPv4"
    return Flow(
        source=str(ip_address(record[f"source{version}Address"])),
        destination=str(ip_address(record[f"destination{version}Address"])),
        source_port=int(record["sourceTransportPort"]),
        destination_port=int(record["destinationTransportPort"]),
        protocol=int(record["protocolIdentifier"]),
        packets=int(record["packetDeltaCount"]),
        octets=int(record["octetDeltaCount"]),
        reverse_packets=int(record.get("reversePacketDeltaCount", 0)),
        reverse_octets=int(record.get("reverseOctetDeltaCount", 0)),
        start_ns=_time_ns(record["flowStartMilliseconds"]),
        end_ns=_time_ns(record["flowEndMilliseconds"]),
    )


def names(path: Path, *options: str) -> dict[tuple[int, int], str]:
    """Enterprise and number of every element in data records, and what ipfixDump calls it."""
    return {
        (field.enterprise, field.number): field.name
        for fields in records_of(path, *options)
        for field in fields
    }


def kinds(path: Path) -> Counter[str]:
    """How many data records of a stream begin with an element."""
    return Counter(fields[0].name for fields in records_of(path))


def records_of(path: Path, *options: str) -> Iterator[list[Field]]:
    """The data records, those of options among them."""
    fields: list[Field] = []
    for line in _dump(path, *options):
        if _RECORD.match(line):
            if fields:
                yield fields
            fields = []
        elif found := _FIELD.match(line):
            fields.append(Field(int(found[1] or 0), int(found[2]), found[3], found[4]))
    yield fields


def sequence_errors(path: Path) -> list[tuple[int, int]]:
    """(announced, counted) data records before each message where the two differ. Of one session."""
    wrong, counted = [], 0
    for line in _dump(path):
        if found := _SEQUENCE.search(line):
            if int(found[1]) != counted:
                wrong.append((int(found[1]), counted))
        elif found := _RECORD.match(line):
            counted = int(found[1])
    return wrong


def _dump(path: Path, *options: str) -> list[str]:
    done = subprocess.run(
        ["ipfixDump", "--data", *options, "--in", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def _time_ns(text: str) -> int:
    seconds, _, milliseconds = text.partition(".")
    return _seconds(seconds) * _NS + int(milliseconds) * 1_000_000


@cache
def _seconds(text: str) -> int:
    return int(datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp())
