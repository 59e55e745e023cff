"""A segment of 3000 octets whose IP length is 0, and its acknowledgement."""

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        tcp.client(0, "PA", seq=1, ack=1, octets=3000, network={"len": 0}),
        tcp.server(10, "A", seq=1, ack=3001),
    ]
