"""Keep-alives of no octet and of one, each answered."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(),
        tcp.client(30, "PA", seq=1, ack=1, octets=100),
        tcp.server(40, "A", seq=1, ack=101),
        tcp.client(45_000, "A", seq=100, ack=1),
        tcp.server(45_010, "A", seq=1, ack=101),
        tcp.client(90_000, "A", seq=100, ack=1, octets=1),
        tcp.server(90_010, "A", seq=1, ack=101),
    ]
