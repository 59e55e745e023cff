"""Puts together, about once a second, what flowmon shows over HTTP."""

import time
from collections.abc import Callable

from pyroute2 import IPRoute

from flowmon.abi import DenyKind, Direction
from flowmon.analysers.active_peers import ActivePeers
from flowmon.collector import Collector
from flowmon.errors import KernelError
from flowmon.kernel import interfaces, loader
from flowmon.kernel.attach import attachments
from flowmon.kernel.deny_list import GuardRegistry, deny_list, guard_registry
from flowmon.kernel.feature_source import FeatureBooks
from flowmon.kernel.flow_table import FlowTable
from flowmon.kernel.pins import PinSet
from flowmon.sinks import Metering, Sink
from flowmon.watch import Watch
from flowmon.web.view import AlertState, Board, DenyState, GuardState, Point, View

LISTS_SHARE = 50  # walks through the deny-list and the guard's registry take a fiftieth of the time at most

_KINDS = {DenyKind.DROP: "deny", DenyKind.DRY_RUN: "dry-run", DenyKind.NEVER: "never"}


class Publisher:
    """Posts Views on a board."""

    def __init__(
        self,
        pin_set: PinSet,
        table: FlowTable,
        sinks: list[Sink],
        watch: Watch | None,
        names: Callable[[], dict[int, str]],
        features: Callable[[], FeatureBooks | None] = lambda: None,
    ) -> None:
        self.board = Board()
        self._pin_set = pin_set
        self._table = table
        self._sinks = sinks
        self._watch = watch
        self._names = names
        self._features = features
        self._started_at_ns = time.time_ns()
        self._lists: tuple[DenyState | None, GuardState | None] = (None, None)
        self._lists_at = 0.0

    def post(self, metering: Metering, collector: Collector) -> None:
        """Posts how all stands."""
        tally, watch = collector.tally, self._watch
        started = time.monotonic()
        if started >= self._lists_at:
            self._lists = self._read_lists()
            self._lists_at = started + LISTS_SHARE * (time.monotonic() - started)
        deny, guard = self._lists
        peers = (
            next((one for one in watch.analysers if isinstance(one, ActivePeers)), None) if watch else None
        )
        self.board.post(
            View(
                at_ns=metering.at_ns,
                started_at_ns=self._started_at_ns,
                books=metering.books,
                max_flows=self._table.max_flows,
                points=self._points(),
                records=tally.records,
                packets=tally.packets,
                duplicate_packets=tally.duplicate_packets,
                by_reason=dict(tally.by_reason),
                unwritten_records=collector.unwritten_records,
                refused_by=collector.refused_by,
                passes=collector.durations.histograms(),
                sinks=tuple(sink.state() for sink in self._sinks),
                alerts=watch.history.state() if watch else AlertState(),
                analysers={one.name: dict(one.gauges()) for one in watch.analysers} if watch else {},
                new_connections=watch.new_connections if watch else tally.new_connections,
                active_users=peers.counts() if peers else {},
                peers=peers.peers if peers else tuple,
                deny=deny,
                guard=guard,
                features=self._features(),
            )
        )

    def _points(self) -> tuple[Point, ...]:
        names = self._names()
        keys, totals = self._table.totals()
        return tuple(
            Point(
                names.get(int(key["ifindex"]), str(key["ifindex"])),
                Direction(int(key["direction"])).name.lower(),
                *(int(row[name]) for name in ("seen_packets", "seen_octets", "counted_packets")),
                *(int(row[name]) for name in ("counted_octets", "dropped_packets")),
            )
            for key, row in zip(keys, totals, strict=True)
            if key["ifindex"] or row["seen_packets"]
        )

    def _read_lists(self) -> tuple[DenyState | None, GuardState | None]:
        try:
            options = loader.loaded_options(self._pin_set)
        except KernelError:  # somebody is removing it: the collector is about to notice
            return self._lists
        deny = _deny_state(self._pin_set) if options.deny or options.guard else None
        if options.guard is None:
            return deny, None
        with guard_registry(self._pin_set, options.guard.block_s) as registry:
            return deny, _guard_state(registry)


def _deny_state(pin_set: PinSet) -> DenyState:
    with deny_list(pin_set) as opened:
        entries = opened.entries()
    dropping = [entry for entry in entries if entry.kind == DenyKind.DROP]
    return DenyState(
        entries={name: sum(entry.kind == kind for entry in entries) for kind, name in _KINDS.items()},
        dropped_packets=sum(entry.packets for entry in dropping),
        dropped_octets=sum(entry.octets for entry in dropping),
        matched_dry_run_packets=sum(e.packets for e in entries if e.kind == DenyKind.DRY_RUN),
    )


def _guard_state(registry: GuardRegistry) -> GuardState:
    books = registry.books()
    return GuardState(books.tracked, len(registry.blocked()), books.packets, books.blocks)


def interface_packets(pin_set: PinSet) -> dict[str, int]:
    """What the host itself counted so far, by interface, on the hooks that flowmon attached to."""
    with IPRoute() as netlink, attachments(pin_set, netlink) as attached:
        hooks, counted = attached.noted_hooks(), interfaces.packets(netlink)
    return {
        name: sum(packets[direction] for direction in hooks[index])
        for index, (name, packets) in counted.items()
        if index in hooks
    }
