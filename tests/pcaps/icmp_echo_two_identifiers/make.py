"""Two pings at once between the same hosts."""

from scapy.layers.inet import ICMP

from craft import CLIENT, SERVER, Frame, data, frame, ip


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER) / ICMP(type=8, id=7, seq=1) / data(56)),
        frame(5, ip(CLIENT, SERVER) / ICMP(type=8, id=9, seq=1) / data(16)),
        frame(10, ip(SERVER, CLIENT) / ICMP(type=0, id=7, seq=1) / data(56)),
        frame(15, ip(SERVER, CLIENT) / ICMP(type=0, id=9, seq=1) / data(16)),
        frame(1000, ip(CLIENT, SERVER) / ICMP(type=8, id=7, seq=2) / data(56)),
    ]
