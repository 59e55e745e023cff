"""IPv4 and IPv6 without a link header, and neither."""

from craft import framed, pcap, reply, request, request6


def capture() -> bytes:
    frames = [
        framed(0, b"", request()),
        framed(1, b"", reply()),
        framed(2, b"", request6()),
        framed(3, bytes(40)),
    ]
    return pcap(frames, 101)
