"""UDP over IPv6 behind extension headers: hop-by-hop and destination options, then a datagram in two fragments."""

from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop

from craft import CLIENT6, SERVER6, Frame, data, frame, ip

DATAGRAM = bytes(UDP(sport=5000, dport=9, chksum=0xFFFF) / data(40))
FIRST = 32  # octets of the datagram in the first fragment


def frames() -> list[Frame]:
    header = ip(CLIENT6, SERVER6)
    return [
        frame(0, header / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(sport=5000, dport=9) / data(16)),
        frame(1, header / IPv6ExtHdrFragment(nh=17, offset=0, m=1, id=99) / DATAGRAM[:FIRST]),
        frame(2, header / IPv6ExtHdrFragment(nh=17, offset=FIRST // 8, m=0, id=99) / DATAGRAM[FIRST:]),
    ]
