"""The last segment sent again within the round trip, which only its end tells from disorder."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(),
        tcp.client(30, "PA", seq=1, ack=1, octets=100),
        tcp.client(31, "PA", seq=101, ack=1, octets=80),
        tcp.client(35, "PA", seq=101, ack=1, octets=80),
        tcp.server(45, "A", seq=1, ack=181),
    ]
