"""A PPPoE session header first."""

import struct

from scapy.packet import Packet

from craft import Frame, framed, pcap, reply, request, request6


def session(milliseconds: float, protocol: int, packet: Packet) -> Frame:
    header = struct.pack("!BBHHH", 0x11, 0, 1, 2 + len(bytes(packet)), protocol)
    return framed(milliseconds, header, packet)


def capture() -> bytes:
    frames = [session(0, 0x0021, request()), session(1, 0x0021, reply()), session(2, 0x0057, request6())]
    return pcap(frames, 51)
