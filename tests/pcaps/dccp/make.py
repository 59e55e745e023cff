"""DCCP (RFC 4340) both ways, a header alone, and one that the packet is too short for."""

import struct

from scapy.packet import Raw

from craft import CLIENT, SERVER, Frame, data, frame, ip


def header(source_port: int, destination_port: int) -> Raw:
    return Raw(struct.pack("!HHBBHI", source_port, destination_port, 3, 0, 0, 0x04000001))


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER, proto=33) / header(5000, 9) / data(30)),
        frame(1, ip(SERVER, CLIENT, proto=33) / header(9, 5000) / data(40)),
        frame(2, ip(CLIENT, SERVER, proto=33) / header(5001, 9)),
        frame(3, ip(CLIENT, SERVER, proto=33) / Raw(bytes(header(5002, 9))[:-1])),
    ]
