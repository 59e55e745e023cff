"""Few datagrams over 200 s."""

from scapy.layers.inet import UDP

from craft import CLIENT, SERVER, Frame, data, frame, ip


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER) / UDP(sport=5000, dport=123) / data(48)),
        frame(30, ip(SERVER, CLIENT) / UDP(sport=123, dport=5000) / data(48)),
        frame(64_000, ip(CLIENT, SERVER) / UDP(sport=5000, dport=123) / data(48)),
        frame(64_030, ip(SERVER, CLIENT) / UDP(sport=123, dport=5000) / data(48)),
        frame(128_000, ip(CLIENT, SERVER) / UDP(sport=5000, dport=123) / data(48)),
        frame(199_970, ip(CLIENT, SERVER) / UDP(sport=5000, dport=123) / data(48)),
        frame(200_000, ip(SERVER, CLIENT) / UDP(sport=123, dport=5000) / data(48)),
    ]
