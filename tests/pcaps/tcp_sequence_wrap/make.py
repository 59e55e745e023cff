"""Sequence numbers pass 2**32, in order."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp(client_isn=2**32 - 151)
    return [
        *tcp.handshake(),
        tcp.client(30, "PA", seq=1, ack=1, octets=100),
        tcp.client(31, "PA", seq=101, ack=1, octets=100),  # from 2**32 - 50 to 50
        tcp.client(32, "PA", seq=201, ack=1, octets=100),
        tcp.server(42, "A", seq=1, ack=301),
        tcp.client(50, "PA", seq=301, ack=1, octets=100),
    ]
