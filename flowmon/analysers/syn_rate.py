"""SYN floods: per victim, the rate of TCP attempts whose handshake is not completed.

What is counted:
- A biflow stands for the SYNs that it has sent in vain: all, once the verdict is on it and is not success; all but
  the first while it waits for an answer (nobody repeats a SYN so soon); none else. A pass adds what it stands for
  now less what it stood for before, so a handshake that is completed late takes back what was counted.
- Before its handshake is completed a source sends SYNs only, so its packets of earlier passes tell how many.
- A biflow that came and went between two passes counts one SYN, however many it had: rates are lower bounds.

When it is a flood:
- A window is an assess() interval; shorter ones are gathered into SHORTEST_NS, or IN_FLIGHT seconds where the
  threshold is crossed already.
- Targets are each (address, TCP port), and each address over all its ports. A window's rate is what was counted,
  less IN_FLIGHT seconds of the growth in completed handshakes, which is what a server that becomes busy has under
  way; when it stays busy, what is added and what is taken back cancel out.
- Threshold: more than `threshold` a second, over a second at least.
- Change (CUSUM as in Siris and Papagalou, "Application of Anomaly Detection Algorithms for Detecting SYN Flooding
  Attacks", Globecom 2004), where at least `minimum` a second: g >= h, with, of a window of s seconds and rate x,

      g = g + min(s alpha u / v (x - u - alpha u / 2), CAP h s), but not below 0 nor above 2 h
      mean = beta^s mean + (1 - beta^s) x
      variance = beta^s variance + (1 - beta^s) s (x - mean before)^2
      u = max(mean, minimum / (1 + alpha / 2))    v = max(variance, u)

  The paper has no CAP, which makes a change last for two seconds, nor 2 h, which lets it be over, nor the two
  floors: without the first any rate would be a change from 0, and counts vary at least as Poisson's do. The mean
  and the variance of a victim stand still in a flood.
- An address over all its ports is a victim only if what others than its `few_sources` largest sources make is too
  much: one source at many ports is a scan, which is the concern of port-fanout.
- A flood goes on while the rate is at least its limit: u + alpha u / 2, or `threshold` if that is less.

What is said:
- One event a victim. The port stands where one port alone is too much, else it is null. Numbers are of the port if
  it stands, else of the address; sources and ports are those of the latest window, rate is the highest.
- sourceAddress is null, as the sources of a flood are forged as a rule. Where no more than `few_sources` make
  FEW_SHARE of it, the kind is syn-flood-of-few, exampleSources holds just these, and may be acted on, with
  caution: a forged address may be a friend's. Else it holds some of the largest, or none.
- confidence is (1 - refused / 2) rate / (rate + limit), `refused` being the share that was refused by RST or ICMP:
  that may be a service which is down, and its clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowmon.analysers.activity import NS, Activity, Outcome, Probe, identity
from flowmon.analysers.alerts import EXAMPLES_MOST, Alert, Events
from flowmon.analysers.parameters import check, parameter
from flowmon.text import address_column

Array = np.ndarray[Any, np.dtype[Any]]

TCP = 6
IN_FLIGHT = 0.5  # seconds that a handshake may take
SHORTEST_NS = NS * 9 // 10  # a second, for a timer that is early
CAP = 0.6
FEW_SOURCES = "syn-flood-of-few"
FEW_SHARE = 0.9
NOTHING = 0.01  # a mean a second that is as good as none
EVIDENCE_MOST = 1 << 20
VICTIMS_MOST = 256

# Of a (address, port), or with port 0 of an address over all. The first four are sums over the window.
TARGET = np.dtype(
    [
        ("incomplete", "i8"),
        ("refused", "i8"),  # of these
        ("completed", "i8"),
        ("attempts", "i8"),
        ("key", "u8"),
        ("host", "u8"),  # the key of the address
        ("completed_before", "f8"),  # a second, in the last window
        ("mean", "f8"),
        ("variance", "f8"),
        ("cusum", "f8"),
        ("address", "u1", 16),
        ("port", "u2"),
        ("ip_version", "u1"),
        ("alarmed", "?"),
    ]
)
SUMS = ("incomplete", "refused", "completed", "attempts")

# Of a row of the activity that changed a target's count.
EVIDENCE = np.dtype([("host", "u8"), ("weight", "i8"), ("source", "u1", 16), ("port", "u2")])


@dataclass(frozen=True)
class SynRateParameters:
    """What can be said of syn-rate."""

    threshold: float = parameter(
        1000.0, "so many incomplete handshakes a second are a flood, whatever is usual", above=0
    )
    minimum: float = parameter(100.0, "fewer a second are none, however unusual", above=0)
    alpha: float = parameter(0.5, "the rise that is a change, as a share of what is usual", above=0)
    beta: float = parameter(0.98, "how much of what was usual still is, a second later", above=0, below=1)
    h: float = parameter(5.0, "how much evidence of a change is enough", above=0)
    few_sources: int = parameter(4, "so many sources are named, where nearly all comes from them", least=0)
    quiet: float = parameter(5.0, "a flood is over when it was below its limit for so long", above=0)
    most: int = parameter(65_536, "how many ports are remembered, and how many addresses", least=1)

    def __post_init__(self) -> None:
        check(self)
        if self.few_sources >= EXAMPLES_MOST:
            raise ValueError(
                f"few_sources: expected a whole number below {EXAMPLES_MOST}, not {self.few_sources}"
            )


class SynRate:
    """Finds SYN floods by the rate of handshakes that are not completed, and names the victims."""

    name = "syn-rate"

    def __init__(self, parameters: SynRateParameters | None = None) -> None:
        self._parameters = parameters or SynRateParameters()
        self._ports = Targets(self._parameters.most)
        self._hosts = Targets(self._parameters.most)
        self._events = Events(int(self._parameters.quiet * NS))
        self._totals: dict[int, tuple[int, int]] = {}  # attempts and failures, by host of an event
        self._window = _Window(None)
        self._dropped = 0
        self._overlooked = 0

    def observe(self, activity: Activity) -> None:
        """Adds to the window what was attempted, completed and given up."""
        if self._window.since_ns is None:
            self._window.since_ns = activity.at_ns - int(activity.seconds * NS)
        rows = activity.rows
        rows = rows[(rows["protocol"] == TCP) & (rows["probe"] == Probe.SYN)]
        counts = _counts(rows)
        counted = np.logical_or.reduce([counts[name] != 0 for name in SUMS])
        if not counted.any():
            return
        rows, counts = rows[counted], {name: counts[name][counted] for name in SUMS}
        hosts = identity(rows, "destination_address")
        ports = _port_targets(rows, hosts, counts)
        self._ports.add(ports)
        self._hosts.add(_host_targets(ports))
        self._dropped += self._window.keep(rows, hosts, counts["incomplete"])

    def assess(self, now_ns: int) -> list[Alert]:
        """What is to be said of floods that start, grow or are over."""
        said = self._closed(now_ns) if self._is_due(now_ns) else []
        said += self._events.quiet(now_ns)
        self._forget_ended()
        return said

    def finish(self, now_ns: int) -> list[Alert]:
        """The window so far, and the ends of all floods."""
        said = self._closed(now_ns) if self._window.since_ns is not None else []
        said += self._events.finish()
        self._forget_ended()
        return said

    def gauges(self) -> Mapping[str, int]:
        """targets, events: remembered; the others: forgotten or not looked at for want of room."""
        return {
            "targets": len(self._ports.rows) + len(self._hosts.rows),
            "events": len(self._events),
            "targets_evicted": self._ports.evicted + self._hosts.evicted,
            "evidence_dropped": self._dropped,
            "victims_overlooked": self._overlooked,
        }

    def _is_due(self, now_ns: int) -> bool:
        since_ns = self._window.since_ns
        if since_ns is None:
            return False
        if now_ns < since_ns:  # the clock was set back
            self._window.since_ns = now_ns
            return False
        if now_ns - since_ns >= SHORTEST_NS:
            return True
        highest = self._hosts.rows["incomplete"].max(initial=0)
        return now_ns - since_ns >= IN_FLIGHT * NS and bool(highest > self._parameters.threshold)

    def _closed(self, now_ns: int) -> list[Alert]:
        """Ends the window: what is to be said of it."""
        window, self._window = self._window, _Window(now_ns)
        seconds = window.seconds(now_ns)
        over_ports, over_hosts = (
            targets.rows[judge(targets.rows, seconds, self._parameters)]
            for targets in (self._ports, self._hosts)
        )
        said = []
        for key, evidence in window.evidence_of(self._victims(over_ports, over_hosts)):
            own = over_ports[over_ports["host"] == key]
            target = own if len(own) == 1 else self._hosts.find(key)
            flood = Flood.of(target, evidence, seconds, self._parameters)
            if flood is not None and (len(own) or flood.is_spread):
                said += self._saw(key, flood, (window.begin_ns, now_ns))
                self._ports.alarm(own["key"])
                self._hosts.alarm([key])
        self._ports.end_window(seconds, self._parameters)
        self._hosts.end_window(seconds, self._parameters)
        return said

    def _victims(self, over_ports: Array, over_hosts: Array) -> list[int]:
        """Keys of addresses, no more than VICTIMS_MOST: known floods first, then by ports, then by rate."""
        own = np.unique(over_ports["host"])
        keys = np.union1d(own, over_hosts["key"])
        known = np.fromiter((int(key) in self._events for key in keys), bool, len(keys))
        rates = self._hosts.incomplete_of(keys)
        order = np.lexsort((-rates, ~np.isin(keys, own), ~known))
        most = int(np.count_nonzero(known)) + max(0, VICTIMS_MOST - len(self._events))
        self._overlooked += max(0, len(keys) - most)
        return [int(key) for key in keys[order[:most]]]

    def _saw(self, key: int, flood: Flood, span_ns: tuple[int, int]) -> list[Alert]:
        attempts, failures = self._totals.get(key, (0, 0))
        # Of what failed now, some was attempted in the window before.
        self._totals[key] = attempts + max(flood.attempts, flood.failures), failures + flood.failures
        return self._events.saw(key, flood.alert(*self._totals[key], span_ns))

    def _forget_ended(self) -> None:
        ended = [key for key in self._totals if key not in self._events]
        for key in ended:
            del self._totals[key]
        self._ports.calm(ended)
        self._hosts.calm(ended)


class _Window:
    """What was seen since the last window."""

    def __init__(self, since_ns: int | None) -> None:
        self.since_ns = since_ns
        self._evidence: list[Array] = []
        self._room = EVIDENCE_MOST

    @property
    def begin_ns(self) -> int:
        return self.since_ns or 0

    def seconds(self, now_ns: int) -> float:
        return max((now_ns - self.begin_ns) / NS, IN_FLIGHT)

    def keep(self, rows: Array, hosts: Array, weights: Array) -> int:
        """Keeps what says who did it, as far as there is room; how many rows were dropped."""
        chosen = np.flatnonzero(weights)
        kept = chosen[: self._room]
        evidence = np.empty(len(kept), EVIDENCE)
        evidence["host"], evidence["weight"] = hosts[kept], weights[kept]
        evidence["source"], evidence["port"] = rows["source_address"][kept], rows["destination_port"][kept]
        self._evidence.append(evidence)
        self._room -= len(kept)
        return len(chosen) - len(kept)

    def evidence_of(self, hosts: list[int]) -> list[tuple[int, Array]]:
        """(host, EVIDENCE[n]) of each."""
        if not hosts:
            return []
        wanted = np.array(hosts, "u8")
        evidence = np.concatenate(
            [part[np.isin(part["host"], wanted)] for part in self._evidence] or [_NO_EVIDENCE]
        )
        evidence = evidence[np.argsort(evidence["host"])]
        starts, ends = (np.searchsorted(evidence["host"], wanted, side) for side in ("left", "right"))
        return [(host, evidence[a:b]) for host, a, b in zip(hosts, starts, ends, strict=True)]


_NO_EVIDENCE = np.empty(0, EVIDENCE)


@dataclass(frozen=True)
class Flood:
    """What a window shows of one victim. port: None for several; is_spread: not the work of a few sources alone."""

    victim: str
    port: int | None
    attempts: int
    failures: int
    refused: int
    rate: float
    limit: float
    sources: int
    example_sources: tuple[str, ...]
    ports: tuple[int, ...]
    is_spread: bool
    is_of_few: bool  # example_sources are all that matter

    @classmethod
    def of(
        cls, target: Array, evidence: Array, seconds: float, parameters: SynRateParameters
    ) -> Flood | None:
        """target: TARGET[1], or [0] where it was evicted: then nothing. evidence: of its address."""
        if not len(target):
            return None
        port = int(target["port"][0]) or None
        if port is not None:
            evidence = evidence[evidence["port"] == port]
        failures = max(int(target["incomplete"][0]), 0)
        limit = float(limits(target, parameters)[0])
        sources, weights = _by_source(evidence)
        few = parameters.few_sources
        is_spread = (failures - weights[:few].sum()) / seconds >= limit
        named = _named(weights, max(failures, weights.sum()), few)
        addresses = np.concatenate([target["address"], sources[:named]])
        is_ipv4 = np.full(len(addresses), target["ip_version"][0] == 4)
        victim, *examples = address_column(addresses, is_ipv4).to_pylist()
        return cls(
            victim=victim,
            port=port,
            attempts=int(target["attempts"][0]),
            failures=failures,
            refused=max(int(target["refused"][0]), 0),
            rate=float(rates(target, seconds)[0]),
            limit=limit,
            sources=len(sources),
            example_sources=tuple(examples),
            ports=tuple(np.unique(evidence["port"][evidence["weight"] > 0]).tolist()),
            is_spread=bool(is_spread),
            is_of_few=0 < len(examples) <= few,
        )

    def alert(self, attempts: int, failures: int, span_ns: tuple[int, int]) -> Alert:
        """attempts, failures: since its start."""
        return Alert(
            detector=SynRate.name,
            kind=FEW_SOURCES if self.is_of_few else "syn-flood",
            start_ns=span_ns[0],
            end_ns=span_ns[1],
            victim=self.victim,
            protocol=TCP,
            port=self.port,
            sources=self.sources,
            ports=len(self.ports) or None,
            attempts=attempts,
            failures=failures,
            rate=self.rate,
            example_sources=self.example_sources,
            example_ports=self.ports[:EXAMPLES_MOST],
            confidence=self.confidence,
        )

    @property
    def confidence(self) -> float:
        """From 0 to 1: how far it is beyond the limit, less where the victim refuses."""
        refused = min(1.0, self.refused / max(self.failures, 1))
        return (1 - refused / 2) * self.rate / (self.rate + self.limit)


class Targets:
    """A table of targets that is bounded; rows: TARGET[n], sorted by key."""

    def __init__(self, most: int) -> None:
        self.rows = np.zeros(0, TARGET)
        self.evicted = 0
        self._most = most

    def add(self, new: Array) -> None:
        """Adds to the window's sums; new: TARGET[m], sorted by key."""
        at, known = self._places(new["key"])
        for name in SUMS:
            self.rows[name][at[known]] += new[name][known]
        if not known.all():
            rows = np.concatenate(self._bounded(self.rows, new[~known]))
            self.rows = rows[np.argsort(rows["key"])]

    def find(self, key: int) -> Array:
        """TARGET[1], or [0] if there is none."""
        at, known = self._places(np.array([key], "u8"))
        return self.rows[at[known]]

    def incomplete_of(self, keys: Array) -> Array:
        """int64[n]: the window's count; 0 of those that are not here."""
        at, known = self._places(keys)
        counts = np.zeros(len(keys), "i8")
        counts[known] = self.rows["incomplete"][at[known]]
        return counts

    def alarm(self, keys: Array | list[int]) -> None:
        """These are in a flood from now on."""
        at, known = self._places(np.asarray(keys, "u8"))
        self.rows["alarmed"][at[known]] = True

    def calm(self, hosts: list[int]) -> None:
        """The floods of these addresses are over."""
        if hosts:
            over = np.isin(self.rows["host"], np.array(hosts, "u8"))
            self.rows["alarmed"][over] = False
            self.rows["cusum"][over] = 0

    def end_window(self, seconds: float, parameters: SynRateParameters) -> None:
        """Learns what is usual, forgets who is idle, and starts to count anew."""
        rows = self.rows
        learn(rows, seconds, parameters.beta)
        rows["completed_before"] = rows["completed"] / seconds
        for name in SUMS:
            rows[name] = 0
        used = (rows["mean"] >= NOTHING) | (rows["cusum"] > 0) | (rows["completed_before"] > 0)
        self.rows = rows[rows["alarmed"] | used]

    def _places(self, keys: Array) -> tuple[Array, Array]:
        """(int64[n], row of each key; bool[n], whether it is there)."""
        own = np.ascontiguousarray(self.rows["key"])
        at = np.searchsorted(own, keys)
        known = np.zeros(len(keys), bool)
        inside = at < len(own)
        known[inside] = own[at[inside]] == keys[inside]
        return at, known

    def _bounded(self, *parts: Array) -> list[Array]:
        """Those with the least go, but not in a flood; they count where they had any incomplete handshake."""
        excess = sum(map(len, parts)) - self._most
        if excess <= 0:
            return list(parts)
        worth = np.concatenate(
            [np.where(part["alarmed"], np.inf, part["incomplete"] + part["mean"]) for part in parts]
        )
        leaving = np.argpartition(worth, excess - 1)[:excess]
        self.evicted += int(np.count_nonzero(worth[leaving] >= NOTHING))
        stays = np.ones(len(worth), bool)
        stays[leaving] = False
        ends = np.cumsum([len(part) for part in parts])[:-1]
        return [part[kept] for part, kept in zip(parts, np.split(stays, ends), strict=True)]


def standing_for(outcomes: Array, syns: Array) -> Array:
    """int64[n]: the SYNs that each biflow has sent in vain."""
    waiting = np.where(outcomes == Outcome.WAITING, np.maximum(syns - 1, 0), 0)
    return np.where(outcomes >= Outcome.HALF_OPEN, syns, waiting)


def rates(targets: Array, seconds: float) -> Array:
    """float64[n]: incomplete handshakes a second, less those under way at a server that becomes busy."""
    growth = np.maximum(targets["completed"] / seconds - targets["completed_before"], 0)
    return np.maximum(targets["incomplete"] - IN_FLIGHT * growth, 0) / seconds


def limits(targets: Array, parameters: SynRateParameters) -> Array:
    """float64[n]: the rate below which a flood is over."""
    return np.minimum(parameters.threshold, _usual(targets, parameters) * (1 + parameters.alpha / 2))


def judge(targets: Array, seconds: float, parameters: SynRateParameters) -> Array:
    """bool[n]: too much in this window. Moves the CUSUM of those that are not in a flood."""
    found = rates(targets, seconds)
    usual = _usual(targets, parameters)
    slope = parameters.alpha * usual / np.maximum(targets["variance"], usual)
    grown = seconds * slope * (found - usual * (1 + parameters.alpha / 2))
    capped = np.minimum(grown, CAP * parameters.h * seconds)
    cusum = np.clip(targets["cusum"] + capped, 0, 2 * parameters.h)
    alarmed = targets["alarmed"]
    targets["cusum"] = np.where(alarmed, targets["cusum"], cusum)
    crossed = found * seconds > parameters.threshold * max(seconds, 1.0)
    changed = (cusum >= parameters.h) & (found >= parameters.minimum)
    return np.where(alarmed, found >= limits(targets, parameters), crossed | changed)


def learn(targets: Array, seconds: float, beta: float) -> None:
    """Moves mean and variance of those that are not in a flood."""
    kept = np.where(targets["alarmed"], 1, beta**seconds)
    rate = rates(targets, seconds)
    spread = seconds * (rate - targets["mean"]) ** 2
    # Not by differences: of a variance that falls far little would be left but their rounding.
    targets["variance"] = kept * targets["variance"] + (1 - kept) * spread
    targets["mean"] = kept * targets["mean"] + (1 - kept) * rate


def _usual(targets: Array, parameters: SynRateParameters) -> Array:
    return np.maximum(targets["mean"], parameters.minimum / (1 + parameters.alpha / 2))


def _counts(rows: Array) -> dict[str, Array]:
    """int64[n] by the names of SUMS."""
    new_syns = rows["new_syn_packets"].astype("i8")
    before = np.maximum(rows["forward_packets"].astype("i8") - rows["new_forward_packets"].astype("i8"), 0)
    new_syns = np.where(rows["is_new"], np.maximum(new_syns, 1), new_syns)
    now = standing_for(rows["outcome"], before + new_syns)
    succeeded = (rows["outcome"] == Outcome.SUCCEEDED) & (rows["outcome_before"] != Outcome.SUCCEEDED)
    incomplete = now - standing_for(rows["outcome_before"], before)
    return {
        "incomplete": incomplete,
        "refused": np.where(rows["outcome"] == Outcome.REFUSED, incomplete, 0),
        "completed": succeeded.astype("i8"),
        "attempts": new_syns,
    }


def _port_targets(rows: Array, hosts: Array, counts: Mapping[str, Array]) -> Array:
    """TARGET[m], sorted by key."""
    targets, first = _summed(identity(rows, "destination_address", "destination_port"), counts)
    targets["host"] = hosts[first]
    targets["address"] = rows["destination_address"][first]
    targets["port"] = rows["destination_port"][first]
    targets["ip_version"] = rows["ip_version"][first]
    return targets


def _host_targets(ports: Array) -> Array:
    """TARGET[m], sorted by key."""
    targets, first = _summed(ports["host"], {name: ports[name] for name in SUMS})
    targets["host"] = targets["key"]
    for name in ("address", "ip_version"):
        targets[name] = ports[name][first]
    return targets


def _summed(keys: Array, counts: Mapping[str, Array]) -> tuple[Array, Array]:
    """(TARGET[m], sorted by key, with sums; int64[m], a row of each)."""
    order = np.argsort(keys)
    in_order = keys[order]
    starts = np.flatnonzero(np.append(True, in_order[1:] != in_order[:-1]))
    targets = np.zeros(len(starts), TARGET)
    targets["key"] = in_order[starts]
    for name, column in counts.items():
        targets[name] = np.add.reduceat(column[order], starts)
    return targets, order[starts]


def _by_source(evidence: Array) -> tuple[Array, Array]:
    """(uint8[n, 16], int64[n]): the sources that count, and for how much; the largest first."""
    hashes, first, row = np.unique(identity(evidence, "source"), return_index=True, return_inverse=True)
    weights = np.bincount(row, evidence["weight"], len(hashes)).astype("i8")
    order = np.argsort(-weights, kind="stable")
    order = order[: np.count_nonzero(weights > 0)]
    return evidence["source"][first[order]], weights[order]


def _named(weights: Array, total: int, few: int) -> int:
    """How many of the largest sources are examples: those that make nearly all, if they are few."""
    enough = np.flatnonzero(np.cumsum(weights[:few]) >= FEW_SHARE * total)
    if len(enough):
        return int(enough[0]) + 1
    return EXAMPLES_MOST if len(weights) > few else 0  # of the others, the evidence was dropped
