"""A request and its answer, times in µs, as a big-endian host writes them."""

from craft import MICROSECOND_MAGIC, frame, pcap, reply, request


def capture() -> bytes:
    frames = [frame(0, request()), frame(1.234_567, reply())]
    return pcap(frames, magic=MICROSECOND_MAGIC, order=">")
