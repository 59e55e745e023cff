"""A SYN that had to be sent twice."""

from craft import SYN_OPTIONS, Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        tcp.client(0, "S", seq=0, window=64240, options=SYN_OPTIONS),
        tcp.client(1000, "S", seq=0, window=64240, options=SYN_OPTIONS),
        tcp.server(1010, "SA", seq=0, ack=1, window=65160, options=SYN_OPTIONS),
        tcp.client(1020, "A", seq=1, ack=1),
        tcp.client(1030, "PA", seq=1, ack=1, octets=100),
        tcp.client(1031, "PA", seq=101, ack=1, octets=100),
        # 29 ms after the sequence last advanced: late for the round trip of 20 ms, but not for one of 1020 ms
        tcp.client(1060, "PA", seq=1, ack=1, octets=100),
    ]
