"""The threshold random walk: against one that goes step by step, and what it names falsely."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activity_samples import ICMP, UDP, Array, Attempt, activity, at, many, rows_of
from flowmon.analysers.activity import Activity, Outcome, Probe
from flowmon.analysers.alerts import ENDED, STARTED, UPDATED, Alert
from flowmon.analysers.random_walk import RandomWalk, RandomWalkParameters

SCANNER, VICTIM = "192.0.2.9", "198.51.100.7"
NEEDED = 5  # failures, by what most of these tests say of the walk, whatever the defaults are
HOUR = 3600.0
OF_FIVE = RandomWalkParameters(alpha=0.001, beta=0.999)


def tries(count: int, first: int = 1, **fields) -> list[Attempt]:
    """Of so many services of a host, each refused if nothing else is said."""
    tried = range(first, first + count)
    return [Attempt(SCANNER, VICTIM, port, Outcome.REFUSED)._replace(**fields) for port in tried]


def sweep(count: int, **fields) -> list[Attempt]:
    """Of one service of so many hosts, each silent if nothing else is said."""
    return [Attempt(SCANNER, f"203.0.113.{n}", 443)._replace(**fields) for n in range(count)]


def said(detector: RandomWalk, attempts: list[Attempt], seconds: float = 0.0) -> list[Alert]:
    """What one pass gives."""
    detector.observe(activity(attempts, seconds))
    return detector.assess(at(seconds))


def states(alerts: list[Alert]) -> list[str]:
    return [alert.state for alert in alerts]


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ({}, 7),
        ({"alpha": 0.001, "beta": 0.999}, NEEDED),
        ({"alpha": 0.01, "beta": 0.99}, 4),  # the paper's
        ({"alpha": 1 / 65, "beta": 64 / 65}, 3),  # 4 ** 3, exactly
        ({"theta0": 0.7, "theta1": 0.1, "alpha": 0.001, "beta": 0.999}, 7),
        ({"theta0": 0.9, "theta1": 0.05, "alpha": 1e-6, "beta": 0.999}, 7),
    ],
)
def test_failures_of_a_scanner_before_it_is_named(values: dict, needed: int) -> None:
    parameters = RandomWalkParameters(**values)
    ratio = (1 - parameters.theta1) / (1 - parameters.theta0)
    assert needed == math.ceil(math.log(parameters.beta / parameters.alpha) / math.log(ratio) - 1e-9)
    assert parameters.failures_needed == needed
    for at_once in (1, 100):
        detector, named_after = RandomWalk(parameters), []
        for number in range(0, 20, at_once):
            new = min(at_once, needed)
            named_after += [number + new] * len(said(detector, tries(new, first=number), number))
        assert named_after[0] == needed
    assert said(RandomWalk(parameters), tries(needed - 1)) == []


def test_alert_says_what_is_known() -> None:
    detector = RandomWalk(OF_FIVE)
    for number in range(NEEDED - 1):
        assert said(detector, tries(1, first=number), number * HOUR) == []
    (alert,) = said(detector, tries(1, first=99), 5 * HOUR)
    assert (alert.detector, alert.kind, alert.state) == ("random-walk", "random-walk", STARTED)
    assert (alert.source, alert.victim, alert.protocol, alert.port) == (SCANNER, VICTIM, 6, None)
    assert (alert.hosts, alert.ports, alert.attempts, alert.failures) == (1, 5, 5, 5)
    assert (alert.example_hosts, alert.example_ports) == ((VICTIM,), (0, 1, 2, 3, 99))
    assert (alert.start_ns, alert.end_ns, alert.confidence) == (at(0), at(5 * HOUR), 0.999)


def test_sweep_of_one_service() -> None:
    (alert,) = said(
        RandomWalk(OF_FIVE),
        [Attempt(SCANNER, f"203.0.113.{n}", 161, Outcome.REFUSED, UDP, probe=Probe.UDP) for n in range(9)],
    )
    assert (alert.victim, alert.protocol, alert.port, alert.hosts, alert.ports) == ("", UDP, 161, 9, 1)


HALF_OPEN = {"outcome": Outcome.HALF_OPEN}
OF_UDP = {"protocol": UDP, "probe": Probe.UDP}
SILENT_UDP = {**OF_UDP, "outcome": Outcome.SILENT}


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({"outcome": Outcome.REFUSED}, True),
        ({"outcome": Outcome.SILENT, "before": Outcome.UNANSWERED}, True),
        ({"outcome": Outcome.SILENT, "before": Outcome.SILENT}, False),
        ({"outcome": Outcome.UNANSWERED}, False),
        ({"outcome": Outcome.WAITING}, False),
        ({"outcome": Outcome.SUCCEEDED}, False),
        ({"outcome": Outcome.SILENT, "probe": Probe.NONE}, False),
        ({"outcome": Outcome.CUT}, False),
        (HALF_OPEN, False),
        ({**HALF_OPEN, "fields": {"forward_flags": 0x06}}, False),  # as a balancer's checks are
        ({**HALF_OPEN, "before": Outcome.HALF_OPEN, "fields": {"end_reason": 1}}, False),
        (SILENT_UDP, False),
        ({"probe": Probe.ACK, "outcome": Outcome.SILENT}, False),
        ({"probe": Probe.ACK, "outcome": Outcome.REFUSED}, True),
        ({**OF_UDP, "outcome": Outcome.REFUSED}, True),
        ({**OF_UDP, "outcome": Outcome.REFUSED, "before": Outcome.SILENT}, True),
        ({"protocol": ICMP, "probe": Probe.PING}, True),
    ],
)
def test_what_is_a_failure(fields: dict, *, counts: bool) -> None:
    assert len(said(RandomWalk(OF_FIVE), sweep(NEEDED, **fields))) == counts


@pytest.mark.parametrize("undecided", [HALF_OPEN, SILENT_UDP, {"outcome": Outcome.CUT}])
def test_what_is_no_failure_is_no_success_either(undecided: dict) -> None:
    """It moves nothing, is not remembered, and what comes of it later counts."""
    detector = RandomWalk(OF_FIVE)
    for second in range(9):
        assert said(detector, tries(100, **undecided), second) == []
    assert detector.gauges()["sources"] == detector.gauges()["contacts"] == 0
    assert said(detector, tries(NEEDED - 1, outcome=Outcome.REFUSED), 10) == []
    assert said(detector, tries(50, first=200, **undecided), 11) == []
    (alert,) = said(detector, tries(1, first=300), 12)
    assert (alert.attempts, alert.failures) == (NEEDED, NEEDED)


def test_dead_service_counts_once() -> None:
    detector = RandomWalk(OF_FIVE)
    for second in range(100):
        assert said(detector, tries(NEEDED - 1), second) == []
    assert len(said(detector, tries(NEEDED), 100)) == 1


def test_benign_source_that_is_taken_over() -> None:
    """It is found after the way from the lower bound to the upper, and its past is not held for it."""
    detector = RandomWalk(OF_FIVE)
    assert said(detector, tries(1000, outcome=Outcome.SUCCEEDED)) == []
    low, high = OF_FIVE.bounds
    needed = math.ceil((high - low) / OF_FIVE.failure_step)
    assert said(detector, tries(needed - 1, first=2000), 1) == []
    (alert,) = said(detector, tries(1, first=3000), 2)
    assert (alert.attempts, alert.failures, alert.start_ns) == (needed, needed, at(1))


def test_late_answers_take_failures_back() -> None:
    detector = RandomWalk(OF_FIVE)
    said(detector, tries(NEEDED - 1))
    said(detector, tries(NEEDED - 2, outcome=Outcome.SUCCEEDED, before=Outcome.REFUSED), 1)
    # One failure is left, and of three successes the walk is 2 below where it began.
    assert said(detector, tries(6, first=100), 2) == []
    (alert,) = said(detector, tries(1, first=200), 3)
    assert (alert.attempts, alert.failures) == (11, 8)


def step_by_step(passes: list[list[Attempt]]) -> set[str]:
    """Who is named by the walk as the paper has it, but that it stays at the lower bound."""
    walks: dict[str, float] = defaultdict(float)
    contacts, named = set(), set()
    low, high = OF_FIVE.bounds
    for one in (one for attempts in passes for one in attempts):
        contact = (one.source, one.destination, one.protocol, one.port)
        if contact not in contacts:
            contacts.add(contact)
            has_failed = one.outcome != Outcome.SUCCEEDED
            walks[one.source] += OF_FIVE.failure_step if has_failed else OF_FIVE.success_step
            walks[one.source] = max(walks[one.source], low)
            if walks[one.source] >= high - 1e-9:
                named.add(one.source)
    return named


def named(passes: list[list[Attempt]], asked_each: int = 1) -> set[str]:
    detector, alerts = RandomWalk(OF_FIVE), []
    for second, attempts in enumerate(passes):
        detector.observe(activity(attempts, second))
        if second % asked_each == 0:
            alerts += detector.assess(at(second))
    return {alert.source for alert in alerts + detector.finish(at(len(passes)))}


def random_passes(seed: int) -> list[list[Attempt]]:
    """Of three sources that fail now and then, mostly and always; no contact twice."""
    rng = np.random.default_rng(seed)
    share = rng.permutation([0.4, 0.65, 1.0])
    passes = []
    for second in range(8):
        sources = rng.integers(0, 3, rng.integers(0, 14))
        outcomes = np.where(rng.random(len(sources)) < share[sources], Outcome.REFUSED, Outcome.SUCCEEDED)
        passes.append(
            [
                Attempt(f"192.0.2.{source}", f"198.51.{second}.{n}", 80, Outcome(outcome))
                for n, (source, outcome) in enumerate(zip(sources, outcomes, strict=True))
            ]
        )
    return passes


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
@settings(max_examples=40)
def test_named_is_who_is_named_step_by_step(seed: int, asked_each: int) -> None:
    """Whatever the order in a pass; a pass an attempt is the same walk, and fewer passes name fewer."""
    passes = random_passes(seed)
    single = [[one] for attempts in passes for one in attempts]
    halves = [part for attempts in passes for part in (attempts[::2], attempts[1::2])]
    whole = named(passes, asked_each)
    assert whole <= named(halves, asked_each)
    assert whole <= step_by_step([attempts[::-1] for attempts in passes])
    assert named(halves) <= step_by_step(halves)
    assert named(single, asked_each) == step_by_step(passes)


@given(st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_neither_order_nor_splitting_changes_who_only_fails_or_only_succeeds(
    seed: int, random: Random
) -> None:
    passes = [
        [
            one._replace(outcome=Outcome.SILENT if one.source[-1] < "2" else Outcome.SUCCEEDED)
            for one in attempts
        ]
        for attempts in random_passes(seed)
    ]
    expected = named(passes)
    for attempts in passes:
        random.shuffle(attempts)
    assert named([[one] for attempts in passes for one in attempts]) == expected
    assert named([[one for attempts in passes for one in attempts]]) == expected
    assert expected == step_by_step(passes)


def gateway(rng: np.random.Generator, source: int, failed_share: float) -> Array:
    """ACTIVITY[200]: contacts of many clients behind one address; popular services again and again."""
    hosts = rng.zipf(1.3, 200) % 100_000
    rows = many(np.full(200, source), 0xC6000000 + hosts, np.where(hosts % 3, 443, 53))
    is_dead = (hosts * 2654435761 % 2**32) < failed_share * 2**32
    rows["outcome"] = np.where(is_dead, Outcome.SILENT, Outcome.SUCCEEDED)
    return rows


@pytest.mark.parametrize(("failed_share", "most_named"), [(0.1, 0), (0.2, 1)])
def test_gateways_are_benign(failed_share: float, most_named: int) -> None:
    """Of 100, over some 5,000 distinct services each of which some are dead."""
    rng, detector, alerts = np.random.default_rng(7), RandomWalk(), []
    for second in range(60):
        rows = np.concatenate([gateway(rng, 0x0A000000 + n, failed_share) for n in range(100)])
        detector.observe(Activity(rows, at(second), 1.0))
        alerts += detector.assess(at(second))
    assert len({alert.source for alert in alerts}) <= most_named


def test_pollers_with_dead_targets_are_benign() -> None:
    """1,000 that ask 50 targets each over and over, one a second, of which 10 % are dead, in any order."""
    rng, detector = np.random.default_rng(8), RandomWalk()
    source = np.repeat(np.arange(1000), 50)
    is_dead = rng.random(source.size) < 0.1
    rows = many(0x0A000000 + source, 0xC6000000 + np.arange(source.size), np.full(source.size, 161))
    rows["outcome"] = np.where(is_dead, Outcome.SILENT, Outcome.SUCCEEDED)
    turn = np.tile(np.arange(50), 1000)
    named_falsely = set()
    for second in range(100):
        detector.observe(Activity(rows[turn == second % 50], at(second), 1.0))
        named_falsely |= {alert.source for alert in detector.assess(at(second))}
    assert len(named_falsely) <= 1  # 0.1 ** 7 for each at its start, and next to nothing afterwards


def test_event_ends_and_the_source_is_found_anew() -> None:
    detector = RandomWalk(replace(OF_FIVE, quiet=100.0))
    assert states(said(detector, tries(5))) == [STARTED]
    assert states(said(detector, tries(4, first=10), 50)) == []
    assert states(said(detector, tries(1, first=20), 60)) == [UPDATED]
    assert states(said(detector, [], 159)) == []
    (ended,) = said(detector, [], 160)
    assert (ended.state, ended.failures, ended.hosts, ended.ports) == (ENDED, 10, 1, 10)
    assert states(said(detector, tries(4, first=30), 161)) == []
    assert states(said(detector, tries(1, first=40), 162)) == [STARTED]
    assert states(detector.finish(at(163))) == [ENDED]


def test_scanner_that_turns_benign_is_not_kept_by_a_failure_now_and_then() -> None:
    detector = RandomWalk(replace(OF_FIVE, quiet=100.0))
    said(detector, tries(5))
    said(detector, tries(20, first=100, outcome=Outcome.SUCCEEDED), 1)
    assert said(detector, tries(1, first=200), 90) == []
    assert [alert.end_ns for alert in said(detector, [], 100)] == [at(0)]


def test_time_forgets_only_what_is_long_gone() -> None:
    slow, slower = RandomWalk(OF_FIVE), RandomWalk(OF_FIVE)
    found = [said(slow, tries(1, first=n), n * 20 * HOUR) for n in range(5)]
    assert [states(alerts) for alerts in found] == [[], [], [], [], [STARTED]]
    for n in range(10):
        assert said(slower, tries(1, first=n), n * 30 * HOUR) == []
        assert slower.gauges()["sources"] <= 1
    slower.assess(at(400 * HOUR))
    assert (slower.gauges()["sources"], slower.gauges()["contacts"], slower.gauges()["evicted"]) == (0, 0, 0)


def test_spoofed_flood_is_bounded_and_hides_no_scanner() -> None:
    parameters = replace(OF_FIVE, most=2048, contacts=4096)
    detector, rng, alerts = RandomWalk(parameters), np.random.default_rng(1), []
    for second in range(8):
        flood = many(rng.integers(0, 2**32, 20_000), np.full(20_000, 0xC6336401), np.full(20_000, 443))
        scan = rows_of(tries(2 if second == 0 else 1, first=10 * second))
        detector.observe(Activity(rng.permutation(np.concatenate([flood, scan])), at(second), 1.0))
        alerts += detector.assess(at(second))
        assert detector.gauges()["sources"] <= 2048
        assert detector.gauges()["contacts"] <= 4096
    assert [(alert.source, alert.end_ns) for alert in alerts] == [(SCANNER, at(3))]
    assert detector.gauges()["evicted"] > 8 * 17_000


def test_contacts_are_bounded_and_a_found_scanner_uses_none_of_others() -> None:
    detector = RandomWalk(replace(OF_FIVE, contacts=4096))
    said(detector, [Attempt("192.0.2.1", VICTIM, port) for port in range(4)])
    for second in range(1, 8):
        rows = many(np.full(2000, 0xC0000209), np.arange(2000) + 2000 * second, np.full(2000, 80))
        detector.observe(Activity(rows, at(second), 1.0))
        detector.assess(at(second))
        assert detector.gauges()["contacts"] <= 4096
    assert detector.gauges()["evicted"] > 9000
    assert said(detector, [Attempt("192.0.2.1", VICTIM, port) for port in range(4)], 9) == []


def test_ipv6_prefix() -> None:
    one = [Attempt("2001:db8:5:6::9", f"2001:db8:1::{host}") for host in range(NEEDED)]
    many_addresses = [one[n]._replace(source=f"2001:db8:5:6::{n:x}") for n in range(NEEDED)]
    assert [alert.source for alert in said(RandomWalk(OF_FIVE), one)] == ["2001:db8:5:6::9"]
    assert [alert.source for alert in said(RandomWalk(OF_FIVE), many_addresses)] == ["2001:db8:5:6::/64"]


@pytest.mark.parametrize(
    "wrong",
    [{"theta0": 1.0}, {"theta1": 0.9}, {"alpha": 0.0}, {"alpha": 0.9999}, {"most": 1}, {"quiet": 0.0}],
)
def test_parameters_have_limits(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RandomWalkParameters(**wrong)
