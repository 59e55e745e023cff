"""UDP behind an authentication header, in one association each way; and a header that the packet is too short for."""

import struct

from scapy.layers.inet import UDP
from scapy.packet import Raw

from craft import CLIENT, SERVER, Frame, data, frame, ip


def ah(spi: int) -> Raw:
    return Raw(struct.pack("!BBHII", 17, 4, 0, spi, 1) + bytes(12))


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER, proto=51) / ah(0xABCD0001) / UDP(sport=5000, dport=9) / data(30)),
        frame(1, ip(SERVER, CLIENT, proto=51) / ah(0xABCD0002) / UDP(sport=9, dport=5000) / data(40)),
        frame(2, ip(CLIENT, SERVER, proto=51) / Raw(bytes(ah(0xABCD0001))[:11])),
    ]
