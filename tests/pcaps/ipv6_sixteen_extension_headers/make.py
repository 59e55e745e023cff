"""Chains of 16 and 17 headers; of 2048 octets with the fixed header, and of 8 more."""

from scapy.layers.inet import UDP

from craft import CLIENT6, SERVER6, Frame, chain, data, frame, raw_ipv6

DATAGRAM = bytes(UDP(sport=5000, dport=9, len=38, chksum=0xFFFF) / data(30))


def behind(milliseconds: float, headers: list[tuple[int, int]]) -> Frame:
    first, octets = chain(headers, 17)
    return frame(milliseconds, raw_ipv6(CLIENT6, SERVER6, first, octets + DATAGRAM))


def frames() -> list[Frame]:
    return [
        behind(0, [(60, 8)] * 16),
        behind(1, [(60, 8)] * 17),
        behind(2, [(60, 2008)]),
        behind(3, [(60, 2008), (60, 8)]),
    ]
