"""An echo request and its reply, each in two fragments."""

from scapy.layers.inet import ICMP

from craft import CLIENT, SERVER, Frame, data, fragments, frame, ip


def frames() -> list[Frame]:
    request = fragments(ip(CLIENT, SERVER, id=99) / ICMP(type=8, id=7, seq=1) / data(132), [80, 60])
    reply = fragments(ip(SERVER, CLIENT, id=98) / ICMP(type=0, id=7, seq=1) / data(132), [80, 60])
    return [frame(0, request[0]), frame(1, request[1]), frame(2, reply[0]), frame(3, reply[1])]
