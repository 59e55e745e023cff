"""Link headers of every type that can be read, and what is no IP."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmon.captures.link_types import LINK_TYPES, to_ethernet

IPV4, IPV6, ARP, VLAN, MPLS, MPLS_MULTICAST, PPPOE = 0x0800, 0x86DD, 0x0806, 0x8100, 0x8847, 0x8848, 0x8864
PACKET_V4 = bytes([0x45]) + bytes(19)
PACKET_V6 = bytes([0x60]) + bytes(39)


def cooked(protocol: int, device: int = 1) -> bytes:
    """Packet type, ARPHRD, address length, address, protocol."""
    return (
        b"\x00\x00"
        + device.to_bytes(2, "big")
        + b"\x00\x06"
        + b"\x02" * 8
        + protocol.to_bytes(2, "big")
        + PACKET_V4
    )


def cooked_v2(protocol: int, device: int = 1) -> bytes:
    """Protocol, reserved, interface, ARPHRD, packet type, address length, address."""
    head = protocol.to_bytes(2, "big") + b"\x00\x00" + b"\x00\x00\x00\x07" + device.to_bytes(2, "big")
    return head + b"\x00\x06" + b"\x02" * 8 + PACKET_V4


@pytest.mark.parametrize(
    ("link_type", "data", "expected"),
    [
        pytest.param(1, bytes(12) + b"\x08\x00" + PACKET_V4, (IPV4, 14), id="ethernet"),
        pytest.param(1, bytes(12) + b"\x00\x26" + PACKET_V4, (0x26, 14), id="ethernet-length"),
        *[pytest.param(raw, PACKET_V4, (IPV4, 0), id=f"raw-{raw}-ipv4") for raw in (12, 14, 101)],
        *[pytest.param(raw, PACKET_V6, (IPV6, 0), id=f"raw-{raw}-ipv6") for raw in (12, 14, 101)],
        pytest.param(12, b"\x50" + bytes(30), None, id="raw-version-5"),
        pytest.param(12, b"", None, id="raw-empty"),
        pytest.param(228, PACKET_V4, (IPV4, 0), id="ipv4"),
        pytest.param(229, PACKET_V6, (IPV6, 0), id="ipv6"),
        pytest.param(113, cooked(IPV4), (IPV4, 16), id="cooked-ether"),
        pytest.param(113, cooked(IPV6, 772), (IPV6, 16), id="cooked-loopback"),
        pytest.param(113, cooked(IPV4, 65534), (IPV4, 16), id="cooked-no-device"),
        pytest.param(113, cooked(IPV4, 778), (IPV4, 16), id="cooked-gre"),
        pytest.param(113, cooked(VLAN), (VLAN, 16), id="cooked-tag"),
        pytest.param(113, cooked(ARP), (ARP, 16), id="cooked-arp"),
        pytest.param(113, cooked(0x0004), None, id="cooked-llc"),
        pytest.param(113, cooked(0x05FF), None, id="cooked-no-ethertype"),
        pytest.param(113, cooked(0x0600), (0x0600, 16), id="cooked-lowest-ethertype"),
        pytest.param(113, cooked(IPV4, 824), None, id="cooked-netlink"),
        pytest.param(113, cooked(IPV4, 803), None, id="cooked-radiotap"),
        pytest.param(113, cooked(IPV4)[:15], None, id="cooked-cut"),
        pytest.param(276, cooked_v2(IPV4), (IPV4, 20), id="cooked-v2-ether"),
        pytest.param(276, cooked_v2(IPV6, 772), (IPV6, 20), id="cooked-v2-loopback"),
        pytest.param(276, cooked_v2(VLAN), (VLAN, 20), id="cooked-v2-tag"),
        pytest.param(276, cooked_v2(0x000C), None, id="cooked-v2-can"),
        pytest.param(276, cooked_v2(IPV4, 824), None, id="cooked-v2-netlink"),
        pytest.param(276, cooked_v2(IPV4)[:19], None, id="cooked-v2-cut"),
        pytest.param(0, b"\x02\0\0\0" + PACKET_V4, (IPV4, 4), id="null-little"),
        pytest.param(0, b"\0\0\0\x02" + PACKET_V4, (IPV4, 4), id="null-big"),
        *[pytest.param(0, bytes([f, 0, 0, 0]), (IPV6, 4), id=f"null-{f}") for f in (10, 24, 28, 30)],
        *[pytest.param(0, bytes([0, 0, 0, f]), (IPV6, 4), id=f"null-big-{f}") for f in (10, 24, 28, 30)],
        pytest.param(0, b"\x07\0\0\0", None, id="null-osi"),
        pytest.param(0, b"\x02\0\0", None, id="null-cut"),
        pytest.param(108, b"\0\0\0\x02" + PACKET_V4, (IPV4, 4), id="loop"),
        pytest.param(108, b"\0\0\0\x18" + PACKET_V6, (IPV6, 4), id="loop-ipv6"),
        pytest.param(108, b"\x02\0\0\0" + PACKET_V4, None, id="loop-wrong-order"),
        pytest.param(108, b"\x02", None, id="loop-cut"),
        *[
            pytest.param(link_type, data, expected, id=f"ppp-{link_type}-{data[:5].hex()}")
            for link_type in (9, 50)
            for data, expected in (
                (b"\x00\x21" + PACKET_V4, (IPV4, 2)),
                (b"\x00\x57" + PACKET_V6, (IPV6, 2)),
                (b"\x21" + PACKET_V4, (IPV4, 1)),
                (b"\x57" + PACKET_V6, (IPV6, 1)),
                (b"\xff\x03\x00\x21" + PACKET_V4, (IPV4, 4)),
                (b"\xff\x03\x21" + PACKET_V4, (IPV4, 3)),
                (b"\xff\x03\x02\x81", (MPLS, 4)),
                (b"\x02\x83", (MPLS_MULTICAST, 2)),
                (b"\xff\x03\xc0\x21", None),
                (b"\xff\x03\x00", None),
                (b"\xff\x03", None),
                (b"\xff", None),
                (b"\x00", None),
                (b"", None),
                (b"\x0f\x00\x08\x00" + PACKET_V4, (IPV4, 4)),
                (b"\x8f\x00\x86\xdd" + PACKET_V6, (IPV6, 4)),
                (b"\x0f\x00\x08", None),
            )
        ],
        pytest.param(51, b"\x11\x00\x00\x07\x00\x16\x00\x21" + PACKET_V4, (PPPOE, 0), id="pppoe-session"),
        pytest.param(51, b"\x11\x09\x00\x00\x00\x04" + bytes(4), None, id="pppoe-discovery"),
        pytest.param(51, b"\x11", None, id="pppoe-cut"),
        pytest.param(104, b"\x0f\x00\x08\x00" + PACKET_V4, (IPV4, 4), id="cisco-unicast"),
        pytest.param(104, b"\x8f\x00\x86\xdd" + PACKET_V6, (IPV6, 4), id="cisco-broadcast"),
        pytest.param(104, b"\x0f\x00\x88\x47", (MPLS, 4), id="cisco-mpls"),
        pytest.param(104, b"\x0f\x00\x08", None, id="cisco-cut"),
        pytest.param(204, b"\x01\xff\x03\x00\x21" + PACKET_V4, (IPV4, 5), id="direction-hdlc"),
        pytest.param(204, b"\x00\x57" + PACKET_V6, (IPV6, 2), id="direction-compressed"),
        pytest.param(204, b"\x00", None, id="direction-cut"),
        pytest.param(177, cooked(IPV4), None, id="lapd-not-read"),
        pytest.param(-1, PACKET_V4, None, id="no-link-type"),
    ],
)
def test_link_header(link_type: int, data: bytes, expected: tuple[int, int] | None) -> None:
    assert expected == to_ethernet(link_type, data)


@given(st.sampled_from(sorted(LINK_TYPES)), st.binary(max_size=40))
def test_any_octets_have_an_ethertype_of_16_bits_and_a_header_within_them(
    link_type: int, data: bytes
) -> None:
    found = to_ethernet(link_type, data)
    assert found is None or (0 <= found[0] < 1 << 16 and 0 <= found[1] <= len(data))


@given(st.sampled_from(sorted(LINK_TYPES)), st.binary(min_size=24, max_size=80))
def test_24_octets_are_enough(link_type: int, data: bytes) -> None:
    assert to_ethernet(link_type, data) == to_ethernet(link_type, data[:24])


def test_the_numbers_are_what_libpcap_calls_so() -> None:
    """libpcap is the oracle of DLT_ values; 14 and 101 are raw IP's elsewhere, and it has no name for 204."""
    libpcap = ctypes.CDLL("libpcap.so.0.8")
    libpcap.pcap_datalink_val_to_name.restype = ctypes.c_char_p
    names = {
        0: b"NULL",
        1: b"EN10MB",
        9: b"PPP",
        12: b"RAW",
        50: b"PPP_SERIAL",
        51: b"PPP_ETHER",
        104: b"C_HDLC",
        108: b"LOOP",
        113: b"LINUX_SLL",
        228: b"IPV4",
        229: b"IPV6",
        276: b"LINUX_SLL2",
    }
    assert names == {number: libpcap.pcap_datalink_val_to_name(number) for number in names}
    assert set(names) | {14, 101, 204} == set(LINK_TYPES)
