"""Data sent again though it was already acknowledged, within the round trip."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(),
        tcp.client(30, "PA", seq=1, ack=1, octets=100),
        tcp.client(31, "PA", seq=101, ack=1, octets=100),
        tcp.server(40, "A", seq=1, ack=201),
        tcp.client(41, "PA", seq=1, ack=1, octets=100),
        tcp.server(51, "A", seq=1, ack=201),
    ]
