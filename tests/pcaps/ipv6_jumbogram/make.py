"""A jumbogram of 100000 octets of payload length, cut by the snap length, and one that is not wholly there."""

import struct

from scapy.layers.inet import UDP

from craft import CLIENT6, IPV6, SERVER6, Frame, cut, data, ethernet, framed, raw_ipv6

PAYLOAD = 100_000


def jumbogram(milliseconds: float, wire_octets: int) -> Frame:
    hop_by_hop = struct.pack("!BBBBI", 17, 0, 0xC2, 4, PAYLOAD)
    datagram = bytes(UDP(sport=5000, dport=9, len=0, chksum=0xFFFF) / data(PAYLOAD - 16))
    packet = raw_ipv6(CLIENT6, SERVER6, 0, hop_by_hop + datagram, payload_length=0)
    return cut(framed(milliseconds, ethernet(IPV6), packet, wire_octets=wire_octets), 200)


def frames() -> list[Frame]:
    return [jumbogram(0, 54 + PAYLOAD), jumbogram(1, 53 + PAYLOAD)]
