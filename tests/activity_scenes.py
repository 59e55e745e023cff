"""Packets of a few talks into a table that a collector looks at, and what its tracker makes of each look."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from fake_table import FakeTable
from flowmon.analysers.activity import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    Activity,
    Outcome,
    Probe,
    Seen,
    Tracker,
)
from flowmon.biflow import pair
from flowmon.collector import Collector, CollectorOptions
from flowmon.expiry import Timeouts
from flowmon.kernel.flow_table import WATCHED_STATE
from samples import NS, key, turned

A, B, ROUTER = "192.0.2.1", "198.51.100.2", "203.0.113.9"
A6, B6 = "2001:db8::1", "2001:db8:ffff::2"
TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
ECHO, ECHO_V6, PORT_UNREACHABLE, HOST_UNREACHABLE = 8 << 8, 128 << 8, 3 << 8 | 3, 3 << 8 | 1
OFFSET_NS = 1_000_000 * NS
NOTHING = (Outcome.NONE, Probe.NONE)
DEFAULT = Timeouts()
SA, PA, RA, FA = SYN | ACK, PSH | ACK, RST | ACK, FIN | ACK


def talk(source: str, destination: str, protocol: int, ports: tuple[int, int], **fields: int) -> np.ndarray:
    return key(source, destination, ports, protocol, **fields)


def answer(one: np.ndarray) -> np.ndarray:
    """The key of the other direction; of ICMP, identifier and class stay."""
    other = turned(one)
    if one["protocol"][0] in (ICMP, ICMPV6):
        other["source_port"], other["destination_port"] = one["source_port"], one["destination_port"]
    return other


HTTP = talk(A, B, TCP, (40000, 80))
DNS = talk(A, B, UDP, (40001, 53))
PING = talk(A, B, ICMP, (77, ECHO))

# What the random walks are made of.
TALKS = {
    "http": HTTP,
    "http, IPv6": talk(A6, B6, TCP, (40000, 80)),
    "dns": DNS,
    "dns, IPv6": talk(A6, B6, UDP, (40001, 53)),
    "ping": PING,
    "ping, IPv6": talk(A6, B6, ICMPV6, (78, ECHO_V6)),
    "unreachable": talk(B, A, ICMP, (0, PORT_UNREACHABLE)),
    "unreachable, IPv6": talk(B6, A6, ICMPV6, (0, 1 << 8 | 4)),
    "router": talk(ROUTER, A, ICMP, (0, HOST_UNREACHABLE)),
    "multicast": talk(A, "239.255.255.250", UDP, (40002, 1900)),
    "multicast, IPv6": talk(A6, "ff02::fb", UDP, (5353, 5353)),
    "broadcast": talk(A, "192.0.2.255", UDP, (137, 137)),
    "ssdp": talk(B, A, UDP, (1900, 40002)),
    "traceroute": talk(A, B, UDP, (40003, 33440)),
    "fragments": talk(A, B, TCP, (0, 0)),
    "sctp": talk(A, B, SCTP, (40004, 36412)),
    "quic": talk(A, B, UDP, (40005, 443)),
}


@dataclass
class Watcher:
    """What a Watch is to a collector: it keeps what it was told, and what a Tracker makes of it."""

    tracker: Tracker = field(default_factory=Tracker)
    found: list[Seen] = field(default_factory=list)
    activities: list[Activity] = field(default_factory=list)

    def passed(self, found: Seen, read_at_mono_ns: int, utc_offset_ns: int) -> None:
        self.found.append(found)
        self.activities.append(self.tracker.follow(found, read_at_mono_ns, utc_offset_ns))


class Ends:
    """A sink that keeps why each biflow ended, by flowId."""

    def __init__(self) -> None:
        self.reasons: dict[int, int] = {}

    def reserve(self, rows: int, *, more: bool = False) -> None: ...

    def report(self, metering: object) -> None: ...

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        names = (batch.column(name).to_pylist() for name in ("flowId", "flowEndReason"))
        self.reasons.update(zip(*names, strict=True))


class Scene:
    """A table, its collector, and their clock in seconds."""

    def __init__(self, timeouts: Timeouts = DEFAULT, *, every_interface: bool = False) -> None:
        self.now = 100.0
        self.table = FakeTable(state=WATCHED_STATE)
        self.watcher, self.ends = Watcher(), Ends()
        options = CollectorOptions(timeouts=timeouts, every_interface=every_interface)
        watcher: Any = self.watcher
        sinks: Any = [self.ends]
        self.collector = Collector(self.table, sinks, options, dict, self, watch=watcher)  # type: ignore[arg-type]

    def now_mono_ns(self) -> int:
        return int(self.now * NS)

    def utc_offset_ns(self) -> int:
        return OFFSET_NS

    def packet(self, one: np.ndarray, flags: int = 0, number: int = 1) -> None:
        """Each a microsecond after the one before: which came first is never in doubt."""
        self.now += 1e-6
        self.table.packet(one, self.now, number, flags)

    def look(self, **how: Any) -> Activity:
        self.ends.reasons.clear()
        self.collector.collect(**how)
        return self.watcher.activities[-1]


class WalkScene(Scene):
    """Keeps the table as it was at the snapshot and when flows were taken; packets may come in between."""

    def __init__(self, timeouts: Timeouts) -> None:
        super().__init__(timeouts)
        self.collector._notice_evictions = lambda _: None  # type: ignore[method-assign]
        self.entries_at_snapshot: dict[bytes, np.ndarray] = {}
        self.entries_at_take: dict[bytes, np.ndarray] = {}
        self.meanwhile: list[tuple[Any, ...]] = []
        self._real = self.table.snapshot, self.table.take
        self.table.snapshot, self.table.take = self._snapshot, self._take  # type: ignore[method-assign]

    def _snapshot(self) -> Any:
        self.entries_at_snapshot = deepcopy(self.table.entries)
        return self._real[0]()

    def _take(self, keys: np.ndarray, keep_entry: np.ndarray) -> Any:
        for kind, *rest in self.meanwhile:
            self.do(kind, *rest)
        self.meanwhile = []
        self.entries_at_take = deepcopy(self.table.entries)
        return self._real[1](keys, keep_entry)

    def do(self, kind: str, name: str, is_answer: bool, flags: int, number: int) -> None:
        one = answer(TALKS[name]) if is_answer else TALKS[name]
        if kind == "packet":
            self.packet(one, flags if one["protocol"][0] == TCP else 0, number)
        else:
            self.table.entries.pop(one.tobytes(), None)


def flow_id_of(one: np.ndarray) -> int:
    return int(pair(one, np.ones(1, "u8"), every_interface=False).flow_id[0])
