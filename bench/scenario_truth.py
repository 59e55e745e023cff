"""Attacks as they are: who, when, and when the detectors' default thresholds are crossed by what failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scenario_packets import NS, Array
from scenario_stage import names

FANOUT, WALK, SYN_RATE = "port-fanout", "random-walk", "syn-rate"


@dataclass(frozen=True)
class Thresholds:
    """The detectors' documented defaults, as far as the truth needs them."""

    window_s: float = 60.0
    ports: int = 20  # of a host, failed, in the window
    hosts: int = 25  # with a port, failed, in the window
    ratio: float = 9999.0  # of likelihoods, at which a walk ends, and its inverse, at which it stays
    step: float = 4.0  # 0.8 / 0.2
    syn_rate: float = 100.0  # connections a second that are not completed, of a victim, where that is unusual
    few_sources: int = 4  # whose SYNs to many ports are a scan, and no flood


@dataclass(frozen=True)
class Attack:
    """What is to be found.

    source, victim: an address or prefix; empty: many. others: sources where these are few.
    crossings: for each detector that is to find it, when its default threshold is crossed (UTC, ns).
    """

    kind: str
    source: str
    victim: str
    start_ns: int
    end_ns: int
    crossings: Mapping[str, int]
    others: frozenset[str] = frozenset()

    @property
    def detectors(self) -> tuple[str, ...]:
        """Those that are to find it."""
        return tuple(self.crossings)


@dataclass(frozen=True)
class Probes:
    """What an attacker tried, a probe a row: ns i8[n], hosts u1[n, 16], ports i8[n], did it fail? bool[n]."""

    time_ns: Array
    host: Array
    port: Array
    failed: Array

    def chosen(self, which: Array) -> Probes:
        """Some of them."""
        return Probes(self.time_ns[which], self.host[which], self.port[which], self.failed[which])


def scanner(kind: str, source: str, probes: Probes) -> Attack:
    """The scan of those probes; of its victim where that is one host."""
    crossings = {FANOUT: fanout_crossing(probes, Thresholds()), WALK: walk_crossing(probes, Thresholds())}
    hosts = names(probes.host)
    victim = next(iter(hosts)) if len(hosts) == 1 else ""
    return Attack(kind, source, victim, int(probes.time_ns[0]), int(probes.time_ns[-1]), known(crossings))


def known(crossings: Mapping[str, int | None]) -> dict[str, int]:
    """Those that come at all."""
    return {name: at for name, at in crossings.items() if at is not None}


def fanout_crossing(probes: Probes, limits: Thresholds) -> int | None:
    """When so many ports of one host, or so many hosts with one port, had failed within the window; None: never."""
    failed = np.flatnonzero(probes.failed)
    window_ns = int(limits.window_s * NS)
    host = np.unique(probes.host[failed], axis=0, return_inverse=True)[1].ravel()
    port = probes.port[failed]
    found = []
    for group, least in ((host, limits.ports), (port, limits.hosts)):
        for value in np.unique(group):
            # Each probe of a group has another partner: planned so.
            times = probes.time_ns[failed[group == value]]
            if len(times) >= least:
                last = times[least - 1 :]
                within = last[last - times[: len(last)] <= window_ns]
                found += [int(within[0])] if len(within) else []
    return min(found, default=None)


def walk_crossing(probes: Probes, limits: Thresholds) -> int | None:
    """When the walk over first contacts, each a port of a host, is at "scanner"; at "ordinary" it stays."""
    ratio = 1.0
    seen: set[tuple[bytes, int]] = set()
    tried = zip(probes.time_ns, map(bytes, probes.host), probes.port.tolist(), probes.failed, strict=True)
    for time_ns, host, port, failed in tried:
        if (host, port) in seen:
            continue
        seen.add((host, port))
        ratio = max(ratio * (limits.step if failed else 1 / limits.step), 1 / limits.ratio)
        if ratio >= limits.ratio:
            return int(time_ns)
    return None


def flood_crossings(probes: Probes, sources: Array, limits: Thresholds) -> dict[str, int | None]:
    """SYNs to many ports are a scan where each source has many, and a flood but for its largest sources."""
    if len(np.unique(probes.port)) == 1:
        return {SYN_RATE: rate_crossing(probes.time_ns, limits)}
    turn = np.arange(len(probes.time_ns)) % len(sources)
    scans: list[int | None] = [None]
    if len(sources) < len(probes.time_ns):
        scans += [fanout_crossing(probes.chosen(turn == one), limits) for one in range(len(sources))]
    return {
        SYN_RATE: rate_crossing(probes.time_ns[turn >= limits.few_sources], limits),
        FANOUT: min((at for at in scans if at is not None), default=None),
    }


def rate_crossing(times: Array, limits: Thresholds) -> int | None:
    """When there were so many in one second."""
    many_in_a_second = int(limits.syn_rate)
    within = times[many_in_a_second:] - times[:-many_in_a_second] <= NS
    return int(times[many_in_a_second:][within][0]) if within.any() else None
