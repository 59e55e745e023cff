"""What the readers of capture files share: a frame, and what can be wrong with a file."""

from flowmon.errors import FlowmonError

Frame = tuple[int, int, int, int, int]
"""time_ns (UTC), address of the captured octets, captured, wire_length, link_type."""

NS = 1_000_000_000
LAST_NS = 2**62 - 1
PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
TRUNCATED = "truncated"  # a problem that begins so is a file that ends too early
NO_INTERFACE = -1  # the link type of packets whose interface is not described
# With stdio's own 4 KiB, full-size frames take 850 ns instead of 540; more than 128 KiB is slower again.
STDIO_BUFFER = 1 << 16


class CaptureError(FlowmonError):
    """The capture's: a file that is not there, or is nothing that can be read."""


class DamagedError(Exception):
    """What a reader cannot get past; it ends the reading, and is never seen outside of this package."""


def clamped(time_ns: int) -> int:
    """A time that the table can hold."""
    return min(max(time_ns, 0), LAST_NS)
