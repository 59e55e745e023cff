"""AF_INET and AF_INET6 in network order; in the other order it is neither."""

from craft import framed, pcap, reply, request, request6


def capture() -> bytes:
    frames = [
        framed(0, bytes.fromhex("00000002"), request()),
        framed(1, bytes.fromhex("00000002"), reply()),
        framed(2, bytes.fromhex("00000018"), request6()),
        framed(3, bytes.fromhex("02000000"), request()),
    ]
    return pcap(frames, 108)
