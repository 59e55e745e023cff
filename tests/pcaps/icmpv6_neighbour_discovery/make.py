"""Address resolution by multicast, then the check that the neighbour is still there, by unicast."""

from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS

from craft import CLIENT6, SERVER6, Frame, frame, ip

SOLICITED_NODE = "ff02::1:ff00:2"


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT6, SOLICITED_NODE, hlim=255) / ICMPv6ND_NS(tgt=SERVER6)),
        frame(1, ip(SERVER6, CLIENT6, hlim=255) / ICMPv6ND_NA(tgt=SERVER6)),
        frame(30_000, ip(CLIENT6, SERVER6, hlim=255) / ICMPv6ND_NS(tgt=SERVER6)),
        frame(30_001, ip(SERVER6, CLIENT6, hlim=255) / ICMPv6ND_NA(tgt=SERVER6)),
    ]
