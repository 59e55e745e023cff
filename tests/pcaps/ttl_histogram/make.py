"""A datagram at the lower and at the upper border of every TTL bin."""

from scapy.layers.inet import UDP

from craft import CLIENT, SERVER, Frame, data, frame, ip

TTLS = (0, 1, 2, 5, 6, 32, 33, 64, 65, 96, 97, 128, 129, 160, 161, 192, 193, 224, 225, 255)


def frames() -> list[Frame]:
    return [
        frame(at, ip(CLIENT, SERVER, ttl=ttl) / UDP(sport=5000, dport=514) / data(10))
        for at, ttl in enumerate(TTLS)
    ]
