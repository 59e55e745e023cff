"""Nothing behind the header, with padding; a super-packet; and no next header but a next header of UDP."""

from scapy.layers.inet import UDP

from craft import CLIENT6, SERVER6, Frame, data, frame, raw_ipv6

DATAGRAM = bytes(UDP(sport=5000, dport=9, len=0, chksum=0xFFFF) / data(2000))


def frames() -> list[Frame]:
    return [
        frame(0, raw_ipv6(CLIENT6, SERVER6, 59, b""), pad_to=60),
        frame(1, raw_ipv6(CLIENT6, SERVER6, 17, DATAGRAM, payload_length=0)),
        frame(2, raw_ipv6(CLIENT6, SERVER6, 17, b"", payload_length=0)),
    ]
