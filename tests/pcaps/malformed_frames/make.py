"""Frames that cannot be counted, around one that can."""

from dataclasses import replace

from scapy.layers.inet import UDP
from scapy.packet import Raw

from craft import CLIENT, SERVER, Frame, Tcp, data, frame, ip


def frames() -> list[Frame]:
    datagram = UDP(sport=5000, dport=9) / data(10)
    cut_in_tcp_header = Tcp().client(5, "A", seq=1, ack=1)
    return [
        frame(0, ip(CLIENT, SERVER, ihl=4) / datagram),
        frame(1, ip(CLIENT, SERVER, version=5) / datagram),
        frame(2, ip(CLIENT, SERVER, proto=17) / Raw(b"\x13\x88\x00")),  # ends in the UDP header
        frame(3, ip(CLIENT, SERVER) / datagram),
        frame(4, ip(CLIENT, SERVER, len=19) / datagram),  # shorter than its own header
        replace(cut_in_tcp_header, octets=cut_in_tcp_header.octets[:40], wire_octets=54),
    ]
