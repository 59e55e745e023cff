"""Pure ACKs of 40 octets, padded to the shortest Ethernet frame; read as payload, the padding would be sent twice."""

from dataclasses import replace

from craft import Frame, Tcp

SHORTEST_FRAME = 60  # octets, without the frame check sequence


def frames() -> list[Frame]:
    tcp = Tcp()
    unpadded = [
        tcp.client(0, "A", seq=1, ack=1),
        tcp.client(100, "A", seq=1, ack=1),
        tcp.server(110, "A", seq=1, ack=1),
    ]
    return [replace(frame, octets=frame.octets.ljust(SHORTEST_FRAME, b"\0")) for frame in unpadded]
