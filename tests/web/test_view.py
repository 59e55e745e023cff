"""Durations and the history of alerts, against the plain way to reckon them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from flowmon.analysers.alerts import ENDED, STARTED, UPDATED, Alert
from flowmon.durations import BUCKETS_S, Durations
from flowmon.web.view import AlertHistory, Board, DenyState
from view_samples import alert, empty

SECONDS = st.one_of(st.sampled_from(BUCKETS_S), st.floats(0, 20))


@given(st.lists(SECONDS, max_size=30))
def test_buckets_hold_what_took_up_to_so_long(observed: list[float]) -> None:
    durations = Durations()
    for seconds in observed:
        durations.observe("take", seconds)
    if not observed:
        assert durations.histograms() == {}
        return
    histogram = durations.histograms()["take"]
    assert histogram.counts == tuple(
        sum(seconds <= bound for seconds in observed) for bound in (*BUCKETS_S, float("inf"))
    )
    assert abs(histogram.seconds - sum(observed)) < 1e-9


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=40))
def test_the_history_keeps_the_latest_row_of_each_event(happenings: list[tuple[int, bool]]) -> None:
    history = AlertHistory(recent_most=3, going_on_most=100)
    rows: list[Alert] = []
    going_on: dict[int, int] = {}
    for subject, ends in happenings:
        state = STARTED if subject not in going_on else ENDED if ends else UPDATED
        # Each event has an id of its own: that of its first row.
        event = going_on.pop(subject) if state == ENDED else going_on.setdefault(subject, len(rows))
        rows.append(alert(event, state, failures=len(rows)))
        history.take([rows[-1]])
    found = history.state()
    latest = {row.alert_id: row for row in rows}
    newest_first = sorted(latest.values(), key=lambda row: row.failures or 0, reverse=True)
    ended = [row for row in newest_first if row.state == ENDED][: max(0, 3 - len(going_on))]
    assert list(found.recent) == [row for row in newest_first if row.state != ENDED or row in ended]
    assert found.counts == Counter((row.detector, row.kind, row.state) for row in rows)
    assert sum(found.going_on.values()) == len(going_on)
    assert found.forgotten == 0


def test_the_history_is_bounded_and_counts_what_it_forgets() -> None:
    history = AlertHistory(recent_most=5, going_on_most=10)
    history.take(alert(number) for number in range(100))
    history.take(alert(number, ENDED) for number in range(50))
    found = history.state()
    assert [one.alert_id for one in found.recent] == [f"event{number}" for number in range(99, 89, -1)]
    assert (found.forgotten, sum(found.going_on.values())) == (90, 10)
    assert found.counts == {("port-scan", "vertical", STARTED): 100, ("port-scan", "vertical", ENDED): 50}


def test_the_board_says_when_it_was_posted() -> None:
    times = iter([10.0, 11.0, 12.5])
    board = Board(lambda: next(times))
    assert (board.latest.view, board.latest.at_s) == (None, 10.0)
    board.post(empty())
    view = empty(records=3)
    board.post(view)
    assert (board.latest.view, board.latest.at_s, board.latest.read_after_s) == (view, 12.5, 11.0)


@given(st.lists(st.one_of(st.none(), st.integers(0, 50)), max_size=10))
def test_what_was_denied_never_falls_and_misses_nothing_while_entries_stay(
    readings: list[int | None],
) -> None:
    board = Board()
    expected, before = 0, 0
    for reading in readings:
        board.post(
            empty(deny=None if reading is None else DenyState({}, reading, 10 * reading, 100 * reading))
        )
        now = reading or 0
        expected, before = expected + max(0, now - before), now
        denied = board.latest.denied
        assert (denied.packets, denied.octets, denied.dry_run_packets) == (
            expected,
            10 * expected,
            100 * expected,
        )
