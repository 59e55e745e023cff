"""SYN floods among honest clients, and all that is none; the arithmetic against slow references."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowmon.analysers import syn_rate
from flowmon.analysers.activity import ACTIVITY, GRACE_NS, NS, PATIENCE_NS, Activity, Outcome, Probe
from flowmon.analysers.alerts import ENDED, EXAMPLES_MOST, STARTED, UPDATED, Alert
from flowmon.analysers.syn_rate import FEW_SOURCES, SynRate, SynRateParameters, Targets, judge, learn, limits
from samples import packed

Array = np.ndarray[Any, np.dtype[Any]]

VICTIM, OTHER = "198.51.100.2", "198.51.100.3"
START = 1_700_000_000 * NS
NEVER = np.iinfo("i8").max
DEFAULT = SynRateParameters()


def ipv4(numbers: Array) -> Array:
    """uint8[n, 16] of 10.0.0.0 and so many more."""
    addresses = np.zeros((len(numbers), 16), "u1")
    addresses[:, 10:12] = 0xFF
    addresses[:, 12:] = (np.asarray(numbers) + (10 << 24)).astype(">u4").view("u1").reshape(-1, 4)
    return addresses


def attempts(count: int, sources: int = 0, victim: str = VICTIM, ports: Any = 80, **fields: Any) -> Array:
    """ACTIVITY[count] of new SYNs without an answer, of so many sources (0: each its own)."""
    rows = np.zeros(count, ACTIVITY)
    rows["source_address"] = ipv4(np.arange(count) % (sources or count or 1))
    rows["destination_address"] = packed(victim)
    rows["destination_port"] = ports
    rows["protocol"], rows["probe"], rows["outcome"] = 6, Probe.SYN, Outcome.UNANSWERED
    rows["ip_version"] = 6 if ":" in victim else 4
    rows["is_new"] = True
    for name in ("forward_packets", "new_forward_packets", "new_syn_packets"):
        rows[name] = 1
    for name, value in fields.items():
        rows[name] = value
    return rows


def windows(analyser: SynRate, *rows: Array | None, seconds: float = 1.0, begin: int = START) -> list[Alert]:
    """All that is said where these are the windows; None: nothing came."""
    said = []
    at = begin
    for each in rows:
        at += int(seconds * NS)
        analyser.observe(Activity(attempts(0) if each is None else each, at, seconds))
        said += analyser.assess(at)
    return said


def states(said: list[Alert]) -> list[str]:
    return [alert.state for alert in said]


@dataclass
class Clients:
    """Attempts over time, and the rows that a tracker makes of them.

    done: when each handshake was completed. accepted: the verdict of those whose SYN was answered, and from when on.
    """

    begun: Array
    done: Array
    sources: Array
    accepted_after_ns: int = GRACE_NS
    ports: Array | int = 80
    _before: tuple[Array, Array] = field(init=False)

    def __post_init__(self) -> None:
        nothing = np.zeros(len(self.begun), "i8")
        self._before = nothing, nothing

    def rows(self, at: int) -> Array:
        age = at - self.begun
        late = np.where(age >= self.accepted_after_ns, Outcome.HALF_OPEN, Outcome.WAITING)
        outcome = np.where(age >= PATIENCE_NS, Outcome.SILENT, late)
        outcome = np.where(self.done <= at, Outcome.SUCCEEDED, outcome)
        outcome = np.where(age < 0, Outcome.NONE, outcome)
        lasted = np.minimum(at, self.done) - self.begun
        syns = (lasted >= 0).astype("i8") + (lasted >= NS) + (lasted >= 3 * NS)
        packets = syns + 3 * (self.done <= at)
        before, packets_before = self._before
        self._before = outcome, packets
        moved = np.flatnonzero((outcome != before) | (packets != packets_before))
        rows = attempts(len(moved))
        syns_before = np.where(before == Outcome.SUCCEEDED, packets_before - 3, packets_before)
        rows["source_address"] = ipv4(self.sources[moved])
        rows["destination_port"] = np.broadcast_to(self.ports, len(syns))[moved]
        rows["outcome"], rows["outcome_before"] = outcome[moved], before[moved]
        rows["is_new"] = packets_before[moved] == 0
        rows["forward_packets"] = packets[moved]
        rows["new_forward_packets"] = (packets - packets_before)[moved]
        rows["new_syn_packets"] = (syns - syns_before)[moved]
        return rows


def honest(begun: Array, round_trip_ns: int = NS // 10, accepted_after_ns: int = GRACE_NS) -> Clients:
    return Clients(begun, begun + round_trip_ns, np.arange(len(begun)) % 5000, accepted_after_ns)


def forged(begun: Array, ports: Array | int = 80) -> Clients:
    sources = (1 << 20) + np.arange(len(begun))
    return Clients(begun, np.full(len(begun), NEVER), sources, ports=ports)


def evenly(rate: float, begin: float, end: float) -> Array:
    """Times of a steady rate, in nanoseconds."""
    return START + (np.arange(begin, end, 1 / rate) * NS).astype("i8")


def by_chance(rate: float, seconds: float, seed: int) -> Array:
    """Times of a Poisson process."""
    rng = np.random.default_rng(seed)
    return np.sort(START + (rng.random(rng.poisson(rate * seconds)) * seconds * NS).astype("i8"))


def replayed(
    analyser: SynRate, clients: list[Clients], until: float, spacing: float = 1.0, offset: float = 0.0
) -> list[Alert]:
    said = []
    for tick in range(1, math.floor((until - offset) / spacing) + 1):
        at = START + int((offset + tick * spacing) * NS)
        for each in clients:
            analyser.observe(Activity(each.rows(at), at, spacing))
        said += analyser.assess(at)
    return said


@pytest.mark.parametrize("spacing", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("accepted_after_ns", [0, GRACE_NS])
def test_busy_server_is_silent(spacing: float, accepted_after_ns: int) -> None:
    """10,000 connections a second that start and stop at once, each under way for 0.1 s."""
    clients = honest(evenly(10_000, 1, 8), accepted_after_ns=accepted_after_ns)
    analyser = SynRate()
    assert replayed(analyser, [clients], 15, spacing) == analyser.finish(START + 15 * NS) == []
    assert analyser.gauges()["events"] == 0


@pytest.mark.parametrize("round_trip", [0.3, 0.8])
def test_load_that_rises_over_slow_paths_is_silent(round_trip: float) -> None:
    """To 4,000 a second in 20 s; some handshakes are judged to have failed before they are completed."""
    begun = START + (np.sqrt(np.arange(40_000) / 40_000) * 20 * NS).astype("i8")
    assert replayed(SynRate(), [honest(begun, int(round_trip * NS), 0)], 25) == []


@pytest.mark.parametrize(("spacing", "rate"), [(0.2, 6000), (1.0, 2500), (1.0, 20_000), (10.0, 2500)])
def test_flood_at_a_busy_server_starts_and_ends_once(spacing: float, rate: int) -> None:
    begin, end = 10, 16
    clients = [honest(evenly(2000, 1, 25)), forged(evenly(rate, begin, end))]
    said = replayed(SynRate(), clients, 40, spacing)
    assert states(said) == [STARTED, *[UPDATED] * (len(said) - 2), ENDED]
    assert len(said) <= 2 + math.log2(3 * (end - begin)) + 1
    first, last = said[0], said[-1]
    # The verdict on an attempt is there after GRACE; a window is a second or the spacing.
    assert begin < (first.end_ns - START) / NS <= begin + GRACE_NS / NS + max(spacing, 1)
    assert first.start_ns <= START + begin * NS
    assert (last.detector, last.kind, last.victim, last.port, last.protocol) == (
        "syn-rate",
        "syn-flood",
        VICTIM,
        80,
        6,
    )
    assert last.source == ""
    assert len({alert.alert_id for alert in said}) == 1
    assert 0.7 * rate <= last.rate <= 3 * rate  # every SYN is sent three times
    assert last.failures <= last.attempts
    assert rate * (end - begin) <= last.failures <= 3 * rate * (end - begin) + spacing * 2000
    assert all(len(alert.example_sources) == EXAMPLES_MOST for alert in said)


def test_in_the_first_assess_after_the_threshold_is_crossed() -> None:
    for count, expected in ((1000, []), (1001, [STARTED])):
        assert states(windows(SynRate(), attempts(count))) == expected
        assert states(windows(SynRate(), attempts(10 * count), seconds=10)[:1]) == (
            [STARTED]
        )  # a change, at least
    # A tenth of the window is too short to tell.
    analyser = SynRate()
    said = windows(analyser, attempts(2000), *[None] * 3, seconds=0.1)
    assert said == []
    assert states(windows(analyser, None, seconds=0.1, begin=START + NS * 4 // 10)) == [STARTED]


def test_flood_that_grows_slowly() -> None:
    """By 2.5 a second each second, and never near the threshold; honest traffic goes on."""
    begun = START + (np.sqrt(np.arange(8_000) / 8_000) * 80 * NS).astype("i8")
    said = replayed(SynRate(), [honest(evenly(500, 0, 80)), forged(begun)], 80)
    assert said[0].state == STARTED
    assert said[0].end_ns < START + 50 * NS
    assert ENDED not in states(said)
    assert max(alert.rate for alert in said) < DEFAULT.threshold


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spacing", [0.5, 5.0])
def test_steady_noise_is_silent(seed: int, spacing: float) -> None:
    """25 a second, each with two more SYNs, by chance: less than `minimum`."""
    noise = forged(by_chance(25, 200, seed))
    assert replayed(SynRate(), [noise], 200, spacing) == []


def test_noise_that_grows_slowly_is_learnt_as_usual() -> None:
    """By 0.3 a second each second, to three times `minimum`; what comes at once is a flood."""
    slow = [attempts(number * 3 // 10) for number in range(1000)]
    assert windows(SynRate(), *slow) == []
    assert states(windows(SynRate(), *slow[-3:]))[:1] == [STARTED]


def test_long_flood_is_no_usual_thing() -> None:
    said = windows(SynRate(), *[attempts(300)] * 200)
    assert ENDED not in states(said)
    assert len(said) <= 2 + math.log2(300 * 200)


def test_end_waits_for_quiet_and_the_next_flood_is_another() -> None:
    analyser = SynRate(SynRateParameters(quiet=3))
    flood = attempts(2000)
    said = windows(analyser, flood, None, None, flood, None, None, None, None, flood)
    assert states(said) == [STARTED, UPDATED, ENDED, STARTED]
    assert said[2].end_ns == START + 4 * NS
    assert said[0].alert_id != said[3].alert_id
    assert (said[2].failures, said[3].failures) == (4000, 2000)
    assert states(analyser.finish(START + 9 * NS)) == [ENDED]
    assert analyser.finish(START + 9 * NS) == []


def test_evidence_of_a_flood_that_is_over_is_no_evidence_of_another() -> None:
    below, above = attempts(99), attempts(101)
    said = windows(SynRate(), *[attempts(300)] * 3, *[below] * 6, above)
    assert states(said)[-1] == ENDED


def test_attempts_are_no_fewer_than_failures() -> None:
    """The flood starts with the verdict on what was attempted in the window before."""
    judged = attempts(
        2000, outcome_before=Outcome.WAITING, is_new=False, new_syn_packets=0, new_forward_packets=0
    )
    (alert,) = windows(SynRate(), attempts(2000, outcome=Outcome.WAITING), judged)
    assert (alert.attempts, alert.failures) == (2000, 2000)


def test_finish_says_what_the_window_holds() -> None:
    analyser = SynRate()
    analyser.observe(Activity(attempts(2000), START, 0.2))
    assert states(analyser.finish(START)) == [STARTED, ENDED]
    assert SynRate().finish(START) == []


RANDOM_PORTS = np.random.default_rng(3).permutation(65_535)[:5000] + 1


def test_flood_over_all_ports_of_a_host_is_one_event() -> None:
    (alert,) = windows(SynRate(), attempts(5000, ports=RANDOM_PORTS))
    assert (alert.victim, alert.port, alert.sources, alert.ports) == (VICTIM, None, 5000, 5000)
    assert alert.example_ports == tuple(sorted(RANDOM_PORTS.tolist())[:EXAMPLES_MOST])


@pytest.mark.parametrize(("sources", "expected"), [(1, []), (4, []), (500, [STARTED])])
def test_scan_of_a_host_is_no_flood(sources: int, expected: list[str]) -> None:
    """Many ports, by a few sources, for some time, with others that try some port now and then."""
    noise = attempts(60, ports=RANDOM_PORTS[:60], source_address=ipv4(np.arange(60) + 10_000))
    scan = np.concatenate([attempts(5000, sources, ports=RANDOM_PORTS), noise])
    assert states(windows(SynRate(), scan, scan, scan))[:1] == expected


def test_flood_of_a_port_is_found_under_a_scan() -> None:
    scan = attempts(5000, 1, ports=RANDOM_PORTS)
    flood = attempts(2000, ports=25)
    said = windows(SynRate(), scan, np.concatenate([scan, flood]), *[scan] * 6)
    assert states(said) == [STARTED, ENDED]
    assert {(alert.port, alert.failures, alert.sources) for alert in said} == {(25, 2000, 2000)}
    assert {alert.example_ports for alert in said} == {(25,)}


def test_two_ports_of_a_host_are_one_event() -> None:
    (alert,) = windows(SynRate(), np.concatenate([attempts(2000, ports=80), attempts(3000, ports=443)]))
    assert (alert.port, alert.failures, alert.example_ports) == (None, 5000, (80, 443))


def test_horizontal_scan_is_no_flood() -> None:
    rows = attempts(20_000, 1)
    rows["destination_address"] = ipv4(np.arange(20_000))
    assert windows(SynRate(), rows, rows, rows) == []


@pytest.mark.parametrize(("sources", "named"), [(1, 1), (4, 4), (5, 5), (400, EXAMPLES_MOST)])
def test_sources_are_named_where_they_are_few(sources: int, named: int) -> None:
    (alert,) = windows(SynRate(), attempts(2000, sources))
    assert alert.sources == sources
    assert alert.kind == (FEW_SOURCES if sources <= DEFAULT.few_sources else "syn-flood")
    assert len(alert.example_sources) == named
    assert alert.source == ""
    assert set(alert.example_sources) <= {f"10.0.{n >> 8}.{n & 255}" for n in range(sources)}


def test_named_are_just_those_that_make_nearly_all() -> None:
    rows = attempts(3000)  # two make nine tenths of it
    rows["source_address"][:2700] = ipv4(np.arange(2700) % 2)
    (alert,) = windows(SynRate(), rows)
    assert sorted(alert.example_sources) == ["10.0.0.0", "10.0.0.1"]
    rows["source_address"][2690:2700] = ipv4(np.arange(2690, 2700))
    (alert,) = windows(SynRate(), rows)
    assert len(alert.example_sources) == EXAMPLES_MOST


def test_honest_clients_are_not_named() -> None:
    """Handshakes under way in a window are taken back in the next, from those who began them."""
    server = honest(evenly(10_000, 0, 4), accepted_after_ns=0)
    analyser = SynRate(SynRateParameters(minimum=900))
    assert replayed(analyser, [server], 2) == []
    flood = forged(evenly(3000, 2, 3))
    flood.sources %= 2
    flood.accepted_after_ns = 0
    at = START + 3 * NS
    for each in (server, flood):
        analyser.observe(Activity(each.rows(at), at, 1.0))
    (alert,) = analyser.assess(at)
    # As many are under way as before, and of the same clients.
    assert alert.failures == pytest.approx(3000, abs=2)
    assert alert.sources == 2


def test_evidence_that_was_dropped_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syn_rate, "EVIDENCE_MOST", 500)
    analyser = SynRate()
    (alert,) = windows(analyser, attempts(2000, 2))
    assert (alert.failures, alert.example_sources) == (2000, ())
    assert analyser.gauges()["evidence_dropped"] > 0


def test_confidence_grows_with_the_rate_and_falls_where_the_victim_refuses() -> None:
    few, many, refused = (
        windows(SynRate(), attempts(count, outcome=outcome))[0].confidence
        for count, outcome in (
            (1100, Outcome.HALF_OPEN),
            (50_000, Outcome.UNANSWERED),
            (50_000, Outcome.REFUSED),
        )
    )
    assert 0.5 < few < many <= 1
    assert refused == many / 2


def test_ipv6_victim() -> None:
    (alert,) = windows(SynRate(), attempts(2000, victim="2001:db8::5", source_address=packed("2001:db8::1")))
    assert (alert.victim, alert.example_sources) == ("2001:db8::5", ("2001:db8::1",))


@pytest.mark.parametrize(
    "fields",
    [
        {"protocol": 17},
        {"probe": Probe.ACK},
        {"outcome": Outcome.NONE},  # backscatter, or the middle of a connection
        {"outcome": Outcome.WAITING},
        {"outcome": Outcome.SUCCEEDED},
        {"outcome": Outcome.SUCCEEDED, "outcome_before": Outcome.SUCCEEDED, "is_new": False},
    ],
)
def test_what_is_no_failed_handshake(fields: dict[str, int]) -> None:
    assert windows(SynRate(), *[attempts(5000, **fields)] * 3) == []


def test_flood_within_one_biflow() -> None:
    """From a single port, all the SYNs are of one biflow, which may be waiting as well."""
    for outcome in (Outcome.WAITING, Outcome.UNANSWERED):
        row = attempts(
            1, outcome=outcome, new_syn_packets=5000, new_forward_packets=5000, forward_packets=5000
        )
        (alert,) = windows(SynRate(), row)
        assert alert.sources == 1
        assert alert.failures == 5000 - (outcome == Outcome.WAITING)


def test_biflows_that_came_and_went_count_one() -> None:
    gone = {"outcome": Outcome.SILENT, "new_syn_packets": 0, "end_reason": 5}
    (alert,) = windows(SynRate(), attempts(3000, **gone))
    assert (alert.attempts, alert.failures) == (3000, 3000)
    old = attempts(3000, **gone, is_new=False, outcome_before=Outcome.SILENT)
    assert windows(SynRate(), old) == []
    (alert,) = windows(SynRate(), attempts(3000, **gone | {"outcome": Outcome.CUT}))
    assert (alert.attempts, alert.failures) == (
        3000,
        3000,
    )  # where a flood fills the table, no verdict is its mark


def test_clock_that_is_set_back() -> None:
    analyser = SynRate()
    assert windows(analyser, None, None) == []
    early = START - 3600 * NS
    assert states(windows(analyser, attempts(2000), attempts(2000), begin=early)) == [STARTED]


# The arithmetic, against slow references.

OUTCOMES = st.sampled_from([Outcome.NONE, Outcome.WAITING, *list(Outcome)[2:]])


@dataclass
class Slow:
    """One target, by the formulas at the head of syn_rate.py."""

    mean: float = 0.0
    variance: float = 0.0
    cusum: float = 0.0
    completed_before: float = 0.0

    def window(self, incomplete: int, completed: int, s: float, p: SynRateParameters) -> bool:
        busier = max(0.0, completed / s - self.completed_before)
        x = max(0.0, incomplete - 0.5 * busier) / s
        u = max(self.mean, p.minimum / (1 + p.alpha / 2))
        v = max(self.variance, u)
        grown = min(s * p.alpha * u / v * (x - u - p.alpha * u / 2), 0.6 * p.h * s)
        self.cusum = min(2 * p.h, max(0.0, self.cusum + grown))
        too_much = x * s > p.threshold * max(1.0, s) or (self.cusum >= p.h and x >= p.minimum)
        kept = p.beta**s
        self.variance = kept * self.variance + (1 - kept) * s * (x - self.mean) ** 2
        self.mean = kept * self.mean + (1 - kept) * x
        self.completed_before = completed / s
        return too_much


WINDOWS = st.lists(
    st.tuples(st.integers(-500, 3000), st.integers(0, 3000), st.sampled_from([0.5, 0.9, 1.0, 5.0, 60.0])),
    min_size=1,
    max_size=12,
)


@example(
    [[(903, 0, 0.5), (0, 0, 60.0), (1, 0, 60.0)]],
    SynRateParameters(minimum=1.0, alpha=0.1, beta=0.5, h=0.5),
)
@given(
    st.lists(WINDOWS, min_size=1, max_size=3),
    st.builds(
        SynRateParameters,
        minimum=st.sampled_from([1.0, 100.0, 700.0]),
        alpha=st.sampled_from([0.1, 0.5, 3.0]),
        beta=st.sampled_from([0.5, 0.98]),
        h=st.sampled_from([0.5, 5.0, 50.0]),
    ),
)
def test_change_detector_as_the_reference(series: list[Any], parameters: SynRateParameters) -> None:
    """As many targets as series, each with its own counts; the window's length is the first one's."""
    slow = [Slow() for _ in series]
    targets = np.zeros(len(series), syn_rate.TARGET)
    for number in range(min(map(len, series))):
        seconds = series[0][number][2]
        counts = [each[number][:2] for each in series]
        targets["incomplete"], targets["completed"] = zip(*counts, strict=True)
        found = judge(targets, seconds, parameters)
        learn(targets, seconds, parameters.beta)
        targets["completed_before"] = targets["completed"] / seconds
        expected = [one.window(*count, seconds, parameters) for one, count in zip(slow, counts, strict=True)]
        assert found.tolist() == expected
        for name in ("mean", "variance", "cusum"):
            assert targets[name].tolist() == pytest.approx(
                [getattr(one, name) for one in slow], rel=1e-9, abs=1e-9
            )


def test_limit_of_a_flood() -> None:
    targets = np.zeros(3, syn_rate.TARGET)
    targets["mean"] = [0, 400, 5000]
    assert limits(targets, DEFAULT).tolist() == [DEFAULT.minimum, 500, DEFAULT.threshold]


def test_usual_stands_still_in_a_flood() -> None:
    targets = np.zeros(2, syn_rate.TARGET)
    targets["incomplete"], targets["alarmed"] = 5000, [True, False]
    judge(targets, 1.0, DEFAULT)
    learn(targets, 1.0, DEFAULT.beta)
    assert (targets["mean"] > 0).tolist() == (targets["variance"] > 0).tolist() == [False, True]


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int, list[tuple[Outcome, int]]]]:
    """Biflows: port, source, and by pass the outcome and the SYNs that are new; no SYN after success."""
    made = []
    for number in range(draw(st.integers(1, 12))):
        passes = draw(st.lists(st.tuples(OUTCOMES, st.integers(0, 5)), min_size=1, max_size=4))
        succeeded = [outcome == Outcome.SUCCEEDED for outcome, _ in passes]
        after = succeeded.index(True) + 1 if any(succeeded) else len(passes)
        passes[0] = passes[0][0], max(1, passes[0][1])
        made.append((draw(st.sampled_from([22, 80])), number, passes[:after]))
    return made


def as_passes(flows: list[Any]) -> list[Array]:
    """The rows of each pass."""
    made = []
    for number in range(4):
        rows = [attempts(0)]
        for port, source, passes in flows:
            if number < len(passes):
                outcome, syns = passes[number]
                before = passes[number - 1][0] if number else Outcome.NONE
                sent = sum(syns for _, syns in passes[:number])
                row = attempts(1, ports=port, outcome=outcome, outcome_before=before, is_new=number == 0)
                row["source_address"] = ipv4(np.array([source]))
                row["forward_packets"], row["new_forward_packets"] = sent + syns, syns
                row["new_syn_packets"] = syns
                rows.append(row)
        made.append(np.concatenate(rows))
    return made


@given(histories())
def test_every_biflow_stands_for_what_it_sent_in_vain(flows: list[Any]) -> None:
    """Whatever became of a biflow in between, the last verdict and all of its SYNs count."""
    expected = Counter[int]()
    for port, _, passes in flows:
        syns = sum(syns for _, syns in passes)
        last = passes[-1][0]
        expected[port] += syns if last >= Outcome.HALF_OPEN else syns - 1 if last == Outcome.WAITING else 0
    analyser = SynRate()
    for rows in as_passes(flows):
        analyser.observe(Activity(rows, START, 1.0))
    ports = analyser._ports.rows
    found = Counter(dict(zip(ports["port"].tolist(), ports["incomplete"].tolist(), strict=True)))
    assert +found == +expected
    assert analyser._hosts.rows["incomplete"].sum() == expected.total()


@settings(max_examples=30)
@given(histories(), st.lists(st.integers(0, 12), max_size=3), st.sampled_from([1, 3]))
def test_splitting_what_is_observed_changes_nothing(flows: list[Any], cuts: list[int], seconds: int) -> None:
    parameters = SynRateParameters(threshold=4, minimum=1, h=0.5, few_sources=2, quiet=1)
    whole, split = SynRate(parameters), SynRate(parameters)
    at = START
    for rows in as_passes(flows):
        at += seconds * NS
        whole.observe(Activity(rows, at, seconds))
        for part in np.split(rows, sorted(cuts)):
            split.observe(Activity(part, at, seconds))
        assert unnamed(split.assess(at)) == unnamed(whole.assess(at))
        assert split.gauges() == whole.gauges()
    assert unnamed(split.finish(at)) == unnamed(whole.finish(at))


def unnamed(said: list[Alert]) -> list[Alert]:
    return [replace(alert, alert_id="") for alert in said]


# What it remembers is bounded.


def test_targets_are_bounded_and_the_least_go() -> None:
    analyser = SynRate(SynRateParameters(most=3, quiet=60))
    rows = np.concatenate([attempts(2000)] + [attempts(number, ports=number) for number in range(1, 9)])
    said = windows(analyser, rows, *[attempts(50, ports=port) for port in range(1000, 1010)])
    assert states(said)[0] == STARTED
    assert len(analyser._ports.rows) == 3
    assert 80 in analyser._ports.rows["port"]  # in a flood
    assert analyser.gauges()["targets"] == 4
    assert analyser.gauges()["targets_evicted"] == 6 + 10


def test_who_only_succeeds_is_forgotten_uncounted() -> None:
    analyser = SynRate(SynRateParameters(most=3))
    windows(analyser, attempts(50, ports=np.arange(50), outcome=Outcome.SUCCEEDED))
    assert (analyser.gauges()["targets"], analyser.gauges()["targets_evicted"]) == (4, 0)
    windows(analyser, None, None, begin=START + NS)
    assert analyser.gauges()["targets"] == 0


def test_idle_targets_are_forgotten() -> None:
    analyser = SynRate()
    windows(analyser, attempts(90))
    windows(analyser, *[None] * 20, seconds=60, begin=START + NS)
    assert analyser.gauges()["targets"] == 0


@given(st.lists(st.dictionaries(st.integers(1, 20), st.integers(1, 9), min_size=1), max_size=6))
def test_table_as_a_dictionary(additions: list[dict[int, int]]) -> None:
    table, expected = Targets(100), defaultdict(int)
    for each in additions:
        new = np.zeros(len(each), syn_rate.TARGET)
        new["key"] = sorted(each)
        new["incomplete"] = [each[key] for key in sorted(each)]
        table.add(new)
        for key, count in each.items():
            expected[key] += count
    assert dict(zip(table.rows["key"].tolist(), table.rows["incomplete"].tolist(), strict=True)) == expected
    assert table.rows["key"].tolist() == sorted(expected)


def test_victims_are_bounded_and_known_ones_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syn_rate, "VICTIMS_MOST", 2)
    analyser = SynRate()
    first = np.concatenate([attempts(2000), attempts(3000, victim=OTHER)])
    later = np.concatenate([first, attempts(9000, victim="198.51.100.9")])
    assert {alert.victim for alert in windows(analyser, first, later)} == {VICTIM, OTHER}
    assert analyser.gauges()["victims_overlooked"] == 1
    said = windows(analyser, *[later] * 6, begin=START + 2 * NS)
    assert ENDED not in states(said)


def test_too_many_few_sources() -> None:
    with pytest.raises(ValueError, match="few_sources: expected a whole number below 16, not 16"):
        SynRateParameters(few_sources=16)
