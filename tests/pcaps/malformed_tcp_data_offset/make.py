"""Every data offset that is shorter than the header, one beyond the packet, and the longest that fits."""

import struct

from scapy.packet import Raw

from craft import CLIENT, SERVER, Frame, data, frame, ip


def segment(milliseconds: float, words: int, octets: int) -> Frame:
    header = struct.pack("!HHIIHHHH", 40000, 443, 1, 1, words << 12 | 0x10, 502, 0, 0)
    return frame(milliseconds, ip(CLIENT, SERVER, proto=6) / Raw(header) / data(octets))


def frames() -> list[Frame]:
    wrong = [segment(words, words, 10) for words in range(5)]
    return [*wrong, segment(5, 5, 10), segment(6, 8, 11), segment(7, 8, 12), segment(8, 15, 39)]
