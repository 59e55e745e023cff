"""FF 03 in front of the protocol; link control is not IP."""

from craft import framed, pcap, reply, request, request6


def capture() -> bytes:
    frames = [
        framed(0, bytes.fromhex("ff030021"), request()),
        framed(1, bytes.fromhex("ff030021"), reply()),
        framed(2, bytes.fromhex("ff030057"), request6()),
        framed(3, bytes.fromhex("ff03c021"), bytes(8)),
    ]
    return pcap(frames, 9)
