"""Port scans: one alert each, nobody who mostly succeeds, nothing hidden by a boundary."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activity_samples import (
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    Array,
    Attempt,
    activity,
    at,
    many,
    rows_of,
)
from flowmon.analysers.activity import NS, Activity, Outcome, Probe
from flowmon.analysers.alerts import ENDED, STARTED, UPDATED, Alert
from flowmon.analysers.port_fanout import PortFanout, PortFanoutParameters

SCANNER, VICTIM = "192.0.2.9", "198.51.100.7"
SCANNER_6, VICTIM_6 = "2001:db8::9", "2001:db8:1::7"
SMALL = PortFanoutParameters(window=10.0, ports=3, hosts=4)


def vertical(ports: int, first: int = 1, **fields) -> list[Attempt]:
    return [Attempt(SCANNER, VICTIM, first + port)._replace(**fields) for port in range(ports)]


def horizontal(hosts: int, first: int = 1, port: int = 22, **fields) -> list[Attempt]:
    base = int(ip_address("203.0.113.0"))
    return [
        Attempt(SCANNER, str(ip_address(base + first + host)), port)._replace(**fields)
        for host in range(hosts)
    ]


def said(detector: PortFanout, attempts: list[Attempt], seconds: float = 0.0) -> list[Alert]:
    """What one pass gives."""
    detector.observe(activity(attempts, seconds))
    return detector.assess(at(seconds))


def one_alert(attempts: list[Attempt]) -> Alert:
    alerts = said(PortFanout(), attempts)
    assert [alert.state for alert in alerts] == [STARTED]
    return alerts[0]


@pytest.mark.parametrize("outcome", [Outcome.HALF_OPEN, Outcome.REFUSED, Outcome.UNANSWERED, Outcome.SILENT])
@pytest.mark.parametrize(
    ("protocol", "probe"),
    [(TCP, one) for one in (Probe.SYN, Probe.FIN, Probe.NULL, Probe.XMAS, Probe.ACK)] + [(UDP, Probe.UDP)],
)
def test_vertical(protocol: int, probe: Probe, outcome: Outcome) -> None:
    for source, victim in ((SCANNER, VICTIM), (SCANNER_6, VICTIM_6)):
        kind = {"protocol": protocol, "probe": probe, "outcome": outcome}
        attempts = vertical(20, source=source, destination=victim, **kind)
        assert said(PortFanout(), attempts[1:]) == []
        alert = one_alert(attempts)
        assert (alert.kind, alert.source, alert.victim) == ("vertical", source, victim)
        assert (alert.hosts, alert.ports, alert.protocol, alert.port) == (1, 20, protocol, None)
        assert (alert.attempts, alert.failures, alert.confidence) == (20, 20, 0.5)
        assert (alert.example_hosts, len(alert.example_ports)) == ((victim,), 16)
        assert set(alert.example_ports) < set(range(1, 21))


def test_horizontal() -> None:
    assert said(PortFanout(), horizontal(24)) == []
    alert = one_alert(horizontal(25))
    assert (alert.kind, alert.source, alert.victim) == ("horizontal", SCANNER, "")
    assert (alert.hosts, alert.ports, alert.protocol, alert.port) == (25, 1, TCP, 22)
    assert (alert.example_hosts[0], alert.example_ports) == ("203.0.113.1", (22,))


@pytest.mark.parametrize("protocol", [ICMP, ICMPV6])
def test_ping_sweep(protocol: int) -> None:
    sweep = horizontal(25, port=0, protocol=protocol, probe=Probe.PING)
    if protocol == ICMPV6:
        sweep = [
            one._replace(source=SCANNER_6, destination=f"2001:db8:2::{n:x}") for n, one in enumerate(sweep)
        ]
    alert = one_alert(sweep)
    assert (alert.kind, alert.protocol, alert.port, alert.example_ports) == ("horizontal", protocol, None, ())


def test_block_is_one_alert() -> None:
    detector, alerts = PortFanout(), []
    for second in range(5):
        hosts, ports = np.meshgrid(np.arange(254), np.arange(1 + 200 * second, 201 + 200 * second))
        rows = many(np.full(hosts.size, 0xC0000209), 0xC6336401 + hosts.ravel(), ports.ravel())
        detector.observe(Activity(rows, at(second), 1.0))
        alerts += detector.assess(at(second))
    alerts += detector.finish(at(5))
    assert {(alert.kind, alert.source, alert.alert_id) for alert in alerts} == {
        ("block", SCANNER, alerts[0].alert_id)
    }
    last = alerts[-1]
    assert (last.state, last.failures) == (ENDED, last.attempts)
    assert last.attempts == pytest.approx(254_000, rel=0.01)
    assert last.hosts == pytest.approx(254, rel=0.07)
    assert last.ports == pytest.approx(1000, rel=0.07)
    assert last.rate == pytest.approx(50_800, rel=0.01)
    assert detector.gauges()["events"] == 0


def test_kind_grows_and_never_shrinks() -> None:
    detector = PortFanout()
    assert [alert.kind for alert in said(detector, vertical(20))] == ["vertical"]
    (updated,) = said(detector, horizontal(25), 1)
    assert (updated.state, updated.kind, updated.victim, updated.ports) == (UPDATED, "block", "", 20)
    assert said(detector, horizontal(30), 100) == []
    (ended,) = detector.finish(at(101))
    assert (ended.state, ended.kind, ended.start_ns, ended.end_ns) == (ENDED, "block", at(0), at(100))


def test_second_victim_makes_a_block() -> None:
    detector = PortFanout()
    said(detector, vertical(20))
    alerts = said(detector, vertical(20, destination="198.51.100.8"), 1)
    assert [(alert.kind, alert.hosts, alert.ports) for alert in alerts] == [("block", 2, 20)]
    assert alerts[0].example_hosts == (VICTIM, "198.51.100.8")


def test_protocol_is_named_where_there_is_one() -> None:
    alert = one_alert(vertical(20) + vertical(1, first=53, protocol=UDP, probe=Probe.UDP))
    assert (alert.protocol, alert.ports) == (None, 21)


@given(
    burst=st.lists(st.floats(0, 4.99), min_size=3, max_size=3),
    offset=st.floats(0, 20),
    spacing=st.sampled_from([0.1, 1.0, 7.0, 100.0]),
)
def test_no_boundary_hides_a_burst(burst: list[float], offset: float, spacing: float) -> None:
    """Shorter than half a window, wherever it begins and however seldom one asks."""
    detector, alerts, asked = PortFanout(SMALL), [], 0.0
    for port, time in enumerate(sorted(burst)):
        detector.observe(activity([Attempt(SCANNER, VICTIM, port)], offset + time))
        if offset + time - asked >= spacing:
            asked = offset + time
            alerts += detector.assess(at(asked))
    detector.observe(activity([Attempt("192.0.2.1", VICTIM)], offset + 50))
    alerts += detector.assess(at(offset + 105))
    assert [alert.state for alert in alerts] == [STARTED, ENDED]


def crossed_by_hand(attempts: list[tuple[float, Attempt]], window: float) -> set[str]:
    """Sources that in some `window` seconds, ending at an attempt, are over a threshold of SMALL: slow, and exact."""
    sources = set()
    for now, _ in attempts:
        groups: dict[tuple, tuple[set, set]] = {}
        for then, one in attempts:
            if not 0 <= now - then < window:
                continue
            won = one.outcome == Outcome.SUCCEEDED
            service = (one.protocol, one.port)
            for group, member in (
                ((one.source, one.destination, SMALL.ports), service),
                ((one.source, service, SMALL.hosts), one.destination),
            ):
                groups.setdefault(group, (set(), set()))[won].add(member)
        for (source, _, threshold), (failed, succeeded) in groups.items():
            only_failed = failed - succeeded
            if len(only_failed) >= threshold and len(only_failed) >= len(succeeded):
                sources.add(source)
    return sources


def timed_attempts(seed: int, *, failed_share: float, end: int) -> list[tuple[float, Attempt]]:
    """In order of time: two sources, few targets, so that about every second seed has a scan in it."""
    rng = np.random.default_rng(seed)
    return [
        (
            float(time),
            Attempt(
                f"192.0.2.{rng.integers(1, 3)}",
                f"198.51.100.{rng.integers(1, 8)}",
                int(rng.integers(1, 7)),
                Outcome.SILENT if rng.random() < failed_share else Outcome.SUCCEEDED,
            ),
        )
        for time in sorted(rng.integers(0, end, rng.integers(1, 50)))
    ]


def sources_of(alerts: list[Alert]) -> set[str]:
    return {alert.source for alert in alerts}


@given(st.integers(0, 2**32 - 1))
def test_named_is_who_crossed(seed: int) -> None:
    """Who is over within half a window is named, and who is named is over within a window."""
    attempts = timed_attempts(seed, failed_share=1.0, end=30)
    detector, alerts = PortFanout(SMALL), []
    for time in sorted({time for time, _ in attempts}):
        alerts += said(detector, [one for then, one in attempts if then == time], time)
    alerts += detector.finish(at(31))
    assert crossed_by_hand(attempts, 5.0) <= sources_of(alerts) <= crossed_by_hand(attempts, 10.0)
    assert sum(alert.state == STARTED for alert in alerts) == sum(alert.state == ENDED for alert in alerts)


def told(passes: list[tuple[float, Array]]) -> list[Alert]:
    """All that is said, asked once a second."""
    detector, alerts = PortFanout(SMALL), []
    for second in range(13):
        for then, rows in passes:
            if then == second:
                detector.observe(Activity(rows, at(then), 1.0))
        alerts += detector.assess(at(second))
    return [replace(alert, alert_id="") for alert in alerts + detector.finish(at(13))]


@given(st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_neither_order_nor_splitting_changes_what_is_said(seed: int, random: Random) -> None:
    attempts = timed_attempts(seed, failed_share=0.7, end=13)
    of_time = {time: [one for then, one in attempts if then == time] for time, _ in attempts}
    whole = told([(time, rows_of(ones)) for time, ones in of_time.items()])
    for ones in of_time.values():
        random.shuffle(ones)
    single = told([(time, rows_of([one])) for time, ones in of_time.items() for one in ones])
    assert by_source(single) == by_source(whole)


def by_source(alerts: list[Alert]) -> list[Alert]:
    """What is said at one time of several sources has no order."""
    return sorted(alerts, key=lambda alert: alert.source)


def test_resolver_crawler_and_gateway_are_not_named() -> None:
    """Thousands of contacts, of which every tenth fails, on few ports and on many."""
    rng = np.random.default_rng(1)
    detector, alerts = PortFanout(), []
    for second in range(90):
        hosts = rng.integers(0, 5000, 300)
        rows = many(np.full(300, 0xC0000201), 0xC6000000 + hosts, np.where(hosts % 2, 443, 53))
        rows["outcome"] = np.where(hosts % 10 == 3, Outcome.SILENT, Outcome.SUCCEEDED)
        busy = many(np.full(50, 0xC0000202), np.full(50, 0xC6000001), rng.integers(1, 3000, 50))
        busy["outcome"] = np.where(rng.random(50) < 0.3, Outcome.REFUSED, Outcome.SUCCEEDED)
        detector.observe(Activity(np.concatenate([rows, busy]), at(second), 1.0))
        alerts += detector.assess(at(second))
    assert alerts == []
    assert detector.gauges()["sketches"] > 0


def test_busy_source_that_also_scans_is_named() -> None:
    detector = PortFanout()
    for second in range(5):
        assert (
            said(detector, horizontal(200, first=200 * second, port=443, outcome=Outcome.SUCCEEDED), second)
            == []
        )
    (alert,) = said(detector, vertical(20) + horizontal(10, port=443), 5)
    assert (alert.kind, alert.victim, alert.ports) == ("vertical", VICTIM, 20)


def test_threshold_beyond_what_is_counted_exactly() -> None:
    detector = PortFanout(PortFanoutParameters(ports=1000, exact=16))
    assert said(detector, vertical(850)) == []
    assert detector.gauges()["sketches"] == 1
    assert said(detector, vertical(300, first=500, outcome=Outcome.SUCCEEDED), 1) == []
    (alert,) = said(detector, vertical(700, first=2000), 2)
    assert alert.ports == pytest.approx(1199, rel=0.1)
    assert VICTIM in alert.example_hosts


def test_same_dead_service_is_one_contact() -> None:
    detector = PortFanout()
    for second in range(100):
        assert said(detector, [Attempt("192.0.2.1", VICTIM)] * 30, second) == []


def test_late_answers_take_failures_back() -> None:
    detector = PortFanout()
    assert said(detector, vertical(19, outcome=Outcome.UNANSWERED)) == []
    answered = vertical(10, outcome=Outcome.SUCCEEDED, before=Outcome.UNANSWERED)
    assert said(detector, answered, 3) == []
    assert said(detector, vertical(5, first=100), 4) == []
    assert [alert.failures for alert in said(detector, vertical(6, first=200), 5)] == [20]


@pytest.mark.parametrize(
    "ignored",
    [
        {"outcome": Outcome.WAITING},
        {"outcome": Outcome.NONE, "probe": Probe.NONE},
        {"probe": Probe.NONE},
        {"before": Outcome.UNANSWERED, "fields": {"new_forward_packets": 0}},
        {"before": Outcome.SILENT, "fields": {"new_forward_packets": 0, "end_reason": 1}},
    ],
)
def test_what_is_no_news_is_ignored(ignored: dict) -> None:
    detector = PortFanout()
    assert said(detector, vertical(19)) == []
    assert said(detector, vertical(50, first=100, **ignored), 1) == []
    assert len(said(detector, vertical(1, first=30), 1)) == 1


def test_quiet_ends_an_event_and_another_starts() -> None:
    detector = PortFanout(replace(SMALL, quiet=20.0))
    first = said(detector, vertical(4))
    assert said(detector, [], 19.9) == []
    assert [alert.state for alert in said(detector, [], 20)] == [ENDED]
    second = said(detector, vertical(4), 21)
    assert [alert.state for alert in second] == [STARTED]
    assert first[0].alert_id != second[0].alert_id


def rotating(contacts: int, network: str = "2001:db8:5:6::/64") -> list[Attempt]:
    """Each from another address of the network."""
    first = int(ip_network(network).network_address)
    return [
        one._replace(source=str(ip_address(first + 7 * n)), destination=VICTIM_6)
        for n, one in enumerate(vertical(contacts))
    ]


def test_ipv6_source_that_changes_is_found_by_its_prefix() -> None:
    alert = one_alert(rotating(20))
    assert (alert.source, alert.victim, alert.ports) == ("2001:db8:5:6::/64", VICTIM_6, 20)


def test_ipv6_prefix_and_its_addresses_are_one_event() -> None:
    address = vertical(30, source="2001:db8:5:6::9", destination=VICTIM_6)
    together = said(PortFanout(), rotating(30) + address)
    assert [alert.source for alert in together] == ["2001:db8:5:6::9"]
    detector = PortFanout()
    assert [alert.source for alert in said(detector, rotating(30))] == ["2001:db8:5:6::/64"]
    assert sources_of(said(detector, address, 1)) <= {"2001:db8:5:6::/64"}
    detector.assess(at(100))
    assert sources_of(said(detector, address, 101)) == {"2001:db8:5:6::9"}


def test_spoofed_flood_is_bounded_and_hides_no_scanner() -> None:
    parameters = PortFanoutParameters(contacts=4096)
    detector, rng, alerts = PortFanout(parameters), np.random.default_rng(1), []
    for second in range(20):
        flood = many(rng.integers(0, 2**32, 20_000), np.full(20_000, 0xC6336401), np.full(20_000, 443))
        scan = rows_of(horizontal(2, first=2 * second))
        detector.observe(Activity(rng.permutation(np.concatenate([flood, scan])), at(second), 1.0))
        alerts += detector.assess(at(second))
        assert detector.gauges()["contacts"] <= 2 * 4096
        assert detector.gauges()["groups"] <= 2 * 4096
    assert sources_of(alerts) == {SCANNER}
    assert alerts[0].end_ns == at(12)
    assert detector.gauges()["evicted"] > 2 * 19 * 16_000


def test_attempts_and_failures_since_the_start() -> None:
    detector = PortFanout()
    said(detector, vertical(20))
    said(detector, [Attempt(SCANNER, "203.0.113.1", outcome=Outcome.SUCCEEDED)] * 5, 1)
    said(detector, vertical(10, first=100, outcome=Outcome.UNANSWERED), 40)
    said(detector, vertical(20, first=200), 70)
    (ended,) = detector.finish(at(80))
    assert (ended.attempts, ended.failures) == (55, 50)


def test_parameters_have_meanings_and_limits() -> None:
    for wrong in ({"window": 0.0}, {"ratio": 1.5}, {"ports": 0}, {"contacts": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PortFanoutParameters(**wrong)
    assert PortFanoutParameters().window * NS == 60 * NS
