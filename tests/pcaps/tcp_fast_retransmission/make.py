"""A segment sent again on the third duplicate ACK, within the round trip."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(),
        tcp.client(30, "A", seq=1, ack=1, octets=100),
        tcp.client(31, "A", seq=101, ack=1, octets=100),
        tcp.client(32, "A", seq=201, ack=1, octets=100),
        tcp.client(33, "A", seq=301, ack=1, octets=100),
        tcp.client(34, "PA", seq=401, ack=1, octets=100),
        tcp.server(40, "A", seq=1, ack=101),
        tcp.server(41, "A", seq=1, ack=101),
        tcp.server(42, "A", seq=1, ack=101),
        tcp.server(43, "A", seq=1, ack=101),
        tcp.client(44, "A", seq=101, ack=1, octets=100),
        tcp.server(54, "A", seq=1, ack=501),
    ]
