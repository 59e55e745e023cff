"""The client closes its side, the server goes on sending, and the capture ends."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(),
        tcp.client(30, "FA", seq=1, ack=1),
        tcp.server(40, "A", seq=1, ack=2),
        tcp.server(60, "PA", seq=1, ack=2, octets=200),
        tcp.client(70, "A", seq=2, ack=201),
    ]
