"""The walk over a table in memory: what is recorded, kept, held back and taken early."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_table import FakeTable
from flowmon import collector, durations, pressure
from flowmon.analysers.activity import SYN, Seen
from flowmon.collector import Collector, CollectorOptions
from flowmon.errors import SinkError
from flowmon.expiry import EndReason
from flowmon.kernel.flow_table import FLOW_STATE, WATCHED_STATE, Snapshot
from flowmon.sinks import Metering
from flowmon.watch import Watch
from samples import NS, key, turned


@dataclass
class FakeSink:
    """Keeps records; refuses while it `is_full`, fails while it `is_broken`."""

    records: list[dict[str, Any]] = field(default_factory=list)
    is_full: bool = False
    is_broken: bool = False
    reserved: int = 0
    exported_at_ns: int = 0
    reports: list[Metering] = field(default_factory=list)
    is_finished: bool = False

    def reserve(self, rows: int, *, more: bool = False) -> None:
        if self.is_full:
            raise SinkError("the disk is full")
        self.reserved = rows

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        if self.is_broken:
            raise SinkError("the disk is broken")
        self.records += batch.to_pylist()
        self.exported_at_ns = exported_at_ns

    def report(self, metering: Metering) -> None:
        self.reports.append(metering)

    def finish(self) -> None:
        self.is_finished = True
        if self.is_broken:
            raise SinkError("the disk is broken")

    def close(self) -> None:
        pass

    def of(self, column: str) -> list[Any]:
        return [record[column] for record in self.records]

    @property
    def packets(self) -> int:
        return sum(self.of("packetDeltaCount")) + sum(self.of("reversePacketDeltaCount"))


@dataclass
class Scene:
    """A collector, what it works with, and its clock in seconds."""

    table: FakeTable = field(default_factory=FakeTable)
    sinks: list[FakeSink] = field(default_factory=lambda: [FakeSink()])
    options: CollectorOptions = field(default_factory=lambda: CollectorOptions(observation_domain_id=7))
    now: float = 100
    watch: Watch | None = None
    publish: Callable[[Metering], None] | None = None

    def __post_init__(self) -> None:
        names = {2: "eth0", 3: "gone"}
        present = {2: "to the left"}
        self.collector = Collector(
            self.table,
            self.sinks,
            self.options,
            lambda: names,
            self,
            lambda: present,
            self.watch,
            self.publish,
        )

    def now_mono_ns(self) -> int:
        return int(self.now * NS)

    def utc_offset_ns(self) -> int:
        return 1_000_000 * NS

    @property
    def sink(self) -> FakeSink:
        return self.sinks[0]

    def collect(self, second: float, **how: Any) -> int:
        self.now = second
        return self.collector.collect(**how)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def flow(number: int = 0, **fields: int) -> np.ndarray:
    return key(ports=(1024 + number, 80), **fields)


def test_ended_flow_is_recorded_once(scene: Scene) -> None:
    scene.table.packet(flow(), 100, number=3)
    scene.table.packet(turned(flow()), 101, number=2)
    assert scene.collect(115.9) == 0
    assert scene.collect(116) == 1
    assert scene.collect(200) == 0
    (record,) = scene.sink.records
    assert (record["packetDeltaCount"], record["reversePacketDeltaCount"]) == (3, 2)
    assert (record["flowEndReason"], record["sourceTransportPort"]) == (EndReason.IDLE, 1024)
    assert (record["interfaceName"], record["observationDomainId"]) == ("eth0", 7)
    assert record["flowStartNanoseconds"].value == 1_000_100 * NS
    assert scene.sink.exported_at_ns == 1_000_116 * NS
    assert scene.table.entries == {}
    tally = scene.collector.tally
    assert (tally.records, tally.packets, tally.duplicate_packets, tally.by_reason) == (1, 5, 0, {"idle": 1})


def test_flow_that_goes_on_stays(scene: Scene) -> None:
    scene.table.packet(flow(1), 100)
    scene.table.packet(flow(2), 110)
    assert scene.collect(116) == 1
    assert list(scene.table.entries) == [flow(2).tobytes()]


def test_active_timeout_records_and_keeps_the_entry(scene: Scene) -> None:
    for second in range(100, 170):
        scene.table.packet(flow(), second)
        scene.collect(second)
    assert scene.sink.of("flowEndReason") == [EndReason.ACTIVE]
    assert len(scene.table.entries) == 1
    scene.collect(200)
    assert scene.sink.of("flowEndReason") == [EndReason.ACTIVE, EndReason.IDLE]
    assert scene.sink.of("packetDeltaCount") == [61, 9]


def test_entry_without_packets_since_its_record_leaves_without_another(scene: Scene) -> None:
    for second in range(100, 161):
        scene.table.packet(flow(), second)
    assert scene.collect(160) == 1
    assert len(scene.table.entries) == 1
    assert scene.collect(175) == 0
    assert scene.table.entries == {}
    assert scene.collector.tally.records == 1


def test_everything_ends_all_by_force(scene: Scene) -> None:
    scene.table.packet(flow(1), 100)
    scene.table.packet(flow(2), 100)
    assert scene.collect(100, everything=True) == 2
    assert scene.sink.of("flowEndReason") == [EndReason.FORCED] * 2
    assert scene.table.entries == {}


def test_empty_table(scene: Scene) -> None:
    assert scene.collect(100) == scene.collect(100, everything=True) == 0
    assert scene.sink.records == []


# --- reports ---


def test_sinks_hear_of_the_metering_at_most_once_a_second(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(collector.time, "monotonic", lambda: now[0])
    scene.table.packet(flow(1), 100)
    scene.collect(100)
    scene.table.packet(flow(2), 101)
    now[0] += 0.9
    scene.collect(101)
    now[0] += 0.1
    scene.collect(102)
    heard = [(one.books.flows_inserted, one.at_ns, one.interfaces) for one in scene.sink.reports]
    names = {2: ("eth0", "to the left")}
    assert heard == [(1, 1_000_100 * NS, names), (2, 1_000_102 * NS, names)]


def test_nothing_seems_evicted_that_came_during_the_pass(scene: Scene) -> None:
    """The totals are read before the snapshot."""
    scene.table.packet(flow(1), 100)
    snapshot = scene.table.snapshot

    def late_snapshot() -> Snapshot:
        scene.table.packet(flow(2), 100)
        return snapshot()

    scene.table.snapshot = late_snapshot  # type: ignore[method-assign]
    scene.collect(100)
    (report,) = scene.sink.reports
    assert (report.books.flows_inserted, report.books.resident_flows) == (1, 2)
    assert report.books.evicted_flows == 0


def test_finish_reports_and_finishes_every_sink() -> None:
    scene = Scene(sinks=[FakeSink(), FakeSink()])
    scene.table.packet(flow(), 100)
    scene.collect(100, everything=True)
    before = len(scene.sink.reports)
    scene.sinks[0].is_broken = True
    assert scene.collector.finish() == ["the disk is broken"]
    for sink in scene.sinks:
        assert sink.is_finished
        assert len(sink.reports) == before + 1
        assert sink.reports[-1].books.taken_flows == 1


# --- observation points ---


def test_other_points_are_duplicates(scene: Scene) -> None:
    for point in range(3):
        scene.table.packet(flow(ifindex=2 + point), 100 + point, number=5)
    assert scene.collect(150) == 1
    assert (scene.sink.of("packetDeltaCount"), scene.sink.of("ingressInterface")) == ([5], [2])
    assert (scene.collector.tally.packets, scene.collector.tally.duplicate_packets) == (5, 10)
    assert scene.table.entries == {}


def test_every_interface_has_no_duplicates() -> None:
    scene = Scene(options=CollectorOptions(every_interface=True))
    for point in range(3):
        scene.table.packet(flow(ifindex=2 + point), 100, number=5)
    assert scene.collect(150) == 3
    assert scene.collector.tally.duplicate_packets == 0


def test_flow_that_moved_to_another_interface_is_still_recorded(scene: Scene) -> None:
    for second in range(100, 300):
        scene.table.packet(flow(ifindex=2 if second < 110 else 3), second)
        scene.collect(second)
    scene.collect(400)
    # Ten packets on the first interface, 190 on the second; only the record of the move may lack some.
    assert scene.sink.packets >= 140


def test_flow_evicted_between_look_and_take(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.table.packet(flow(1), 100)
    scene.table.packet(turned(flow(1)), 101)
    scene.table.packet(flow(2), 100)
    seen = scene.table.snapshot()
    scene.table.evict(flow(1))
    scene.table.evict(flow(2))
    monkeypatch.setattr(scene.table, "snapshot", lambda: seen)
    assert scene.collect(150) == 1
    (record,) = scene.sink.records
    assert (record["packetDeltaCount"], record["reversePacketDeltaCount"]) == (0, 1)


def test_evictions_are_counted_and_said(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for second in range(90, 151):
        scene.table.packet(flow(9), second)
    assert scene.collect(150) == 1  # and its entry stays, blank
    for number in range(3):
        scene.table.packet(flow(number), 150)
    scene.table.evict(flow(0))
    for _ in range(2):
        scene.collect(151)
    assert scene.collector.tally.evicted_flows == 1
    assert [record.message for record in caplog.records] == [
        "the table overflowed: 1 directed flows evicted so far, uncollected; raise --max-flows"
    ]


# --- sinks that do not take records ---


def test_flows_stay_in_the_table_while_a_sink_refuses(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(sinks=[FakeSink(), FakeSink(is_full=True)])
    scene.table.packet(flow(), 100, number=4)
    for second in (120, 121, 122):
        assert scene.collect(second) == 0
    assert scene.table.packets == 4
    scene.table.packet(flow(), 123)
    scene.sinks[1].is_full = False
    assert scene.collect(150) == 1
    assert [sink.packets for sink in scene.sinks] == [5, 5]
    complaints = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert complaints == ["the disk is full; the flows stay in the table", "writing again"]


def test_batch_that_a_sink_fails_to_write_is_held_and_written_once() -> None:
    scene = Scene(sinks=[FakeSink(), FakeSink(is_broken=True), FakeSink()])
    scene.table.packet(flow(1), 100)
    scene.collect(120)
    scene.table.packet(flow(2), 100)
    for second in (121, 122):
        assert scene.collect(second) == 0
    # Nothing else is taken: what is held is bounded.
    assert scene.table.packets == 1
    assert scene.collector.unwritten_records == 2
    assert [sink.packets for sink in scene.sinks] == [1, 0, 0]
    scene.sinks[1].is_broken = False
    assert scene.collect(123) == 1
    assert scene.collector.unwritten_records == 0
    assert [sink.of("sourceTransportPort") for sink in scene.sinks] == [[1025, 1026]] * 3


def test_room_is_asked_for_all_records(scene: Scene) -> None:
    for number in range(5):
        scene.table.packet(flow(number), 100)
    scene.collect(150)
    assert scene.sink.reserved >= 5


# --- in chunks ---


@pytest.fixture
def in_chunks(monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Two biflows are taken at once; two sinks."""
    monkeypatch.setattr(collector, "RECORDED_AT_ONCE", 2)
    return Scene(sinks=[FakeSink(), FakeSink()])


def fill_with_answers(table: FakeTable, number: int) -> None:
    """Conversations of two points; every other one is answered."""
    for one in range(number):
        for point in range(2):
            table.packet(flow(one, ifindex=2 + point), 100 + point, number=1 + one)
            if one % 2:
                table.packet(turned(flow(one, ifindex=2 + point)), 102 + point, number=50)


@pytest.mark.parametrize("number", [1, 2, 3, 9])
def test_chunks_together_are_what_ended(in_chunks: Scene, number: int) -> None:
    fill_with_answers(in_chunks.table, number)
    assert in_chunks.collect(150) == number
    assert in_chunks.table.entries == {}
    for sink in in_chunks.sinks:
        assert sorted(sink.of("packetDeltaCount")) == [1 + one for one in range(number)]
        ports = dict(zip(sink.of("sourceTransportPort"), sink.of("reversePacketDeltaCount"), strict=True))
        assert ports == {1024 + one: 50 * (one % 2) for one in range(number)}
    tally = in_chunks.collector.tally
    assert (tally.records, tally.packets) == (number, in_chunks.sink.packets)
    assert tally.duplicate_packets == tally.packets


def test_room_is_asked_for_beside_the_chunk_in_hand(in_chunks: Scene) -> None:
    asked: list[tuple[int, bool]] = []
    in_chunks.sink.reserve = lambda rows, *, more=False: asked.append((rows, more))  # type: ignore[method-assign]
    fill_with_answers(in_chunks.table, 5)
    in_chunks.collect(150)
    assert asked == [(2, False), (2, True), (1, True)]


def test_a_sink_that_is_full_in_the_middle_leaves_the_rest_in_the_table(in_chunks: Scene) -> None:
    room = iter([None, None])

    def reserve(rows: int, *, more: bool = False) -> None:
        if next(room, "none left") is not None:
            raise SinkError("the disk is full")

    in_chunks.sinks[1].reserve = reserve  # type: ignore[method-assign]
    fill_with_answers(in_chunks.table, 9)
    assert in_chunks.collect(150) == 4
    assert [len(sink.records) for sink in in_chunks.sinks] == [4, 4]
    assert in_chunks.table.packets > 0
    assert in_chunks.collector.refused_by == "the disk is full"
    room = iter([None] * 9)
    assert in_chunks.collect(151) == 5
    assert in_chunks.table.entries == {}
    assert [sorted(sink.of("packetDeltaCount")) for sink in in_chunks.sinks] == [list(range(1, 10))] * 2
    assert in_chunks.collector.refused_by == ""


def test_a_sink_that_breaks_in_the_middle_has_two_chunks_held_for_it(in_chunks: Scene) -> None:
    broken = in_chunks.sinks[1]
    write = broken.write

    def write_once(batch: pa.RecordBatch, exported_at_ns: int) -> None:
        write(batch, exported_at_ns)
        broken.is_broken = True

    broken.write = write_once  # type: ignore[method-assign]
    fill_with_answers(in_chunks.table, 9)
    in_chunks.collect(150)
    assert len(broken.records) == 2
    # What it refused, and for both of them what had been taken meanwhile.
    assert in_chunks.collector.unwritten_records == 2 + 2 * 2
    left = len(in_chunks.table.entries)
    assert left > 0
    assert in_chunks.collect(151) == 0
    assert len(in_chunks.table.entries) == left
    broken.is_broken, broken.write = False, write  # type: ignore[method-assign]
    in_chunks.collect(152)
    assert in_chunks.collector.unwritten_records == 0
    assert [sorted(sink.of("packetDeltaCount")) for sink in in_chunks.sinks] == [list(range(1, 10))] * 2


def test_what_was_taken_when_a_pipe_broke_goes_to_the_other_sinks(in_chunks: Scene) -> None:
    calls = count(1)

    def write(batch: pa.RecordBatch, exported_at_ns: int) -> None:
        if next(calls) > 1:
            raise BrokenPipeError

    in_chunks.sinks[1].write = write  # type: ignore[method-assign]
    fill_with_answers(in_chunks.table, 9)
    with pytest.raises(BrokenPipeError):
        in_chunks.collect(150)
    left = {one[32:34] for one in in_chunks.table.entries}  # by their ports
    assert len(in_chunks.sink.records) == 6
    assert len(in_chunks.table.entries) > 0
    ports = {int(port).to_bytes(2, sys.byteorder) for port in in_chunks.sink.of("sourceTransportPort")}
    assert not ports & left


# --- analysers ---


class Watcher:
    """Keeps what a Watch is told of passes."""

    def __init__(self) -> None:
        self.passes: list[tuple[Seen, int, int]] = []
        self.is_finished = False

    def passed(self, found: Seen, read_at_mono_ns: int, utc_offset_ns: int) -> None:
        self.passes.append((found, read_at_mono_ns, utc_offset_ns))

    def finish(self) -> None:
        self.is_finished = True

    @property
    def packets(self) -> list[list[int]]:
        """Of each biflow, in both directions, by pass."""
        both = ("forward_packets", "reverse_packets")
        return [sum(found.counts[name] for name in both).tolist() for found, _, _ in self.passes]

    @property
    def reasons(self) -> list[list[int]]:
        return [found.reasons.tolist() for found, _, _ in self.passes]


def watched(*sinks: FakeSink) -> tuple[Scene, Watcher]:
    watcher: Any = Watcher()
    return Scene(FakeTable(state=WATCHED_STATE), list(sinks) or [FakeSink()], watch=watcher), watcher


def test_analysers_see_every_pass_and_why_flows_ended() -> None:
    scene, watcher = watched()
    scene.table.packet(flow(), 100, number=2)
    scene.table.packet(turned(flow()), 101)
    for second in (101, 110, 116, 117):
        scene.collect(second)
    assert watcher.packets == [[3], [3], [3], []]
    assert watcher.reasons == [[0], [0], [EndReason.IDLE], []]
    assert [(at, offset) for _, at, offset in watcher.passes] == [
        (second * NS, 1_000_000 * NS) for second in (101, 110, 116, 117)
    ]
    scene.collector.finish()
    assert watcher.is_finished


def test_analysers_see_what_came_until_a_flow_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, watcher = watched()
    scene.table.packet(flow(), 100, number=2)
    take = scene.table.take

    def late_take(*arguments: Any) -> Any:
        scene.table.packet(flow(), 116, number=5, flags=SYN)
        return take(*arguments)

    monkeypatch.setattr(scene.table, "take", late_take)
    assert scene.collect(116) == 1
    assert scene.sink.of("packetDeltaCount") == watcher.packets[0] == [7]
    (found,) = (one for one, _, _ in watcher.passes)
    assert (found.counts["forward_flags"].tolist(), found.counts["syn_packets"].tolist()) == ([SYN], [5])


def test_analysers_do_not_take_an_evicted_flow_for_an_ended_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, watcher = watched()
    for number in range(3):
        scene.table.packet(flow(number), 100, number=1 + number)
    snapshot = scene.table.snapshot()
    scene.table.evict(flow(1))
    monkeypatch.setattr(scene.table, "snapshot", lambda: snapshot)
    scene.collect(116)
    (found,) = (one for one, _, _ in watcher.passes)
    packets = found.counts["forward_packets"].tolist()
    assert dict(zip(packets, found.reasons.tolist(), strict=True)) == {
        1: EndReason.IDLE,
        2: 0,
        3: EndReason.IDLE,
    }


@pytest.mark.parametrize("trouble", ["is_full", "is_broken"])
def test_analysers_look_on_while_a_sink_refuses_and_nothing_is_taken(trouble: str) -> None:
    scene, watcher = watched(FakeSink(), FakeSink())
    if trouble == "is_broken":  # after that, a batch is held
        scene.sinks[1].is_broken = True
        scene.table.packet(flow(9), 50)
        scene.collect(100)
        watcher.passes.clear()
    setattr(scene.sinks[1], trouble, True)
    for second in (100, 116, 132):
        scene.table.packet(flow(), second)
        assert scene.collect(second + 16) == 0
    assert (watcher.packets, watcher.reasons) == ([[1], [2], [3]], [[0]] * 3)
    assert scene.table.packets == 3
    assert scene.collect(150, everything=True) == 0
    assert scene.table.packets == 3
    setattr(scene.sinks[1], trouble, False)
    assert scene.collect(150) == 1
    assert (watcher.packets[-1], watcher.reasons[-1]) == ([3], [EndReason.IDLE])
    assert [sink.packets for sink in scene.sinks] == [3 + (trouble == "is_broken")] * 2


def test_without_analysers_nobody_looks_while_a_batch_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    assert set(scene.table.snapshot().states.dtype.names) == set(FLOW_STATE.names)
    scene.sink.is_broken = True
    scene.table.packet(flow(), 100)
    scene.collect(120)
    monkeypatch.delattr(FakeTable, "take")
    scene.collect(121)
    measured = scene.collector.durations.histograms()
    assert measured["pass"].counts[-1] == 1
    assert "analyse" not in measured


def test_steps_of_a_pass_are_measured() -> None:
    scene, _ = watched()
    scene.table.packet(flow(), 100)
    for second in (101, 120, 121):
        scene.collect(second)
    counts = {step: one.counts[-1] for step, one in scene.collector.durations.histograms().items()}
    every_pass = dict.fromkeys(("pass", "snapshot", "pair", "decide", "analyse"), 3)
    assert counts == every_pass | {"take": 1, "record": 1, "write": 1}
    assert set(counts) == set(durations.STEPS)


@pytest.mark.parametrize("is_watched", [True, False])
@pytest.mark.parametrize("trouble", ["", "is_full", "is_broken"])
def test_published_about_once_a_second_whatever_sinks_say(
    monkeypatch: pytest.MonkeyPatch, trouble: str, is_watched: bool
) -> None:
    published: list[Metering] = []
    watcher: Any = Watcher() if is_watched else None
    scene = Scene(FakeTable(state=WATCHED_STATE), watch=watcher, publish=published.append)
    monkeypatch.setattr(collector.time, "monotonic", lambda: scene.now)
    scene.table.packet(flow(), 50)
    if trouble:
        setattr(scene.sink, trouble, True)
    for number in range(41):
        scene.collect(100 + number / 4)
    assert [one.at_ns - 1_000_100 * NS for one in published] == [second * NS for second in range(11)]
    assert published == scene.sink.reports
    scene.collector.finish()
    assert len(published) == 12


# --- pressure ---


class Walk:
    """Runs a collector's loop; both clocks move only when it waits. Passes are an hour apart."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scene: Scene, looks: int) -> None:
        self.waits: list[float] = []
        self._scene, self._looks = scene, looks
        for module in (collector, pressure):
            monkeypatch.setattr(module, "time", self)
        scene.options = CollectorOptions(interval_s=3600)
        scene.__post_init__()

    def monotonic(self) -> float:
        return self._scene.now

    def run(self, arrivals: int = 0, every_s: float = 0.1) -> None:
        """`arrivals` new flows come with each wait, which takes `every_s`."""

        def wait(seconds: float) -> None:
            self._scene.now += every_s
            for number in range(arrivals):
                self._scene.table.packet(
                    flow(len(self.waits) * arrivals + number, ifindex=9), self._scene.now
                )
            self.waits.append(seconds)

        self._scene.collector.run(lambda: len(self.waits) == self._looks, wait)


def fill(table: FakeTable, flows: int, second: float, first: int = 0, number: int = 1) -> None:
    for each in range(flows):
        table.packet(flow(first + each), second, number)


@pytest.mark.parametrize(("silent", "busy", "left"), [(20, 39, 59), (35, 25, 25), (5, 60, 0)])
def test_full_table_is_relieved_between_passes(
    monkeypatch: pytest.MonkeyPatch, silent: int, busy: int, left: int
) -> None:
    scene = Scene(FakeTable(max_flows=100))
    fill(scene.table, silent, 98)
    fill(scene.table, busy, 99.9, first=silent)
    Walk(monkeypatch, scene, looks=1).run()
    assert scene.table.packets == left
    assert set(scene.sink.of("flowEndReason")) <= {EndReason.LACK_OF_RESOURCES}
    assert scene.sink.packets == silent + busy - left


def test_fast_arrivals_relieve_the_table_earlier_and_are_watched_closer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow, fast = Scene(FakeTable(max_flows=1000)), Scene(FakeTable(max_flows=1000))
    waits = []
    for scene, every_s in ((slow, 10.0), (fast, 0.005)):
        walk = Walk(monkeypatch, scene, looks=10)
        walk.run(arrivals=50, every_s=every_s)
        waits.append(walk.waits[-1])
    assert slow.sink.records == []
    assert fast.sink.packets > 0
    assert waits[1] < waits[0] == pressure.LOOK_SECONDS


def test_quiet_table_is_looked_at_no_oftener_than_a_busy_one(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(monkeypatch, Scene(), looks=5)
    walk.run()
    assert walk.waits == [pressure.LOOK_SECONDS] * 5


def test_entries_kept_over_an_active_timeout_fill_the_table_too(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(FakeTable(max_flows=100))
    walk = Walk(monkeypatch, scene, looks=2)
    fill(scene.table, 55, 30)
    fill(scene.table, 55, 99)
    assert scene.collect(100) == len(scene.table.entries) == 55
    walk.run(arrivals=10)
    assert EndReason.LACK_OF_RESOURCES in scene.sink.of("flowEndReason") or len(scene.table.entries) <= 60


def test_entries_that_begin_a_new_record_fill_no_new_room(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(FakeTable(max_flows=100))
    walk = Walk(monkeypatch, scene, looks=1)
    fill(scene.table, 40, 30)
    fill(scene.table, 40, 99)
    assert scene.collect(100) == 40
    fill(scene.table, 40, 100)  # 40 % of the table, and no pressure
    walk.run()
    assert scene.sink.of("flowEndReason") == [EndReason.ACTIVE] * 40


def test_no_relief_while_a_sink_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(FakeTable(max_flows=100), sinks=[FakeSink(is_full=True)])
    fill(scene.table, 80, 98)
    snapshots = []
    real = scene.table.snapshot
    monkeypatch.setattr(scene.table, "snapshot", lambda: snapshots.append(1) or real())
    Walk(monkeypatch, scene, looks=5).run()
    assert scene.table.packets == 80
    assert len(snapshots) <= 2  # the watch's first look, and one try


def run_with_passes(scene: Scene, rounds: int, recovered: int) -> None:
    """Rounds with a pass each, the table's clock standing still; in one of them all sinks recover."""
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == recovered:
            for sink in scene.sinks:
                sink.is_full = sink.is_broken = False

    scene.collector.run(lambda: len(waits) == rounds, wait)


def test_relief_comes_back_with_a_sink_that_had_refused_while_no_flow_ends() -> None:
    scene = Scene(FakeTable(max_flows=100), [FakeSink(is_full=True)], CollectorOptions(interval_s=0))
    fill(scene.table, 90, 98)
    run_with_passes(scene, rounds=10, recovered=3)
    assert set(scene.sink.of("flowEndReason")) == {EndReason.LACK_OF_RESOURCES}
    assert len(scene.table.entries) < 60


def test_relief_comes_back_with_a_sink_that_had_failed_while_no_flow_ends() -> None:
    scene = Scene(FakeTable(max_flows=100), [FakeSink(is_broken=True)], CollectorOptions(interval_s=0))
    fill(scene.table, 5, 70)
    scene.collect(100)
    assert scene.collector.unwritten_records == 5
    fill(scene.table, 90, 98, first=5)
    run_with_passes(scene, rounds=10, recovered=3)
    assert scene.sink.of("flowEndReason")[:5] == [EndReason.IDLE] * 5
    assert set(scene.sink.of("flowEndReason")[5:]) == {EndReason.LACK_OF_RESOURCES}
    assert len(scene.table.entries) < 60


# --- in all ---

STEPS = st.one_of(
    st.tuples(st.just("packet"), st.integers(0, 4), st.booleans(), st.integers(1, 9)),
    st.tuples(st.just("later"), st.sampled_from([0.5, 2, 20, 70])),
    st.tuples(st.just("collect"), st.sampled_from([0, 0, 0, 3])),
    st.tuples(st.just("full"), st.booleans()),
    st.tuples(st.just("broken"), st.booleans()),
)


@given(st.lists(STEPS, max_size=40))
def test_every_packet_is_in_one_record_of_each_sink(steps: list[tuple[Any, ...]]) -> None:
    scene = Scene(sinks=[FakeSink(), FakeSink()])
    seen = 0
    for kind, *rest in steps:
        match kind:
            case "packet":
                number, is_answer, packets = rest
                scene.table.packet(turned(flow(number)) if is_answer else flow(number), scene.now, packets)
                seen += packets
            case "later":
                scene.now += rest[0]
            case "collect":
                scene.collect(scene.now, excess=rest[0])
            case "full":
                scene.sinks[0].is_full = rest[0]
            case "broken":
                scene.sinks[1].is_broken = rest[0]
    scene.sinks[0].is_full = scene.sinks[1].is_broken = False
    scene.collect(scene.now, everything=True)
    assert [sink.packets for sink in scene.sinks] == [seen, seen]
    assert scene.sinks[0].of("flowId") == scene.sinks[1].of("flowId")
    tally = scene.collector.tally
    assert (tally.packets, tally.duplicate_packets, tally.evicted_flows) == (seen, 0, 0)
    assert tally.records == len(scene.sink.records) == sum(tally.by_reason.values())
    assert scene.table.entries == {}
