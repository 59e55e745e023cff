"""A datagram on either side of every border of the packet-size histogram."""

from scapy.layers.inet import UDP

from craft import CLIENT, SERVER, Frame, data, frame, ip

TOTAL_LENGTHS = (127, 128, 255, 256, 511, 512, 1023, 1024, 1513, 1514)
HEADERS = 28  # octets of IPv4 and UDP header


def frames() -> list[Frame]:
    return [
        frame(at, ip(CLIENT, SERVER) / UDP(sport=5000, dport=514) / data(length - HEADERS))
        for at, length in enumerate(TOTAL_LENGTHS)
    ]
