"""How long the steps of the collector take, as histograms."""

import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")

STEPS = ("snapshot", "pair", "decide", "take", "record", "write", "analyse", "pass")
# A pass over a few flows takes milliseconds, over millions seconds.
BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Histogram:
    """How often something took up to BUCKETS_S seconds, cumulative, and last at all; seconds: of all together."""

    counts: tuple[int, ...]
    seconds: float


class Durations:
    """How long the steps of the collector took: of a pass each one once, however often it came.

    A step is measured by one thread at a time. Two steps may run side by side: together they can be longer than the pass.
    """

    def __init__(self) -> None:
        self._of_this_pass: dict[str, float] = {}
        self._counts: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Takes in how long the block takes, as a part of this pass."""
        started = time.perf_counter()
        yield
        self._add(step, time.perf_counter() - started)

    def each(self, step: str, items: Iterator[T]) -> Iterator[T]:
        """The items; that they are made is a part of the step."""
        while True:
            started = time.perf_counter()
            item = next(items, None)
            self._add(step, time.perf_counter() - started)
            if item is None:
                return
            yield item

    @contextmanager
    def measure_pass(self) -> Iterator[None]:
        """A pass, in the block."""
        self._of_this_pass.clear()
        with self.measure("pass"):
            yield
        for step, seconds in self._of_this_pass.items():
            self.observe(step, seconds)

    def _add(self, step: str, seconds: float) -> None:
        self._of_this_pass[step] = self._of_this_pass.get(step, 0.0) + seconds

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
