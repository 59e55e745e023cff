"""The protocol compressed to one octet."""

from craft import framed, pcap, reply, request, request6


def capture() -> bytes:
    frames = [
        framed(0, bytes.fromhex("21"), request()),
        framed(1, bytes.fromhex("21"), reply()),
        framed(2, bytes.fromhex("57"), request6()),
    ]
    return pcap(frames, 9)
