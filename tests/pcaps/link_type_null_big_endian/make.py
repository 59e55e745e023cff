"""AF_INET, and AF_INET6 of OpenBSD."""

from craft import framed, pcap, reply, request, request6


def capture() -> bytes:
    frames = [
        framed(0, bytes.fromhex("00000002"), request()),
        framed(1, bytes.fromhex("00000002"), reply()),
        framed(2, bytes.fromhex("00000018"), request6()),
    ]
    return pcap(frames, 0)
