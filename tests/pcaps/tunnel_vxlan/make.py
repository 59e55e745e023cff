"""VNI 5000 both ways and from a third end, VNI 5001 on Linux's old port; a header without flag I, and ARP inside."""

from scapy.layers.inet import UDP
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw

from craft import FAR, IPV4, NEAR, Frame, ethernet, frame, ip, reply, request, vxlan

LINK = Raw(ethernet(IPV4))


def carried(source: str, destination: str, ports: tuple[int, int], inside: Packet) -> Packet:
    return ip(source, destination) / UDP(sport=ports[0], dport=ports[1]) / inside


def frames() -> list[Frame]:
    return [
        frame(0, carried(NEAR, FAR, (49152, 4789), vxlan(5000) / LINK / request())),
        frame(1, carried(FAR, NEAR, (49153, 4789), vxlan(5000) / LINK / reply())),
        frame(2, carried(NEAR, FAR, (49152, 8472), vxlan(5001) / LINK / request())),
        frame(3, carried(NEAR, FAR, (49152, 4789), vxlan(5000, flags=0) / LINK / request())),
        frame(4, carried(NEAR, FAR, (49152, 4789), vxlan(5000) / Raw(ethernet(0x0806)) / ARP())),
        frame(5, carried("203.0.113.3", FAR, (49152, 4789), vxlan(5000) / LINK / request(31))),
    ]
