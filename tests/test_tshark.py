"""The reading by tshark, against frames written by hand and against the oracle."""

import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import craft
import fuzz
import oracle
import tshark
from tshark import Fragment, Verdict

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")

PROJECT = Path(__file__).parent.parent
PCAPS = Path(__file__).parent / "pcaps"
HIDDEN_LENGTHS = {"link_type_ppp_compressed"}

LINK = bytes.fromhex("020000000002020000000001")
UDP = struct.pack("!HHHH", 5000, 9, 8, 0)
TCP = struct.pack("!HHIIHHHH", 40000, 443, 1, 1, 0x5010, 502, 0, 0)
FLOW = ("192.0.2.1", "198.51.100.2", 5000, 9, 17)
FLOW6 = ("2001:db8::1", "2001:db8::2", 5000, 9, 17)


def ipv4(payload: bytes, protocol: int = 17, fragment: int = 0, options: bytes = b"", **fields: int) -> bytes:
    """An IPv4 packet; ``fields`` are ``total`` and ``ihl``, where they are to lie."""
    words = fields.get("ihl", 5 + len(options) // 4)
    total = fields.get("total", 20 + len(options) + len(payload))
    header = struct.pack("!BBHHHBBH", 0x40 | words, 0, total, 7, fragment, 64, protocol, 0)
    return header + bytes([192, 0, 2, 1, 198, 51, 100, 2]) + options + payload


def ipv6(payload: bytes, protocol: int = 17, length: int | None = None) -> bytes:
    length = len(payload) if length is None else length
    addresses = bytes.fromhex("20010db8" + "00" * 11 + "01" + "20010db8" + "00" * 11 + "02")
    return struct.pack("!IHBB", 6 << 28, length, protocol, 64) + addresses + payload


def read(tmp_path: Path, *frames: bytes, wire_octets: int | None = None) -> list[tshark.Seen | None]:
    path = tmp_path / "made.pcap"
    craft.write_pcap(
        path, [craft.Frame(craft.START_NS + at, frame, wire_octets) for at, frame in enumerate(frames)]
    )
    return tshark.packets(path)


def verdict(seen: tshark.Seen | None) -> Verdict:
    return Verdict.NOT_IP if seen is None else seen.verdict


LINKS = {
    "ethernet": "0800",
    "tag": "8100 0005 0800",
    "four tags": "88a8 0005 88a8 0006 8100 0007 9100 0008 0800",
    "snap": "0024 aaaa03000000 0800",
    "snap behind a provider tag": "88a8 0005 0024 aaaa03000000 0800",
    "mpls": "8847 00010040 00011140",
    "mpls in snap": "002c aaaa03000000 8847 00010040 00011140",
    "explicit null label": "8847 00000140",
    "pppoe": "8864 11000001001e 0021",
    "pppoe behind a tag": "8100 0005 8864 11000001001e 0021",
}


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
def test_link_layers_lead_to_ip(tmp_path, link):
    (seen,) = read(tmp_path, LINK + bytes.fromhex(link) + ipv4(UDP))
    assert verdict(seen) is Verdict.COUNTED
    assert seen.five_tuple == FLOW
    assert seen.network.octets == 28


REFUSED_LINKS = {
    "arp": ("0806", Verdict.NOT_IP),
    "five tags": ("8100 0001 8100 0002 8100 0003 8100 0004 8100 0005 0800", Verdict.TOO_MANY_HEADERS),
    "nine labels": ("8847" + "00010040" * 8 + "00010140 0800", Verdict.TOO_MANY_HEADERS),
    "spanning tree": ("0026 424203", Verdict.NOT_IP),
    "snap of another organisation": ("0024 aaaa030000f8 0800", Verdict.NOT_IP),
    "tag in snap": ("0028 aaaa03000000 8100 0005 0800", Verdict.NOT_IP),
    "ppp lcp": ("8864 11000001001e c021", Verdict.NOT_IP),
    "snap cut by its length": ("0001 aaaa03000000 0800", Verdict.UNDECIDED),
    "a length to us, no EtherType to 802.3": ("05df aaaa03000000 0800", Verdict.UNDECIDED),
}


@pytest.mark.parametrize(("link", "wanted"), REFUSED_LINKS.values(), ids=REFUSED_LINKS.keys())
def test_link_layers_lead_nowhere(tmp_path, link, wanted):
    (seen,) = read(tmp_path, LINK + bytes.fromhex(link) + ipv4(UDP))
    assert verdict(seen) is wanted


REFUSED_IPV4 = {
    "header length 4": (ipv4(UDP, ihl=4), Verdict.BAD_IP_HEADER),
    "header beyond the packet": (ipv4(UDP, ihl=8), Verdict.BAD_IP_HEADER),
    "shorter than its header": (ipv4(UDP, total=19), Verdict.BAD_IP_HEADER),
    "longer than the frame": (ipv4(UDP, total=29), Verdict.BAD_IP_HEADER),
    "IPv6 under the EtherType of IPv4": (ipv6(UDP), Verdict.BAD_IP_HEADER),
    "cut in the header": (ipv4(UDP)[:19], Verdict.TRUNCATED),
    "cut in the UDP header": (ipv4(UDP[:7]), Verdict.TRUNCATED),
    "TCP data offset 4": (ipv4(TCP[:12] + b"\x40" + TCP[13:], 6), Verdict.BAD_TRANSPORT_HEADER),
    "TCP header beyond the packet": (ipv4(TCP[:12] + b"\x60" + TCP[13:], 6), Verdict.BAD_TRANSPORT_HEADER),
    "AH too short": (ipv4(bytes(11), 51), Verdict.TRUNCATED),
    "ESP too short": (ipv4(bytes(7), 50), Verdict.TRUNCATED),
    "ICMP too short": (ipv4(bytes(3), 1), Verdict.TRUNCATED),
    "SCTP too short": (ipv4(bytes(11), 132), Verdict.TRUNCATED),
    "DCCP too short": (ipv4(bytes(11), 33), Verdict.TRUNCATED),
}


@pytest.mark.parametrize(("packet", "wanted"), REFUSED_IPV4.values(), ids=REFUSED_IPV4.keys())
def test_ipv4_is_refused(tmp_path, packet, wanted):
    (seen,) = read(tmp_path, LINK + b"\x08\x00" + packet)
    assert verdict(seen) is wanted


ICMP_ERROR = bytes([3, 3, 0, 0, 0, 0, 0, 0]) + ipv4(TCP, 6)
PORTLESS = {
    "icmp error quoting tcp": (ICMP_ERROR, 1),
    "4 in 4": (ipv4(UDP), 4),
    "6 in 4": (ipv6(UDP), 41),
    "gre": (b"\0\0\x08\0" + ipv4(UDP), 47),
    "authentication header": (bytes([17, 2]) + bytes(10) + UDP, 51),
    "esp": (bytes(8), 50),
    "unknown": (b"", 253),
}


@pytest.mark.parametrize(("payload", "protocol"), PORTLESS.values(), ids=PORTLESS.keys())
def test_only_the_outermost_packet_counts(tmp_path, payload, protocol):
    (seen,) = read(tmp_path, LINK + b"\x08\x00" + ipv4(payload, protocol))
    assert seen.five_tuple == (*FLOW[:2], 0, 0, protocol)
    assert seen.network.octets == 20 + len(payload)


@pytest.mark.parametrize("protocol", [17, 33, 132, 136])
def test_transports_have_ports(tmp_path, protocol):
    (seen,) = read(tmp_path, LINK + b"\x08\x00" + ipv4(UDP + bytes(12), protocol))
    assert seen.five_tuple == (*FLOW[:4], protocol)


def test_total_length_zero_is_all_there_is(tmp_path):
    (seen,) = read(tmp_path, LINK + b"\x08\x00" + ipv4(UDP + bytes(100), total=0))
    assert seen.network.octets == 128


def test_padding_is_not_counted(tmp_path):
    (seen,) = read(tmp_path, (LINK + b"\x08\x00" + ipv4(UDP)).ljust(60, b"\0"))
    assert seen.network.octets == 28


def test_source_route_leaves_the_destination(tmp_path):
    route = bytes([131, 7, 4, 203, 0, 113, 9, 0])
    (seen,) = read(tmp_path, LINK + b"\x08\x00" + ipv4(UDP, options=route))
    assert seen.five_tuple == FLOW


def test_a_header_cut_by_the_snap_length_keeps_its_ports(tmp_path):
    whole = LINK + b"\x08\x00" + ipv4(TCP, 6)
    (seen,) = read(tmp_path, whole[:40], wire_octets=len(whole))
    assert seen.five_tuple == (*FLOW[:2], 40000, 443, 6)
    (seen,) = read(tmp_path, whole[:36], wire_octets=len(whole))
    assert seen.five_tuple == (*FLOW[:2], 0, 0, 6)


def test_later_fragments_have_the_ports_of_the_first(tmp_path):
    first, later = (LINK + b"\x08\x00" + ipv4(UDP, fragment=bits) for bits in (0x2000, 0x0001))
    seen = read(tmp_path, later, first, later)
    assert [each.ports for each in seen] == [(0, 0), (5000, 9), (5000, 9)]
    assert [each.network.fragment for each in seen] == [Fragment.LATER, Fragment.FIRST, Fragment.LATER]


def test_a_first_fragment_is_forgotten(tmp_path):
    first, later = (LINK + b"\x08\x00" + ipv4(UDP, fragment=bits) for bits in (0x2000, 0x0001))
    start, end = craft.START_NS, craft.START_NS + tshark.FRAGMENT_LIFETIME_NS
    path = tmp_path / "made.pcap"
    craft.write_pcap(path, [craft.Frame(start, first), craft.Frame(end, later), craft.Frame(end + 1, later)])
    assert [each.ports for each in tshark.packets(path)] == [(5000, 9), (5000, 9), (0, 0)]


def option_header(following: int) -> bytes:
    return bytes([following, 0, 1, 4, 0, 0, 0, 0])


EXTENDED = {
    "none": (17, b""),
    "hop-by-hop and destination": (0, option_header(60) + option_header(17)),
    "routing": (43, bytes([17, 0, 253, 0, 0, 0, 0, 0])),
    "authentication": (51, bytes([17, 2]) + bytes(14)),
    "atomic fragment": (44, bytes([17, 0, 0, 0, 0, 0, 0, 9])),
    "first fragment": (44, bytes([17, 0, 0, 1, 0, 0, 0, 9])),
    "sixteen": (60, option_header(60) * 15 + option_header(17)),
}


@pytest.mark.parametrize(("protocol", "headers"), EXTENDED.values(), ids=EXTENDED.keys())
def test_extension_headers_are_walked(tmp_path, protocol, headers):
    (seen,) = read(tmp_path, LINK + b"\x86\xdd" + ipv6(headers + UDP, protocol))
    assert seen.five_tuple == FLOW6
    assert seen.network.headers == 40 + len(headers)


def test_later_fragments_belong_to_what_follows_the_extension_headers(tmp_path):
    """The fragment header names destination options, in the later fragment as in the first; UDP is behind them."""
    first = bytes([60, 0, 0, 1, 0, 0, 0, 9]) + option_header(17) + UDP
    later = bytes([60, 0, 0, 16, 0, 0, 0, 9]) + bytes(16)
    frames = [LINK + b"\x86\xdd" + ipv6(payload, 44) for payload in (later, first, later)]
    assert [each.five_tuple for each in read(tmp_path, *frames)] == [(*FLOW6[:2], 0, 0, 60), FLOW6, FLOW6]


REFUSED_IPV6 = {
    "longer than the frame": (ipv6(UDP, length=9), Verdict.BAD_IP_HEADER),
    "version 4": (b"\x45" + ipv6(UDP)[1:], Verdict.BAD_IP_HEADER),
    "extension beyond the packet": (ipv6(bytes([17, 3]) + bytes(6) + UDP, 60), Verdict.BAD_IP_HEADER),
    "extension cut": (ipv6(bytes(7), 60), Verdict.TRUNCATED),
    "seventeen": (ipv6(option_header(60) * 16 + option_header(17) + UDP, 60), Verdict.TOO_MANY_HEADERS),
    "jumbo within the frame": (
        ipv6(bytes([17, 0, 0xC2, 4, 0, 0, 0, 16]) + UDP, 0, length=0),
        Verdict.UNDECIDED,
    ),
}


@pytest.mark.parametrize(("packet", "wanted"), REFUSED_IPV6.values(), ids=REFUSED_IPV6.keys())
def test_ipv6_is_refused(tmp_path, packet, wanted):
    (seen,) = read(tmp_path, LINK + b"\x86\xdd" + packet)
    assert verdict(seen) is wanted


def test_payload_behind_no_next_header(tmp_path):
    (seen,) = read(tmp_path, LINK + b"\x86\xdd" + ipv6(b"", 59) + bytes(6))
    assert seen.network.octets == 40
    assert seen.network.protocol == 59


def oracle_flows(capture: Path) -> dict[tshark.FiveTuple, tuple[int, int]]:
    """Packets and IP octets of every directed flow in the oracle's records."""
    packets: Counter[tshark.FiveTuple] = Counter()
    octets: Counter[tshark.FiveTuple] = Counter()
    for record in oracle.flows_of(capture):
        source, destination = record["sourceAddress"], record["destinationAddress"]
        ports = record["sourceTransportPort"], record["destinationTransportPort"]
        protocol = record["protocolIdentifier"]
        forward, reverse = (
            (source, destination, *ports, protocol),
            (destination, source, *ports[::-1], protocol),
        )
        packets[forward] += record["packetDeltaCount"]
        octets[forward] += record["octetDeltaCount"]
        packets[reverse] += record["reversePacketDeltaCount"]
        octets[reverse] += record["reverseOctetDeltaCount"]
    return {flow: (packets[flow], octets[flow]) for flow in packets if packets[flow]}


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PCAPS.glob("*/*.pcap")) if path.stem not in HIDDEN_LENGTHS],
    ids=lambda path: path.stem,
)
def test_agrees_with_the_oracle(path):
    read = tshark.expected(path)
    assert read.undecided == []
    assert {flow: (number, read.octets[flow]) for flow, number in read.packets.items()} == oracle_flows(path)


def test_every_frame_of_a_mutated_batch_is_accounted_for(tmp_path):
    batch = list(fuzz.frames(6, fuzz.corpus_of(PCAPS), 20_000))
    fuzz.write_pcap(tmp_path / "batch.pcap", batch)
    read = tshark.expected(tmp_path / "batch.pcap")
    assert read.packets.total() + read.ignored.total() + len(read.undecided) == len(batch)
    assert len(read.undecided) < 0.02 * len(
        batch
    )  # below 0.01 when this was written; new captures may bring more


def test_no_capture_is_refused(tmp_path):
    (tmp_path / "not.pcap").write_text("version https://example.org/\n")
    with pytest.raises(tshark.RefusedError, match=r"not\.pcap"):
        tshark.expected(tmp_path / "not.pcap")


# scripts/compare_with_tshark.py, with something else in flowmon's place

ORACLE = """
import json, sys
sys.path.insert(0, {tests!r})
import oracle
try:
    records = oracle.flows_of(sys.argv[2])
except Exception:
    sys.exit("no capture")
for record in records:
    record["packetDeltaCount"] += {more}
    print(json.dumps(record))
"""


def compare(tmp_path: Path, more: int, *captures: Path) -> subprocess.CompletedProcess[str]:
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(ORACLE.format(tests=str(Path(__file__).parent), more=more))
    script = PROJECT / "scripts" / "compare_with_tshark.py"
    command = [sys.executable, script, "--flowmon", f"{sys.executable} {stand_in}", *captures]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_comparison_agrees(tmp_path):
    (tmp_path / "not.pcap").write_text("version https://example.org/\n")
    done = compare(tmp_path, 0, PCAPS / "tcp_open_data_close", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second, last = done.stdout.splitlines()
    assert first.startswith("tcp_open_data_close.pcap: OK 2 flows")
    assert second == "not.pcap: OK no capture: no capture"
    assert last.startswith("2 captures, 0 differ")


def test_comparison_names_what_differs(tmp_path):
    done = compare(tmp_path, 1, PCAPS / "udp_request_reply")
    assert done.returncode == 1
    assert done.stdout.startswith("udp_request_reply.pcap: DIFFERS in ")
    assert "tshark 1 packets" in done.stdout or "tshark 2 packets" in done.stdout


def test_comparison_leaves_out_what_is_undecided(tmp_path):
    jumbo = REFUSED_IPV6["jumbo within the frame"][0]
    path = tmp_path / "mixed.pcap"
    frames = [LINK + b"\x86\xdd" + packet for packet in (ipv6(UDP), jumbo, ipv6(UDP))]
    craft.write_pcap(path, [craft.Frame(craft.START_NS + at, frame) for at, frame in enumerate(frames)])
    done = compare(tmp_path, 0, path)
    assert done.stdout.startswith("mixed.pcap: OK 1 flows 2 packets, 1 left out")
