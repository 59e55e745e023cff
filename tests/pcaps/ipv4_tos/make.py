"""Datagrams with differing types of service."""

from scapy.layers.inet import UDP

from craft import CLIENT, SERVER, Frame, data, frame, ip


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER, tos=0xB8) / UDP(sport=5000, dport=9) / data(10)),
        frame(1, ip(CLIENT, SERVER, tos=0x00) / UDP(sport=5000, dport=9) / data(10)),
        frame(2, ip(SERVER, CLIENT, tos=0x29) / UDP(sport=9, dport=5000) / data(10)),
    ]
