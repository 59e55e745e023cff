"""Buffers that are several packets on the wire (GSO, GRO), and what the wire repeats of them."""

import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop, Jumbo
from scapy.layers.l2 import GRE, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from flowmon.kernel.load_options import LoadOptions
from flowmon.kernel.loader import PrivateSet
from kernel.replay import run_super_packet, take_everything

pytestmark = pytest.mark.kernel

OCTETS = 3000  # of payload in one buffer: three segments, the last of 104
SEGMENTS, SEGMENT_SIZE = 3, 1448
LINK = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
IPV4, IPV6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")
DATA = TCP(sport=1000, dport=80, flags="A", options=[("Timestamp", (1, 2))] + [("NOP", None)] * 2) / Raw(
    bytes(OCTETS)
)
TCP_HEADER = 32


@pytest.fixture(scope="module", params=["libbpf", "bcc"])
def loader(kernel, request) -> str:
    return request.param


@pytest.fixture(scope="module")
def loaded(loader) -> Iterator[PrivateSet]:
    source = PrivateSet(LoadOptions(loader=loader))
    yield source
    source.close()


@pytest.fixture(scope="module")
def decapsulating(loader) -> Iterator[PrivateSet]:
    source = PrivateSet(LoadOptions(loader=loader, decap=True))
    yield source
    source.close()


def record_of(source: PrivateSet, packet: Packet, gso_segs: int = SEGMENTS, gso_size: int = SEGMENT_SIZE):
    run_super_packet(source, bytes(packet), gso_segs, gso_size)
    (record,) = take_everything(source)
    return record


def counts(record: dict) -> tuple[int, int, int]:
    return tuple(record[name] for name in ("packetDeltaCount", "octetDeltaCount", "layer2OctetDeltaCount"))


# (segments, segment size) as the buffer says them; (packets, shortest, longest, histogram) as they are on the wire.
SAID = {
    "both given": ((3, 1448), (3, 156, 1500, [0, 1, 0, 0, 2, 0])),
    "segments missing": ((0, 1448), (3, 156, 1500, [0, 1, 0, 0, 2, 0])),
    "size missing": ((3, 0), (3, 1052, 1052, [0, 0, 0, 0, 3, 0])),
    "uneven": ((4, 1448), (4, 802, 802, [0, 0, 0, 4, 0, 0])),
    "neither": ((0, 0), (1, 3052, 3052, [0, 0, 0, 0, 0, 1])),
}


@pytest.mark.parametrize("kind", SAID)
def test_a_super_packet_counts_as_its_segments(loaded, kind):
    (gso_segs, gso_size), (packets, shortest, longest, histogram) = SAID[kind]
    record = record_of(loaded, LINK / IPV4 / DATA, gso_segs, gso_size)
    assert counts(record) == (packets, OCTETS + 52 * packets, OCTETS + 66 * packets)
    assert (record["minimumIpTotalLength"], record["maximumIpTotalLength"]) == (shortest, longest)
    assert record["packetSizeHistogram"] == histogram
    assert sum(record["ttlHistogram"]) == packets


def test_tags_are_repeated(loaded):
    record = record_of(loaded, LINK / Dot1Q(vlan=5) / Dot1Q(vlan=6) / IPV6 / DATA)
    assert counts(record) == (3, OCTETS + 3 * (40 + TCP_HEADER), OCTETS + 3 * (14 + 8 + 40 + TCP_HEADER))
    assert (record["vlanId"], record["dot1qCustomerVlanId"]) == (5, 6)


def test_ipv4_length_beyond_its_field(loaded):
    """BIG TCP: a length of 0, and all of the buffer is the packet."""
    packet = bytearray(bytes(LINK / IPV4 / DATA))
    packet[16:18] = b"\0\0"
    assert counts(record_of(loaded, packet)) == (3, OCTETS + 52 * 3, OCTETS + 66 * 3)


def test_the_jumbo_header_of_big_tcp_is_not_on_the_wire(loaded):
    """Linux puts it into the buffer, and takes it out where it cuts the buffer up (RFC 2675)."""
    length = 8 + TCP_HEADER + OCTETS
    packet = (
        LINK
        / IPv6(src="2001:db8::1", dst="2001:db8::2", plen=0, nh=0)
        / IPv6ExtHdrHopByHop(nh=6, options=[Jumbo(jumboplen=length)])
        / DATA
    )
    record = record_of(loaded, packet)
    assert counts(record) == (3, OCTETS + 3 * (40 + TCP_HEADER), OCTETS + 3 * (54 + TCP_HEADER))
    assert record["minimumIpTotalLength"] == 40 + TCP_HEADER + OCTETS - 2 * SEGMENT_SIZE
    assert record["ipv6ExtensionHeaders"] == 0


def test_a_length_of_zero_is_wrong_for_an_ordinary_packet(loaded):
    packet = bytearray(bytes(LINK / IPV4 / DATA))
    packet[16:18] = b"\0\0"
    run_super_packet(loaded, bytes(packet), 0, 0)
    assert take_everything(loaded) == []


INNER = IP(src="172.16.0.1", dst="172.16.0.2") / DATA
TUNNELS = {
    "gre": (IPV4 / GRE() / INNER, 24),
    "ipip": (IPV4 / INNER, 20),
    "4in6": (IPV6 / INNER, 40),
    "vxlan": (
        IPV4 / UDP(sport=9, dport=4789) / VXLAN(vni=7, flags="Instance") / LINK / INNER,
        20 + 8 + 8 + 14,
    ),
}


@pytest.mark.parametrize("kind", TUNNELS)
def test_a_tunnel_repeats_its_headers_and_those_inside(loaded, kind):
    """The flow is the outer one: each segment has all headers, outside and inside."""
    packet, around = TUNNELS[kind]
    record = record_of(loaded, LINK / packet)
    inner = OCTETS + 3 * 52
    assert counts(record) == (3, inner + 3 * around, inner + 3 * (around + 14))
    assert record["tunnelType"] is None
    assert record["maximumIpTotalLength"] == around + 1500


@pytest.mark.parametrize("kind", TUNNELS)
def test_inside_a_tunnel_ip_octets_are_those_inside(decapsulating, kind):
    packet, around = TUNNELS[kind]
    record = record_of(decapsulating, LINK / packet)
    inner = OCTETS + 3 * 52
    assert counts(record) == (3, inner, inner + 3 * (around + 14))
    assert (record["sourceAddress"], record["tunnelType"]) == ("172.16.0.1", kind)
    assert record["maximumIpTotalLength"] == 1500


def test_what_only_looks_like_a_tunnel_repeats_what_is_known(loaded):
    """A datagram to VXLAN's port that holds none."""
    packet = LINK / IPV4 / UDP(sport=9, dport=4789) / Raw(struct.pack("!II", 0, 0) + bytes(OCTETS - 8))
    record = record_of(loaded, packet)
    assert counts(record) == (3, OCTETS + 3 * 28, OCTETS + 3 * 42)
