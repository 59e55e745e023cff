"""How what is due is cut into slices, and that a row counts once."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flowmon import abi
from flowmon.kernel.scan import Scan, _each_once

Array = np.ndarray[Any, np.dtype[Any]]

ROOM = 10


class Sliced(Scan):
    """The kernel's part played here: of each conversation its hash of 32 bits and how many rows it has."""

    def __init__(self, conversations: list[tuple[int, int]], due_entries: int) -> None:
        self._room = ROOM
        self._state = np.zeros(1, abi.SCAN_STATE)
        self._state["due_entries"] = due_entries
        self._hashes = np.array([one for one, rows in conversations for _ in range(rows)], "u8")
        self.runs = 0

    def _fetch_slice(self, number: int, slices: int) -> Array | None:
        self.runs += 1
        chosen = np.flatnonzero(self._hashes * np.uint64(slices) >> np.uint64(32) == number)
        if len(chosen) > ROOM:
            return None
        rows = np.zeros(len(chosen), abi.SCAN_ROW)
        rows["key"]["ifindex"] = chosen
        rows["packets"] = self._hashes[chosen]
        return rows


CONVERSATIONS = st.lists(
    st.tuples(st.integers(0, 2**32 - 1) | st.integers(2**31, 2**31 + 2**27), st.integers(1, 6)),
    max_size=40,
    unique_by=lambda one: one[0] >> 20,  # two in one slice for ever would never end
)


@given(CONVERSATIONS, st.floats(0, 1))
def test_slices_show_everything_once(conversations: list[tuple[int, int]], share: float) -> None:
    """However few of the rows are due, and however the hashes lie."""
    rows = sum(number for _, number in conversations)
    due = max(len(conversations) and 1, int(share * rows))
    parts = [part.copy() for part in Sliced(conversations, due).fetch()]
    shown = [entry for part in parts for entry in part["key"]["ifindex"].tolist()]
    assert sorted(shown) == list(range(rows))
    assert all(0 < len(part) <= ROOM for part in parts)
    hashes = [set(part["packets"].tolist()) for part in parts]
    assert sum(len(one) for one in hashes) == len(conversations)  # each whole in one


def test_what_fits_comes_at_once() -> None:
    """And where nothing is due, nothing is asked for."""
    nothing = Sliced([], 0)
    assert list(nothing.fetch()) == []
    assert nothing.runs == 0
    one = Sliced([(2**31, ROOM - 1)], ROOM - 1)
    assert [len(part) for part in one.fetch()] == [ROOM - 1]
    assert one.runs == 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_a_row_that_was_met_twice_counts_once(met: list[int]) -> None:
    """The first of it, and the order stays."""
    rows = np.zeros(len(met), abi.SCAN_ROW)
    rows["key"]["source_port"] = met
    rows["key"]["in_tunnel"] = met
    rows["packets"] = np.arange(len(met))
    assert _each_once(rows)["packets"].tolist() == [met.index(one) for one in dict.fromkeys(met)]
