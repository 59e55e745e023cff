"""The rules of flowmon.expiry by examples, against a slow oracle, and what they leave over time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmon import abi
from flowmon.abi import Closing
from flowmon.biflow import NONE, Biflows, pair
from flowmon.expiry import AGED_NS, FEW_PACKETS, NS, Decision, EndReason, Timeouts, decide, end_all
from flowmon.kernel.flow_table import FLOW_STATE

NOW = 1_000 * NS
TIMEOUTS = Timeouts(idle_ns=15 * NS, active_ns=60 * NS, linger_ns=2 * NS)
FIN, RST = Closing.FIN, Closing.RST
GOES_ON, IDLE, ACTIVE = EndReason.GOES_ON, EndReason.IDLE, EndReason.ACTIVE
ENDED, LACK = EndReason.ENDED, EndReason.LACK_OF_RESOURCES


@dataclass
class Entry:
    """One entry: `silent` and `age` count back from NOW, in nanoseconds."""

    silent: int = 0
    age: int | None = None  # as `silent`
    packets: int = 5
    closing: int = 0


@dataclass
class Conversation:
    """A biflow's entries: forward, perhaps reverse, and duplicates."""

    forward: Entry
    reverse: Entry | None = None
    duplicates: list[Entry] = field(default_factory=list)

    @property
    def entries(self) -> list[Entry]:
        return [self.forward, *([self.reverse] if self.reverse else []), *self.duplicates]


def snapshot(conversations: list[Conversation], order: list[int] | None = None) -> tuple[np.ndarray, Biflows]:
    """(states, biflows), the entries in `order`."""
    flat = [(number, entry) for number, each in enumerate(conversations) for entry in each.entries]
    place = order or list(range(len(flat)))
    states = np.zeros(len(flat), FLOW_STATE)
    is_forward = np.ones(len(flat), bool)  # the duplicates are of the forward direction
    group = np.zeros(len(flat), np.int64)
    row_of = {}
    for (number, entry), row in zip(flat, place, strict=True):
        age = entry.silent if entry.age is None else entry.age
        states["last_seen_mono_ns"][row] = NOW - entry.silent
        states["born_mono_ns"][row] = NOW - max(age, entry.silent)
        states["first_seen_mono_ns"][row] = NOW - age if entry.packets else 0
        states["packets"][row] = entry.packets
        states["tcp_closing"][row] = entry.closing
        group[row] = number
        row_of[id(entry)] = row
        is_forward[row] = entry is not conversations[number].reverse
    forward = np.array([row_of[id(each.forward)] for each in conversations], np.int64)
    reverse = [row_of[id(each.reverse)] if each.reverse else NONE for each in conversations]
    flow_id = np.arange(len(conversations), dtype="u8")
    return states, Biflows(forward, np.array(reverse, np.int64), flow_id, group, is_forward)


def decided(*conversations: Conversation, excess: int = 0, timeouts: Timeouts = TIMEOUTS) -> Decision:
    return decide(*snapshot(list(conversations)), timeouts, NOW, excess)


def reasons(*conversations: Conversation, excess: int = 0) -> list[int]:
    return decided(*conversations, excess=excess).reasons.tolist()


def expected_reasons(conversations: list[Conversation], timeouts: Timeouts, excess: int) -> list[EndReason]:
    """The oracle."""
    found = [_without_excess(each, timeouts) for each in conversations]
    steps = (
        _blank,
        lambda each: _silent(each) >= AGED_NS and sum(entry.packets for entry in each.entries) == 1,
        lambda each: _silent(each) >= AGED_NS,
        lambda each: sum(entry.packets for entry in each.entries) <= FEW_PACKETS,
        lambda each: True,
    )
    for step in steps:
        leaving = [reason not in (GOES_ON, ACTIVE) for reason in found]
        if (
            sum(len(each.entries) for each, goes in zip(conversations, leaving, strict=True) if goes)
            >= excess
        ):
            break
        for number, each in enumerate(conversations):
            if not leaving[number] and step(each):
                found[number] = LACK
    return found


def _blank(each: Conversation) -> bool:
    return all(entry.packets == 0 for entry in each.entries)


def _silent(each: Conversation) -> int:
    return max(0, min(entry.silent for entry in each.entries))


def _without_excess(each: Conversation, timeouts: Timeouts) -> EndReason:
    silent = _silent(each)
    reset = any(entry.closing & RST for entry in each.entries)
    finished = any(entry.closing & FIN for entry in (each.forward, *each.duplicates))
    finished = finished and (each.reverse is None or bool(each.reverse.closing & FIN))
    if (reset or finished) and silent >= timeouts.linger_ns:
        return ENDED
    if silent >= timeouts.idle_ns:
        return IDLE
    ages = [entry.silent if entry.age is None else entry.age for entry in each.entries if entry.packets]
    return ACTIVE if ages and max(ages) >= timeouts.active_ns else GOES_ON


# Near every timeout, and to either side of the clock's reading.
SPANS = st.one_of(
    st.sampled_from([-1, 0, 1, AGED_NS - 1, AGED_NS, 2 * NS - 1, 2 * NS, 15 * NS - 1, 15 * NS, 15 * NS + 1]),
    st.integers(-NS, 20 * NS),
)
AGES = st.one_of(st.sampled_from([0, 60 * NS - 1, 60 * NS, 60 * NS + 1]), st.integers(0, 90 * NS))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    silent = draw(SPANS)
    age = max(silent, draw(AGES))
    return Entry(silent, age, draw(st.sampled_from([0, 0, 1, 1, 2, 9])), draw(st.integers(0, 3)))


CONVERSATIONS = st.lists(
    st.builds(Conversation, entries(), st.none() | entries(), st.lists(entries(), max_size=2)), max_size=8
)
EXCESS = st.one_of(st.just(0), st.integers(0, 40))


@given(st.data(), CONVERSATIONS, EXCESS)
def test_decides_as_the_oracle(data: st.DataObject, conversations: list[Conversation], excess: int) -> None:
    order = data.draw(st.permutations(range(sum(len(each.entries) for each in conversations))))
    decision = decide(*snapshot(conversations, order), TIMEOUTS, NOW, excess)
    assert decision.reasons.tolist() == expected_reasons(conversations, TIMEOUTS, excess)
    assert decision.blank.tolist() == [_blank(each) for each in conversations]


@given(CONVERSATIONS, st.integers(1, 40))
def test_excess_frees_so_many_entries_and_ends_no_more_than_a_step(
    conversations: list[Conversation], excess: int
) -> None:
    states, biflows = snapshot(conversations)
    found = decide(states, biflows, TIMEOUTS, NOW, excess).reasons
    calm = decide(states, biflows, TIMEOUTS, NOW).reasons
    leaves = ~np.isin(found, (GOES_ON, ACTIVE))
    assert np.count_nonzero(leaves[biflows.conversation_of]) >= min(excess, len(states))
    for number, each in enumerate(conversations):  # what had ended keeps its reason
        assert found[number] == calm[number] or (found[number] == LACK and calm[number] in (GOES_ON, ACTIVE))
        is_worth_keeping = sum(entry.packets for entry in each.entries) > FEW_PACKETS
        if found[number] == LACK and _silent(each) < AGED_NS and is_worth_keeping:
            assert leaves.all()


@given(CONVERSATIONS)
def test_end_all_forces_every_flow(conversations: list[Conversation]) -> None:
    states, biflows = snapshot(conversations)
    decision = end_all(biflows, states)
    assert decision.reasons.tolist() == [EndReason.FORCED] * len(conversations)
    assert decision.blank.tolist() == [_blank(each) for each in conversations]


def test_no_flows() -> None:
    assert reasons() == reasons(excess=5) == []
    states, biflows = snapshot([])
    assert len(end_all(biflows, states).reasons) == 0


@pytest.mark.parametrize(("short", "expected"), [(-1, IDLE), (0, IDLE), (1, GOES_ON)])
def test_idle_at_the_timeout(short: int, expected: EndReason) -> None:
    silent = TIMEOUTS.idle_ns - short
    assert reasons(Conversation(Entry(silent))) == [expected]
    # The later direction decides, and the latest point.
    assert reasons(Conversation(Entry(40 * NS), Entry(silent))) == [expected]
    assert reasons(Conversation(Entry(silent), Entry(40 * NS))) == [expected]
    assert reasons(Conversation(Entry(40 * NS), Entry(40 * NS), [Entry(silent)])) == [expected]


@pytest.mark.parametrize(("short", "expected"), [(-1, ACTIVE), (0, ACTIVE), (1, GOES_ON)])
def test_active_at_the_timeout(short: int, expected: EndReason) -> None:
    age = TIMEOUTS.active_ns - short
    assert reasons(Conversation(Entry(age=age))) == [expected]
    # The record began with the earlier direction; one without a packet since has not begun.
    assert reasons(Conversation(Entry(age=age), Entry(age=NS))) == [expected]
    assert reasons(Conversation(Entry(age=NS), Entry(age=age))) == [expected]
    assert reasons(Conversation(Entry(packets=0), Entry(age=age))) == [expected]


@pytest.mark.parametrize("closing", [RST, FIN, FIN | RST])
@pytest.mark.parametrize(("short", "expected"), [(-1, ENDED), (0, ENDED), (1, GOES_ON)])
def test_end_of_flow_at_the_linger(short: int, expected: EndReason, closing: int) -> None:
    silent = TIMEOUTS.linger_ns - short
    assert reasons(Conversation(Entry(silent, closing=closing))) == [expected]
    both = Conversation(Entry(silent, closing=closing), Entry(9 * NS, closing=closing))
    assert reasons(both) == [expected]


def test_fin_of_one_side() -> None:
    """Ends the flow only where no other side exists."""
    silent = TIMEOUTS.linger_ns
    assert reasons(Conversation(Entry(silent, closing=FIN))) == [ENDED]
    assert reasons(Conversation(Entry(silent, closing=FIN), Entry(silent))) == [GOES_ON]
    assert reasons(Conversation(Entry(silent), Entry(silent, closing=FIN))) == [GOES_ON]
    assert reasons(Conversation(Entry(silent, closing=FIN), Entry(silent, closing=FIN))) == [ENDED]


def test_fin_of_one_direction_at_two_points_is_one_fin() -> None:
    silent = TIMEOUTS.linger_ns
    duplicate = Entry(silent, closing=FIN)
    assert reasons(Conversation(Entry(silent), Entry(silent, closing=FIN), [duplicate])) == [ENDED]
    assert reasons(Conversation(Entry(silent, closing=FIN), Entry(silent), [duplicate])) == [GOES_ON]


def test_last_row_is_no_missing_reverse() -> None:
    """The row of "no entry" is -1, which also names the last row: here, one of another flow."""
    silent = TIMEOUTS.linger_ns
    assert reasons(Conversation(Entry(silent, closing=FIN)), Conversation(Entry(silent))) == [ENDED, GOES_ON]
    assert reasons(Conversation(Entry(silent)), Conversation(Entry(silent, closing=FIN))) == [GOES_ON, ENDED]


def test_one_rst_ends_the_flow() -> None:
    silent = TIMEOUTS.linger_ns
    assert reasons(Conversation(Entry(silent, closing=RST), Entry(silent))) == [ENDED]
    assert reasons(Conversation(Entry(silent), Entry(silent, closing=RST))) == [ENDED]


def test_rst_at_a_duplicate_point_ends_the_flow() -> None:
    silent = TIMEOUTS.linger_ns
    assert reasons(Conversation(Entry(silent), Entry(silent), [Entry(silent, closing=RST)])) == [ENDED]
    assert reasons(Conversation(Entry(silent), None, [Entry(silent - 1, closing=RST)])) == [GOES_ON]


def test_which_reason_goes_first() -> None:
    long = Entry(TIMEOUTS.idle_ns, age=TIMEOUTS.active_ns, closing=RST)
    assert reasons(Conversation(long)) == [ENDED]
    long.closing = 0
    assert reasons(Conversation(long)) == [IDLE]
    long.silent = 0
    assert reasons(Conversation(long)) == [ACTIVE]
    assert reasons(Conversation(long), excess=1) == [LACK]  # to go on in the table frees nothing


def test_blank_entries_leave_without_a_record() -> None:
    for silent, closing, expected in ((15 * NS, 0, IDLE), (2 * NS, RST, ENDED), (2 * NS, 0, GOES_ON)):
        decision = decided(
            Conversation(Entry(silent, packets=0, closing=closing), Entry(silent, packets=0, closing=closing))
        )
        assert (decision.reasons.tolist(), decision.blank.tolist()) == ([expected], [True])


def test_one_packet_of_either_direction_or_point_is_not_blank() -> None:
    blank, one = Entry(packets=0), Entry(packets=1)
    for each in (Conversation(one, blank), Conversation(blank, one), Conversation(blank, None, [one])):
        assert decided(each).blank.tolist() == [False]


@pytest.mark.parametrize("active_ns", [0, 60 * NS])
def test_active_timeout_leaves_blank_entries_alone(active_ns: int) -> None:
    timeouts = Timeouts(15 * NS, active_ns, 2 * NS)
    blank = Conversation(Entry(14 * NS, age=500 * NS, packets=0))
    assert decided(blank, timeouts=timeouts).reasons.tolist() == [GOES_ON]


@pytest.mark.parametrize("ahead", [1, NS, 100 * NS])
def test_packet_later_than_the_clock(ahead: int) -> None:
    """A flow whose packet came after the clock was read is neither idle nor old."""
    just_now = Entry(-ahead, age=-ahead, closing=RST)
    assert reasons(Conversation(just_now)) == [GOES_ON]
    assert reasons(Conversation(Entry(40 * NS, age=40 * NS), just_now)) == [GOES_ON]
    assert reasons(Conversation(Entry(-ahead, age=60 * NS))) == [ACTIVE]
    assert reasons(Conversation(just_now), Conversation(Entry(AGED_NS)), excess=1) == [GOES_ON, LACK]


@pytest.mark.parametrize(
    ("excess", "going"),
    [(0, 1), (1, 1), (2, 2), (3, 3), (4, 5), (5, 5), (6, 6), (7, 9), (9, 9), (10, 9), (10**6, 9)],
)
def test_excess_ends_in_order(excess: int, going: int) -> None:
    """Idle, blank, single packets, aged, few packets, everything: each step only when the former freed too little."""
    table = [
        Conversation(Entry(15 * NS)),
        Conversation(Entry(0, packets=0)),
        Conversation(Entry(AGED_NS, packets=1)),
        Conversation(Entry(AGED_NS, packets=2)),
        Conversation(Entry(AGED_NS, age=60 * NS)),  # at its active timeout, too
        Conversation(Entry(AGED_NS - 1, packets=1)),
        Conversation(Entry(0), Entry(14 * NS, packets=1)),  # a biflow is silent as a whole
        Conversation(Entry(0, age=60 * NS)),
    ]
    expected = [IDLE] + [GOES_ON] * 7
    for row in range(1, 8):
        if row in (4, 7):
            expected[row] = ACTIVE
    for row in range(1, {1: 1, 2: 2, 3: 3, 5: 5, 6: 6, 9: 8}[going]):
        expected[row] = LACK
    assert reasons(*table, excess=excess) == expected
    assert (
        sum(len(each.entries) for each, why in zip(table, expected, strict=True) if why in (IDLE, LACK))
        == going
    )


def test_excess_counts_entries_not_flows() -> None:
    wide = Conversation(Entry(15 * NS), Entry(15 * NS), [Entry(15 * NS)])
    aged = Conversation(Entry(AGED_NS))
    assert reasons(wide, aged, excess=3) == [IDLE, GOES_ON]
    assert reasons(wide, aged, excess=4) == [IDLE, LACK]


class Table:
    """A flow table that packets fill, and that passes take flows out of, as the collector does."""

    def __init__(self) -> None:
        self.states: dict[tuple[int, ...], dict[str, int]] = {}
        self.records: list[tuple[int, int, int, int]] = []  # flow id, reason, packets of all points, time
        self.sent: Counter[int] = Counter()

    def packet(self, now: int, flow: int, side: int, point: int, closing: int) -> None:
        blank = dict.fromkeys(FLOW_STATE.names, 0)
        state = self.states.setdefault((flow, side, point), {**blank, "born_mono_ns": now})
        state["first_seen_mono_ns"] = state["first_seen_mono_ns"] or now
        state["last_seen_mono_ns"] = now
        state["packets"] += 1
        state["tcp_closing"] |= closing
        self.sent[flow] += 1

    def take(self, now: int, excess: int = 0, *, everything: bool = False) -> None:
        names = list(self.states)
        keys = np.zeros(len(names), abi.FLOW_KEY)
        states = np.zeros(len(names), FLOW_STATE)
        for row, (flow, side, point) in enumerate(names):
            keys["source_port"][row], keys["destination_port"][row] = (flow, 9)[::-1] if side else (flow, 9)
            keys["ifindex"][row] = point
            for name, value in self.states[names[row]].items():
                states[name][row] = value
        biflows = pair(keys, states["born_mono_ns"], every_interface=False)
        decision = end_all(biflows, states) if everything else decide(states, biflows, TIMEOUTS, now, excess)
        for number, reason in enumerate(decision.reasons.tolist()):
            rows = np.flatnonzero(biflows.conversation_of == number)
            if reason != GOES_ON and not decision.blank[number]:
                self.records.append((names[rows[0]][0], reason, int(states["packets"][rows].sum()), now))
            for row in rows:
                if reason == ACTIVE:
                    self.states[names[row]].update(packets=0, first_seen_mono_ns=0)
                elif reason != GOES_ON:
                    del self.states[names[row]]

    def assert_nothing_is_overdue(self, now: int) -> None:
        for flow in {name[0] for name in self.states}:
            entries_of = [state for name, state in self.states.items() if name[0] == flow]
            assert now - max(state["last_seen_mono_ns"] for state in entries_of) < TIMEOUTS.idle_ns
            for state in entries_of:
                assert state["packets"] == 0 or now - state["first_seen_mono_ns"] < TIMEOUTS.active_ns


PACKETS = st.tuples(
    st.sampled_from([1, NS // 2, NS, 5 * NS, 14 * NS]),  # after the packet before
    st.integers(1, 3),  # flow
    st.integers(0, 1),  # side
    st.integers(1, 2),  # point
    st.sampled_from([0, 0, 0, FIN, RST]),
)
GAPS = st.sampled_from([0, 1, NS, 2 * NS, 15 * NS - 1, 15 * NS, 45 * NS, 60 * NS])


def filled(packets: list[tuple[int, ...]]) -> tuple[Table, int]:
    table, now = Table(), NS
    for gap, *packet in packets:
        now += gap
        table.packet(now, *packet)
    return table, now


@given(st.lists(PACKETS, max_size=12), GAPS, GAPS, GAPS)
def test_an_interval_split_in_two_ends_no_flow_twice(
    packets: list, before: int, between: int, after: int
) -> None:
    """Without packets between, two passes write the records of one, each once, and leave the same entries."""
    (once, start), (split, _) = filled(packets), filled(packets)
    times = [start + before, start + before + between, start + before + between + after]
    once.take(times[-1])
    for time in times:
        split.take(time)
        split.take(time)  # and at the same time again: nothing
        split.assert_nothing_is_overdue(time)
    assert sorted((flow, count) for flow, _, count, _ in split.records) == sorted(
        (flow, count) for flow, _, count, _ in once.records
    )
    assert set(split.states) == set(once.states)


@given(st.lists(st.one_of(PACKETS, st.tuples(GAPS, st.integers(0, 6))), max_size=40))
def test_every_packet_is_in_one_record(events: list) -> None:
    """Whatever passes there are between the packets; an active timeout keeps its entries."""
    table, now = Table(), NS
    for gap, *event in events:
        now += gap
        if len(event) > 1:
            table.packet(now, *event)
            continue
        held = set(table.states)
        excess = min(event[0], len(held))
        table.take(now, excess)
        assert len(held) - len(table.states) >= excess
        table.assert_nothing_is_overdue(now)
    table.take(now, everything=True)
    assert not table.states
    recorded: Counter[int] = Counter()
    for flow, _, packets, _ in table.records:
        assert packets > 0
        recorded[flow] += packets
    assert recorded == table.sent
    assert len({(flow, time, reason) for flow, reason, _, time in table.records}) == len(table.records)
