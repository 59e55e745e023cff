"""A datagram and its answer."""

from scapy.layers.inet import UDP

from craft import CLIENT, SERVER, Frame, data, frame, ip


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER) / UDP(sport=5000, dport=9) / data(30)),
        frame(12.000345, ip(SERVER, CLIENT, ttl=57) / UDP(sport=9, dport=5000) / data(130)),
    ]
