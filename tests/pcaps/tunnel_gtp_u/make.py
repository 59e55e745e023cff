"""TEID 0x100 one way, 0x200 the other; IPv6; an end marker, and five extension headers, which are too many."""

import struct

from scapy.layers.inet import UDP
from scapy.packet import Packet, Raw

from craft import FAR, NEAR, Frame, frame, ip, reply, request, request6

SEQUENCE = struct.pack("!HBB", 1, 0, 0x85)  # without flag E, the last octet is not to be looked at
SESSION_CONTAINER = struct.pack("!HBB", 0, 0, 0x85) + bytes([1, 0, 9, 0])
FIVE_CONTAINERS = struct.pack("!HBB", 0, 0, 0x85) + bytes([1, 0, 9, 0x85]) * 4 + bytes([1, 0, 9, 0])


def gtp(tunnel: int, inside: Packet, flags: int = 0, optional: bytes = b"", message: int = 255) -> Packet:
    length = len(optional) + len(bytes(inside))
    header = struct.pack("!BBHI", 0x30 | flags, message, length, tunnel)
    return UDP(sport=2152, dport=2152) / Raw(header + optional) / inside


def frames() -> list[Frame]:
    forth, back = ip(NEAR, FAR), ip(FAR, NEAR)
    return [
        frame(0, forth / gtp(0x100, request(), 2, SEQUENCE)),
        frame(1, back / gtp(0x200, reply(), 4, SESSION_CONTAINER)),
        frame(2, forth / gtp(0x100, request6())),
        frame(3, forth / gtp(0x100, request(), 2, SEQUENCE, message=254)),
        frame(4, forth / gtp(0x100, request(), 4, FIVE_CONTAINERS)),
    ]
