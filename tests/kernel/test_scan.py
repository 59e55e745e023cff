"""What a look at the table hands out, against the whole table and rules written out in plain Python."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from fake_table import is_due
from flowmon import abi
from flowmon.abi import TimeSource
from flowmon.biflow import pair
from flowmon.captures.reader import Capture
from flowmon.expiry import AT_ONCE, EndReason, Timeouts, decide
from flowmon.kernel import libbpf, scan
from flowmon.kernel.flow_table import FlowTable, Resident, Snapshot, map_into_memory
from flowmon.kernel.load_options import LoadOptions
from flowmon.kernel.loader import PrivateSet
from flowmon.kernel.replay import Replay
from flowmon.offline import NEVER
from kernel.test_programs import CAPTURES
from samples import NS, counters, key, packed, turned

pytestmark = pytest.mark.kernel

Array = np.ndarray[Any, np.dtype[Any]]

TIMEOUTS = Timeouts()
NOW = 1000 * NS
UDP_PROTOCOL = 17
ICMP = (1, 58)
POINTS = [(ifindex, direction) for ifindex in (0, 2, 3, 2**32 - 1) for direction in abi.Direction]


class Table:
    """A table of this process alone, filled by hand or with packets."""

    def __init__(self, max_flows: int, *, decap: bool = False) -> None:
        self.source = PrivateSet(
            LoadOptions(loader="libbpf", max_flows=max_flows, time_source=TimeSource.SKB_TSTAMP, decap=decap)
        )
        self.table = FlowTable(self.source)
        self._flows = self.source.open_map("flows")

    def close(self) -> None:
        os.close(self._flows)
        self.table.close()
        self.source.close()

    def put(self, keys: Array, values: Array) -> None:
        """Entries as they are, in step."""
        for row in range(len(keys)):
            libbpf.update(self._flows, keys[row : row + 1], values[row : row + 1])

    def clear(self) -> None:
        keys = self.table.snapshot().keys
        for row in range(len(keys)):
            libbpf.delete(self._flows, keys[row : row + 1])


@contextmanager
def opened(max_flows: int, *, decap: bool = False) -> Iterator[Table]:
    made = Table(max_flows, decap=decap)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared(kernel) -> Iterator[Table]:
    """A table for those who leave it empty."""
    with opened(8192) as made:
        yield made


def conversation_of(one: np.void) -> Hashable:
    """What both directions share at every point."""
    ports = int(one["source_port"]), int(one["destination_port"])
    # ICMP's are the identifier and the message class, of both directions alike.
    own, of_both = ((0, 0), ports) if one["protocol"] in ICMP else (ports, (0, 0))
    sides = (one["source_address"].tobytes(), own[0]), (one["destination_address"].tobytes(), own[1])
    names = ("vlan_id", "customer_vlan_id", "in_tunnel", "protocol", "ip_version")
    return frozenset(sides), of_both, *(int(one[name]) for name in names)


class Truth:
    """Which conversations a snapshot has, and which of them have an entry that is due."""

    def __init__(self, snapshot: Snapshot, timeouts: Timeouts, now_mono_ns: int) -> None:
        self.snapshot = snapshot
        self.row_of = {one.tobytes(): row for row, one in enumerate(snapshot.keys)}
        self.conversation_of = {one.tobytes(): conversation_of(one) for one in snapshot.keys}
        self.members: dict[Hashable, set[bytes]] = defaultdict(set)
        self.due: set[Hashable] = set()
        for (one, whole), state in zip(self.conversation_of.items(), snapshot.states, strict=True):
            self.members[whole].add(one)
            if is_due(state, timeouts, now_mono_ns):
                self.due.add(whole)

    def check(self, parts: Iterable[Snapshot]) -> tuple[int, int]:
        """(how many parts, how many conversations are in them that need not be)."""
        shown: set[Hashable] = set()
        number = 0
        for part in parts:
            number += 1
            assert len(part) > 0
            keys = [one.tobytes() for one in part.keys]
            conversations = {self.conversation_of[one] for one in keys}
            # Whole, each key once, and in no other part.
            assert sorted(keys) == sorted(one for whole in conversations for one in self.members[whole])
            assert not shown & conversations
            shown |= conversations
            rows = [self.row_of[one] for one in keys]
            assert np.array_equal(part.states, self.snapshot.states[rows])
        assert self.due <= shown
        return number, len(shown - self.due)


def check_look(table: FlowTable, timeouts: Timeouts, now_mono_ns: int) -> tuple[int, int]:
    """(parts, conversations that need not be there) of a look, all of which is as it should be."""
    snapshot = table.snapshot()
    look = table.look(timeouts, now_mono_ns)
    assert look.resident == Resident.of(snapshot)
    return Truth(snapshot, timeouts, now_mono_ns).check(look.parts)


def keys_of(parts: Iterable[Snapshot]) -> set[bytes]:
    return {one.tobytes() for part in parts for one in part.keys}


def other_way(one: Array) -> Array:
    """The key of the other direction; ICMP's identifier and class are of both."""
    other = turned(one)
    if one["protocol"][0] in ICMP:
        for name in ("source_port", "destination_port"):
            other[name] = one[name]
    return other


ADDRESSES = {
    4: [packed(text) for text in ("10.0.0.1", "10.0.0.2", "200.0.0.1")],
    6: [packed(text) for text in ("2001:db8::1", "2001:db8::2", "2001:db9::1")],
}


@st.composite
def conversations(draw: st.DrawFn) -> Array:
    """FLOW_KEY of one conversation: one or both directions at one or more points."""
    first = np.zeros(1, abi.FLOW_KEY)
    first["ip_version"] = draw(st.sampled_from([4, 6]))
    addresses = st.sampled_from(ADDRESSES[int(first["ip_version"][0])])
    first["source_address"], first["destination_address"] = draw(addresses), draw(addresses)
    first["protocol"] = draw(st.sampled_from([6, UDP_PROTOCOL, *ICMP]))
    ports = st.sampled_from([0, 1, 443, 0x0800, 65535])
    first["source_port"], first["destination_port"] = draw(ports), draw(ports)
    first["in_tunnel"] = draw(st.sampled_from([0, 1]))
    # The hash of a tunnel fills both; tags have twelve bits.
    tags = st.integers(0, 65535) if first["in_tunnel"][0] else st.sampled_from([0, 1, 4094])
    first["vlan_id"], first["customer_vlan_id"] = draw(tags), draw(tags)
    other = other_way(first)
    made = []
    for is_turned, point in draw(
        st.lists(st.tuples(st.booleans(), st.sampled_from(POINTS)), min_size=1, max_size=5, unique=True)
    ):
        made.append((other if is_turned else first).copy())
        made[-1]["ifindex"], made[-1]["direction"] = point
    return np.concatenate(made)


# At each limit, a nanosecond to either side of it, never, just now, and later than now.
AGES = [0, *(limit + step for limit in vars(TIMEOUTS).values() for step in (-1, 0, 1)), 5 * NS]
MOMENTS = [0, NOW + 1, NOW + 5 * NS, *(NOW - age for age in AGES)]
STATES = st.fixed_dictionaries(
    {
        "last_seen_mono_ns": st.sampled_from(MOMENTS),
        "first_seen_mono_ns": st.sampled_from(MOMENTS),
        "born_mono_ns": st.sampled_from([0, 1, 2, 3]),
        "packets": st.sampled_from([0, 0, 1, 2**40]),
        "late_packets": st.sampled_from([0, 0, 1, 7]),
        "layer2_octets": st.sampled_from([0, 60, 2**50]),
        "late_layer2_octets": st.sampled_from([0, 1500]),
        "tcp_closing": st.sampled_from([0, 0, 1, 2, 3]),
    }
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Array, Array]:
    """(FLOW_KEY, FLOW_COUNTERS) of some conversations, each key once."""
    drawn = draw(st.lists(conversations(), max_size=8))
    keys = np.unique(np.concatenate([np.zeros(0, abi.FLOW_KEY), *drawn]))
    return keys, np.concatenate(
        [np.zeros(0, abi.FLOW_COUNTERS), *(counters(**draw(STATES)) for _ in range(len(keys)))]
    )


def ends(snapshot: Snapshot, *, every_interface: bool) -> dict[frozenset[bytes], tuple[int, bool, int]]:
    """(reason, whether it is blank, flowId) of each biflow that is over, by its entries."""
    states = snapshot.states
    biflows = pair(
        snapshot.keys,
        states["born_mono_ns"],
        every_interface=every_interface,
        counting=states["packets"] > 0,
    )
    decision = decide(states, biflows, TIMEOUTS, NOW)
    entries: dict[int, set[bytes]] = defaultdict(set)
    for one, biflow in zip(snapshot.keys, biflows.conversation_of, strict=True):
        entries[int(biflow)].add(one.tobytes())
    return {
        frozenset(entries[biflow]): (
            int(decision.reasons[biflow]),
            bool(decision.blank[biflow]),
            int(biflows.flow_id[biflow]),
        )
        for biflow in np.flatnonzero(decision.reasons).tolist()
    }


@given(tables())
@settings(max_examples=150)
def test_a_look_shows_what_is_due(shared: Table, filled: tuple[Array, Array]) -> None:
    """All of it and whole; no more of the rest than an accident of the marks."""
    shared.clear()
    shared.put(*filled)
    assert len(shared.table.snapshot()) == len(filled[0])
    _, more = check_look(shared.table, TIMEOUTS, NOW)
    assert more <= 1


@given(tables(), st.booleans())
@settings(max_examples=100)
def test_the_same_ends_as_of_the_whole_table(
    shared: Table, filled: tuple[Array, Array], every_interface: bool
) -> None:
    shared.clear()
    shared.put(*filled)
    expected = ends(shared.table.snapshot(), every_interface=every_interface)
    found: dict[frozenset[bytes], tuple[int, bool, int]] = {}
    for part in shared.table.look(TIMEOUTS, NOW).parts:
        found |= ends(part, every_interface=every_interface)
    assert found == expected


# What an entry is like a nanosecond before it is due, and what has to be other then.
NEARLY_DUE: list[tuple[dict[str, int], dict[str, int]]] = [
    ({"last_ns": NOW - TIMEOUTS.idle_ns + 1}, {"last_ns": NOW - TIMEOUTS.idle_ns}),
    ({"first_ns": NOW - TIMEOUTS.active_ns + 1}, {"first_ns": NOW - TIMEOUTS.active_ns}),
    (
        {"tcp_closing": abi.Closing.FIN, "last_ns": NOW - TIMEOUTS.linger_ns + 1},
        {"last_ns": NOW - TIMEOUTS.linger_ns},
    ),
    ({"last_ns": NOW - TIMEOUTS.linger_ns}, {"tcp_closing": abi.Closing.RST}),
    # A record that has not begun has no age; with late packets alone it began when the last came.
    ({"first_ns": NOW - TIMEOUTS.active_ns, "packets": 0}, {"late_packets": 1}),
    ({"first_ns": 0, "packets": 0, "late_packets": 1}, {"last_ns": NOW - TIMEOUTS.idle_ns}),
    # Packets may come after the clock was read.
    ({"last_ns": NOW + NS, "first_ns": NOW + NS}, {"first_ns": NOW - TIMEOUTS.active_ns}),
]


def entry(first_ns: int = NOW, last_ns: int = NOW, packets: int = 1, **fields: int) -> Array:
    made = counters(1, first_ns, last_ns, **fields)
    made["packets"] = packets
    return made


def test_not_a_nanosecond_too_early(shared: Table) -> None:
    shared.clear()
    keys = np.concatenate([key(ports=(number, 443)) for number in range(len(NEARLY_DUE))])
    shared.put(keys, np.concatenate([entry(**nearly) for nearly, _ in NEARLY_DUE]))
    assert list(shared.table.look(TIMEOUTS, NOW).parts) == []
    shared.put(keys, np.concatenate([entry(**nearly | then) for nearly, then in NEARLY_DUE]))
    (part,) = shared.table.look(TIMEOUTS, NOW).parts
    assert sorted(part.keys["source_port"].tolist()) == list(range(len(NEARLY_DUE)))


def test_examples_end_for_every_reason(shared: Table) -> None:
    """One conversation for each reason, one that is due by half and goes on, and one that is not."""
    quiet, recent = NOW - TIMEOUTS.idle_ns, NOW - TIMEOUTS.linger_ns
    rows = {
        "idle": [counters(last_ns=quiet, first_ns=quiet), counters(last_ns=quiet - NS, first_ns=quiet)],
        "active": [
            counters(first_ns=NOW - TIMEOUTS.active_ns, last_ns=NOW),
            counters(first_ns=NOW, last_ns=NOW),
        ],
        "ended": [
            counters(first_ns=recent, last_ns=recent, tcp_closing=abi.Closing.RST),
            counters(first_ns=recent, last_ns=recent),
        ],
        "goes on": [
            counters(first_ns=recent, last_ns=recent, tcp_closing=abi.Closing.RST),
            counters(first_ns=NOW, last_ns=NOW),
        ],
        "not due": [counters(first_ns=recent, last_ns=recent), counters(first_ns=NOW, last_ns=NOW)],
    }
    shared.clear()
    for number, values in enumerate(rows.values()):
        one = key(ports=(number, 443))
        shared.put(np.concatenate([one, other_way(one)]), np.concatenate(values))
    (part,) = shared.table.look(TIMEOUTS, NOW).parts
    assert len(part) == 8
    reasons = [reason for reason, *_ in ends(part, every_interface=False).values()]
    assert sorted(reasons) == [EndReason.IDLE, EndReason.ACTIVE, EndReason.ENDED]


def some_of_many(seed: int, number: int, due: int) -> tuple[Array, Array]:
    """Neighbours in address and port, as a scan or a resolver's clients are; `due` of them have an entry that is."""
    chance = random.Random(seed)
    keys, values = [], []
    for conversation in range(number):
        one = key(f"10.0.{conversation // 250}.{conversation % 250}", ports=(1024 + conversation % 4, 53))
        one["protocol"] = chance.choice([6, UDP_PROTOCOL, 1])
        other = other_way(one)
        entries = [chance.choice([one, other]).copy() for _ in range(chance.randint(1, 4))]
        for place, made in enumerate(entries):
            made["ifindex"] = place
        is_over = [NOW] * len(entries)
        if conversation < due:
            is_over[chance.randrange(len(entries))] -= TIMEOUTS.idle_ns
        keys += entries
        values += [counters(first_ns=NOW - 20 * NS, last_ns=last) for last in is_over]
    return np.concatenate(keys), np.concatenate(values)


@pytest.mark.parametrize("seed", range(3))
def test_few_that_are_due_bring_no_others(shared: Table, seed: int) -> None:
    shared.clear()
    shared.put(*some_of_many(seed, number=1500, due=60))
    parts, more = check_look(shared.table, TIMEOUTS, NOW)
    assert parts == 1
    assert more <= 1  # 60 × 1440 pairs for 4 Mi marks: 0.02 are to be expected


@pytest.mark.parametrize(
    "field",
    ["source_port", "destination_port", "vlan_id", "customer_vlan_id", "in_tunnel", "protocol", "ip_version"],
)
def test_what_differs_in_one_field_is_another_conversation(shared: Table, field: str) -> None:
    shared.clear()
    keys = np.repeat(key(), 100)
    keys[field] = 100 + np.arange(len(keys))
    values = np.repeat(counters(first_ns=NOW, last_ns=NOW), len(keys))
    values["last_seen_mono_ns"][33] -= TIMEOUTS.idle_ns
    shared.put(keys, values)
    (part,) = shared.table.look(TIMEOUTS, NOW).parts
    assert keys[33].tobytes() in keys_of([part])
    assert len(part) <= 2  # 99 pairs for 4 Mi marks


@pytest.mark.parametrize("decap", [False, True])
def test_after_real_packets(kernel, decap: bool) -> None:
    """Every capture in one table: what the programs make of VLANs, tunnels, fragments and ICMP."""
    with opened(65536, decap=decap) as made:
        replay = Replay(made.source)
        for path in CAPTURES:
            with Capture(str(path)) as capture:
                frames = capture.frames()
                if (first := next(frames, None)) is not None:
                    replay.run(first, frames, NEVER, most=10_000)
                    replay.flush()
        replay.close()
        snapshot = made.table.snapshot()
        assert len(snapshot) > 90
        assert {1, 6, 17, 58} <= set(snapshot.keys["protocol"].tolist())
        assert snapshot.keys["vlan_id"].any()
        assert set(np.unique(snapshot.keys["in_tunnel"])) == ({0, 1} if decap else {0})
        latest = snapshot.states["last_seen_mono_ns"]
        for now in np.quantile(latest, [0.1, 0.5, 0.9]).astype("u8").tolist():
            for timeouts in (TIMEOUTS, Timeouts(idle_ns=NS // 10, active_ns=NS, linger_ns=0), AT_ONCE):
                check_look(made.table, timeouts, int(now))


def test_nothing_there_and_nothing_due(shared: Table) -> None:
    shared.clear()
    look = shared.table.look(AT_ONCE, NOW)
    assert list(look.parts) == []
    assert look.resident == shared.table.resident() == Resident(0, 0, 0, 0)
    fresh = counters(3, NOW - 1, NOW, layer2_octets=300, late_packets=2, late_layer2_octets=128)
    blank = counters(0, last_seen_mono_ns=NOW, born_mono_ns=NS)
    shared.put(np.concatenate([key(), key(ports=(1, 2))]), np.concatenate([fresh, blank]))
    look = shared.table.look(TIMEOUTS, NOW)
    assert list(look.parts) == []
    assert look.resident == shared.table.resident() == Resident(2, 1, 5, 428)


def points(number: int, of_each: int) -> tuple[Array, Array]:
    """(FLOW_KEY, conversation): `of_each` entries of so many conversations, half of them the other way."""
    conversation = np.repeat(np.arange(number), of_each)
    place = np.tile(np.arange(of_each), number)
    keys = np.repeat(key(protocol=UDP_PROTOCOL), len(place))
    one, other = (np.array(packed(address), "u1") for address in ("192.0.2.1", "198.51.100.2"))
    is_turned = place % 2 == 1
    keys["source_address"] = np.where(is_turned[:, None], other, one)
    keys["destination_address"] = np.where(is_turned[:, None], one, other)
    keys["source_port"] = np.where(is_turned, 53, conversation)
    keys["destination_port"] = np.where(is_turned, conversation, 53)
    keys["ifindex"] = place // 4 + 1
    keys["direction"] = place // 2 % 2
    return keys, conversation


@pytest.fixture
def narrow(kernel, monkeypatch) -> Iterator[Table]:
    """A table with room for 4,000 rows of what is due."""
    monkeypatch.setattr(scan, "MOST_ROWS", 4000)
    with opened(8192) as made:
        yield made


def test_much_that_is_due_comes_in_parts(narrow: Table) -> None:
    narrow.put(points(3600, of_each=2)[0], np.repeat(counters(first_ns=NOW, last_ns=NOW), 7200))
    parts, more = check_look(narrow.table, AT_ONCE, NOW)
    assert 2 <= parts <= 4
    assert more == 0


def test_more_rows_than_are_due(narrow: Table) -> None:
    """One entry in forty is: what is reckoned to fit at once does not."""
    keys, _ = points(180, of_each=40)
    values = np.repeat(counters(first_ns=NOW, last_ns=NOW), len(keys))
    values["last_seen_mono_ns"][::40] -= TIMEOUTS.idle_ns
    narrow.put(keys, values)
    parts, more = check_look(narrow.table, TIMEOUTS, NOW)
    assert parts >= 2
    assert more == 0


def test_few_large_conversations(narrow: Table) -> None:
    """They fall into slices as the dice will have it: three times in four one of two is too large."""
    keys, _ = points(12, of_each=600)
    narrow.put(keys, np.repeat(counters(first_ns=NOW, last_ns=NOW), len(keys)))
    truth = Truth(narrow.table.snapshot(), AT_ONCE, NOW)
    for _ in range(12):  # each with dice of its own
        looking = FlowTable(narrow.source)
        parts, more = truth.check(looking.look(AT_ONCE, NOW).parts)
        looking.close()
        assert more == 0
        if parts > 2:
            return
    pytest.fail("not one slice of them was too large")


def test_what_was_taken_is_not_shown_again(shared: Table) -> None:
    table = shared.table
    shared.clear()
    keys, _ = points(300, of_each=4)
    shared.put(keys, np.repeat(counters(first_ns=NOW - 20 * NS, last_ns=NOW - 20 * NS), len(keys)))
    keep = keys["source_port"] == 7  # one conversation goes on, by one direction
    (part,) = table.look(TIMEOUTS, NOW).parts
    assert len(part) == len(keys)
    assert table.take(part.keys, part.keys["source_port"] == 7).found.all()
    kept = keys[keep]
    assert len(kept) == 2
    look = table.look(TIMEOUTS, NOW)
    assert look.resident == Resident(2, 0, 0, 0)
    # Blank, and still silent: it is to leave.
    assert keys_of(look.parts) == {one.tobytes() for one in kept}
    table.take(kept, np.zeros(2, bool))
    assert list(table.look(AT_ONCE, NOW).parts) == []


def test_a_mark_is_of_one_look(shared: Table) -> None:
    shared.clear()
    keys, conversation = points(200, of_each=2)
    values = np.repeat(counters(first_ns=NOW, last_ns=NOW), len(keys))
    values["last_seen_mono_ns"] -= np.where(conversation < 150, 20 * NS, 0).astype("u8")
    shared.put(keys, values)
    table = shared.table
    assert len(keys_of(table.look(TIMEOUTS, NOW).parts)) == 300
    # Packets come in: all but ten go on.
    values["last_seen_mono_ns"][10 * 2 :] = NOW
    shared.put(keys, values)
    assert keys_of(table.look(TIMEOUTS, NOW).parts) == {one.tobytes() for one in keys[:20]}
    assert list(table.look(TIMEOUTS, NOW - 20 * NS).parts) == []
    assert len(keys_of(table.look(AT_ONCE, NOW).parts)) == 400


@pytest.mark.parametrize("number", [1, 2])
def test_a_part_stays_what_it_was(shared: Table, number: int) -> None:
    """Later looks write where its rows were; one row is a case of its own to NumPy."""
    shared.clear()
    old, new = (np.concatenate([key(ports=(base + i, 443)) for i in range(number)]) for base in (1000, 2000))
    shared.put(old, np.repeat(counters(first_ns=NS, last_ns=2 * NS), number))
    (part,) = shared.table.look(AT_ONCE, NOW).parts
    keys, states = part.keys.tobytes(), part.states.tobytes()
    shared.clear()
    shared.put(new, np.repeat(counters(first_ns=3 * NS, last_ns=4 * NS), number))
    (later,) = shared.table.look(AT_ONCE, NOW).parts
    assert keys_of([later]) == {one.tobytes() for one in new}
    assert (part.keys.tobytes(), part.states.tobytes()) == (keys, states)


def test_two_who_look_do_not_disturb_each_other(shared: Table) -> None:
    """First turn by turn, then at the same time."""
    shared.clear()
    keys, conversation = points(2000, of_each=2)
    values = np.repeat(counters(first_ns=NOW, last_ns=NOW), len(keys))
    values["last_seen_mono_ns"] -= np.where(conversation < 700, 20 * NS, 0).astype("u8")
    shared.put(keys, values)
    one, other = shared.table, FlowTable(shared.source)
    snapshot = one.snapshot()
    some, everything = Truth(snapshot, TIMEOUTS, NOW), Truth(snapshot, AT_ONCE, NOW)
    assert (len(some.due), len(everything.due)) == (700, 2000)
    first = one.look(TIMEOUTS, NOW)
    second = other.look(AT_ONCE, NOW)
    nothing = FlowTable(shared.source)
    assert list(nothing.look(TIMEOUTS, NOW - 20 * NS).parts) == []
    nothing.close()
    assert some.check(first.parts)[1] <= 3  # 700 × 1300 pairs for 4 Mi marks: 0.2 are to be expected
    everything.check(second.parts)

    whole = {one.tobytes() for one in keys}
    silent = {one.tobytes() for one in keys[: 700 * 2]}

    def looks(table: FlowTable, timeouts: Timeouts, expected: set[bytes]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(40):
                found = keys_of(table.look(timeouts, NOW).parts)
                if not expected <= found or len(found) > len(expected) + 6:
                    wrong.append(len(found))

        return run

    wrong: list[int] = []
    with running(looks(other, AT_ONCE, whole)):
        looks(one, TIMEOUTS, silent)()
    other.close()
    assert wrong == []


@contextmanager
def running(work: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


class Traffic:
    """Packets of a UDP flow each, twice: as many at once as the kernel takes. Flow n is of time FIRST_NS + n."""

    FIRST_NS = 1000 * NS
    HOST = slice(26, 30)  # the source address in a frame

    def __init__(self, source: PrivateSet) -> None:
        self._program = source.open_program("replay")
        self._packets = map_into_memory(source, "replay_packets", abi.CAPTURED_PACKET, abi.REPLAY_BATCH)
        self._state = map_into_memory(source, "replay_state", abi.REPLAY_STATE, 1)
        self._buffer = np.zeros(abi.CAPTURED_MOST, "u1")
        frame = np.frombuffer(
            bytes(Ether() / IP(src="0.0.0.0", dst="192.0.2.1") / UDP(sport=9, dport=53)), "u1"
        )
        self._packets["octets"][:, : len(frame)] = frame
        for name in ("length", "end", "layer2_length"):
            self._packets[name] = len(frame)
        self.flows = 0

    def close(self) -> None:
        os.close(self._program)

    def send(self) -> None:
        """Half a batch of new flows, and another packet of those of the batch before."""
        half = abi.REPLAY_BATCH // 2
        number = self.flows + np.arange(-half, half)
        number = np.where(number < 0, 0, number)
        hosts = number.astype(">u4").view("u1").reshape(-1, 4) + np.array([10, 0, 0, 0], "u1")
        self._packets["octets"][:, self.HOST] = hosts
        self._packets["time_ns"] = self.FIRST_NS + number
        self._state["cursor"] = 0
        while (done := int(self._state["cursor"][0])) < len(number):
            libbpf.test_run(self._program, self._buffer, repeat=len(number) - done)
        self.flows += half

    @staticmethod
    def number(keys: Array) -> Array:
        hosts = keys["source_address"][:, 12:] - np.array([10, 0, 0, 0], "u1")
        return hosts.view(">u4").ravel().astype("u8")


def test_while_packets_arrive(kernel) -> None:
    """A table that evicts all the time: each key once, nobody's key, nobody else's times."""
    max_flows, seconds = 2000, 2.5
    with opened(max_flows) as made:
        traffic, done = Traffic(made.source), threading.Event()

        def send() -> None:
            while not done.is_set():
                traffic.send()

        looks = rows = most = 0
        with running(send):
            try:
                end = time.monotonic() + seconds
                while time.monotonic() < end and looks < 1000:
                    look = made.table.look(AT_ONCE, 2 * Traffic.FIRST_NS)
                    looks += 1
                    most = max(most, look.resident.entries)
                    seen: list[bytes] = []
                    for part in look.parts:
                        rows += len(part)
                        seen += [one.tobytes() for one in part.keys]
                        number = Traffic.number(part.keys)
                        assert (number < traffic.flows + abi.REPLAY_BATCH).all()
                        assert (part.states["last_seen_mono_ns"] == Traffic.FIRST_NS + number).mean() > 0.99
                    assert len(seen) == len(set(seen))
            finally:
                done.set()
        traffic.close()
        assert looks > 50
        assert rows > 20 * max_flows
        assert made.table.entries_made() > 10 * max_flows  # it evicted
        assert max_flows / 2 < most <= 1.02 * max_flows
        check_look(made.table, AT_ONCE, 2 * Traffic.FIRST_NS)


def survivors(*, looks: int, uses_all: bool = False) -> tuple[int, int]:
    """Of the older and the younger half of a table's entries, how many are left after newcomers.

    The older ones were used since; with `uses_all` the younger ones too.
    """
    half, newcomers = 800, 1000
    with opened(2000) as made:

        def put(first: int, number: int) -> None:
            keys = np.repeat(key(protocol=UDP_PROTOCOL), number)
            keys["source_port"] = first + np.arange(number)
            made.put(keys, np.repeat(counters(), number))

        put(0, half)
        put(half, half)
        put(0, half)
        if uses_all:
            put(half, half)
        for _ in range(looks):
            assert len(keys_of(made.table.look(AT_ONCE, NOW).parts)) == 2 * half
        put(2 * half, newcomers)
        left = made.table.snapshot().keys["source_port"]
    return int((left < half).sum()), int(((left >= half) & (left < 2 * half)).sum())


def test_a_look_is_no_use(kernel) -> None:
    """What was used stays, what was only looked at leaves; were it a use, the oldest would leave."""
    older, younger = survivors(looks=0)
    assert older > 700
    assert younger < 300
    looked_at = survivors(looks=5)
    assert abs(looked_at[0] - older) <= 100
    assert abs(looked_at[1] - younger) <= 100
    older, younger = survivors(looks=0, uses_all=True)
    assert older < 300
    assert younger > 700


def test_without_the_programs_it_shows_everything(kernel, shared: Table, monkeypatch) -> None:
    """Where BCC compiled what is attached, and nothing else is built."""
    shared.clear()
    keys, _ = points(50, of_each=2)
    shared.put(keys, np.repeat(counters(first_ns=NOW, last_ns=NOW), len(keys)))
    monkeypatch.setattr(scan, "OBJECT", scan.OBJECT.with_name("absent.bpf.o"))
    table = FlowTable(shared.source)
    look = table.look(TIMEOUTS, NOW)
    assert look.resident == Resident.of(table.snapshot())
    assert keys_of(look.parts) == {one.tobytes() for one in keys}
    table.close()
