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

import craft
import oracle

PCAPS = Path(__file__).parent / "pcaps"
CASES = sorted(expected.parent.name for expected in PCAPS.glob("*/expected.json"))
TUNNEL_CASES = sorted(expected.parent.name for expected in PCAPS.glob("*/expected_decap.json"))
TCP_CASES = [case for case in CASES if case.startswith("tcp_")]

COUNTED_BY_WIRESHARK_ONLY = {
    "ah_ipv4": "a truncated header",
    "dccp": "a truncated header",
    "esp_both_directions": "a truncated header",
    "ipv6_jumbogram": "a jumbogram that is not wholly there; the payload length of one that is, is 0",
    "ipv6_payload_length_zero": "it takes a payload length of 0 for the length",
    "ipv6_sixteen_extension_headers": "more headers than the program walks",
    "link_type_raw_ip": "a version that is neither",
    "llc_snap": "a tag behind SNAP, and another organization's EtherType",
    "malformed_frames": "it counts what it can",
    "malformed_ip_lengths": "it counts what it can",
    "malformed_tcp_data_offset": "it counts what it can",
    "malformed_truncated_headers": "it counts what it can",
    "mpls_labels": "more labels than the program walks",
    "sctp": "a truncated header",
    "snap_length_cuts": "it counts what it can",
    "udp_lite": "a truncated header",
    "vlan_three_tags": "more tags than the program walks",
}
"""What Wireshark counts, or counts otherwise, of cases that have frames which belong to no record."""
CASES_WITH_FRAGMENTS = [case for case in CASES if "fragments" in case] + ["ipv6_extension_headers"]
"""Wireshark says nothing of the ports of a later fragment."""
WHOLLY_DECAPSULATED = (
    "tunnel_4in6",
    "tunnel_6in4",
    "tunnel_6in6",
    "tunnel_gre",
    "tunnel_ip6gre",
    "tunnel_ipip",
)

IGNORED = {
    "arp_only": {"not_ip": 2},
    "ah_ipv4": {"truncated": 1},
    "dccp": {"truncated": 1},
    "esp_both_directions": {"truncated": 1},
    "ipv6_jumbogram": {"bad_ip_header": 1},
    "ipv6_payload_length_zero": {"truncated": 1},
    "ipv6_sixteen_extension_headers": {"too_many_headers": 2},
    "link_type_cisco_hdlc": {"not_ip": 1},
    "link_type_linux_cooked_2": {"not_ip": 1},
    "link_type_loop": {"not_ip": 1},
    "link_type_null_little_endian": {"not_ip": 1},
    "link_type_ppp": {"not_ip": 1},
    "link_type_raw_ip": {"not_ip": 1},
    "llc_snap": {"not_ip": 3},
    "malformed_frames": {"bad_ip_header": 3, "truncated": 1},
    "malformed_ip_lengths": {"bad_ip_header": 9},
    "malformed_tcp_data_offset": {"bad_transport_header": 7},
    "malformed_truncated_headers": {"truncated": 15},
    "mpls_labels": {"too_many_headers": 1, "not_ip": 1},
    "pppoe": {"not_ip": 1},
    "sctp": {"truncated": 1},
    "snap_length_cuts": {"truncated": 4},
    "udp_lite": {"truncated": 1},
    "vlan_three_tags": {"too_many_headers": 1},
}
"""Of each case, how many frames belong to no record, and why; of those not named, none."""
ORPHAN_FRAGMENTS = {
    "ipv4_fragments_first_missing": 3,
    "ipv4_fragments_identification_reused": 1,
    "ipv4_fragments_later_first": 1,
    "ipv6_fragments_first_missing": 2,
    "tunnel_inside_malformed": 1,
}

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
    (capture,) = (PCAPS / case).glob(f"{case}.pcap*")
    return capture


def reverse_of(column: str) -> str:
    return f"reverse{column[0].upper()}{column[1:]}"


def test_every_case_is_whole() -> None:
    made = {script.parent.name for script in PCAPS.glob("*/make.py")}
    captured = {capture.stem for capture in PCAPS.glob("*/*.pcap*")}
    described = {
        line.split("`")[1]
        for line in (PCAPS / "README.md").read_text().splitlines()
        if line.startswith("* `")
    }
    assert made == captured == described == set(CASES) != set()


def in_columns_of(expected: list[dict[str, Any]], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each record, the columns that the expected one has."""
    assert len(records) == len(expected)
    return [
        {column: record[column] for column in wanted}
        for record, wanted in zip(records, expected, strict=True)
    ]


@pytest.mark.parametrize("case", CASES)
def test_records_are_those_worked_out_by_hand(case: str) -> None:
    expected = json.loads((PCAPS / case / "expected.json").read_text())
    assert in_columns_of(expected, oracle.flows_of(capture_of(case))) == expected


@pytest.mark.parametrize("case", TUNNEL_CASES)
def test_records_of_what_is_in_tunnels_are_those_worked_out_by_hand(case: str) -> None:
    expected = json.loads((PCAPS / case / "expected_decap.json").read_text())
    assert in_columns_of(expected, oracle.flows_of(capture_of(case), decap=True)) == expected


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


@pytest.mark.parametrize("case", CASES)
def test_what_belongs_to_no_record_is_counted_by_reason(case: str) -> None:
    found = oracle.ignored_of(capture_of(case))
    assert {reason: count for reason, count in found.items() if count} == IGNORED.get(case, {})
    assert sum(found.values()) + len(list(oracle.packets_of(capture_of(case)))) == len(
        list(oracle.frames_of(capture_of(case)))
    )


@pytest.mark.parametrize("case", CASES)
def test_later_fragments_without_a_first_are_counted(case: str) -> None:
    assert oracle.orphan_fragments_of(capture_of(case)) == ORPHAN_FRAGMENTS.get(case, 0)


@pytest.mark.parametrize("case", TUNNEL_CASES)
def test_taking_tunnels_off_loses_no_packet(case: str) -> None:
    """What is inside replaces what is around it; the frame stays the same."""
    outside, inside = (list(oracle.packets_of(capture_of(case), decap=decap)) for decap in (False, True))
    assert [(packet.time, packet.frame_octets) for packet in inside] == [
        (packet.time, packet.frame_octets) for packet in outside
    ]
    assert all(after.octets <= before.octets for before, after in zip(outside, inside, strict=True))


# Rules with a border, each side of it


def written(tmp_path: Path, *frames: craft.Frame, link_type: int = 1) -> Path:
    capture = tmp_path / "written.pcap"
    capture.write_bytes(craft.pcap(frames, link_type))
    return capture


@pytest.mark.parametrize("link_type", [12, 14, 101, 228])
def test_raw_ip_has_several_link_types(tmp_path: Path, link_type: int) -> None:
    capture = written(tmp_path, craft.framed(0, craft.request()), link_type=link_type)
    (record,) = oracle.flows_of(capture)
    assert (record["octetDeltaCount"], record["layer2OctetDeltaCount"]) == (58, 58)


@pytest.mark.parametrize(("link_type", "ignored"), [(228, "bad_ip_header"), (229, None)])
def test_raw_ip_of_one_version_only(tmp_path: Path, link_type: int, ignored: str | None) -> None:
    capture = written(tmp_path, craft.framed(0, craft.request6()), link_type=link_type)
    assert [reason for reason, count in oracle.ignored_of(capture).items() if count] == (
        [ignored] if ignored else []
    )


def test_unknown_link_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="127"):
        oracle.flows_of(written(tmp_path, craft.framed(0, craft.request()), link_type=127))


@pytest.mark.parametrize(("milliseconds", "packets"), [(30_000, [2]), (30_000.000_001, [1, 1])])
def test_a_first_fragment_is_remembered_for_30_s(
    tmp_path: Path, milliseconds: float, packets: list[int]
) -> None:
    first, later = craft.fragments(craft.request(132, id=99), [64, 76])
    capture = written(tmp_path, craft.frame(0, first), craft.frame(milliseconds, later))
    assert [record["packetDeltaCount"] for record in oracle.flows_of(capture)] == packets


def test_a_whole_packet_with_a_fragment_header_is_not_remembered(tmp_path: Path) -> None:
    """RFC 6946: an atomic fragment has nothing to do with others of its identification."""
    datagram = bytes(craft.request6())[40:]
    ends = craft.CLIENT6, craft.SERVER6
    atomic, later = (
        craft.raw_ipv6(*ends, 44, bytes([17, 0, 0, offset, 0, 0, 0, 99]) + datagram) for offset in (0, 8)
    )
    capture = written(tmp_path, craft.frame(0, atomic), craft.frame(1, later))
    assert [record["sourceTransportPort"] for record in oracle.flows_of(capture)] == [5000, 0]


def test_fragments_of_two_hosts_are_told_apart(tmp_path: Path) -> None:
    cuts = [
        craft.fragments(craft.udp(source, craft.SERVER, port, 9, 132, id=99), [64, 76])
        for source, port in ((craft.CLIENT, 5000), ("192.0.2.3", 6000))
    ]
    order = [cuts[0][0], cuts[1][0], cuts[0][1], cuts[1][1]]
    capture = written(tmp_path, *(craft.frame(at, packet) for at, packet in enumerate(order)))
    records = oracle.flows_of(capture)
    assert [(record["sourceTransportPort"], record["packetDeltaCount"]) for record in records] == [
        (5000, 2),
        (6000, 2),
    ]


@pytest.mark.parametrize(("length", "record_or_reason"), [(0x05FF, "llc"), (0x0600, "not_ip")])
def test_ethertypes_begin_at_1536(tmp_path: Path, length: int, record_or_reason: str) -> None:
    snap = bytes.fromhex("aaaa030000000800")
    capture = written(tmp_path, craft.framed(0, craft.ethernet(length), snap, craft.request()))
    assert len(oracle.flows_of(capture)) == (record_or_reason == "llc")
    assert oracle.ignored_of(capture)["not_ip"] == (record_or_reason == "not_ip")


@pytest.mark.parametrize(
    ("ports", "is_tunnel"),
    [((49152, 4789), True), ((4789, 49152), False), ((49152, 8472), True), ((49152, 6081), False)],
)
def test_a_udp_tunnel_is_told_by_its_destination_port(
    tmp_path: Path, ports: tuple[int, int], is_tunnel: bool
) -> None:
    inside = bytes(craft.vxlan(7)) + craft.ethernet(craft.IPV4) + bytes(craft.request())
    packet = craft.udp(craft.NEAR, craft.FAR, *ports, 0) / inside
    (record,) = oracle.flows_of(written(tmp_path, craft.frame(0, packet)), decap=True)
    assert record["tunnelType"] == ("vxlan" if is_tunnel else None)
    assert record["sourceAddress"] == (craft.CLIENT if is_tunnel else craft.NEAR)


# Wireshark


@pytest.fixture(scope="module")
def tshark() -> str:
    found = shutil.which("tshark")
    if found is None:
        if os.environ.get("FLOWMON_REQUIRE_KERNEL") == "1":
            pytest.fail("tshark is not installed (Debian: apt install tshark)")
        pytest.skip("tshark is not installed")
    return found


def fields(
    tshark: str, capture: Path, display_filter: str, *names: str, occurrence: str = "f"
) -> list[list[str]]:
    """One value of each field of each packet that passes the filter, "" where a packet has none.

    ``occurrence``: f for the outermost value, l for the innermost.
    """
    command = [tshark, "-n", "-r", str(capture), "-Y", display_filter, "-T", "fields"]
    command += ["-E", f"occurrence={occurrence}"]
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


def outer_vlan(protocols: str, dot1q: str, dot1ad: str) -> str:
    """The VLAN id of the outermost tag, "" for none; tags of 802.1ad have a field of their own."""
    kinds = [kind for kind in protocols.split(":") if kind in ("vlan", "ieee8021ad")]
    vlan = dot1ad if kinds[:1] == ["ieee8021ad"] else dot1q
    return "" if vlan == "0" else vlan


def ip_and_transport(protocols: list[str], *, innermost: bool) -> tuple[str, str]:
    """Of Wireshark's protocols of a packet, the outermost or innermost IP and what is behind its headers."""
    at = [number for number, name in enumerate(protocols) if name in ("ip", "ipv6")][-1 if innermost else 0]
    behind = [name for name in protocols[at + 1 :] if name != "ah" and not name.startswith("ipv6.")]
    return protocols[at], behind[0] if behind else ""


def conversations(
    tshark: str, capture: Path, *, innermost: bool = False
) -> tuple[Counter[Conversation], Counter[Conversation], int]:
    """Packets and IP octets of each direction over TCP and UDP, and the IP octets of all packets."""
    packets: Counter[Conversation] = Counter()
    octets: Counter[Conversation] = Counter()
    every_octet = 0
    names = ["frame.protocols", "vlan.id", "ieee8021ad.id", "ip.src", "ip.dst", "ip.len"]
    names += ["ipv6.src", "ipv6.dst", "ipv6.plen"]
    names += ["tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport"]
    occurrence = "l" if innermost else "f"
    for row in fields(tshark, capture, "ip || ipv6", *names, occurrence=occurrence):
        network, transport = ip_and_transport(row[0].split(":"), innermost=innermost)
        source, destination, length = row[3:6] if network == "ip" else row[6:9]
        total = int(length) + (0 if network == "ip" else 40)
        every_octet += total
        if transport not in ("tcp", "udp"):
            continue
        ports = row[9:11] if transport == "tcp" else row[11:13]
        source_port, destination_port = (int(port or 0) for port in ports)  # "": cut off by the snap length
        direction = outer_vlan(*row[:3]), source, destination, source_port, destination_port
        packets[direction] += 1
        octets[direction] += total
    return packets, octets, every_octet


def every_octet_of(records: list[dict[str, Any]]) -> int:
    return sum(record["octetDeltaCount"] + record["reverseOctetDeltaCount"] for record in records)


@pytest.mark.parametrize("case", [case for case in CASES if case not in COUNTED_BY_WIRESHARK_ONLY])
def test_packets_and_octets_are_those_of_wireshark(tshark: str, case: str) -> None:
    packets, octets, every_octet = conversations(tshark, capture_of(case))
    records = oracle.flows_of(capture_of(case))
    assert every_octet_of(records) == every_octet
    if case not in CASES_WITH_FRAGMENTS:
        assert by_direction(records, "packetDeltaCount") == packets
        assert by_direction(records, "octetDeltaCount") == octets


@pytest.mark.parametrize("case", WHOLLY_DECAPSULATED)
def test_packets_and_octets_in_tunnels_are_those_of_wireshark(tshark: str, case: str) -> None:
    packets, octets, every_octet = conversations(tshark, capture_of(case), innermost=True)
    records = oracle.flows_of(capture_of(case), decap=True)
    assert every_octet_of(records) == every_octet
    assert by_direction(records, "packetDeltaCount") == packets
    assert by_direction(records, "octetDeltaCount") == octets


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
