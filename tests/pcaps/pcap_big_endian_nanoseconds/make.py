"""A request and its answer, times in ns, as a big-endian host writes them."""

from craft import frame, pcap, reply, request


def capture() -> bytes:
    return pcap([frame(0, request()), frame(1.234_567, reply())], order=">")
