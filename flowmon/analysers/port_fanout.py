"""Port scans and sweeps: one source, many services or hosts, most of which did not answer.

Rules:
- Over a sliding window, of attempts: distinct services (protocol and port) per source and
  destination (vertical), distinct destinations per source and service (horizontal; of a ping sweep
  the service is ICMP). One vertical and one horizontal, or several vertical: a block.
- A group has crossed where enough of its contacts failed and these are `ratio` of all of it, so that
  resolvers, crawlers, pollers and gateways, which mostly succeed, are not named.
- A contact that succeeded in the window counts as succeeded, also where it had failed before.
- A biflow counts again where it has new packets, and not only because it ended.
- Groups are judged when asked and before the window moves, so how often one asks hides nothing.
- confidence: the failed share of the group that is over its threshold by most, times
  1 - threshold / (2 × failed): at the threshold at most 0.5, ten times over it at most 0.95.

distinct.py says how the window, the sets and their bounds work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowmon.analysers.activity import NS, Activity, Outcome, Probe, failed
from flowmon.analysers.alerts import Alert
from flowmon.analysers.contacts import CONTACT, contacts_of
from flowmon.analysers.distinct import GROUP, Distinct, Limits, Threshold, seen
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

Array = np.ndarray[Any, np.dtype[Any]]

VERTICAL, HORIZONTAL, BLOCK = "vertical", "horizontal", "block"


@dataclass(frozen=True)
class PortFanoutParameters:
    """What can be said of port-fanout."""

    window: float = parameter(60.0, "over how many seconds contacts are counted", least=0.002)
    ports: int = parameter(20, "how many failed ports of one host make a scan", least=1)
    hosts: int = parameter(25, "how many hosts that failed on one port make a sweep", least=1)
    ratio: float = parameter(0.5, "which share of the contacts must have failed", least=0, most=1)
    quiet: float = parameter(0.0, "a scan is over after so many seconds without; 0: after a window", least=0)
    exact: int = parameter(64, "contacts of a host or port that are counted exactly", least=1, most=65_535)
    contacts: int = parameter(262_144, "how many contacts are remembered", least=1024)
    sketches: int = parameter(4096, "of how many hosts and ports contacts are estimated", least=2)

    def __post_init__(self) -> None:
        check(self)


@dataclass
class Tally:
    """Attempts of a source since its event started, and those of them that failed."""

    attempts: int
    failures: int


class PortFanout:
    """Names who scans. Of a scan there is one alert, by its source."""

    name = "port-fanout"

    def __init__(self, parameters: PortFanoutParameters = PortFanoutParameters()) -> None:
        half_ns = int(parameters.window * NS / 2)
        limits = Limits(parameters.exact, parameters.contacts, parameters.sketches // 2)
        self._by_host = Distinct(half_ns, limits)
        self._by_service = Distinct(half_ns, limits)
        self._ports = Threshold(parameters.ports, parameters.ratio)
        self._hosts = Threshold(parameters.hosts, parameters.ratio)
        self._events = SourceEvents(int((parameters.quiet or parameters.window) * NS))
        self._found: dict[Source, Alert] = {}  # since alerts were last asked for
        self._hashes: dict[Source, int] = {}  # of those that are in _found
        self._tallies: dict[int, Tally] = {}  # of sources with an event, by hash
        self._watched: dict[str, int] = {}  # the hashes of these
        self._latest_ns = 0
        self._interval_ns = 0  # of the latest pass: it says no more exactly when something was

    def observe(self, activity: Activity) -> None:
        """Takes in what moved."""
        self._move_to(activity.at_ns)
        self._interval_ns = int(activity.seconds * NS)
        rows = activity.rows[_is_news(activity.rows)]
        if len(rows) == 0:
            return
        contacts = contacts_of(rows)
        came_of_it = [contacts.any(one) for one in (rows["outcome"] == Outcome.SUCCEEDED, failed(rows))]
        for distinct, group in ((self._by_host, contacts.to_host), (self._by_service, contacts.to_service)):
            distinct.add(seen(contacts, group, *came_of_it), self._latest_ns)
        if self._tallies:
            attempts, failures = (contacts.total(one) for one in _judged_now(rows))
            self._count(contacts.source, attempts, failures)

    def assess(self, now_ns: int) -> list[Alert]:
        """Scans that were found, have grown much, or are over."""
        self._judge()
        found = {source: self._found[source] for source in self._events.uncovered(self._found)}
        alerts = self._events.saw(found)
        self._watch(found)
        self._found, self._hashes = {}, {}
        self._move_to(now_ns)
        ended = self._events.quiet(self._latest_ns)
        self._forget(ended)
        return alerts + ended

    def finish(self, now_ns: int) -> list[Alert]:
        """What is still going on ends here."""
        alerts = self.assess(now_ns)
        ended = self._events.finish()
        self._forget(ended)
        return alerts + ended

    def gauges(self) -> Mapping[str, int]:
        """Of both ways of counting together."""
        both = (self._by_host, self._by_service)
        return {
            "contacts": sum(one.members for one in both),
            "groups": sum(one.groups for one in both),
            "sketches": sum(one.sketches for one in both),
            "evicted": sum(one.evicted for one in both),
            "events": len(self._events),
        }

    def _move_to(self, now_ns: int) -> None:
        self._latest_ns = max(self._latest_ns, now_ns)
        if self._by_host.is_over(self._latest_ns):
            self._judge()
            self._by_host.turn(self._latest_ns)
            self._by_service.turn(self._latest_ns)

    def _judge(self) -> None:
        """Finds who is over a threshold, with new evidence, as things are."""
        sources = np.union1d(self._by_host.crossed(self._ports), self._by_service.crossed(self._hosts))
        if len(sources) == 0:
            return
        vertical = _findings(self._by_host, sources, self._ports)
        horizontal = _findings(self._by_service, sources, self._hosts)
        window_start_ns = self._by_host.window_start_ns
        for one in sources.tolist():
            pair = vertical.get(one, _NOTHING), horizontal.get(one, _NOTHING)
            source, evidence = _evidence(*pair, window_start_ns, self._interval_ns)
            evidence = self._tallied(one, evidence)
            self._hashes[source] = one
            known = self._found.get(source) or self._events.get(source)
            self._found[source] = evidence if known is None else _joined(known, evidence)

    def _tallied(self, source: int, evidence: Alert) -> Alert:
        tally = self._tallies.get(source)
        if tally is None:
            return evidence
        return replace(evidence, attempts=tally.attempts, failures=tally.failures)

    def _watch(self, found: Mapping[Source, Alert]) -> None:
        """Begins to count the attempts of those whose event has started."""
        for source, evidence in found.items():
            if source.text not in self._watched:
                self._watched[source.text] = self._hashes[source]
                self._tallies[self._hashes[source]] = Tally(evidence.attempts or 0, evidence.failures or 0)

    def _forget(self, ended: list[Alert]) -> None:
        for alert in ended:
            del self._tallies[self._watched.pop(alert.source)]

    def _count(self, sources: Array, attempts: Array, failures: Array) -> None:
        watched = np.array(sorted(self._tallies), "u8")
        at = np.minimum(np.searchsorted(watched, sources), len(watched) - 1)
        is_watched = watched[at] == sources
        for sums in (attempts, failures):
            sums[~is_watched] = 0
        totals = [np.bincount(at, sums, len(watched)).tolist() for sums in (attempts, failures)]
        for source, tried, came_to_nothing in zip(watched.tolist(), *totals, strict=True):
            self._tallies[source].attempts += int(tried)
            self._tallies[source].failures += int(came_to_nothing)


@dataclass(frozen=True)
class Findings:
    """The groups (GROUP[n]) of one source over a threshold, the largest last, and examples (CONTACT[n]) of that."""

    groups: Array
    examples: Array
    threshold: int

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def largest(self) -> int:
        """How many members of a group failed, at most."""
        return int(self.groups["failed"].max(initial=0))

    @property
    def totals(self) -> tuple[int, int]:
        """Contacts, and those of them that failed."""
        failures = int(self.groups["failed"].sum())
        return failures + int(self.groups["succeeded"].sum()), failures

    @property
    def confidence(self) -> float:
        """See the head of this file."""
        if len(self) == 0:
            return 0.0
        share = self.largest / (self.largest + int(self.groups["succeeded"][-1]))
        return round(share * (1 - self.threshold / (2 * self.largest)), 3)


_NOTHING = Findings(np.empty(0, GROUP), np.empty(0, CONTACT), 0)


def _is_news(rows: Array) -> Array:
    """bool[n]: attempts that have been judged, and that went on or are judged otherwise now."""
    is_judged = (failed(rows) & (rows["probe"] != Probe.NONE)) | (rows["outcome"] == Outcome.SUCCEEDED)
    moved = (rows["new_forward_packets"] > 0) | (rows["new_reverse_packets"] > 0)
    attempts, failures = _judged_now(rows)
    return is_judged & (moved | (attempts != 0) | (failures != 0))


def _judged_now(rows: Array) -> tuple[Array, Array]:
    """(int64[n] attempts, int64[n] failures) that each row adds to what was counted of its biflow before."""
    now, before = rows["outcome"], rows["outcome_before"]
    attempts, failures = (
        (now >= least).astype("i8") - (before >= least) for least in (Outcome.SUCCEEDED, Outcome.HALF_OPEN)
    )
    return attempts, failures


def _findings(distinct: Distinct, sources: Array, threshold: Threshold) -> dict[int, Findings]:
    """What there is over the threshold, by the hash of the source (uint64[n])."""
    groups = distinct.groups_of(sources, threshold)
    if len(groups) == 0:
        return {}
    groups = groups[np.lexsort((groups["hash"], groups["failed"], groups["source"]))]
    starts = np.flatnonzero(np.diff(groups["source"], prepend=~groups["source"][0]))
    parts = np.split(groups, starts[1:])
    examples = distinct.examples(np.array([part["hash"][-1] for part in parts], "u8"))
    return {
        int(part["source"][0]): Findings(
            part, examples.get(int(part["hash"][-1]), _NOTHING.examples), threshold.failed
        )
        for part in parts
    }


def _evidence(
    vertical: Findings, horizontal: Findings, window_start_ns: int, interval_ns: int
) -> tuple[Source, Alert]:
    """What is known of one source."""
    groups = np.concatenate([vertical.groups, horizontal.groups])
    contact = groups["contact"][0]
    kind = _kind(len(vertical), len(horizontal))
    attempts, failures = max(vertical.totals, horizontal.totals)
    start_ns = max(int(groups["first_ns"].min()), window_start_ns)
    end_ns = int(groups["last_ns"].max())
    source = source_of(contact)
    mixed = groups["is_mixed"].any() or len(np.unique(groups["contact"]["protocol"])) > 1
    return source, Alert(
        detector=PortFanout.name,
        kind=kind,
        start_ns=start_ns,
        end_ns=end_ns,
        source=source.text,
        victim=address_text(contact["destination"], contact["ip_version"]) if kind == VERTICAL else "",
        protocol=None if mixed else int(contact["protocol"]),
        port=port_of(contact) if kind == HORIZONTAL and len(horizontal) == 1 else None,
        hosts=max(len(vertical), horizontal.largest),
        ports=max(len(horizontal), vertical.largest),
        attempts=attempts,
        failures=failures,
        rate=attempts / max(1.0, (end_ns - start_ns + interval_ns) / NS),
        example_hosts=example_hosts(np.concatenate([vertical.groups["contact"], horizontal.examples])),
        example_ports=example_ports(np.concatenate([horizontal.groups["contact"], vertical.examples])),
        confidence=max(vertical.confidence, horizontal.confidence),
    )


def _kind(vertical: int, horizontal: int) -> str:
    """From the numbers of groups."""
    if vertical > 1 or (vertical and horizontal):
        return BLOCK
    return VERTICAL if vertical else HORIZONTAL


def _joined(known: Alert, new: Alert) -> Alert:
    """The new evidence, without forgetting what the source did before: of numbers, the highest."""
    is_same = known.kind == new.kind and known.victim == new.victim
    return replace(
        new,
        kind=new.kind if is_same else BLOCK,
        start_ns=min(known.start_ns, new.start_ns),
        victim=new.victim if is_same else "",
        protocol=new.protocol if new.protocol == known.protocol else None,
        port=new.port if is_same and new.port == known.port else None,
        hosts=max(known.hosts or 0, new.hosts or 0),
        ports=max(known.ports or 0, new.ports or 0),
        attempts=max(known.attempts or 0, new.attempts or 0),
        failures=max(known.failures or 0, new.failures or 0),
        confidence=max(known.confidence, new.confidence),
    )
