"""A conversation in VXLAN in GRE, and a datagram in five tunnels of IPv4 in IPv4."""

from scapy.layers.inet import UDP
from scapy.packet import Packet, Raw

from craft import FAR, IPV4, NEAR, Frame, ethernet, frame, gre, ip, reply, request, vxlan


def carried(outer: tuple[str, str], inner: tuple[str, str], inside: Packet) -> Packet:
    datagram = ip(*inner) / UDP(sport=49152, dport=4789) / vxlan(5000) / Raw(ethernet(IPV4)) / inside
    return ip(*outer, proto=47) / gre(IPV4, key=9) / datagram


def frames() -> list[Frame]:
    deep = request()
    for level in (5, 4, 3, 2, 1):
        deep = ip(f"10.2.{level}.1", f"10.2.{level}.2") / deep
    return [
        frame(0, carried((NEAR, FAR), ("10.1.0.1", "10.1.0.2"), request())),
        frame(1, carried((FAR, NEAR), ("10.1.0.2", "10.1.0.1"), reply())),
        frame(2, deep),
    ]
