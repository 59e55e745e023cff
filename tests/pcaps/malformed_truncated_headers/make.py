"""The end of the frame, or of the IP packet, inside each kind of header; the least that suffices for ICMP counts."""

from scapy.packet import Raw

from craft import (
    CLIENT,
    CLIENT6,
    IPV4,
    IPV6,
    MPLS,
    SERVER,
    SERVER6,
    Frame,
    ethernet,
    frame,
    framed,
    ip,
    raw_ipv6,
    request,
    request6,
)


def short(milliseconds: float, protocol: int, octets: int) -> Frame:
    """An IPv4 packet of a protocol with so many octets behind its header."""
    return frame(
        milliseconds, ip(CLIENT, SERVER, proto=protocol) / Raw(bytes([8, 0, 0, 9, 0, 7] + [0] * 14)[:octets])
    )


def frames() -> list[Frame]:
    return [
        framed(0, ethernet(IPV4)[:13]),
        framed(1, ethernet(IPV4, (0x8100, 10))[:17]),
        framed(2, ethernet(60), bytes.fromhex("aaaa0300000008")),
        framed(3, ethernet(MPLS), bytes(3)),
        framed(4, ethernet(MPLS), bytes.fromhex("00010140")),
        framed(5, ethernet(0x8864), bytes.fromhex("11000001003a00")),
        framed(6, ethernet(IPV4), bytes(request())[:19]),
        framed(7, ethernet(IPV6), bytes(request6())[:39]),
        frame(8, raw_ipv6(CLIENT6, SERVER6, 60, bytes.fromhex("11000104000000"))),
        short(9, 6, 19),
        short(10, 17, 7),
        short(11, 1, 3),
        short(12, 58, 3),
        short(13, 50, 7),
        short(14, 51, 11),
        short(15, 1, 4),
        short(16, 1, 6),
        short(17, 50, 8),
    ]
