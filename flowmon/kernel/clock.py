"""The one place where the kernel's monotonic time becomes UTC."""

import time
from typing import Protocol


def monotonic_ns() -> int:
    """Now, by the clock of bpf_ktime_get_ns (CLOCK_MONOTONIC)."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def utc_offset_ns() -> int:
    """What to add to CLOCK_MONOTONIC to get nanoseconds since the epoch, UTC, as of now.

    Read anew each interval, so that a step of the wall clock moves only later
    records; of three readings the one least disturbed by the scheduler counts.
    """
    readings = []
    for _ in range(3):
        before = monotonic_ns()
        realtime = time.time_ns()
        after = monotonic_ns()
        readings.append((after - before, realtime - (before + after) // 2))
    return min(readings)[1]


class Clock(Protocol):
    """The time by which flows expire, and how it becomes UTC."""

    def now_mono_ns(self) -> int:
        """Now, in the time of the table's entries."""

    def utc_offset_ns(self) -> int:
        """What to add to such a time to get UTC."""


class SystemClock:
    """The kernel's clocks."""

    def now_mono_ns(self) -> int:
        """CLOCK_MONOTONIC."""
        return monotonic_ns()

    def utc_offset_ns(self) -> int:
        """As of now."""
        return utc_offset_ns()
