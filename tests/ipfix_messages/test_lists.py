"""First packets as basicLists (RFC 6313), against a slow reader."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmon.elements import LISTS
from flowmon.errors import ConfigError
from flowmon.first_packets import FORWARD, REVERSE, FirstPackets
from flowmon.ipfix import encoder
from flowmon.ipfix.encoder import Encoder, Profile
from flowmon.ipfix.fields import CHOICES, IANA_ONLY, NOT_BY_DEFAULT
from flowmon.records import record_batch
from ipfix_oracle import CONTEXT, flows_of, read_all, rows_of
from ipfix_reader import IANA, LISTED
from samples import CLIENT, NS, arrivals, counters, ended, key, lost, some_lists

DOMAIN = CONTEXT.observation_domain_id
LENGTHS, DIRECTIONS, TIMES = (LISTED, 224), (LISTED, 239), (LISTED, 325)
PROFILE = Profile(frozenset(CHOICES) - NOT_BY_DEFAULT, observation_domain_id=DOMAIN, first_packets=32)
FLOW_ID, PACKETS = (IANA, 148), (IANA, 2)
Packets = list[tuple[int, int, int]]
"""Length, direction, time."""


def batch_of(first: FirstPackets) -> pa.RecordBatch:
    """Each record has packets in both directions, but for every third."""
    rows = len(first)
    reverse = np.repeat(counters(), rows)
    reverse[::3] = counters(0)
    flows = ended(np.repeat(key(), rows), np.repeat(counters(), rows), reverse)
    return record_batch(replace(flows, first_packets=first), CONTEXT)


def listed(record: dict[Any, Any]) -> Packets:
    return list(zip(record[LENGTHS], record[DIRECTIONS], record[TIMES], strict=True))


def expected(batch: pa.RecordBatch) -> dict[int, Packets]:
    """By flowId; an unknown list goes out empty."""
    found = {}
    for row in rows_of(batch):
        lengths, directions, times = (row[element.name] or [] for element in LISTS)
        since_1970 = [time if isinstance(time, int) else time.value for time in times]
        found[row["flowId"]] = list(zip(lengths, directions, since_1970, strict=True))
    return found


@settings(max_examples=50)
@given(st.integers(0, 30), st.integers(1, 32), st.integers(0, 2**32), st.sampled_from([1232, 1400, 16384]))
def test_every_list_of_a_biflow(rows: int, most: int, seed: int, longest: int) -> None:
    batch = batch_of(some_lists(rows, most, seed))
    profile = replace(PROFILE, first_packets=most)
    assert {one[FLOW_ID]: listed(one) for one in flows_of(batch, profile, longest)} == expected(batch)


def test_many_records_fill_messages() -> None:
    batch = batch_of(some_lists(5000, 32))
    read = read_all(batch, PROFILE, 16384)
    assert {one[FLOW_ID]: listed(one) for message in read for one in message.flows} == expected(batch)
    assert sum(message.length for message in read) / len(read) > 12_000


@settings(max_examples=50)
@given(st.integers(0, 30), st.integers(1, 32), st.integers(0, 2**32))
def test_uniflows_list_their_own_direction(rows: int, most: int, seed: int) -> None:
    batch = batch_of(some_lists(rows, most, seed))
    of_both = expected(batch)
    records = flows_of(batch, replace(PROFILE, biflows=False))
    for record in records:
        direction = FORWARD if record[IANA, 8] == CLIENT else REVERSE
        assert listed(record) == [one for one in of_both[record[FLOW_ID]] if one[1] == direction]


@pytest.mark.parametrize("count", [0, 1, 31, 32])
def test_lengths_of_the_lists(count: int) -> None:
    """31 times are 253 octets, with a length of one octet; 32 take three."""
    first = FirstPackets(arrivals(*[(NS + at, 1, 0, 60 + at) for at in range(count)]), arrivals(), 32)
    (record,) = flows_of(batch_of(first), PROFILE)
    assert record[LENGTHS] == list(range(60, 60 + count))


def test_a_list_that_is_lost_is_empty() -> None:
    (record,) = flows_of(batch_of(FirstPackets(lost(), arrivals((NS, 1, 0, 60)), 32)), PROFILE)
    assert listed(record) == []


@pytest.mark.parametrize(
    "profile",
    [
        replace(PROFILE, first_packets=0),
        replace(PROFILE, version=9),
        replace(PROFILE, chosen=IANA_ONLY),
        replace(PROFILE, chosen=frozenset({"flowId"})),
    ],
    ids=["off", "netflow9", "iana", "not-chosen"],
)
def test_who_does_not_ask_gets_none(profile: Profile) -> None:
    for record in flows_of(batch_of(some_lists(20, 32)), profile):
        assert LISTED not in {enterprise for enterprise, _ in record}


def test_a_chosen_list_alone() -> None:
    profile = replace(PROFILE, chosen=frozenset({"packetLengths", "packetDirections"}))
    for record in flows_of(batch_of(some_lists(20, 32)), profile):
        assert {one for one in record if one[0] == LISTED} == {LENGTHS, DIRECTIONS}


def test_a_message_has_room_for_the_longest_lists() -> None:
    with pytest.raises(ConfigError, match="--ipfix-mtu 700"):
        Encoder(PROFILE, 700)
    Encoder(replace(PROFILE, first_packets=0), 700)


def test_parts_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part's lists begin somewhere in those of the batch."""
    monkeypatch.setattr(encoder, "ROWS", 7)
    batch = batch_of(some_lists(40, 32))
    assert {one[FLOW_ID]: listed(one) for one in flows_of(batch, PROFILE)} == expected(batch)
    assert {one[FLOW_ID]: listed(one) for one in flows_of(batch.slice(3, 30), PROFILE)} == expected(
        batch.slice(3, 30)
    )
