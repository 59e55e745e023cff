"""The client's side of a TCP conversation; the server's packets went another way."""

from craft import SYN_OPTIONS, Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        tcp.client(0, "S", seq=0, window=64240, options=SYN_OPTIONS),
        tcp.client(20, "A", seq=1, ack=1),
        tcp.client(30, "PA", seq=1, ack=1, octets=100),
        tcp.client(60, "FA", seq=101, ack=301),
    ]
