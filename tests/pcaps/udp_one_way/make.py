"""Datagrams that nobody answers."""

from scapy.layers.inet import UDP

from craft import CLIENT, SERVER, Frame, data, frame, ip


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER) / UDP(sport=5000, dport=514) / data(100)),
        frame(0.000001, ip(CLIENT, SERVER) / UDP(sport=5000, dport=514) / data(101)),
        frame(7, ip(CLIENT, SERVER) / UDP(sport=5000, dport=514) / data(102)),
    ]
