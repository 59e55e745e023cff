"""A client that offers a window scale beyond the largest allowed."""

from craft import NO_OPERATION, Frame, Tcp, window_scale


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(client_options=NO_OPERATION + window_scale(15)),
        tcp.client(30, "PA", seq=1, ack=1, octets=10, window=1000),
        tcp.server(40, "A", seq=1, ack=11, options=b""),
    ]
