"""A conversation over IPv4 and one over IPv6 in a PPPoE session, and an echo request of the link itself."""

import struct

from scapy.packet import Packet

from craft import Frame, ethernet, framed, reply, reply6, request, request6


def session(milliseconds: float, protocol: int, packet: Packet | bytes) -> Frame:
    header = struct.pack("!BBHHH", 0x11, 0, 1, 2 + len(bytes(packet)), protocol)
    return framed(milliseconds, ethernet(0x8864), header, packet)


def frames() -> list[Frame]:
    return [
        session(0, 0x0021, request()),
        session(1, 0x0021, reply()),
        session(2, 0x0057, request6()),
        session(3, 0x0057, reply6()),
        session(4, 0xC021, bytes.fromhex("0901000800000000")),
    ]
