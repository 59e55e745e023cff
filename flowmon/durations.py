"""How long the steps of the collector take, as histograms."""

import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

STEPS = ("snapshot", "pair", "decide", "take", "record", "write", "analyse", "pass")
# A pass over a few flows takes milliseconds, over millions seconds.
BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Histogram:
    """How often something took up to BUCKETS_S seconds, cumulative, and last at all; seconds: of all together."""

    counts: tuple[int, ...]
    seconds: float


class Durations:
    """How long the steps of the collector took. One thread observes."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Takes in how long the block takes."""
        started = time.perf_counter()
        yield
        self.observe(step, time.perf_counter() - started)

    def observe(self, step: str, seconds: float) -> None:
        """Takes in how long one of STEPS took."""
        if step not in self._counts:
            self._counts[step] = [0] * (len(BUCKETS_S) + 1)
            self._seconds[step] = 0.0
        self._counts[step][bisect_left(BUCKETS_S, seconds)] += 1
        self._seconds[step] += seconds

    def histograms(self) -> dict[str, Histogram]:
        """As they stand, by step."""
        return {
            step: Histogram(tuple(accumulate(counts)), self._seconds[step])
            for step, counts in self._counts.items()
        }
