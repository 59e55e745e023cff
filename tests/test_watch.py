"""What a Watch asks of analysers and when, and where their alerts go."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_table import FakeTable
from flowmon.abi import SYN
from flowmon.analysers.activity import Activity, Seen, seen
from flowmon.analysers.alerts import ENDED, UPDATED, Alert
from flowmon.biflow import pair
from flowmon.errors import SinkError
from flowmon.kernel.flow_table import WATCHED_STATE
from flowmon.watch import Watch
from samples import NS, key

UTC_NS = 1_700_000_000 * NS
NOBODY = np.empty(0, np.int64)


def alert(number: int = 0, **fields: Any) -> Alert:
    return Alert(alert_id=str(number), detector="fake", kind="odd", start_ns=1, end_ns=2, **fields)


@dataclass
class FakeAnalyser:
    """Says what stands in `to_say` once, and notes what it is asked."""

    name: str = "fake"
    to_say: list[Alert] = field(default_factory=list)
    last_words: list[Alert] = field(default_factory=list)
    observed: list[Activity] = field(default_factory=list)
    assessed: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)

    def observe(self, activity: Activity) -> None:
        self.observed.append(activity)

    def assess(self, now_ns: int) -> list[Alert]:
        self.assessed.append(now_ns)
        said, self.to_say = self.to_say, []
        return said

    def finish(self, now_ns: int) -> list[Alert]:
        self.finished.append(now_ns)
        return self.last_words

    def gauges(self) -> dict[str, int]:
        return {}


class FakeSink:
    """Keeps alerts; fails with `complaint` while there is one."""

    def __init__(self) -> None:
        self.complaint = ""
        self.taken: list[Alert] = []

    def write(self, alerts: list[Alert]) -> None:
        if self.complaint:
            raise SinkError(self.complaint)
        self.taken += alerts

    def close(self) -> None: ...


def found(table: FakeTable | None = None) -> Seen:
    """What a pass over the table finds, in which nothing ends."""
    snapshot = (table or FakeTable(state=WATCHED_STATE)).snapshot()
    biflows = pair(snapshot.keys, snapshot.states["born_mono_ns"], every_interface=False)
    return seen(snapshot.keys, snapshot.states, biflows, np.zeros(len(biflows), "u1"))


def passes(watch: Watch, *seconds: float, offset_ns: int = UTC_NS) -> None:
    for second in seconds:
        watch.passed(found(), int(second * NS), offset_ns)


@given(st.lists(st.sampled_from([5, 20, 100, 400, 970, 1000, 1030, 7000]), max_size=40))
def test_analysers_see_every_pass_and_are_asked_about_once_an_interval(gaps_ms: list[int]) -> None:
    analyser = FakeAnalyser()
    watch = Watch([analyser], [], interval_s=1.0)
    times = [50 * NS + gap * (NS // 1000) for gap in (0, *accumulate(gaps_ms))]
    for time_ns in times:
        watch.passed(found(), time_ns, UTC_NS)
    assert [one.at_ns - UTC_NS for one in analyser.observed] == times
    expected = times[:1]
    for time_ns in times:
        if time_ns - expected[-1] >= NS // 2:
            expected.append(time_ns)
    assert [at_ns - UTC_NS for at_ns in analyser.assessed] == expected


def test_regular_passes_are_each_asked_for_though_they_are_not_quite_on_time() -> None:
    analyser = FakeAnalyser()
    watch = Watch([analyser], [], interval_s=1.0)
    passes(watch, 10, 10.99, 12.001, 12.98, 14)
    assert len(analyser.assessed) == 5


def test_one_pass_is_asked_for() -> None:
    analyser = FakeAnalyser()
    passes(Watch([analyser], [], interval_s=0.0), 10)
    assert analyser.assessed == [UTC_NS + 10 * NS]


def test_wall_clock_that_is_set_back_silences_nobody() -> None:
    analyser = FakeAnalyser()
    watch = Watch([analyser], [], interval_s=1.0)
    passes(watch, 10, 11)
    passes(watch, 12, 13, offset_ns=UTC_NS - 3600 * NS)
    assert len(analyser.assessed) == 4


def test_alerts_of_all_analysers_go_to_all_sinks_with_what_was_done() -> None:
    analysers, sinks = [FakeAnalyser(), FakeAnalyser()], [FakeSink(), FakeSink()]
    answered: list[list[Alert]] = []

    def respond(alerts: list[Alert]) -> list[Alert]:
        answered.append(alerts)
        return [replace(one, action="blocked") for one in alerts]

    watch = Watch(analysers, sinks, 1.0, respond)
    passes(watch, 10)
    assert answered == []
    analysers[0].to_say, analysers[1].to_say = [alert(1), alert(2)], [alert(3)]
    passes(watch, 11)
    expected = [alert(number, action="blocked") for number in (1, 2, 3)]
    assert answered == [[alert(1), alert(2), alert(3)]]
    assert [sink.taken for sink in sinks] == [expected] * 2
    assert sorted(watch.history.state().recent, key=lambda one: one.alert_id) == expected


def test_the_end_is_that_of_the_latest_pass() -> None:
    analyser, sink = FakeAnalyser(last_words=[alert(1, state=ENDED)]), FakeSink()
    watch = Watch([analyser], [sink], 1.0)
    passes(watch, 10, 10.1)
    watch.finish()
    assert analyser.finished == [UTC_NS + int(10.1 * NS)]
    assert sink.taken == analyser.last_words


def test_nothing_passed_before_the_end() -> None:
    analyser = FakeAnalyser()
    Watch([analyser], [], 1.0).finish()
    assert (analyser.finished, analyser.assessed) == ([0], [])


def test_sink_that_fails_is_said_once_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    analyser, sinks = FakeAnalyser(), [FakeSink(), FakeSink()]
    watch = Watch([analyser], sinks, 1.0)
    for second, complaint in enumerate(["full", "full", "", "full", "gone", "gone"]):
        sinks[0].complaint = complaint
        analyser.to_say = [alert(second, state=UPDATED)]
        passes(watch, 10 + second)
    assert [one.alert_id for one in sinks[0].taken] == ["2"]
    assert [one.alert_id for one in sinks[1].taken] == [str(number) for number in range(6)]
    said = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert said == [f"{text}; alerts go on where they can" for text in ("full", "full", "gone")]
    assert len(watch.history.state().recent) == 6


def test_new_connections_are_counted_once() -> None:
    table = FakeTable(state=WATCHED_STATE)
    watch = Watch([], [], 1.0)
    for second in range(10, 14):
        for number in range(second - 9):  # another one each second
            table.packet(key(ports=(40000 + number, 80)), second, flags=SYN)
        table.packet(key(ports=(40000, 53), protocol=17), second)
        watch.passed(found(table), int((second + 0.1) * NS), UTC_NS)
        assert watch.new_connections == second - 9
