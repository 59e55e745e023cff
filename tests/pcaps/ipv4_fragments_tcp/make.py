"""A segment of 1000 octets in two fragments, and a whole one behind it."""

from scapy.layers.inet import IP

from craft import Frame, Tcp, fragments, frame


def frames() -> list[Frame]:
    tcp = Tcp()
    segment = tcp.client(20, "PA", seq=1, ack=1, octets=1000, network={"id": 99})
    first, second = fragments(IP(segment.octets[14:]), [520, 500])
    return [
        frame(20, first),
        frame(21, second),
        tcp.client(40, "A", seq=1001, ack=1, octets=100),
        tcp.server(50, "A", seq=1, ack=1101),
    ]
