"""A segment sent again after a timeout."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(),
        tcp.client(30, "PA", seq=1, ack=1, octets=100),
        tcp.client(31, "PA", seq=101, ack=1, octets=100),
        tcp.client(250, "PA", seq=1, ack=1, octets=100),
        tcp.server(260, "A", seq=1, ack=201),
    ]
