"""Scanners however slow: a threshold random walk over what came of each first contact.

Rules (Jung, Paxson, Berger, Balakrishnan, "Fast Portscan Detection Using Sequential Hypothesis
Testing", IEEE S&P 2004):
- Of each contact (source, destination, protocol, port) what came of it counts once, whenever it is
  known first, so that a dead service that is tried again and again is one failure.
- A failure multiplies the likelihood ratio by (1 - theta1) / (1 - theta0), a success by
  theta1 / theta0. At beta / alpha or more the source is a scanner.
- The paper's alpha of 0.01 takes 4 failures. Ours takes 7: a poller asks a dead host for every service,
  so that its failures come in groups, and 5 or 6 name some (bench/detection.py).
- At (1 - beta) / (1 - alpha) the walk stays, where the paper stops: whoever is benign today may be
  taken over tomorrow, and is then found after twice as many failures. What counted is counted anew.
- Failures: refused, silent (not: unanswered so far). Neither failure nor success: half-open, as a
  balancer's checks are; silence after UDP, much of which (syslog, NetFlow) is never answered, and after
  a lone ACK, by which a peer that is gone is kept alive.
- The outcomes of one pass move the walk by their sum, as if they were evenly mixed. This names
  nobody whom their true order would not name, and nobody is missed who only fails.
- A contact that failed and succeeds later is a success: its failure is taken back.
- Time forgets only what was not seen for `forget`. Beyond `most` sources those of a single contact go
  first, then those that were not seen for longest; beyond `contacts`, those of sources that are found
  already, then the oldest. `evicted` counts both.
- confidence: the probability after the walk, for even odds before, times the share of failures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowmon.analysers.activity import NS, Activity, Outcome, Probe, identity
from flowmon.analysers.alerts import Alert
from flowmon.analysers.contacts import CONTACT, contacts_of, grouped, parts
from flowmon.analysers.examples import (
    Source,
    address_text,
    example_hosts,
    example_ports,
    port_of,
    source_of,
)
from flowmon.analysers.parameters import check, parameter
from flowmon.analysers.source_events import SourceEvents
from flowmon.analysers.table import NONE, Table, opaque

Array = np.ndarray[Any, np.dtype[Any]]

AFTER_EVICTION = 0.875
FORGETTINGS = 16  # in the time of `forget`
_EPSILON = 1e-9  # sums of logarithms

SOURCE = np.dtype(
    [
        ("contact", CONTACT),  # any of its contacts
        ("hash", "u8"),
        ("walk", "f8"),  # logarithm of the likelihood ratio
        ("contacts", "i8"),
        ("attempts", "i8"),  # first contacts since the walk was at its lower end
        ("failures", "i8"),  # of them
        ("first_ns", "i8"),  # failure of them; 0: none
        ("last_ns", "i8"),
        ("seen_ns", "i8"),
        ("has_crossed", "?"),  # with a failure since alerts were asked for
    ]
)
KNOWN = np.dtype([("contact", CONTACT), ("source", "i8"), ("seen_ns", "i8"), ("has_failed", "?")])


@dataclass(frozen=True)
class RandomWalkParameters:
    """What can be said of random-walk."""

    theta0: float = parameter(0.8, "how often first contacts of benign sources succeed", above=0, below=1)
    theta1: float = parameter(0.2, "how often those of scanners do", above=0, below=1)
    alpha: float = parameter(0.0001, "which share of benign sources may be named", above=0, below=1)
    beta: float = parameter(0.9999, "which share of scanners are to be named", above=0, below=1)
    quiet: float = parameter(3600.0, "a scan is over after so many seconds without a failure", above=0)
    forget: float = parameter(86_400.0, "after how many seconds a source is forgotten", above=0)
    most: int = parameter(65_536, "how many sources are remembered", least=1024)
    contacts: int = parameter(1_048_576, "how many contacts are remembered", least=1024)

    def __post_init__(self) -> None:
        check(self)
        for less, more in (("theta1", "theta0"), ("alpha", "beta")):
            if getattr(self, less) >= getattr(self, more):
                raise ValueError(f"{less}: expected less than {more}, not {getattr(self, less)}")

    @property
    def failures_needed(self) -> int:
        """After how many failures an unknown source without any success is named."""
        return math.ceil(math.log(self.beta / self.alpha) / self.failure_step - _EPSILON)

    @property
    def failure_step(self) -> float:
        """By how much a failure moves the walk up."""
        return math.log((1 - self.theta1) / (1 - self.theta0))

    @property
    def success_step(self) -> float:
        """By how much a success moves it: down, so less than 0."""
        return math.log(self.theta1 / self.theta0)

    @property
    def bounds(self) -> tuple[float, float]:
        """Where the walk stays: benign, and a scanner."""
        return math.log((1 - self.beta) / (1 - self.alpha)), math.log(self.beta / self.alpha)


class RandomWalk:
    """Names who scans, after a handful of failures, over whatever time. One alert a scan, by its source."""

    name = "random-walk"

    def __init__(self, parameters: RandomWalkParameters = RandomWalkParameters()) -> None:
        self._parameters = parameters
        self._sources = Table(SOURCE)
        self._contacts = Table(KNOWN)
        self._events = SourceEvents(int(parameters.quiet * NS))
        self._hashes: dict[str, int] = {}  # of sources with an event
        self._described: dict[str, int] = {}  # failures when the event's contacts were last counted
        self._latest_ns = 0
        self._interval_ns = 0  # of the latest pass: it says no more exactly when something was
        self._forget_ns = 0  # when to look next
        self._evicted = 0

    def observe(self, activity: Activity) -> None:
        """Takes in what moved."""
        self._latest_ns = max(self._latest_ns, activity.at_ns)
        self._interval_ns = int(activity.seconds * NS)
        self._forget()
        rows = activity.rows[_is_decided(activity.rows)]
        if len(rows) == 0:
            return
        contacts = contacts_of(rows)
        succeeded = contacts.any(rows["outcome"] == Outcome.SUCCEEDED)
        for part in parts(contacts.source, 4 * self._parameters.most):
            self._walk(contacts.rows[part], contacts.hash[part], contacts.source[part], succeeded[part])

    def assess(self, now_ns: int) -> list[Alert]:
        """Scans that were found, have grown much, or are over."""
        self._latest_ns = max(self._latest_ns, now_ns)
        self._forget()
        crossed = np.flatnonzero(self._sources["has_crossed"])
        self._sources["has_crossed"][crossed] = False
        found = self._evidence(crossed)
        alerts = self._events.saw(found)
        ended = self._events.quiet(self._latest_ns)
        self._begin_anew(ended)
        return alerts + ended

    def finish(self, now_ns: int) -> list[Alert]:
        """What is still going on ends here."""
        alerts = self.assess(now_ns)
        ended = self._events.finish()
        self._begin_anew(ended)
        return alerts + ended

    def gauges(self) -> Mapping[str, int]:
        """How many are remembered, and how many had to be forgotten for lack of room."""
        return {
            "sources": len(self._sources),
            "contacts": len(self._contacts),
            "evicted": self._evicted,
            "events": len(self._events),
        }

    def _walk(self, contacts: Array, hashes: Array, sources: Array, succeeded: Array) -> None:
        """Takes in CONTACT[n], their hashes and their sources', and what came of them."""
        source = self._numbers_of(sources, contacts)
        number, new = self._contacts.number(hashes)
        known = self._contacts
        known.put("contact", number[new], opaque(contacts)[new])
        known["source"][number] = source
        known["seen_ns"][number] = self._latest_ns
        taken_back = ~new & succeeded & known["has_failed"][number]
        failed = new & ~succeeded
        known["has_failed"][number[failed]] = True
        known["has_failed"][number[taken_back]] = False
        self._move(source, failed.astype("i8") - taken_back, (new & succeeded).astype("i8") + taken_back)
        self._evict()

    def _numbers_of(self, sources: Array, contacts: Array) -> Array:
        """int64[n]: the number of each source (uint64[n] hashes) of CONTACT[n]."""
        order, starts = grouped(sources)
        first = order[starts]
        number, new = self._sources.number(sources[first])
        self._sources.put("contact", number[new], opaque(contacts)[first[new]])
        self._sources.put("hash", number[new], sources[first[new]])
        self._sources["seen_ns"][number] = self._latest_ns
        source = np.empty(len(order), "i8")
        source[order] = np.repeat(number, np.diff(np.append(starts, len(order))))
        return source

    def _move(self, source: Array, failures: Array, successes: Array) -> None:
        """Moves the walks of sources (int64[n] numbers) by what each row adds of either."""
        moved = np.unique(source[(failures != 0) | (successes != 0)])
        state = {name: self._sources[name][moved] for name in SOURCE.names or ()}
        size = len(self._sources)
        up, down = (np.bincount(source, one, size)[moved].astype("i8") for one in (failures, successes))
        low, high = self._parameters.bounds
        sums = state["walk"] + up * self._parameters.failure_step + down * self._parameters.success_step
        is_benign = sums <= low + _EPSILON
        has_failed = np.bincount(source, failures > 0, size)[moved] > 0
        first_ns = np.where((state["first_ns"] == 0) & has_failed, self._latest_ns, state["first_ns"])
        changed = {
            "walk": np.clip(sums, low, high),
            "contacts": state["contacts"] + up + down,
            "attempts": np.where(is_benign, 0, state["attempts"] + up + down),
            "failures": np.where(is_benign, 0, np.maximum(state["failures"] + up, 0)),
            "first_ns": np.where(is_benign, 0, first_ns),
            "last_ns": np.where(has_failed, self._latest_ns, state["last_ns"]),
            "has_crossed": state["has_crossed"] | (has_failed & (sums >= high - _EPSILON)),
        }
        for name, values in changed.items():
            self._sources[name][moved] = values

    def _evidence(self, crossed: Array) -> dict[Source, Alert]:
        """What is known of each of these sources (int64[n] numbers)."""
        crossed_by = {source_of(self._sources["contact"][one]): one for one in crossed.tolist()}
        numbers = {source: crossed_by[source] for source in self._events.uncovered(crossed_by)}
        grown = [number for source, number in numbers.items() if self._has_grown(source, number)]
        failed = self._failed_contacts(np.array(grown, "i8"))
        return {source: self._alert(source, number, failed) for source, number in numbers.items()}

    def _has_grown(self, source: Source, number: int) -> bool:
        """Are its targets worth counting again? It may have very many of them."""
        return self._sources["failures"][number] >= 2 * self._described.get(source.text, 0)

    def _failed_contacts(self, sources: Array) -> dict[int, Array]:
        """CONTACT[n] of each of the sources (int64[n] numbers), of the walk that it is on."""
        if len(sources) == 0:
            return {}
        wanted = np.zeros(len(self._sources), bool)
        wanted[sources] = True
        known = self._contacts
        chosen = np.flatnonzero(known["has_failed"] & wanted[known["source"]])
        source = known["source"][chosen]
        is_of_walk = known["seen_ns"][chosen] >= self._sources["first_ns"][source]
        chosen, source = chosen[is_of_walk], source[is_of_walk]
        order, starts = grouped(source.view("u8"))
        of_each = np.split(order, starts[1:]) if len(starts) else []
        return {int(source[part[0]]): known["contact"][chosen[part]] for part in of_each}

    def _alert(self, source: Source, number: int, failed: Mapping[int, Array]) -> Alert:
        self._hashes[source.text] = int(self._sources["hash"][number])
        known = self._events.get(source)
        if number not in failed and known:
            return replace(known, **self._totals(number))
        self._described[source.text] = int(self._sources["failures"][number])
        targets = _targets(failed.get(number, np.empty(0, CONTACT)))
        return Alert(
            detector=self.name, kind=self.name, source=source.text, **self._totals(number), **targets
        )

    def _totals(self, number: int) -> dict[str, Any]:
        """What of an alert is counted along."""
        names = ("first_ns", "last_ns", "attempts", "failures")
        start_ns, end_ns, attempts, failures = (int(self._sources[name][number]) for name in names)
        start_ns = start_ns or end_ns
        odds = 1 / (1 + math.exp(-self._sources["walk"][number]))
        return {
            "start_ns": start_ns,
            "end_ns": end_ns,
            "attempts": attempts,
            "failures": failures,
            "rate": attempts / max(1.0, (end_ns - start_ns + self._interval_ns) / NS),
            "confidence": round(odds * failures / max(attempts, 1), 3),
        }

    def _begin_anew(self, ended: list[Alert]) -> None:
        """Sources whose event is over have to be found again."""
        hashes = [self._hashes.pop(alert.source) for alert in ended]
        for alert in ended:
            del self._described[alert.source]
        numbers = self._sources.find(np.array(hashes, "u8"))
        for name in ("walk", "attempts", "failures", "first_ns"):
            self._sources[name][numbers[numbers != NONE]] = 0

    def _evict(self) -> None:
        most = self._parameters.most
        if len(self._sources) > most:
            self._keep_sources(self._latest(self._sources, self._sources["contacts"] > 1, most))
        most = self._parameters.contacts
        if len(self._contacts) > most:
            is_found = self._sources["walk"] >= self._parameters.bounds[1] - _EPSILON
            kept = self._latest(self._contacts, ~is_found[self._contacts["source"]], most)
            self._contacts.keep(kept)

    def _latest(self, table: Table, is_dear: Array, most: int) -> Array:
        """bool[rows]: those to keep, the dear ones and then the latest, counting the others as evicted."""
        excess = len(table) - int(AFTER_EVICTION * most)
        order = np.argsort((is_dear.astype("u8") << 62) | table["seen_ns"].view("u8"))
        self._evicted += excess
        kept = np.ones(len(table), bool)
        kept[order[:excess]] = False
        return kept

    def _keep_sources(self, kept: Array) -> None:
        """Drops the other sources (bool[sources]) and their contacts."""
        self._contacts.keep(kept[self._contacts["source"]])
        renumbered = np.cumsum(kept) - 1
        self._contacts["source"][:] = renumbered[self._contacts["source"]]
        self._sources.keep(kept)

    def _forget(self) -> None:
        forget_ns = int(self._parameters.forget * NS)
        if self._latest_ns < self._forget_ns:
            return
        self._forget_ns = self._latest_ns + forget_ns // FORGETTINGS
        self._keep_sources(self._sources["seen_ns"] > self._latest_ns - forget_ns)
        self._contacts.keep(self._contacts["seen_ns"] > self._latest_ns - forget_ns)


def _is_decided(rows: Array) -> Array:
    """bool[n]: what came of it is known, and was not at the last pass."""
    outcome, probe = rows["outcome"], rows["probe"]
    changed = outcome != rows["outcome_before"]
    silent = (outcome == Outcome.SILENT) & ~np.isin(probe, (Probe.UDP, Probe.ACK))
    failed = (probe != Probe.NONE) & (silent | (outcome == Outcome.REFUSED))
    return changed & (failed | (outcome == Outcome.SUCCEEDED))


def _targets(failed: Array) -> dict[str, Any]:
    """What of an alert is counted from the contacts (CONTACT[n])."""
    if len(failed) == 0:
        return {}
    hosts = _distinct(identity(failed, "destination"))
    services = _distinct(identity(failed, "protocol", "port"))
    first = failed[0]
    return {
        "victim": address_text(first["destination"], first["ip_version"]) if hosts == 1 else "",
        "protocol": int(first["protocol"]) if (failed["protocol"] == first["protocol"]).all() else None,
        "port": port_of(first) if services == 1 else None,
        "hosts": hosts,
        "ports": services,
        "example_hosts": example_hosts(failed),
        "example_ports": example_ports(failed),
    }


def _distinct(hashes: Array) -> int:
    return len(grouped(hashes)[1])
