"""The life of an event, and alerts as records."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, pairwise
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from flowmon.analysers.alerts import (
    ALERT_FIELDS,
    ALERT_SCHEMA,
    ENDED,
    STARTED,
    UPDATED,
    Alert,
    Events,
    alert_batch,
)

NS = 1_000_000_000
QUIET_NS = 5 * NS


def evidence(at: int = 1, **fields: Any) -> Alert:
    """Seen for a second, which ended at `at` seconds."""
    return Alert(
        **{"detector": "test", "kind": "flood", "start_ns": (at - 1) * NS, "end_ns": at * NS, **fields}
    )


def events() -> Events:
    """Whose ids are 0, 1, 2, …"""
    numbers = count()
    return Events(QUIET_NS, lambda: str(next(numbers)))


def test_start_update_when_doubled_and_end() -> None:
    going = events()
    sizes = (10, 19, 20, 39, 15, 40)
    said = [going.saw("victim", evidence(at, failures=size)) for at, size in enumerate(sizes, 1)]
    assert [[alert.state for alert in each] for each in said] == [[STARTED], [], [UPDATED], [], [], [UPDATED]]
    assert [alert.failures for each in said for alert in each] == [10, 20, 40]
    assert going.quiet(6 * NS + QUIET_NS - 1) == []
    (ended,) = going.quiet(6 * NS + QUIET_NS)
    assert ended == replace(said[-1][0], state=ENDED)
    assert (ended.start_ns, ended.end_ns) == (0, 6 * NS)
    assert going.quiet(99 * NS) == going.finish() == []


def test_end_holds_what_was_not_said_yet() -> None:
    going = events()
    going.saw("victim", evidence(1, failures=10, rate=10.0))
    assert going.saw("victim", evidence(2, failures=15, rate=5.0)) == []
    known = going.get("victim")
    (ended,) = going.finish()
    assert known == replace(ended, state=UPDATED)
    assert (ended.failures, ended.rate, ended.start_ns, ended.end_ns) == (15, 10.0, 0, 2 * NS)


def test_another_kind_is_news() -> None:
    going = events()
    going.saw("scanner", evidence(1, kind="sweep", hosts=10))
    (alert,) = going.saw("scanner", evidence(2, kind="block", hosts=10))
    assert (alert.state, alert.kind) == (UPDATED, "block")


def test_subjects_have_events_of_their_own() -> None:
    going = events()
    ids = [going.saw(subject, evidence(at))[0].alert_id for at, subject in enumerate("ab", 1)]
    assert ids == ["0", "1"]
    assert len(going) == 2
    (ended,) = going.quiet(NS + QUIET_NS)
    assert ended.alert_id == "0"
    assert "a" not in going
    assert going.get("a") is None
    assert "b" in going
    (again,) = going.saw("a", evidence(20))
    assert (again.state, again.alert_id) == (STARTED, "2")
    assert [alert.state for alert in going.finish()] == [ENDED, ENDED]
    assert len(going) == 0


def test_ids_differ_by_default() -> None:
    going = Events(QUIET_NS)
    assert len({going.saw(subject, evidence())[0].alert_id for subject in range(100)}) == 100


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.none() | st.floats(0, 99)),
            st.integers(0, 8),
        ),
        max_size=30,
    )
)
def test_every_event_starts_once_grows_and_ends_once(steps: list[Any]) -> None:
    """Evidence of a subject, or so many seconds in which nothing comes."""
    going, now = events(), 0
    said: dict[str, list[Alert]] = {}
    for step in steps:
        now += step if isinstance(step, int) else 1
        seen = (
            [] if isinstance(step, int) else going.saw(step[0], evidence(now, failures=step[1], rate=step[2]))
        )
        for alert in seen + going.quiet(now * NS):
            said.setdefault(alert.alert_id, []).append(alert)
    for alert in going.finish():
        said[alert.alert_id].append(alert)
    for each in said.values():
        assert [alert.state for alert in each] == [STARTED, *[UPDATED] * (len(each) - 2), ENDED]
        assert len({alert.start_ns for alert in each}) == 1
        rates = [alert.rate for alert in each if alert.rate is not None]
        assert rates == sorted(rates)
        assert all(2 * a.size <= b.size for a, b in pairwise(each[:-1]))
        assert each[-1].end_ns <= now * NS


FULL = Alert(
    alert_id="id",
    state=UPDATED,
    detector="syn-rate",
    kind="syn-flood",
    start_ns=1_700_000_000_000_000_001,
    end_ns=1_700_000_000_000_000_002,
    source="2001:db8::1",
    victim="198.51.100.2",
    protocol=6,
    port=65_535,
    sources=4_000_000_000,
    hosts=2,
    ports=3,
    attempts=2**63,
    failures=5,
    rate=1.5,
    example_sources=("192.0.2.1", "192.0.2.2"),
    example_hosts=("198.51.100.2",),
    example_ports=(80, 443),
    confidence=0.5,
    action="blocked",
)


def test_batch_gives_back_what_alerts_hold() -> None:
    batch = alert_batch([FULL, FULL])
    assert batch.schema.equals(ALERT_SCHEMA)
    (row, other) = batch.to_pylist()
    assert row == other
    assert list(row) == [one.metadata["name"] for one in ALERT_FIELDS]
    for one in ALERT_FIELDS:
        value = getattr(FULL, one.name)
        found = batch.column(one.metadata["name"])[0]
        is_time = pa.types.is_timestamp(one.metadata["type"])
        assert (found.value if is_time else found.as_py()) == (
            list(value) if isinstance(value, tuple) else value
        )


def test_batch_has_null_for_what_is_not_known() -> None:
    (row,) = alert_batch([evidence()]).to_pylist()
    known = {
        "alertState",
        "detector",
        "alertKind",
        "alertStartNanoseconds",
        "alertEndNanoseconds",
        "confidence",
    }
    lists = {"exampleSources", "exampleDestinations", "examplePorts"}
    assert {name for name, value in row.items() if value is not None} == known | lists
    assert all(row[name] == [] for name in lists)
    assert alert_batch([]).num_rows == 0
