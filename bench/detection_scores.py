"""Scores of alerts against the truth. Pure: what was said and a scenario in, numbers out.

Rules:
- An event is an alert from its start to its end; what counts is its first row and when that was said.
- An event with a source names that source, another one its victim. A prefix names every address in it.
- An event is right where it names an attack while that goes on, or SLACK_NS later; else it is false. Of false ones
  those that name ordinary talkers are counted, and of these the hard ones apart.
- Who names an attack again is right, but precision counts the first only: else scanners of many addresses, whom a
  low threshold names one by one, would hide whoever is named wrongly.
- Which attacks a detector is to find the scenario says. Finding another attack is right, but no merit.
- Time to detection counts from when the default threshold was crossed, whatever the threshold is.
- Efficiency is the share of attackers among who was named, effectiveness the share of attackers that were named
  (Jung, Paxson, Berger and Balakrishnan, "Fast Portscan Detection Using Sequential Hypothesis Testing", 2004), both
  over scans or, of syn-rate, floods, whether the threshold was crossed or not.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import ip_network

import numpy as np
from scenario_truth import SYN_RATE, Attack
from scenarios import Scenario

from flowmon.analysers.alerts import Alert
from flowmon.blocker import culprits

NS = 1_000_000_000
SLACK_NS = 60 * NS
RIGHT, AGAIN, BENIGN, HARD, OTHER = "right", "again", "benign", "hard", "other"


@dataclass(frozen=True)
class Said:
    """An alert, and the capture's time at which it was given (UTC, ns)."""

    at_ns: int
    alert: Alert


@dataclass(frozen=True)
class Event:
    """The first that was said of an event."""

    at_ns: int
    source: str
    victim: str


@dataclass(frozen=True)
class Score:
    """Counts of one detector at one threshold, over any number of scenarios; they add up.

    events: by verdict. expected, found: by the first word of the attack's kind. delays_s: of those found.
    attackers, flagged, flagged_attackers: for efficiency and effectiveness. talkers, accused: ordinary hosts and
    those of them that were named, the hard ones apart. blocked: ordinary hosts that --block would meet.
    """

    events: Counter[str] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    delays_s: tuple[float, ...] = ()
    attackers: int = 0
    flagged: int = 0
    flagged_attackers: int = 0
    talkers: int = 0
    accused: int = 0
    hard_talkers: int = 0
    hard_accused: int = 0
    blocked: int = 0
    hard_blocked: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @property
    def recall(self) -> float | None:
        """Of the attacks that were to be found; None of none."""
        return _share(self.found.total(), self.expected.total())

    @property
    def precision(self) -> float | None:
        """Of the events that name no hard talker."""
        return _share(self.events[RIGHT], self.events[RIGHT] + self.events[BENIGN] + self.events[OTHER])

    @property
    def precision_with_hard(self) -> float | None:
        """Of all events."""
        return _share(self.events[RIGHT], self.events.total() - self.events[AGAIN])

    @property
    def efficiency(self) -> float | None:
        """See above; hard talkers count as named wrongly."""
        return _share(self.flagged_attackers, self.flagged)

    @property
    def effectiveness(self) -> float | None:
        """See above."""
        return _share(self.flagged_attackers, self.attackers)

    @property
    def false_positive_rate(self) -> float | None:
        """Ordinary hosts that were named, without the hard ones."""
        return _share(self.accused - self.hard_accused, self.talkers - self.hard_talkers)

    @property
    def false_positive_rate_with_hard(self) -> float | None:
        """Ordinary hosts that were named."""
        return _share(self.accused, self.talkers)

    @property
    def delay_s(self) -> tuple[float, float] | None:
        """Median and 95th percentile; None where nothing was found."""
        if not self.delays_s:
            return None
        return statistics.median(self.delays_s), float(np.percentile(self.delays_s, 95))


def score(detector: str, said: Iterable[Said], scenario: Scenario) -> Score:
    """What a detector is worth in one scenario."""
    kept = list(said)
    happened = events(kept)
    verdicts = verdicts_of(happened, scenario)
    finds = {index: _first(happened, attack, scenario) for index, attack in enumerate(scenario.attacks)}
    expected = [(i, attack) for i, attack in enumerate(scenario.attacks) if detector in attack.crossings]
    found = [(attack, at) for i, attack in expected if (at := finds[i]) is not None]
    concern = [i for i, attack in enumerate(scenario.attacks) if is_concern(attack, detector)]
    named = {
        event.source or event.victim
        for event, found in zip(happened, verdicts, strict=True)
        if found not in (RIGHT, AGAIN)
    }
    accused = {host for host in scenario.benign if any(_covers(name, host) for name in named)}
    met = {one for each in kept for one in culprits(each.alert)}
    blocked = {host for host in scenario.benign if any(_covers(one, host) for one in met)}
    caught = sum(finds[i] is not None for i in concern)
    return Score(
        events=Counter(verdicts),
        expected=Counter(attack.kind.split()[0] for _, attack in expected),
        found=Counter(attack.kind.split()[0] for attack, _ in found),
        delays_s=tuple((at - attack.crossings[detector]) / NS for attack, at in found),
        attackers=len(concern),
        flagged=caught + len(named),
        flagged_attackers=caught,
        talkers=len(scenario.benign),
        accused=len(accused),
        hard_talkers=len(scenario.hard),
        hard_accused=len(accused & scenario.hard),
        blocked=len(blocked - scenario.hard),
        hard_blocked=len(blocked & scenario.hard),
    )


def events(said: Iterable[Said]) -> list[Event]:
    """In the order in which they were first said."""
    first: dict[str, Said] = {}
    for one in sorted(said, key=lambda one: one.at_ns):
        first.setdefault(one.alert.alert_id, one)
    return [Event(one.at_ns, one.alert.source, one.alert.victim) for one in first.values()]


def verdicts_of(happened: Iterable[Event], scenario: Scenario) -> list[str]:
    """Of each event, in order of time: its verdict, or AGAIN where all that it is right about was said before."""
    said: set[int] = set()
    found = []
    for event in happened:
        about = {i for i, attack in enumerate(scenario.attacks) if names(event, attack, scenario)}
        found.append(AGAIN if about and about <= said else verdict(event, scenario))
        said |= about
    return found


def verdict(event: Event, scenario: Scenario) -> str:
    """RIGHT, or whom it names instead: BENIGN, HARD or OTHER."""
    if any(names(event, attack, scenario) for attack in scenario.attacks):
        return RIGHT
    named = event.source or event.victim
    if any(_covers(named, host) for host in scenario.hard):
        return HARD
    return BENIGN if any(_covers(named, host) for host in scenario.benign) else OTHER


def names(event: Event, attack: Attack, scenario: Scenario) -> bool:
    """Whether it says, in time, who does this or to whom."""
    if not attack.start_ns <= event.at_ns <= attack.end_ns + SLACK_NS:
        return False
    if not event.source:
        return _covers(event.victim, attack.victim)
    sources = [attack.source, *attack.others]
    if any(_covers(event.source, one) or _covers(one, event.source) for one in sources):
        return True
    # Many sources, which nobody lists: any of them will do that is nobody else's.
    nameless = not attack.source and not attack.others and _covers(event.victim, attack.victim)
    return nameless and not any(_covers(event.source, host) for host in scenario.benign)


def is_concern(attack: Attack, detector: str) -> bool:
    """Whether it is of the detector's kind, or crosses its threshold for whatever reason."""
    return attack.kind.startswith("flood") == (detector == SYN_RATE) or detector in attack.crossings


def _first(happened: Sequence[Event], attack: Attack, scenario: Scenario) -> int | None:
    return next((event.at_ns for event in happened if names(event, attack, scenario)), None)


def _covers(named: str, host: str) -> bool:
    """Whether an address or prefix, as text, is or holds the other."""
    if not named or not host:
        return False
    if named == host:
        return True
    if "/" not in named:
        return False
    outer, inner = ip_network(named), ip_network(host)
    return outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
