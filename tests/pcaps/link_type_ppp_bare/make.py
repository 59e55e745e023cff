"""The protocol alone."""

from craft import framed, pcap, reply, request, request6


def capture() -> bytes:
    frames = [
        framed(0, bytes.fromhex("0021"), request()),
        framed(1, bytes.fromhex("0021"), reply()),
        framed(2, bytes.fromhex("0057"), request6()),
    ]
    return pcap(frames, 9)
