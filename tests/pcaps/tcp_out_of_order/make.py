"""A segment overtaken by the one behind it."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(),
        tcp.client(30, "PA", seq=1, ack=1, octets=100),
        tcp.client(31, "PA", seq=201, ack=1, octets=100),
        tcp.client(41, "PA", seq=101, ack=1, octets=100),  # 10 ms late: within the round trip of 20 ms
        tcp.server(51, "A", seq=1, ack=301),
    ]
