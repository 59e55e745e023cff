"""Views for tests: an empty one, and one in which everything has a value."""

from dataclasses import replace
from typing import Any, cast

from flowmon.abi import Ignored
from flowmon.analysers.active_peers import Peer
from flowmon.analysers.alerts import ENDED, STARTED, UPDATED, Alert
from flowmon.durations import STEPS, Durations
from flowmon.kernel.feature_source import FeatureBooks
from flowmon.kernel.flow_table import Books
from flowmon.sinks import SinkState
from flowmon.web.view import (
    AlertHistory,
    DenyState,
    GuardState,
    Point,
    View,
)

NS = 1_000_000_000
NOW_NS = 1_700_000_000 * NS + 123_456_789


def books(**of: Any) -> Books:
    """All zero, but for what is given."""
    nothing: dict[str, Any] = dict.fromkeys(Books.__dataclass_fields__, 0)
    nothing |= {
        name: {one.name.lower(): 0 for one in Ignored} for name in ("ignored_packets", "ignored_octets")
    }
    return Books(**nothing | of)


def empty(**of: Any) -> View:
    """Of a collector that has just begun."""
    return View(**{"at_ns": NOW_NS, "started_at_ns": NOW_NS, "books": books(), "max_flows": 1000} | of)


def alert(number: int, state: str = STARTED, **of: Any) -> Alert:
    scan = Alert(
        alert_id=f"event{number}",
        state=state,
        detector="port-scan",
        kind="vertical",
        start_ns=NOW_NS - 5 * NS,
        end_ns=NOW_NS + number,
        source="192.0.2.7",
        protocol=6,
        ports=120,
        rate=12.5,
        example_ports=(22, 80),
    )
    return replace(scan, **of)


def full() -> View:
    """Each number is another, so that no two can be taken for each other."""
    numbers = iter(range(1001, 2000))
    ignored = {one.name.lower(): next(numbers) for one in Ignored}
    ignored_octets = {one.name.lower(): next(numbers) for one in Ignored}
    durations = Durations()
    for step in STEPS:
        durations.observe(step, 0.004)
    history = AlertHistory()
    history.take(
        [
            alert(1),
            alert(2),
            alert(1, UPDATED),
            alert(2, ENDED),
            alert(3, kind='a "quoted\\ kind"\n', rate=float("inf")),
        ]
    )
    # Not even the books of before an eviction: inserted is more than taken and resident.
    plain = {name: next(numbers) for name in Books.__dataclass_fields__ if not name.startswith("ignored")}
    evicting = {
        "flows_inserted": plain["taken_flows"] + plain["resident_flows"] + 7,
        "counted_packets": plain["taken_packets"] + plain["resident_packets"] + 70,
        "counted_octets": plain["taken_octets"] + plain["resident_octets"] + 700,
    }
    return View(
        at_ns=NOW_NS,
        started_at_ns=NOW_NS - 60 * NS,
        books=Books(**cast(Any, plain | evicting), ignored_packets=ignored, ignored_octets=ignored_octets),
        max_flows=131072,
        points=(Point("eth0", "ingress", 11, 12, 13, 14, 15), Point("eth0", "egress", 21, 22, 23, 24, 25)),
        records=next(numbers),
        packets=next(numbers),
        duplicate_packets=next(numbers),
        by_reason={"idle": 31, "active": 32, "lack_of_resources": 33},
        unwritten_records=next(numbers),
        refused_by="/var/flows cannot be written",
        passes=durations.histograms(),
        sinks=(
            SinkState("/var/flows", "parquet", sent_records=41),
            SinkState("tcp://[::1]:4739", "ipfix", 51, 52, 53, 54, 55, connected=False, complaint="refused"),
        ),
        alerts=history.state(),
        analysers={"port-scan": {"sources": 61, "forgotten": 62}, "active-peers": {"peers": 63}},
        new_connections=71,
        active_users={(4, 6, 443): 81, (6, 17, 53): 82, (4, 47, 0): 83},
        peers=lambda: [
            Peer("192.0.2.9", 4, 443, 6),
            Peer("2001:db8::1", 6, 53, 17),
            Peer("192.0.2.8", 4, 0, 47),
        ],
        deny=DenyState({"deny": 91, "dry-run": 92, "never": 93}, 94, 95, 96),
        guard=GuardState(101, 102, 103, 104),
        features=FeatureBooks(111, 112, 113, 114, 115),
    )
