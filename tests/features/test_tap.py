"""The tap: reads, writes once an interval, frees places by the clock, and loses nothing that it has read."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_samples import packet, session
from flowmon import abi
from flowmon.errors import SinkError
from flowmon.features import tap as tap_module
from flowmon.features.tap import FeatureTap, TapOptions
from flowmon.kernel.feature_source import FeatureBooks
from samples import NS, key

Array = np.ndarray[Any, np.dtype[Any]]

UTC_NS = 1_700_000_000 * NS
OPTIONS = TapOptions(idle_ns=15 * NS, accept_restart_ns=2 * NS, write_ns=NS)


class FakeClock:
    now_ns = 100 * NS

    def now_mono_ns(self) -> int:
        return self.now_ns

    def utc_offset_ns(self) -> int:
        return UTC_NS


@dataclass
class FakeSource:
    """Hands out what is in `coming`; notes what it is told."""

    coming: list[Array] = field(default_factory=list)
    full: bool = False
    lost: int = 0
    sessions: int = 32
    rows: int = 30
    silent_before: list[int] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def read(self) -> Array:
        return self.coming.pop(0) if self.coming else np.zeros(0, abi.FEATURE_PACKET)

    def books(self) -> FeatureBooks:
        return FeatureBooks(5, 100 + self.lost, 0, 7, 0)

    def is_full(self) -> bool:
        return self.full

    def free_silent(self, before_mono_ns: int) -> int:
        self.silent_before.append(before_mono_ns)
        return 0

    def free_least_used(self, number: int) -> int:
        self.freed.append(number)
        return number

    def set_utc_offset(self, offset_ns: int) -> None:
        self.offsets.append(offset_ns)

    def close(self) -> None:
        pass


class FakeSink:
    def __init__(self) -> None:
        self.batches: list[tuple[pa.RecordBatch, int]] = []
        self.refuses = ""
        self.refuses_to_finish = ""

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        if self.refuses:
            raise SinkError(self.refuses)
        self.batches.append((batch, exported_at_ns))

    def finish(self) -> None:
        if self.refuses_to_finish:
            raise SinkError(self.refuses_to_finish)

    def close(self) -> None:
        pass

    @property
    def rows(self) -> list[int]:
        return [batch.num_rows for batch, _ in self.batches]


@dataclass
class Scene:
    """A tap that has just begun."""

    source: FakeSource = field(default_factory=FakeSource)
    sinks: list[FakeSink] = field(default_factory=lambda: [FakeSink()])
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.tap = FeatureTap(self.source, self.sinks, OPTIONS, self.clock)
        self.tap.tend()

    def tend(self, seconds: float, *coming: Array) -> None:
        """After so long, with that in the ring."""
        self.clock.now_ns += int(seconds * NS)
        self.source.coming += coming
        self.tap.tend()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_what_came_is_written_once_an_interval(scene: Scene) -> None:
    for _ in range(3):
        scene.tend(0.3, session(key(), 10))
    assert scene.sinks[0].rows == []
    scene.tend(0.1)
    scene.tend(0.9, session(key(), 5))
    assert scene.sinks[0].rows == [30]
    assert scene.sinks[0].batches[0][1] == scene.clock.now_ns - int(0.9 * NS) + UTC_NS
    assert scene.tap.finish() == []
    assert scene.sinks[0].rows == [30, 5]
    assert scene.tap.written_packets == 35


def test_nothing_makes_no_batch(scene: Scene) -> None:
    scene.tend(5)
    assert scene.tap.finish() == []
    assert scene.sinks[0].batches == []


def test_much_is_written_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_module, "WRITTEN_AT_ONCE", 20)
    scene.tend(0.1, session(key(), 19))
    assert scene.sinks[0].rows == []
    scene.source.coming.append(session(key(), 1))
    scene.tap.read()
    assert scene.sinks[0].rows == [20]


def test_the_time_of_a_batch_is_not_before_its_packets(scene: Scene) -> None:
    """A capture's clock stands where the last pass was."""
    late = packet(time_mono_ns=200 * NS)
    scene.source.coming.append(late)
    scene.tap.finish()
    assert scene.sinks[0].batches[0][1] == 200 * NS + UTC_NS


def test_a_sink_that_refuses_gets_it_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap_module, "KEPT_MOST", 12)
    scene = Scene(sinks=[FakeSink(), FakeSink()])
    scene.sinks[1].refuses = "the disk is full"
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            scene.tend(1, session(key(), 10))
    assert [record.message for record in caplog.records] == ["the disk is full; packet features wait"]
    assert [sink.rows for sink in scene.sinks] == [[10], []]
    # 10 are on their way, 20 are kept, and the rest stays in the ring.
    assert len(scene.source.coming) == 1
    scene.sinks[1].refuses = ""
    scene.tend(1)
    scene.tend(1)
    assert [sink.rows for sink in scene.sinks] == [[10, 20, 10], [10, 20, 10]]


def test_what_a_sink_refuses_to_the_end_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left in the ring as well."""
    monkeypatch.setattr(tap_module, "KEPT_MOST", 12)
    scene = Scene()
    scene.sinks[0].refuses = "the disk is full"
    for _ in range(4):
        scene.tend(1, session(key(), 10))
    assert scene.tap.finish() == ["the disk is full"]
    assert (scene.tap.written_packets, scene.tap.unwritten_packets) == (0, 40)


def test_what_a_sink_says_at_the_end_is_told(scene: Scene) -> None:
    scene.sinks[0].refuses_to_finish = "no room for result.json"
    assert scene.tap.finish() == ["no room for result.json"]


def test_silent_sessions_are_looked_for_once_a_second(scene: Scene) -> None:
    begun = scene.clock.now_ns
    for _ in range(25):
        scene.tend(0.1)
    assert scene.source.silent_before == [begun - 15 * NS, begun - 14 * NS, begun - 13 * NS]


def test_a_full_house_makes_room_now_and_then(scene: Scene) -> None:
    scene.source.full = True
    for _ in range(19):
        scene.tend(0.1)
    assert scene.source.freed == []
    scene.tend(0.2)
    assert scene.source.freed == [1]
    scene.tend(6.1)
    assert scene.source.freed == [1, 3]
    scene.tend(100)
    assert scene.source.freed == [1, 3, 4]  # an eighth at most
    scene.source.full = False
    scene.tend(10)
    scene.source.full = True
    scene.tend(1)
    assert scene.source.freed == [1, 3, 4]


def test_a_house_that_was_full_before_is_not_emptied() -> None:
    scene = Scene(source=FakeSource(full=True))
    scene.tend(1.9)
    assert scene.source.freed == []
    scene.tend(0.2)
    assert scene.source.freed == [1]


def test_the_kernel_is_told_the_time(scene: Scene) -> None:
    scene.tend(1)
    assert set(scene.source.offsets) == {UTC_NS}


def test_losses_are_said_when_they_have_doubled(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for lost in (0, 3, 5, 6, 11, 12):
            scene.source.lost = lost
            scene.tend(0.1)
    assert [record.message.split()[0] for record in caplog.records] == ["3", "6", "12"]


def test_places_are_freed_at_the_end_for_who_comes_next(scene: Scene) -> None:
    scene.clock.now_ns += 50 * NS
    scene.tap.finish()
    assert scene.source.silent_before[-1] == scene.clock.now_ns - 15 * NS


def test_report_names_what_there_is_of_this_run(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """What was lost before it began was another's."""
    scene.tend(1, session(key(), 10))
    with caplog.at_level(logging.INFO):
        scene.tap.report()
        scene.source.lost = 2
        scene.sinks[0].refuses = "the disk is full"
        scene.tend(1, session(key(), 20))
        scene.tap.report()
    said = [
        (record.levelname, record.message)
        for record in caplog.records
        if record.message.startswith("packet features:")
    ]
    assert said == [
        ("INFO", "packet features: 10 written"),
        (
            "WARNING",
            "packet features: 10 written; 20 could not be written and are lost; 2 lost, the ring was full: raise --ring-size",
        ),
    ]
