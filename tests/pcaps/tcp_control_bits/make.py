"""A handshake that negotiates (accurate) ECN, and data that echoes congestion."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        tcp.client(0, "SECN", seq=0, window=64240),
        tcp.server(10, "SAE", seq=0, ack=1, window=65160),
        tcp.client(20, "A", seq=1, ack=1),
        tcp.client(30, "PAUC", seq=1, ack=1, octets=10),
    ]
