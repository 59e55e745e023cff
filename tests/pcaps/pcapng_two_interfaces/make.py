"""A request on an Ethernet interface with times in µs, its answer and another request on a raw one with times in ns."""

from craft import frame, framed, pcapng, reply, request, request6


def capture() -> bytes:
    frames = [
        (0, frame(0.001_5, request())),
        (1, framed(1.000_005, reply())),
        (1, framed(2, request6())),
        (0, frame(3, request(31))),
    ]
    return pcapng([1, 101], frames)
