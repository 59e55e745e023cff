"""The lists of first packets against a slow merge, packet by packet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmon.abi import FIRST_PACKETS_LOST, FIRST_PACKETS_MOST
from flowmon.elements import LISTING_SCHEMA, LISTS, RECORD_SCHEMA
from flowmon.first_packets import FORWARD, REVERSE, FirstPackets, merged
from flowmon.records import BLOCK, Context, record_batch
from samples import NS, arrivals, counters, ended, key, lost, some_lists

OFFSET = 1_700_000_000 * NS
Packet = tuple[int, int, int]
"""Time, direction, length."""


def packets_of(side: np.void, direction: int) -> list[Packet]:
    found = []
    for at in range(int(side["arrivals"])):
        lengths = [int(side["segment_lengths"][at])] * (int(side["segments"][at]) - 1)
        lengths.append(int(side["last_lengths"][at]))
        found += [(int(side["times_mono_ns"][at]), direction, length) for length in lengths]
    return found


def expected(first: FirstPackets) -> list[list[Packet] | None]:
    lists: list[list[Packet] | None] = []
    for forward, reverse in zip(first.forward, first.reverse, strict=True):
        if FIRST_PACKETS_LOST in (forward["arrivals"], reverse["arrivals"]):
            lists.append(None)
            continue
        both = packets_of(forward, FORWARD) + packets_of(reverse, REVERSE)
        lists.append(sorted(both, key=lambda packet: packet[:2])[: first.most])
    return lists


def found(first: FirstPackets) -> list[list[Packet] | None]:
    made = merged(first)
    rows = list(
        zip(made.times_mono_ns.tolist(), made.directions.tolist(), made.lengths.tolist(), strict=True)
    )
    lists = [rows[start:end] for start, end in zip(made.offsets[:-1], made.offsets[1:], strict=True)]
    assert made.offsets[-1] == len(rows)
    assert all(not one for one, is_known in zip(lists, made.is_known, strict=True) if not is_known)
    return [one if is_known else None for one, is_known in zip(lists, made.is_known, strict=True)]


@given(st.integers(0, 12), st.integers(1, FIRST_PACKETS_MOST), st.integers(0, 2**32))
def test_lists_are_merged_by_time(rows: int, most: int, seed: int) -> None:
    first = some_lists(rows, most, seed)
    assert found(first) == expected(first)


def test_of_equal_times_forward_comes_first() -> None:
    one_way, back = arrivals((NS, 1, 0, 60), (2 * NS, 1, 0, 52)), arrivals((NS, 1, 0, 44), (2 * NS, 1, 0, 40))
    assert found(FirstPackets(one_way, back, 32)) == [
        [(NS, FORWARD, 60), (NS, REVERSE, 44), (2 * NS, FORWARD, 52), (2 * NS, REVERSE, 40)]
    ]


def test_segments_are_listed_one_by_one_up_to_the_number() -> None:
    one_way, back = arrivals((NS, 3, 1500, 100)), arrivals((NS + 1, 1, 0, 40))
    whole = [(NS, FORWARD, 1500)] * 2 + [(NS, FORWARD, 100), (NS + 1, REVERSE, 40)]
    for most in range(1, 6):
        assert found(FirstPackets(one_way, back, most)) == [whole[:most]]


def test_half_a_list_is_none() -> None:
    there, gone, nothing = arrivals((NS, 1, 0, 60)), lost(), arrivals()
    for one_way, back in ((there, gone), (gone, there), (nothing, gone), (gone, gone)):
        assert found(FirstPackets(one_way, back, 32)) == [None]
    assert found(FirstPackets(nothing, nothing, 32)) == [[]]


@pytest.mark.parametrize("rows", [0, 1, BLOCK + 1])
def test_columns_of_a_record(rows: int) -> None:
    first = some_lists(rows, 5)
    flows = ended(np.repeat(key(), rows), np.repeat(counters(), rows), np.repeat(counters(0), rows))
    context = Context(OFFSET, {}, 7)
    without = record_batch(flows, context)
    batch = record_batch(type(flows)(**vars(flows) | {"first_packets": first}), context)
    batch.validate(full=True)
    assert without.schema.equals(RECORD_SCHEMA, check_metadata=True)
    assert batch.schema.equals(LISTING_SCHEMA, check_metadata=True)
    assert batch.select(RECORD_SCHEMA.names).equals(without)
    lists: list[Any] = []
    for row in batch.select([element.name for element in LISTS]).to_pylist():
        lengths, directions, times = row.values()
        if lengths is None:
            assert (directions, times) == (None, None)
            lists.append(None)
        else:
            since = [time.value - OFFSET for time in times]
            lists.append(list(zip(since, directions, lengths, strict=True)))
    assert lists == expected(first)
