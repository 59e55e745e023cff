"""The same conversation in two VLANs, with IPv4 behind an inline 802.1Q tag."""

from scapy.layers.inet import UDP

from craft import CLIENT, SERVER, Frame, data, frame, ip


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER) / UDP(sport=5000, dport=9) / data(30), vlan=10),
        frame(1, ip(CLIENT, SERVER) / UDP(sport=5000, dport=9) / data(31), vlan=20),
        frame(2, ip(SERVER, CLIENT) / UDP(sport=9, dport=5000) / data(40), vlan=10),
        frame(3, ip(SERVER, CLIENT) / UDP(sport=9, dport=5000) / data(41), vlan=20),
    ]
