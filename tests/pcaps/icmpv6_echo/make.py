"""A ping over IPv6, with another identifier's request in between."""

from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest

from craft import CLIENT6, SERVER6, Frame, frame, ip


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT6, SERVER6) / ICMPv6EchoRequest(id=7, seq=1, data=b"0123456789")),
        frame(1, ip(CLIENT6, SERVER6) / ICMPv6EchoRequest(id=8, seq=1)),
        frame(10, ip(SERVER6, CLIENT6) / ICMPv6EchoReply(id=7, seq=1, data=b"0123456789")),
    ]
