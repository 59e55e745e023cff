"""Joined in the middle: 3 ms stand in for the round trip."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        tcp.client(30, "PA", seq=1, ack=1, octets=100),
        tcp.client(31, "PA", seq=201, ack=1, octets=100),
        tcp.client(33, "PA", seq=101, ack=1, octets=100),
        tcp.client(41, "PA", seq=401, ack=1, octets=50),
        tcp.client(45, "PA", seq=301, ack=1, octets=100),
        tcp.server(55, "A", seq=1, ack=451),
    ]
