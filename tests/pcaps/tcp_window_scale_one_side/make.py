"""The client offers a window scale, the server does not."""

from craft import Frame, Tcp, maximum_segment_size


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(server_options=maximum_segment_size(1460)),
        tcp.client(30, "PA", seq=1, ack=1, octets=10),
        tcp.server(40, "A", seq=1, ack=11),
    ]
