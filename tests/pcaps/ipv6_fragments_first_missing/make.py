"""Later fragments before the first and 31 s after it, with a TCP segment in two fragments between them."""

import struct

from scapy.layers.inet import UDP

from craft import CLIENT6, SERVER6, Frame, data, fragments6, frame

DATAGRAM = bytes(UDP(sport=5000, dport=9, len=140, chksum=0xFFFF) / data(132))
SEGMENT = struct.pack("!HHIIHHHH", 40000, 443, 1, 1, 0x5018, 502, 0, 0) + bytes(data(100))


def frames() -> list[Frame]:
    one = fragments6(CLIENT6, SERVER6, 17, DATAGRAM, [64, 48, 28], identification=99)
    two = fragments6(CLIENT6, SERVER6, 6, SEGMENT, [64, 56], identification=99)
    return [
        frame(0, one[1]),
        frame(1, one[0]),
        frame(2, two[0]),
        frame(3, two[1]),
        frame(31_002, one[2]),
    ]
