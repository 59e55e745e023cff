"""The View as Prometheus metrics.

Rules:
- Counters end in _total and never fall; units are base units (seconds, bytes; a byte is an octet of layer 2).
- A scrape is of one View. A family without samples is left out.
- Two names stand as they are known elsewhere: active_users, and network_new_connections_count, which only a
  summary may end in.

Source: https://prometheus.io/docs/practices/naming/, OpenMetrics 1.0.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from flowmon import __version__
from flowmon.durations import BUCKETS_S

if TYPE_CHECKING:
    from flowmon.web.view import Board, Denied, Evicted, Posted, View

NS = 1_000_000_000
KEPT_S = 1.0
OPENMETRICS, PLAIN = "application/openmetrics-text; version=1.0.0", "text/plain; version=0.0.4"
IP_NAMES = {4: "ipv4", 6: "ipv6"}
# IANA protocol numbers, by the names of active_users; others by number.
PROTOCOL_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}

Samples = Mapping[Any, float]  # value by the values of the labels, a tuple


def registry(board: Board) -> CollectorRegistry:
    """One that tells of the View, of this process, and of this version."""
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    made.register(ViewCollector(board))
    return made


def accepted_format(accept: str) -> str:
    """OPENMETRICS where an Accept header names it, else PLAIN. Nothing else of it goes any further."""
    for offer in accept.split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        versions = [parameter for parameter in parameters if parameter.startswith("version=")]
        if name == "application/openmetrics-text" and versions in ([], ["version=1.0.0"]):
            return OPENMETRICS
    return PLAIN


class Expositions:
    """All metrics as text, made once a View for all that ask within KEPT_S: it is of the collector's CPU."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._registry = registry(board)
        self._kept: dict[str, tuple[Posted, float, bytes]] = {}
        self._lock = threading.Lock()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text, and its content type: the format that an Accept header asks for. Any thread may ask."""
        wanted = accepted_format(accept)
        encode, content_type = choose_encoder(wanted)
        with self._lock:
            posted, now_s = self._board.latest, self._board.now_s()
            kept = self._kept.get(wanted)
            if kept is None or kept[0] is not posted or now_s - kept[1] > KEPT_S:
                kept = self._kept[wanted] = posted, now_s, encode(self._registry)
            return kept[2], content_type


def protocol_name(protocol: int) -> str:
    """As labels and lists call it."""
    return PROTOCOL_NAMES.get(protocol, str(protocol))


class ViewCollector(Collector):
    """Gives the metrics of the latest View."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """The families that have samples."""
        yield InfoMetricFamily("flowmon_build", "Which flowmon this is.", {"version": __version__})
        posted = self._board.latest
        if posted.view is not None:
            yield from (family for family in _families(posted.view, posted) if family.samples)


def _families(view: View, posted: Posted) -> Iterator[Metric]:
    yield from _books(view, posted.evicted)
    yield from _table(view)
    yield from _points(view)
    yield from _collector(view)
    yield from _sinks(view)
    yield from _alerts(view)
    yield from _traffic(view)
    yield from _deny(view, posted.denied)
    yield from _guard(view)
    yield from _features(view)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"flowmon_{name}", meaning, value=value)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"flowmon_{name}", meaning, value=value)


def _labelled(family: Any, samples: Samples) -> Metric:
    """With a sample of each: `family` is a counter or a gauge with labels."""
    for labels, value in samples.items():
        family.add_metric(labels, value)
    return family


def _counters(name: str, meaning: str, labels: str, samples: Samples) -> Metric:
    return _labelled(CounterMetricFamily(f"flowmon_{name}", meaning, labels=labels.split()), samples)


def _gauges(name: str, meaning: str, labels: str, samples: Samples) -> Metric:
    return _labelled(GaugeMetricFamily(f"flowmon_{name}", meaning, labels=labels.split()), samples)


def _by_one(values: Mapping[str, int]) -> Samples:
    return {(label,): value for label, value in values.items()}


def _books(view: View, evicted: Evicted) -> Iterator[Metric]:
    books = view.books
    yield _counter("seen_packets", "Packets that the programs saw.", books.seen_packets)
    yield _counter("seen_bytes", "Layer 2 octets of seen packets.", books.seen_octets)
    yield _counter("counted_packets", "Seen packets that are in a flow.", books.counted_packets)
    yield _counter("counted_bytes", "Layer 2 octets of counted packets.", books.counted_octets)
    ignored, ignored_octets = _by_one(books.ignored_packets), _by_one(books.ignored_octets)
    yield _counters("ignored_packets", "Seen packets that are in no flow, by why.", "reason", ignored)
    yield _counters("ignored_bytes", "Layer 2 octets of ignored packets.", "reason", ignored_octets)
    yield _counter(
        "dropped_packets", "Seen packets that the deny-list or the guard dropped.", books.dropped_packets
    )
    yield _counter("dropped_bytes", "Layer 2 octets of dropped packets.", books.dropped_octets)
    yield _counter("flows_inserted", "Directed flows that began a record.", books.flows_inserted)
    yield _counter(
        "insertions_failed", "Directed flows for which the table had no room.", books.insertions_failed
    )
    yield _counter(
        "late_packets", "Counted packets that are in packets, octets and flags only.", books.late_packets
    )
    yield _counter(
        "orphan_fragments",
        "Counted fragments with ports 0: their first was not seen.",
        books.orphan_fragments,
    )
    yield _counter("taken_flows", "Directed flows taken out of the table.", books.taken_flows)
    yield _counter("taken_packets", "Packets of taken flows.", books.taken_packets)
    yield _counter("taken_bytes", "Layer 2 octets of taken flows.", books.taken_octets)
    yield _counter("evicted_flows", "Directed flows that the full table dropped, uncollected.", evicted.flows)
    yield _counter("evicted_packets", "Packets of evicted flows.", evicted.packets)
    yield _counter("evicted_bytes", "Layer 2 octets of evicted flows.", evicted.octets)


def _table(view: View) -> Iterator[Metric]:
    books = view.books
    occupancy = books.resident_flows / view.max_flows if view.max_flows else 0.0
    yield _gauge("resident_flows", "Directed flows in the table.", books.resident_flows)
    yield _gauge("resident_packets", "Packets of resident flows.", books.resident_packets)
    yield _gauge("resident_bytes", "Layer 2 octets of resident flows.", books.resident_octets)
    yield _gauge("table_max_flows", "Directed flows for which the table has room.", view.max_flows)
    yield _gauge("table_occupancy_ratio", "Resident flows by table_max_flows.", occupancy)


def _points(view: View) -> Iterator[Metric]:
    def of(field: str) -> Samples:
        # An interface that was made anew has another index and the same name.
        sums: dict[tuple[str, ...], float] = {}
        for point in view.points:
            labels = (point.interface, point.direction)
            sums[labels] = sums.get(labels, 0) + getattr(point, field)
        return sums

    for name, field, meaning in (
        ("seen_packets", "seen_packets", "Packets that a program saw on an interface."),
        ("seen_bytes", "seen_octets", "Their layer 2 octets."),
        ("counted_packets", "counted_packets", "Seen packets that are in a flow."),
        ("counted_bytes", "counted_octets", "Their layer 2 octets."),
        ("dropped_packets", "dropped_packets", "Packets that the deny-list or the guard dropped."),
    ):
        yield _counters(f"interface_{name}", meaning, "interface direction", of(field))


def _collector(view: View) -> Iterator[Metric]:
    yield _counter("records", "Records made.", view.records)
    yield _counter("record_packets", "Packets in records.", view.packets)
    yield _counter(
        "duplicate_packets", "Packets taken, of points that did not report them.", view.duplicate_packets
    )
    yield _counters("ended_flows", "Records by why their flow ended.", "reason", _by_one(view.by_reason))
    yield _gauge("unwritten_records", "Records taken that no sink has taken yet.", view.unwritten_records)
    yield _gauge(
        "writing_refused",
        "1 while a sink takes no records, and flows stay in the table.",
        bool(view.refused_by),
    )
    yield _gauge("start_timestamp_seconds", "When the collector began, UTC.", view.started_at_ns / NS)
    yield _gauge("view_timestamp_seconds", "When all this was read, UTC.", view.at_ns / NS)
    durations = HistogramMetricFamily(
        "flowmon_step_duration_seconds", "How long the collector's steps take.", labels=["step"]
    )
    bounds = [*map(str, BUCKETS_S), "+Inf"]
    for step, histogram in view.passes.items():
        durations.add_metric([step], list(zip(bounds, histogram.counts, strict=True)), histogram.seconds)
    yield durations


def _sinks(view: View) -> Iterator[Metric]:
    def of(field: str) -> Samples:
        return {(sink.name, sink.kind): getattr(sink, field) for sink in view.sinks}

    labels = "sink kind"
    waiting = of("waiting_records")
    yield _gauges("sink_waiting_records", "Records taken that have not left yet.", labels, waiting)
    yield _gauges(
        "sink_waiting_bytes", "What they take up, in memory and on disk.", labels, of("waiting_octets")
    )
    yield _gauges("sink_spooled_records", "Waiting records that are on disk.", labels, of("spooled_records"))
    yield _counters("sink_sent_records", "Records written, or sent.", labels, of("sent_records"))
    yield _counters("sink_lost_records", "Records that a bound forced out.", labels, of("lost_records"))
    yield _gauges(
        "sink_connected", "1 while the sink can write, or has a connection.", labels, of("connected")
    )


def _alerts(view: View) -> Iterator[Metric]:
    alerts = view.alerts
    yield _counters("alerts", "Alerts said: starts, updates and ends.", "detector kind state", alerts.counts)
    yield _gauges("alerts_going_on", "Events that have not ended.", "detector kind", alerts.going_on)
    yield _counter("alerts_forgotten", "Events going on that /alerts had no room for.", alerts.forgotten)
    quantities = {
        (analyser, quantity): value
        for analyser, gauges in view.analysers.items()
        for quantity, value in gauges.items()
    }
    yield _gauges(
        "analyser_state", "What an analyser remembers, and had to forget.", "analyser quantity", quantities
    )


def _traffic(view: View) -> Iterator[Metric]:
    connections = Metric("network_new_connections", "TCP connections attempted.", "summary")
    connections.add_sample("network_new_connections_count", {}, view.new_connections)
    yield connections
    peers = GaugeMetricFamily(
        "active_users", "Distinct addresses that were served lately, by port.", labels=["ip", "proto", "port"]
    )
    users = {
        (IP_NAMES.get(version, str(version)), protocol_name(protocol), str(port)): number
        for (version, protocol, port), number in view.active_users.items()
    }
    yield _labelled(peers, users)


def _deny(view: View, denied: Denied) -> Iterator[Metric]:
    deny = view.deny
    if deny is None:
        return
    yield _gauges("deny_entries", "Prefixes of the deny-list.", "kind", _by_one(deny.entries))
    yield _counter("deny_dropped_packets", "Packets that the deny-list dropped.", denied.packets)
    yield _counter("deny_dropped_bytes", "Layer 2 octets of dropped packets.", denied.octets)
    yield _counter(
        "deny_matched_dry_run_packets",
        "Packets that it would have dropped, were it not for the dry run.",
        denied.dry_run_packets,
    )


def _features(view: View) -> Iterator[Metric]:
    if view.features is None:
        return
    outcomes = {name.removesuffix("_packets"): number for name, number in asdict(view.features).items()}
    yield _counters(
        "features_packets",
        "Packets whose features were asked for, by what became of them: lost are those that the ring could not hold.",
        "outcome",
        _by_one(outcomes),
    )


def _guard(view: View) -> Iterator[Metric]:
    guard = view.guard
    if guard is None:
        return
    yield _gauge("guard_tracked_sources", "Sources that the guard watches.", guard.tracked)
    yield _gauge("guard_blocked_sources", "Sources that it blocks now.", guard.blocked)
    yield _counter(
        "guard_sources_blocked", "Sources that it has blocked so far.", guard.sources_blocked_total
    )
    yield _counter("guard_dropped_packets", "Packets that the guard dropped.", guard.dropped_packets)
