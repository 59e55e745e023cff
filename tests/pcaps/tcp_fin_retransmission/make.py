"""A FIN sent again after a timeout."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(),
        tcp.client(30, "FA", seq=1, ack=1),
        tcp.client(330, "FA", seq=1, ack=1),
        tcp.server(340, "A", seq=1, ack=2),
    ]
