"""A UDP datagram of 120 octets of data in two fragments."""

from scapy.layers.inet import UDP

from craft import CLIENT, SERVER, Frame, data, frame, ip

DATAGRAM = bytes(UDP(sport=5000, dport=9, chksum=0) / data(120))
FIRST = 88  # octets of the datagram in the first fragment


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER, proto=17, id=99, flags="MF") / DATAGRAM[:FIRST]),
        frame(1, ip(CLIENT, SERVER, proto=17, id=99, frag=FIRST // 8) / DATAGRAM[FIRST:]),
    ]
