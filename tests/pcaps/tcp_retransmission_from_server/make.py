"""A segment of the server's sent again after a timeout."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(),
        tcp.client(30, "PA", seq=1, ack=1, octets=10),
        tcp.server(40, "PA", seq=1, ack=11, octets=70),
        tcp.server(41, "PA", seq=71, ack=11, octets=60),
        tcp.server(300, "PA", seq=71, ack=11, octets=60),
        tcp.client(310, "A", seq=11, ack=131),
    ]
