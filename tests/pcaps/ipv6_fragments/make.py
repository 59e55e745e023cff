"""Fragmentable parts that begin with destination options, with UDP and with ICMPv6; an atomic fragment (RFC 6946)."""

from scapy.layers.inet import UDP

from craft import CLIENT6, SERVER6, Frame, chain, data, fragments6, frame, raw_ipv6

DATAGRAM = bytes(UDP(sport=5000, dport=9, len=140, chksum=0xFFFF) / data(132))
PING = bytes([128, 0, 0, 0, 0, 7, 0, 1]) + bytes(data(132))


def frames() -> list[Frame]:
    options_first, options = chain([(60, 8)], 17)
    one = fragments6(CLIENT6, SERVER6, options_first, options + DATAGRAM, [64, 56, 28], identification=99)
    two = fragments6(CLIENT6, SERVER6, 58, PING, [96, 44], identification=0x12345678)
    atomic_first, atomic = chain([(44, 8)], 17)
    return [
        frame(0, one[0]),
        frame(1, two[0]),
        frame(2, one[1]),
        frame(3, two[1]),
        frame(4, one[2]),
        frame(
            5, raw_ipv6(SERVER6, CLIENT6, atomic_first, atomic + bytes(UDP(sport=9, dport=5000) / data(10)))
        ),
    ]
