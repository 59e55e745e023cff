"""TCP cut in payload, in options, behind the ports and before; UDP, ICMP and AH; and cuts in IP headers."""

import struct

from scapy.layers.inet import ICMP
from scapy.packet import Raw

from craft import (
    CLIENT,
    CLIENT6,
    SERVER,
    SERVER6,
    SYN_OPTIONS,
    Frame,
    Tcp,
    chain,
    cut,
    data,
    frame,
    ip,
    raw_ipv4,
    raw_ipv6,
    request,
)

IP_END = 14 + 20
AH = Raw(struct.pack("!BBHII", 17, 4, 0, 0xABCD0001, 1) + bytes(12))


def tcp(milliseconds: float, port: int, captured: int) -> Frame:
    return cut(Tcp(client_port=port).client(milliseconds, "PA", seq=1, ack=1, octets=1000), IP_END + captured)


def frames() -> list[Frame]:
    first, options = chain([(60, 24)], 17)
    return [
        tcp(0, 40000, 20 + 10),
        cut(Tcp(client_port=40001).client(1, "S", seq=0, options=SYN_OPTIONS), IP_END + 20 + 4),
        tcp(2, 40002, 19),
        tcp(3, 40003, 4),
        tcp(4, 40004, 3),
        cut(frame(5, request()), IP_END + 4),
        cut(frame(6, request()), IP_END),
        cut(frame(7, ip(CLIENT, SERVER) / ICMP(type=8, id=7, seq=1) / data(56)), IP_END + 4),
        cut(frame(8, ip(CLIENT, SERVER) / ICMP(type=8, id=7, seq=2) / data(56)), IP_END + 6),
        cut(frame(9, ip(CLIENT, SERVER, proto=51) / AH / data(30)), IP_END + 8),
        cut(frame(10, request()), IP_END - 1),
        cut(
            frame(11, raw_ipv4(CLIENT, SERVER, 17, bytes(30), options=bytes.fromhex("94040000"))), IP_END + 3
        ),
        cut(frame(12, raw_ipv6(CLIENT6, SERVER6, first, options + bytes(30))), 14 + 40 + 8),
        cut(frame(13, request()), 13),
    ]
