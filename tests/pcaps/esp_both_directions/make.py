"""Two associations of different SPI, one each way; and two that pair since their halves are swapped."""

from scapy.packet import Raw

from craft import CLIENT, SERVER, Frame, frame, ip


def esp(spi: int, octets: int) -> Raw:
    return Raw(spi.to_bytes(4, "big") + bytes(octets - 4))


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER, proto=50) / esp(0x11112222, 40)),
        frame(1, ip(SERVER, CLIENT, proto=50) / esp(0x33334444, 60)),
        frame(2, ip(CLIENT, SERVER, proto=50) / esp(0x11112222, 40)),
        frame(3, ip(CLIENT, SERVER, proto=50) / esp(0x00010002, 8)),
        frame(4, ip(SERVER, CLIENT, proto=50) / esp(0x00020001, 8)),
        frame(5, ip(SERVER, CLIENT, proto=50) / esp(0x33334444, 7)),
    ]
