"""Each kind of extension header by itself, then all of them; a mobility header is followed by nothing."""

from scapy.layers.inet import UDP

from craft import CLIENT6, Frame, chain, data, frame, raw_ipv6, reply6

DATAGRAM = bytes(UDP(sport=5000, dport=9, len=38, chksum=0xFFFF) / data(30))
AH_ICV = 12  # octets behind the fixed 12 of an authentication header


def to(host: int, milliseconds: float, headers: list[tuple[int, int]], last: int, payload: bytes) -> Frame:
    first, octets = chain(headers, last)
    return frame(milliseconds, raw_ipv6(CLIENT6, f"2001:db8::{host:x}", first, octets + payload))


def frames() -> list[Frame]:
    return [
        to(0xA, 0, [(0, 8)], 17, DATAGRAM),
        to(0xB, 1, [(43, 24)], 17, DATAGRAM),
        to(0xC, 2, [(60, 16)], 17, DATAGRAM),
        to(0xD, 3, [(51, 12 + AH_ICV)], 17, DATAGRAM),
        to(0xE, 4, [(135, 8)], 59, b""),
        to(0xF, 5, [], 108, bytes(12)),
        to(0x2, 6, [(0, 8), (60, 8), (43, 24), (51, 24), (60, 8)], 17, DATAGRAM),
        to(0x2, 7, [], 17, DATAGRAM),
        frame(8, reply6()),
    ]
