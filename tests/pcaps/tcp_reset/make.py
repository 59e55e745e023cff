"""A TCP conversation that the server resets."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(),
        tcp.client(30, "PA", seq=1, ack=1, octets=50),
        tcp.server(40, "RA", seq=1, ack=51, window=0),
    ]
