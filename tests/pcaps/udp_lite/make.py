"""UDP-Lite (RFC 3828) both ways, a header alone, and one that the packet is too short for."""

import struct

from scapy.packet import Raw

from craft import CLIENT, SERVER, Frame, data, frame, ip


def header(source_port: int, destination_port: int) -> Raw:
    return Raw(struct.pack("!HHHH", source_port, destination_port, 8, 0))


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER, proto=136) / header(5000, 9) / data(30)),
        frame(1, ip(SERVER, CLIENT, proto=136) / header(9, 5000) / data(40)),
        frame(2, ip(CLIENT, SERVER, proto=136) / header(5001, 9)),
        frame(3, ip(CLIENT, SERVER, proto=136) / Raw(bytes(header(5002, 9))[:-1])),
    ]
