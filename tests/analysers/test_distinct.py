"""Distinct members over a window of two halves: against sets that are kept by hand."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmon.analysers.contacts import CONTACT
from flowmon.analysers.distinct import Distinct, Limits, Seen, Threshold
from flowmon.analysers.table import NONE, Table

HALF = 10
ANY = Threshold(0, 0.0)
AMPLE = Limits(exact=10**4, members=10**5, sketches=10)
Member = tuple[int, int, bool]  # group, member, has it succeeded


def added(distinct: Distinct, attempts: list[Member], now: int) -> None:
    """Takes in members as a pass at `now` does, each once."""
    members = set(attempts)
    rows = sorted(
        (group * 2**32 + member, group, (group, member, True) in members, (group, member, False) in members)
        for group, member in {(group, member) for group, member, _ in members}
    )
    hashes, groups, *came_of_it = (np.array([row[i] for row in rows]) for i in range(4))
    distinct.turn(now)
    group = groups.astype("u8")
    contacts = np.zeros(len(hashes), CONTACT)
    distinct.add(
        Seen(contacts, hashes.astype("u8"), group, group, *(x.astype(bool) for x in came_of_it)), now
    )


def counts(distinct: Distinct) -> dict[int, tuple[int, int]]:
    """(failed, succeeded) by group."""
    everyone = np.arange(2050, dtype="u8")
    rows = distinct.groups_of(everyone, ANY)
    return {
        int(row["hash"]): (int(row["failed"]), int(row["succeeded"]))
        for row in rows
        if row["failed"] or row["succeeded"]
    }


class Sets:
    """The same by hand. reach(now, then): does what was at `then` still count?"""

    def __init__(self, reach: Any) -> None:
        self.reach = reach
        self.log: list[tuple[int, Member]] = []

    def counts(self, now: int) -> dict[int, tuple[int, int]]:
        seen: dict[int, tuple[set[int], set[int]]] = defaultdict(lambda: (set(), set()))
        for then, (group, member, succeeded) in self.log:
            if self.reach(now, then):
                seen[group][succeeded].add(member)
        return {group: (len(failed - won), len(won)) for group, (failed, won) in seen.items()}


MEMBERS = st.tuples(st.integers(1, 3), st.integers(1, 12), st.booleans())
PASSES = st.lists(st.tuples(st.integers(0, 25), st.lists(MEMBERS, max_size=8)), max_size=12)


@given(PASSES)
def test_equals_sets(passes: list) -> None:
    """And lies between what is exact for half a window and for a whole one."""
    distinct, now = Distinct(HALF, AMPLE), 1000
    halves = Sets(lambda now, then: then // HALF >= now // HALF - 1)
    short, whole = Sets(lambda now, then: now - then < HALF), Sets(lambda now, then: now - then < 2 * HALF)
    for gap, members in passes:
        now += gap
        added(distinct, members, now)
        for sets in (halves, short, whole):
            sets.log += [(now, member) for member in members]
        found = counts(distinct)
        assert found == halves.counts(now)
        for group, (failed, succeeded) in short.counts(now).items():
            assert sum(found[group]) >= failed + succeeded
        for group, (failed, succeeded) in found.items():
            assert failed + succeeded <= sum(whole.counts(now)[group])


@given(PASSES, st.integers(1, 4))
@settings(max_examples=60)
def test_sketches_of_few_members_count_as_sets_do(passes: list, exact: int) -> None:
    """A sketch with room for all of its members is exact, so nothing is lost on the way into it."""
    distinct, now = Distinct(HALF, Limits(exact, 10**5, 10)), 1000
    halves = Sets(lambda now, then: then // HALF >= now // HALF - 1)
    for gap, members in passes:
        now += gap
        added(distinct, members, now)
        halves.log += [(now, member) for member in members]
        assert counts(distinct) == halves.counts(now)
        assert distinct.members <= 3 * 12


def test_sketch_estimates_and_forgets() -> None:
    distinct = Distinct(HALF, Limits(exact=64, members=10**5, sketches=10))
    rng = np.random.default_rng(1)
    for now in (1000, 1010):
        for chunk in np.split(rng.integers(0, 2**31, 20_000), 10):
            added(distinct, [(1, int(one), i % 4 == 0) for i, one in enumerate(chunk)], now)
    assert (distinct.sketches, distinct.evicted) == (1, 0)
    failed, succeeded = counts(distinct)[1]
    assert failed == pytest.approx(30_000, rel=0.1)
    assert succeeded == pytest.approx(10_000, rel=0.1)
    distinct.turn(1020)
    assert sum(counts(distinct)[1]) == pytest.approx(20_000, rel=0.1)
    distinct.turn(1030)
    assert (counts(distinct), distinct.sketches, distinct.groups, distinct.members) == ({}, 0, 0, 0)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_the_large_and_the_latest_survive_want_of_room(seed: int) -> None:
    rng = np.random.default_rng(seed)
    distinct = Distinct(HALF, Limits(exact=64, members=1024, sketches=10))
    added(distinct, [(1, one, False) for one in range(30)], 1000)
    for now in range(1001, 1009):
        first = 1000 if now == 1008 else 10_000 * now
        flood = [(first + int(group), 1, False) for group in rng.integers(0, 2**10, 900)]
        added(distinct, flood, now)
        assert distinct.members <= 1024
        assert distinct.groups <= distinct.members
    assert distinct.evicted > 7 * 500
    assert counts(distinct)[1] == (30, 0)
    assert len(counts(distinct)) > 500


def test_sketches_beyond_their_number_go_by_age() -> None:
    distinct = Distinct(HALF, Limits(exact=4, members=10**4, sketches=2))
    for group in (1, 2, 3):
        added(distinct, [(group, one, False) for one in range(10 + group)], 1000 + group)
    assert (counts(distinct), distinct.sketches) == ({2: (12, 0), 3: (13, 0)}, 2)
    assert distinct.evicted == 11
    added(distinct, [(1, one, False) for one in range(3)], 1005)
    assert counts(distinct) == {1: (3, 0), 2: (12, 0), 3: (13, 0)}


def test_crossed_is_said_once_for_each_failure() -> None:
    distinct, threshold = Distinct(HALF, AMPLE), Threshold(2, 0.5)
    added(distinct, [(1, 1, False), (1, 2, False), (1, 3, True), (2, 1, False), (3, 1, True)], 1000)
    assert distinct.crossed(threshold).tolist() == [1]
    assert distinct.crossed(threshold).tolist() == []
    added(distinct, [(1, 4, True)], 1001)
    assert distinct.crossed(threshold).tolist() == []
    added(distinct, [(1, 1, False)], 1001)
    assert distinct.crossed(threshold).tolist() == [1]
    added(distinct, [(1, 5, True), (1, 6, False), (1, 2, True)], 1001)
    assert distinct.crossed(threshold).tolist() == []


@given(st.lists(st.tuples(st.sets(st.integers(0, 40), max_size=9), st.integers(1, 5)), max_size=12))
def test_table_is_a_dictionary(steps: list) -> None:
    table, expected = Table([("value", "i8")]), {}
    for value, (hashes, keep_each) in enumerate(steps):
        wanted = np.array(sorted(hashes), "u8")
        numbers, new = table.number(wanted)
        assert new.tolist() == [one not in expected for one in sorted(hashes)]
        assert table["value"][numbers].tolist() == [expected.get(one, 0) for one in sorted(hashes)]
        table["value"][numbers] = value
        expected.update(dict.fromkeys(hashes, value))
        kept = np.arange(len(table)) % keep_each == 0
        gone = set(table.hashes()[~kept].tolist())
        table.keep(kept)
        expected = {one: known for one, known in expected.items() if one not in gone}
        found = table.find(np.arange(41, dtype="u8"))
        assert [one != NONE for one in found] == [one in expected for one in range(41)]
        assert table["value"].tolist() == [expected[one] for one in table.hashes().tolist()]
