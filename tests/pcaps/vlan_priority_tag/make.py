"""A priority-tagged datagram, answered without a tag."""

from scapy.layers.inet import UDP

from craft import CLIENT, SERVER, Frame, data, frame, ip


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER) / UDP(sport=5000, dport=9) / data(30), vlan=0),
        frame(2, ip(SERVER, CLIENT) / UDP(sport=9, dport=5000) / data(40)),
    ]
