"""VNI 70 with options around Ethernet, its answer around bare IPv4, IPv6; and version 1, which is not known."""

from scapy.layers.inet import UDP
from scapy.packet import Packet, Raw

from craft import FAR, IPV4, IPV6, NEAR, Frame, ethernet, frame, geneve, ip, reply, request, request6


def carried(source: str, destination: str, inside: Packet) -> Packet:
    return ip(source, destination) / UDP(sport=49152, dport=6081) / inside


def frames() -> list[Frame]:
    return [
        frame(0, carried(NEAR, FAR, geneve(70, 0x6558, option_words=2) / Raw(ethernet(IPV4)) / request())),
        frame(1, carried(FAR, NEAR, geneve(70, IPV4) / reply())),
        frame(2, carried(NEAR, FAR, geneve(70, IPV6) / request6())),
        frame(3, carried(NEAR, FAR, geneve(70, IPV4, version=1) / request())),
    ]
