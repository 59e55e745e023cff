"""The segment that crosses 2**32 sent again after a timeout, over IPv6."""

from craft import CLIENT6, SERVER6, Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp(CLIENT6, SERVER6, client_isn=2**32 - 151)
    return [
        *tcp.handshake(),
        tcp.client(30, "PA", seq=1, ack=1, octets=100),
        tcp.client(31, "PA", seq=101, ack=1, octets=100),  # from 2**32 - 50 to 50
        tcp.client(32, "PA", seq=201, ack=1, octets=100),
        tcp.client(300, "PA", seq=101, ack=1, octets=100),
        tcp.server(310, "A", seq=1, ack=301),
    ]
