"""Rows by session, against sorting in plain Python."""

from __future__ import annotations

from itertools import groupby, pairwise

from hypothesis import given
from hypothesis import strategies as st

from feature_samples import OFFSET, plain, random_packets, rows_of, session
from flowmon.features.packets import feature_batch
from flowmon.features.sessions import sessions
from samples import NS, key


@given(st.integers(0, 2**32), st.integers(0, 40))
def test_sessions_are_the_oracles(seed: int, number: int) -> None:
    batch = feature_batch(random_packets(seed, number), OFFSET)
    rows = [row | {"number": number} for number, row in enumerate(plain(batch))]

    def capture(row: dict) -> tuple:
        return row["flowId"], row["captureStartNanoseconds"], row["captureRound"]

    in_order = sorted(rows, key=lambda row: (*capture(row), row["packetIndex"]))
    groups = [list(group) for _, group in groupby(in_order, key=capture)]
    groups.sort(key=lambda group: (group[0]["observationTimeNanoseconds"], group[0]["number"]))
    found = sessions(batch)
    spans = [found.rows[first:last].tolist() for first, last in pairwise(found.starts)]
    assert spans == [[row["number"] for row in group] for group in groups]
    assert len(found) == len(groups)
    assert found.first_rows.tolist() == [span[0] for span in spans]


def test_rounds_of_a_session_are_apart_and_in_order_of_time() -> None:
    again = session(key(), 2, round=1)
    again["time_mono_ns"] += 10 * NS
    found = sessions(rows_of(again, session(key(), 3)))
    assert found.rows.tolist() == [2, 3, 4, 0, 1]
    assert found.starts.tolist() == [0, 3, 5]
