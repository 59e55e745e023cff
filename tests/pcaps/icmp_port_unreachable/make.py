"""A datagram to a port where nobody listens, and the error about it, which quotes it."""

from scapy.layers.inet import ICMP, UDP

from craft import CLIENT, SERVER, Frame, data, frame, ip

DATAGRAM = ip(CLIENT, SERVER) / UDP(sport=5000, dport=33434) / data(12)


def frames() -> list[Frame]:
    return [
        frame(0, DATAGRAM),
        frame(10, ip(SERVER, CLIENT) / ICMP(type=3, code=3) / DATAGRAM),
    ]
