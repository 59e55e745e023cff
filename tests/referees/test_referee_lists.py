"""What collectors make of first packets (--splt, basicLists of RFC 6313): two read them, three pass them over."""

from __future__ import annotations

import json
import re
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from referees import fixbuf, nfdump, pmacct, pypi_ipfix, receiver, wireshark
from referees.expected import MS, assert_same, without_times
from referees.receiver import PORT

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("kernel")]

MOST = 4  # some records have more packets
BASIC_LIST = 291
LENGTHS, DIRECTIONS, TIMES = 224, 239, 325
SPLT = ("--splt", str(MOST))
NS = 1_000_000_000
SECONDS_1900_TO_1970 = 2_208_988_800

Lists = dict[int, list[list[Any]]]
"""By flowId: lengths, directions, times in nanoseconds since 1970."""


@pytest.fixture(scope="module")
def printed(hosts, captured) -> Lists:
    """As JSON lines have them."""
    lines = map(json.loads, captured.export(hosts.left, "-j", *SPLT).splitlines())
    return {
        line["flowId"]: [
            line["packetLengths"],
            line["packetDirections"],
            [ns_of(one) for one in line["packetTimes"]],
        ]
        for line in lines
    }


def ns_of(text: str) -> int:
    return int(np.datetime64(text.removesuffix("Z"), "ns").astype("i8"))


@pytest.fixture(scope="module")
def file(hosts, captured, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "lists.ipfix"
    captured.export(hosts.left, "--ipfix", f"file:{path}", *SPLT)
    return path


@pytest.fixture(scope="module")
def datagrams(hosts, captured, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "lists.pcapng"
    with receiver.udp(hosts.right, PORT), wireshark.capturing(hosts.right, path, PORT):
        captured.export(hosts.left, "--ipfix", f"udp://{hosts.right.ipv4}:{PORT}", *SPLT)
    return path


def test_lists_are_as_long_as_was_asked_for(printed, captured):
    """Else the referees agree on nothing."""
    counts = captured.truth["packetDeltaCount"] + captured.truth["reversePacketDeltaCount"]
    found = sorted(len(lengths) for lengths, _, _ in printed.values())
    assert found == sorted(min(count, MOST) for count in counts.tolist())
    assert counts.max() > MOST > counts.min()


def test_ipfixdump_reads_them(file, printed):
    """It prints nanoseconds cut to the second."""
    found = fixbuf_lists(file)
    assert found == {
        key: [lengths, directions, [time // NS for time in times]]
        for key, (lengths, directions, times) in printed.items()
    }


def fixbuf_lists(path: Path) -> Lists:
    found: Lists = {}
    lists: dict[int, list[Any]] = {}
    current: list[Any] = []
    flow_id = 0
    for line in fixbuf._dump(path):
        if line.startswith("--- data record"):
            lists = {}
        elif one := re.search(r"flowId : (\d+)", line):
            flow_id = int(one[1])
        elif one := re.search(r"count: (\d+) +semantic: 4-ordered +ie: \((\d+)\)", line):
            current = lists.setdefault(int(one[2]), [])
            found[flow_id] = [lists.setdefault(number, []) for number in (LENGTHS, DIRECTIONS, TIMES)]
        elif one := re.match(r"\t\t\t\d+ +: (.*)", line):
            current.append(fixbuf._time_ns(one[1]) // NS if "-" in one[1] else int(one[1]))
    return found


def test_tshark_shows_their_octets(datagrams, printed, captured):
    """It has the name of a basicList, and no more; in a record it shows octets."""
    assert wireshark.complaints(datagrams, *wireshark.EVERY_FIELD) == []
    reading = wireshark.read(datagrams, "udp", *wireshark.EVERY_FIELD)
    assert_same(reading.flows, captured.biflows(MS))
    assert {name for name in reading.unnamed if str(BASIC_LIST) not in name} == set()
    assert tshark_lists(datagrams) == sorted(printed.values())


def tshark_lists(path: Path) -> list[list[list[Any]]]:
    """In no order: its fields are not grouped by record, but each record has one list of each kind."""
    fields = ("-Y", "cflow", "-T", "fields", "-e", "cflow.enterprise_private_entry")
    done = wireshark._run(path, *wireshark.EVERY_FIELD, *fields)
    of_kind: dict[int, list[list[int]]] = defaultdict(list)
    for text in done.replace(",", "\n").split():
        raw = bytes.fromhex(text.replace(":", ""))
        if len(raw) < 5 or raw[0] != 4:
            continue
        number, width = struct.unpack_from(">HH", raw, 1)
        parts = [int.from_bytes(raw[at : at + width]) for at in range(5, len(raw), width)]
        of_kind[number].append([ntp_ns(part) for part in parts] if number == TIMES else parts)
    return sorted(
        list(one) for one in zip(*(of_kind[kind] for kind in (LENGTHS, DIRECTIONS, TIMES)), strict=True)
    )


def ntp_ns(stamp: int) -> int:
    seconds, fraction = stamp >> 32, stamp & 0xFFFFFFFF
    return (seconds - SECONDS_1900_TO_1970) * NS + (fraction * NS >> 32)


def test_pypi_passes_them_over(file, captured):
    """It keeps octets, and of elements that stand several times in a record the last one's."""
    reading = pypi_ipfix.read(file)
    assert reading.announced == reading.counted
    flows = [record for record in reading.records if "octetDeltaCount" in record]
    assert_same([pypi_ipfix.flow(record) for record in flows], captured.biflows(MS))
    assert {record[f"_ipfix_0_{BASIC_LIST}"][1:3] for record in flows} == {TIMES.to_bytes(2)}


@pytest.mark.parametrize("options", [(), ("--ipfix-uniflow",)], ids=["biflow", "uniflow"])
def test_nfdump_passes_them_over(options, hosts, captured, tmp_path):
    with nfdump.collecting(hosts.right, tmp_path):
        captured.export(hosts.left, "--ipfix", f"udp://{hosts.right.ipv4}:{nfdump.PORT}", *SPLT, *options)
    expected = captured.uniflows() if options else captured.biflows()
    assert_same(without_times(nfdump.flows(tmp_path)), without_times(expected))


@pytest.mark.parametrize("options", [(), ("--ipfix-uniflow",)], ids=["biflow", "uniflow"])
def test_pmacct_passes_them_over(options, hosts, captured, tmp_path):
    with pmacct.collecting(hosts.right, tmp_path, biflows=not options):
        captured.export(hosts.left, "--ipfix", f"udp://{hosts.right.ipv4}:{pmacct.PORT}", *SPLT, *options)
    found = pmacct.flows(tmp_path)
    expected = captured.uniflows() if options else captured.biflows(MS)
    assert_same(without_times(found), without_times(expected))
