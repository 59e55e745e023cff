"""Histograms of how long steps took."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmon import durations
from flowmon.durations import BUCKETS_S, STEPS, Durations

SECONDS = st.one_of(st.floats(0, 20), st.sampled_from(BUCKETS_S))


@given(st.lists(st.tuples(st.sampled_from(STEPS[:2]), SECONDS)))
def test_every_duration_is_in_each_bucket_that_is_not_below_it(observed: list[tuple[str, float]]) -> None:
    kept = Durations()
    for step, seconds in observed:
        kept.observe(step, seconds)
    histograms = kept.histograms()
    assert set(histograms) == {step for step, _ in observed}
    for step, histogram in histograms.items():
        own = [seconds for each, seconds in observed if each == step]
        expected = [sum(seconds <= most for seconds in own) for most in (*BUCKETS_S, float("inf"))]
        assert list(histogram.counts) == expected
        assert histogram.seconds == pytest.approx(sum(own))


def test_block_is_measured_by_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [7.0]
    monkeypatch.setattr(durations.time, "perf_counter", lambda: now[0])
    kept = Durations()
    for _ in range(2):
        with kept.measure_pass():
            now[0] += 3
            for _ in range(2):  # the parts of a step are one
                with kept.measure("take"):
                    now[0] += 0.25
    histograms = kept.histograms()
    assert {step: one.seconds for step, one in histograms.items()} == {"pass": 7, "take": 1}
    assert {one.counts[-1] for one in histograms.values()} == {2}


def test_items_are_made_as_a_part_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [7.0]
    monkeypatch.setattr(durations.time, "perf_counter", lambda: now[0])

    def items() -> Iterator[int]:
        for number in range(3):
            now[0] += 2
            yield number

    kept = Durations()
    with kept.measure_pass():
        for _ in kept.each("snapshot", items()):
            now[0] += 0.5
    histograms = kept.histograms()
    assert {step: one.seconds for step, one in histograms.items()} == {"pass": 7.5, "snapshot": 6}


def test_what_was_read_stays_as_it_was() -> None:
    kept = Durations()
    kept.observe("pass", 1)
    before = kept.histograms()
    kept.observe("pass", 1)
    kept.observe("take", 1)
    assert (list(before), before["pass"].counts[-1]) == (["pass"], 1)
