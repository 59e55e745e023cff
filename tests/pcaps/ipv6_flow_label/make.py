"""A TCP conversation over IPv6 with flow labels and traffic classes; the client's change on the way."""

from craft import CLIENT6, SERVER6, Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp(CLIENT6, SERVER6)
    return [
        tcp.client(0, "S", seq=0, network={"tc": 0xB8, "fl": 0x12345}),
        tcp.server(10, "SA", seq=0, ack=1, network={"tc": 0x02, "fl": 0xFFFFF}),
        tcp.client(20, "A", seq=1, ack=1, network={"tc": 0x00, "fl": 0x54321}),
    ]
