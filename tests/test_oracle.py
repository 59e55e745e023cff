"""The oracle against records worked out by hand, and against Wireshark."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

import oracle

PCAPS = Path(__file__).parent / "pcaps"
CASES = sorted(expected.parent.name for expected in PCAPS.glob("*/expected.json"))
TCP_CASES = [case for case in CASES if case.startswith("tcp_")]
MALFORMED_CASES = ("malformed_frames",)
"""Wireshark counts what it can of a malformed frame; the program counts none of it."""

RETRANSMISSIONS = ("retransmission", "fast_retransmission", "spurious_retransmission")
VERDICTS = (*RETRANSMISSIONS, "out_of_order", "keep_alive", "duplicate_ack")

DISORDER_COLUMNS = (
    "tcpRetransmittedPacketDeltaCount",
    "tcpRetransmittedOctetDeltaCount",
    "tcpOutOfOrderPacketDeltaCount",
    "tcpOutOfOrderOctetDeltaCount",
)

Conversation = tuple[str, str, str, int, int]
"""VLAN id (or none), source, destination, and ports of one direction."""


def capture_of(case: str) -> Path:
    return PCAPS / case / f"{case}.pcap"


def reverse_of(column: str) -> str:
    return f"reverse{column[0].upper()}{column[1:]}"


def test_every_case_is_whole() -> None:
    made = {script.parent.name for script in PCAPS.glob("*/make.py")}
    captured = {capture.stem for capture in PCAPS.glob("*/*.pcap")}
    described = {
        line.split("`")[1]
        for line in (PCAPS / "README.md").read_text().splitlines()
        if line.startswith("* `")
    }
    assert made == captured == described == set(CASES) != set()


@pytest.mark.parametrize("case", CASES)
def test_records_are_those_worked_out_by_hand(case: str) -> None:
    expected = json.loads((PCAPS / case / "expected.json").read_text())
    records = oracle.flows_of(capture_of(case))
    assert [
        {column: record[column] for column in wanted}
        for record, wanted in zip(records, expected, strict=True)
    ] == expected


@pytest.mark.parametrize("case", CASES)
def test_no_packet_is_counted_twice_or_in_no_direction(case: str) -> None:
    packets = list(oracle.packets_of(capture_of(case)))
    records = oracle.flows_of(capture_of(case))
    for column, total in (
        ("packetDeltaCount", len(packets)),
        ("octetDeltaCount", sum(packet.octets for packet in packets)),
        ("layer2OctetDeltaCount", sum(packet.frame_octets for packet in packets)),
    ):
        assert sum(record[column] + record[reverse_of(column)] for record in records) == total
    for record in records:
        assert record["flowStartNanoseconds"] <= record["flowEndNanoseconds"]
        assert sum(record["packetSizeHistogram"]) == sum(record["ttlHistogram"]) == record["packetDeltaCount"]


# Wireshark


@pytest.fixture(scope="module")
def tshark() -> str:
    found = shutil.which("tshark")
    if found is None:
        if os.environ.get("FLOWMON_REQUIRE_KERNEL") == "1":
            pytest.fail("tshark is not installed (Debian: apt install tshark)")
        pytest.skip("tshark is not installed")
    return found


def fields(tshark: str, capture: Path, display_filter: str, *names: str) -> list[list[str]]:
    """The outermost value of each field of each packet that passes the filter, "" where a packet has none."""
    command = [tshark, "-n", "-r", str(capture), "-Y", display_filter, "-T", "fields", "-E", "occurrence=f"]
    command += ["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"]
    for name in names:
        command += ["-e", name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split("\t") for line in output.splitlines()]


def by_direction(records: list[dict[str, Any]], column: str) -> Counter[Conversation]:
    """A column of TCP and UDP records, for each direction by itself."""
    counts: Counter[Conversation] = Counter()
    for record in records:
        if record["protocolIdentifier"] not in (oracle.TCP, oracle.UDP):
            continue
        vlan = str(record["vlanId"] or "")
        source, destination = record["sourceAddress"], record["destinationAddress"]
        ports = record["sourceTransportPort"], record["destinationTransportPort"]
        counts[vlan, source, destination, *ports] += record[column]
        counts[vlan, destination, source, *ports[::-1]] += record[reverse_of(column)]
    return +counts


def test_pcapng_reads_as_pcap_does(tshark: str, tmp_path: Path) -> None:
    pcap, pcapng = capture_of("udp_one_way"), tmp_path / "same.pcapng"
    subprocess.run(
        [tshark, "-r", str(pcap), "-F", "pcapng", "-w", str(pcapng)], check=True, capture_output=True
    )
    assert pcapng.read_bytes()[:4] != pcap.read_bytes()[:4]
    assert oracle.flows_of(pcapng) == oracle.flows_of(pcap)


@pytest.mark.parametrize("case", [case for case in CASES if case not in MALFORMED_CASES])
def test_packets_and_octets_are_those_of_wireshark(tshark: str, case: str) -> None:
    packets: Counter[Conversation] = Counter()
    octets: Counter[Conversation] = Counter()
    every_octet = 0
    names = ["ip.proto", "vlan.id", "ip.src", "ipv6.src", "ip.dst", "ipv6.dst", "ip.len", "ipv6.plen"]
    names += ["tcp.srcport", "udp.srcport", "tcp.dstport", "udp.dstport", "frame.protocols"]
    for row in fields(tshark, capture_of(case), "ip || ipv6", *names):
        protocol, vlan, source4, source6, destination4, destination6, total, payload = row[:8]
        length = int(total) if total else 40 + int(payload)
        every_octet += length
        inner = row[12]
        if ":icmp" in inner or not (
            ":tcp" in inner or ":udp" in inner or protocol == "17" or "ipv6.fraghdr" in inner
        ):
            continue
        source_port, destination_port = (int(row[at] or row[at + 1] or 0) for at in (8, 10))
        vlan = "" if vlan == "0" else vlan
        direction = vlan, source4 or source6, destination4 or destination6, source_port, destination_port
        packets[direction] += 1
        octets[direction] += length
    records = oracle.flows_of(capture_of(case))
    assert by_direction(records, "packetDeltaCount") == packets
    assert by_direction(records, "octetDeltaCount") == octets
    assert (
        sum(record["octetDeltaCount"] + record["reverseOctetDeltaCount"] for record in records) == every_octet
    )


def analysed(tshark: str, case: str) -> list[dict[str, str]]:
    """Wireshark's verdicts on every TCP segment of a case."""
    names = [f"tcp.analysis.{verdict}" for verdict in VERDICTS]
    rows = fields(tshark, capture_of(case), "tcp", "ip.src", "ipv6.src", "tcp.len", *names)
    return [dict(zip(("ip.src", "ipv6.src", "tcp.len", *VERDICTS), row, strict=True)) for row in rows]


@pytest.mark.parametrize("case", TCP_CASES)
def test_retransmitted_and_out_of_order_are_those_of_wireshark(tshark: str, case: str) -> None:
    # A case has one conversation, so the sender's address tells the direction.
    wireshark: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for segment in analysed(tshark, case):
        counts = wireshark[segment["ip.src"] or segment["ipv6.src"]]
        at = (
            2
            if segment["out_of_order"]
            else 0
            if any(segment[verdict] for verdict in RETRANSMISSIONS)
            else None
        )
        if at is not None:
            counts[at] += 1
            counts[at + 1] += int(segment["tcp.len"])
    (record,) = oracle.flows_of(capture_of(case))
    forward = [record[column] for column in DISORDER_COLUMNS]
    reverse = [record[reverse_of(column)] for column in DISORDER_COLUMNS]
    assert forward == wireshark[record["sourceAddress"]]
    assert reverse == wireshark[record["destinationAddress"]]


def test_the_cases_hold_every_verdict_of_wireshark(tshark: str) -> None:
    segments = [segment for case in TCP_CASES for segment in analysed(tshark, case)]
    seen = {verdict for verdict in VERDICTS if any(segment[verdict] for segment in segments)}
    assert seen == set(VERDICTS)
