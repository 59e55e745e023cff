"""AF_INET, and AF_INET6 of macOS; OSI is not IP."""

from craft import framed, pcap, reply, request, request6


def capture() -> bytes:
    frames = [
        framed(0, bytes.fromhex("02000000"), request()),
        framed(1, bytes.fromhex("02000000"), reply()),
        framed(2, bytes.fromhex("1e000000"), request6()),
        framed(3, bytes.fromhex("07000000"), bytes(40)),
    ]
    return pcap(frames, 0)
