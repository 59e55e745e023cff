"""The verdict on flowmon: silent, bypassed, refusing; and no false alarm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmon.errors import KernelError
from flowmon.sinks import SinkState
from flowmon.web.health import MOVED_LEAST, Watch, silence
from flowmon.web.view import Board, Point
from view_samples import empty


class Host:
    """A host with a collector: packets pass, some of which flowmon sees, and Views are posted."""

    def __init__(self, interval_s: float = 1.0) -> None:
        self.now_s = 100.0
        self.passed = {"eth0": 5000, "eth1": 7000}
        self.seen = {"eth0": 40, "eth1": 0}
        self._read: tuple[Point, ...] = ()
        self.board = Board(lambda: self.now_s)
        self.watch = Watch(self.board, interval_s, lambda: self.passed)

    def packets(self, name: str, number: int, *, is_seen: bool = True) -> None:
        self.passed[name] += number
        self.seen[name] += number if is_seen else 0

    def read(self) -> None:
        self._read = tuple(Point(name, "ingress", number) for name, number in self.seen.items())

    def post(self) -> None:
        """Posts what was read: after the last post, but it may be a while ago."""
        if not self._read:
            self.read()
        self.now_s += 0.1
        self.board.post(empty(points=self._read))
        self._read = ()
        self.now_s += 0.1

    def views(self) -> None:
        """Two, of which the second was certainly read after what was before."""
        self.post()
        self.post()

    def look(self) -> tuple[str, ...]:
        self.now_s += 0.1
        return self.watch.health().reasons


@pytest.mark.parametrize(
    ("interval_s", "age_s", "is_silent"),
    [(1, 5.0, False), (1, 5.1, True), (10, 29, False), (10, 31, True), (0.1, 4, False)],
)
def test_silence_is_five_seconds_or_three_intervals(interval_s: float, age_s: float, is_silent: bool) -> None:
    assert bool(silence(age_s, interval_s, is_first=False)) == is_silent


def test_before_the_first_view_there_is_patience_too() -> None:
    host = Host()
    assert host.look() == ()
    host.now_s += 6
    (reason,) = host.look()
    assert reason == "nothing was collected yet for 6.2 s, expected every 1 s: see the log"


def test_packets_that_nobody_saw_are_noticed_at_the_third_look() -> None:
    host = Host()
    verdicts = []
    for unseen in (1000, MOVED_LEAST + 1, 1000):
        host.packets("eth1", 1000)
        host.packets("eth0", unseen, is_seen=False)
        host.views()
        verdicts.append(host.look())
    assert verdicts[:2] == [(), ()]
    (reason,) = verdicts[2]
    assert reason.startswith("eth0: the host counted 101 packets, flowmon none of them")


def test_it_stays_said_until_something_is_seen_again() -> None:
    host = Host()
    for _ in range(3):
        host.packets("eth0", 1000, is_seen=False)
        host.views()
        host.look()
    host.views()
    assert host.look()
    host.packets("eth0", 1)
    host.views()
    assert host.look() == ()
    host.views()
    assert host.look() == ()


def test_a_silent_collector_is_that_and_not_bypassed() -> None:
    host = Host()
    for _ in range(3):
        host.packets("eth0", 1000, is_seen=False)
        host.views()
        host.look()
    host.now_s += 10
    (reason,) = host.look()
    assert reason.startswith("nothing was collected for 10.3 s")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("packets"), st.sampled_from(["eth0", "eth1"]), st.integers(1, 5000)),
        st.sampled_from([("read",), ("post",), ("look",), ("anew", "eth0")]),
    ),
    max_size=40,
)


@given(STEPS)
def test_no_alarm_where_all_is_seen(steps: list[tuple[str, ...]]) -> None:
    """Whenever Views are read and posted, however often somebody looks, and if an interface is made anew."""
    host = Host()
    host.views()
    for step, *of in steps:
        if step == "packets":
            host.packets(of[0], int(of[1]))
        elif step == "anew":
            host.passed[of[0]] = 0
        elif step == "read":
            host.read()
        elif step == "post":
            host.post()
        else:
            assert not [reason for reason in host.look() if "none of them" in reason]


def test_what_a_sink_refuses_is_a_reason_and_its_complaint_a_warning() -> None:
    host = Host()
    sinks = (SinkState("a", "ipfix", lost_records=3, connected=False, complaint="it is away"),)
    host.board.post(empty(refused_by="no room", unwritten_records=7, sinks=sinks))
    health = host.watch.health()
    assert health.reasons == (
        "records are refused: no room",
        "7 records were taken from the table and are not written yet",
    )
    assert health.warnings == ("a: it is away", "a: 3 records were lost")
    host.board.post(empty(sinks=sinks))
    assert host.watch.health().is_well


def test_a_host_that_says_nothing_is_a_reason() -> None:
    def ask() -> dict[str, int]:
        raise KernelError("the programs are gone: flowmon load")

    board = Board()
    board.post(empty())
    reasons = Watch(board, 1.0, ask).health().reasons
    assert reasons == ("the host cannot be asked for its interfaces: the programs are gone: flowmon load",)
