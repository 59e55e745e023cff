"""What flowmon shows: one frozen View, put together by the collector about once a second.

Rules:
- One thread posts; any thread reads the latest View, whole. No lock: it is one assignment.
- Who asks over HTTP is answered from the View. A scrape reads no map of the kernel.
- What is shown as a counter never falls, though the books' reckoning of evictions may.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING

from flowmon.analysers.alerts import ENDED

if TYPE_CHECKING:
    from flowmon.analysers.active_peers import Peer
    from flowmon.analysers.alerts import Alert
    from flowmon.durations import Histogram
    from flowmon.kernel.feature_source import FeatureBooks
    from flowmon.kernel.flow_table import Books
    from flowmon.sinks import SinkState

RECENT_MOST = 1_000
GOING_ON_MOST = 10_000


@dataclass(frozen=True)
class Point:
    """Totals of an observation point: an interface and a direction ("ingress", "egress").

    Octets: layer 2. dropped_packets: of the seen, by the deny-list or the guard.
    """

    interface: str
    direction: str
    seen_packets: int = 0
    seen_octets: int = 0
    counted_packets: int = 0
    counted_octets: int = 0
    dropped_packets: int = 0


@dataclass(frozen=True)
class AlertState:
    """What was alerted so far.

    counts: rows by (detector, kind, state). recent: the latest row of each event, newest first, those that go
    on among them. going_on: events by (detector, kind). forgotten: events that were going on, of which there
    were too many to keep.
    """

    counts: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    recent: tuple[Alert, ...] = ()
    going_on: Mapping[tuple[str, str], int] = field(default_factory=dict)
    forgotten: int = 0


class AlertHistory:
    """The latest row of each event: RECENT_MOST that ended, GOING_ON_MOST that go on; the newest of them."""

    def __init__(self, recent_most: int = RECENT_MOST, going_on_most: int = GOING_ON_MOST) -> None:
        self._recent_most = recent_most
        self._going_on_most = going_on_most
        self._going_on: OrderedDict[str, tuple[int, Alert]] = OrderedDict()
        self._ended: OrderedDict[str, tuple[int, Alert]] = OrderedDict()
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._number = 0
        self._forgotten = 0
        self._state = AlertState()

    def take(self, alerts: Iterable[Alert]) -> None:
        """Takes in rows, in the order in which they were said."""
        before = self._number
        for alert in alerts:
            self._number += 1
            self._counts[alert.detector, alert.kind, alert.state] += 1
            self._going_on.pop(alert.alert_id, None)
            of_its_kind = self._ended if alert.state == ENDED else self._going_on
            of_its_kind[alert.alert_id] = (self._number, alert)
            if len(self._ended) > self._recent_most:
                self._ended.popitem(last=False)
            if len(self._going_on) > self._going_on_most:
                self._going_on.popitem(last=False)
                self._forgotten += 1
        if self._number != before:
            self._state = self._summed_up()

    def state(self) -> AlertState:
        """As it stands."""
        return self._state

    def _summed_up(self) -> AlertState:
        room = max(0, self._recent_most - len(self._going_on))
        kept = chain(self._going_on.values(), islice(reversed(self._ended.values()), room))
        newest_first = sorted(kept, key=lambda one: one[0], reverse=True)
        return AlertState(
            counts=dict(self._counts),
            recent=tuple(alert for _, alert in newest_first),
            going_on=Counter((alert.detector, alert.kind) for _, alert in self._going_on.values()),
            forgotten=self._forgotten,
        )


@dataclass(frozen=True)
class DenyState:
    """The deny-list. entries: prefixes by kind (deny, dry-run, never); octets: layer 2. Counts: of these entries."""

    entries: Mapping[str, int]
    dropped_packets: int = 0
    dropped_octets: int = 0
    matched_dry_run_packets: int = 0


@dataclass(frozen=True)
class GuardState:
    """The guard against port scans. tracked, blocked: sources now; sources_blocked_total: so far."""

    tracked: int = 0
    blocked: int = 0
    dropped_packets: int = 0
    sources_blocked_total: int = 0


@dataclass(frozen=True, kw_only=True)
class View:
    """How flowmon stands.

    at_ns, started_at_ns: UTC, of the reading and of the collector's start. records, packets (in records),
    duplicate_packets (taken, of points that did not report), by_reason (records by end reason): this
    collector's. refused_by: what a sink complains of while it takes no records. passes: by step.
    analysers: the gauges of each, by its name. new_connections: TCP connections attempted.
    active_users: peers by (IP version, protocol, port); peers: gives them, for who asks: there may be many.
    deny, guard, features: None where off.
    """

    at_ns: int
    started_at_ns: int
    books: Books
    max_flows: int
    points: tuple[Point, ...] = ()
    records: int = 0
    packets: int = 0
    duplicate_packets: int = 0
    by_reason: Mapping[str, int] = field(default_factory=dict)
    unwritten_records: int = 0
    refused_by: str = ""
    passes: Mapping[str, Histogram] = field(default_factory=dict)
    sinks: tuple[SinkState, ...] = ()
    alerts: AlertState = field(default_factory=AlertState)
    analysers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    new_connections: int = 0
    active_users: Mapping[tuple[int, int, int], int] = field(default_factory=dict)
    peers: Callable[[], Sequence[Peer]] = tuple
    deny: DenyState | None = None
    guard: GuardState | None = None
    features: FeatureBooks | None = None


@dataclass(frozen=True)
class Evicted:
    """What the table dropped unseen, as far as is certain: never less than before."""

    flows: int = 0
    packets: int = 0
    octets: int = 0

    def or_more(self, books: Books) -> Evicted:
        """With what the books say now."""
        return Evicted(
            max(self.flows, books.evicted_flows),
            max(self.packets, books.evicted_packets),
            max(self.octets, books.evicted_octets),
        )


@dataclass(frozen=True)
class Denied:
    """What the deny-list dropped, or would have, so far: an entry that goes takes its counts along, not these."""

    packets: int = 0
    octets: int = 0
    dry_run_packets: int = 0

    def after(self, before: DenyState | None, now: DenyState | None) -> Denied:
        """With what has come since the state `before`."""
        old, new = before or DenyState({}), now or DenyState({})
        return Denied(
            self.packets + max(0, new.dropped_packets - old.dropped_packets),
            self.octets + max(0, new.dropped_octets - old.dropped_octets),
            self.dry_run_packets + max(0, new.matched_dry_run_packets - old.matched_dry_run_packets),
        )


@dataclass(frozen=True)
class Posted:
    """A View, or None before the first.

    at_s: when it was posted; read_after_s: when the one before was, so that what it says was read after that.
    Seconds of the board's clock.
    """

    view: View | None
    at_s: float
    read_after_s: float
    evicted: Evicted = field(default_factory=Evicted)
    denied: Denied = field(default_factory=Denied)


class Board:
    """Where the latest View hangs. now_s: its clock."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self.now_s = now_s
        self._latest = Posted(None, now_s(), 0.0)

    @property
    def latest(self) -> Posted:
        """What hangs there. Take it once an answer, so that the answer is of one moment."""
        return self._latest

    def post(self, view: View) -> None:
        """Replaces the View. One thread posts, and reads what it posts after it has posted the one before."""
        before = self._latest
        denied = before.denied.after(before.view.deny if before.view else None, view.deny)
        evicted = before.evicted.or_more(view.books)
        self._latest = Posted(view, self.now_s(), before.at_s, evicted, denied)
