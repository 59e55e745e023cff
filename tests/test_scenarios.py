"""Scenarios for detectors: the packets are right, the truth is true, and scores are what they are called."""

from __future__ import annotations

import json
import struct
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import Ether

from flowmon.analysers.alerts import ENDED, Alert
from flowmon.analysers.parameters import KINDS

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import detection
import detection_scores as scores
import scenario_packets as packets
import scenario_stage as stage
import scenario_truth as truth
import scenarios
from detection_scores import Said, Score
from scenario_truth import FANOUT, SYN_RATE, WALK, Attack, Probes, Thresholds
from scenarios import Scenario

NS = 1_000_000_000
SEEDS = range(40)


@pytest.fixture(scope="module")
def made() -> list[Scenario]:
    return [scenarios.scenario(seed) for seed in SEEDS]


# --- the packets ---


def test_seed_decides(made: list[Scenario]) -> None:
    again = scenarios.scenario(SEEDS[3])
    assert (again.packets.tobytes(), again.attacks, again.benign) == (
        made[3].packets.tobytes(),
        made[3].attacks,
        made[3].benign,
    )
    assert len({one.packets.tobytes() for one in made}) == len(made)


def frames(path: Path) -> list[tuple[int, int, bytes]]:
    """Time in ns, length on the wire and octets, as the format's manual page says (pcap-savefile)."""
    content, found, at = path.read_bytes(), [], 24
    magic, _, _, _, _, _, link_type = struct.unpack("<IHHiIII", content[:24])
    assert (magic, link_type) == (0xA1B23C4D, 1)
    while at < len(content):
        seconds, nanoseconds, captured, wire = struct.unpack("<IIII", content[at : at + 16])
        found.append((seconds * NS + nanoseconds, wire, content[at + 16 : at + 16 + captured]))
        at += 16 + captured
    return found


def described(wire: int, octets: bytes) -> tuple[object, ...]:
    """What Scapy sees: addresses, ports and the rest of a row's columns; asserts the lengths."""
    ether = Ether(octets)
    ip = ether[IPv6] if ether.type == 0x86DD else ether[IP]
    of_ip = ip.plen + 40 if ip.version == 6 else ip.len
    assert wire == 14 + of_ip
    header = 40 if ip.version == 6 else 20
    if TCP in ip:
        tcp = ip[TCP]
        assert tcp.dataofs == 5
        what = ("tcp", tcp.sport, tcp.dport, int(tcp.flags), tcp.seq, tcp.ack, of_ip - header - 20)
    elif UDP in ip and ip.payload.name == "UDP":
        assert ip[UDP].len == of_ip - header
        what = ("udp", ip[UDP].sport, ip[UDP].dport, of_ip - header - 8)
    elif ICMPv6DestUnreach in ip or UDPerror in ip:
        code = ip[ICMPv6DestUnreach].code if ip.version == 6 else (ip[ICMP].type, ip[ICMP].code)
        assert code == (4 if ip.version == 6 else (3, 3))
        inner = ip[UDPerror]
        quoted = inner.underlayer
        assert (quoted.src, quoted.dst) == (ip.dst, ip.src)
        what = ("unreachable", inner.sport, inner.dport, inner.len - 8)
    else:
        echo = ip[ICMP] if ip.version == 4 else ip.payload
        is_request = echo.type in (8, 128)
        assert is_request or echo.type in (0, 129)
        what = ("request" if is_request else "reply", echo.id, echo.seq, of_ip - header - 8)
    return ip.src, ip.dst, *what


def expected(row: np.void) -> tuple[object, ...]:
    source, destination = packets.address_texts(np.stack([row["source"], row["destination"]]))
    ports = int(row["source_port"]), int(row["destination_port"])
    octets = int(row["payload"])
    if row["protocol"] == 6:
        what = ("tcp", *ports, int(row["flags"]), int(row["seq"]), int(row["ack"]), octets)
    elif row["protocol"] == 17:
        what = ("udp", *ports, octets)
    elif row["icmp_type"] in (3, 1):
        what = ("unreachable", *ports, octets)
    else:
        kind = "request" if row["icmp_type"] in (8, 128) else "reply"
        what = (kind, ports[0], int(row["seq"]), octets)
    return source, destination, *what


def test_capture_holds_the_packets(made: list[Scenario], tmp_path: Path) -> None:
    seen: Counter[tuple[object, int]] = Counter()
    for one in made[:25]:
        scenarios.write_pcap(one, tmp_path / "pcap")
        written = frames(tmp_path / "pcap")
        assert [at for at, _, _ in written] == one.packets["time_ns"].tolist()
        # Some of each kind: Scapy takes its time.
        kinds = np.column_stack([one.packets[name] for name in ("protocol", "icmp_type")])
        for kind in np.unique(kinds, axis=0):
            for index in np.flatnonzero((kinds == kind).all(axis=1))[:: 1 << 9][:12]:
                _, wire, octets = written[index]
                assert described(wire, octets) == expected(one.packets[index])
                seen[tuple(kind.tolist())] += 1
    assert {(6, 0), (17, 0), (1, 8), (1, 0), (1, 3), (58, 128), (58, 129)} <= set(seen)


def test_multicast_goes_to_the_group_s_ethernet_address(tmp_path: Path) -> None:
    groups = packets.mapped(["224.0.0.251", "ff02::fb"])
    rows = np.zeros(2, packets.PACKET)
    rows["source"], rows["destination"] = packets.mapped(["192.0.2.1", "fe80::1"]), groups
    rows["protocol"] = 17
    packets.write_pcap(rows, tmp_path / "pcap")
    assert [octets[:6].hex() for _, _, octets in frames(tmp_path / "pcap")] == [
        "01005e0000fb",
        "3333000000fb",
    ]


@pytest.mark.parametrize(
    "steps",
    [
        stage.session(300, [1448, 900]),
        stage.UNANSWERED,
        stage.REFUSED,
        [*stage.handshake(), packets.Step(False, packets.RST | packets.ACK)],
    ],
)
def test_tcp_counts_what_was_sent(steps: list[packets.Step]) -> None:
    random = np.random.default_rng(1)
    client, server = packets.mapped(["192.0.2.1", "192.0.2.2"])[:, None, :]
    one = np.ones(1, "i8")
    ends = packets.Ends(client, server, one * 1000, one * 80, one * 5, one * 10_000_000)
    rows = packets.tcp(random, ends, steps)
    assert (np.diff(rows["time_ns"]) > 0).all()
    following: dict[bool, int] = {}  # the next sequence number of each side
    for row, step in zip(rows, steps, strict=True):
        seq, side = int(row["seq"]), step.forward
        if side in following and not step.again:
            assert seq == following[side]
        following[side] = (seq + step.payload + bool(step.flags & 2) + bool(step.flags & 1)) % 2**32
        if step.flags & 16:
            assert row["ack"] == following[not side]
        else:
            assert row["ack"] == 0


# --- what is in them ---


def test_scenarios_are_what_they_promise(made: list[Scenario]) -> None:
    for one in made:
        times = one.packets["time_ns"]
        assert (np.diff(times) >= 0).all()
        assert 500 < len(times) < 40_000
        assert 2 <= len(one.families) <= 5
        assert times[-1] - times[0] < 91 * NS
        assert one.hard <= one.benign
        assert bool(one.hard) == bool(scenarios.HARD & set(one.families))
        present = set(packets.address_texts(np.unique(one.packets["source"], axis=0)))
        assert {attack.source for attack in one.attacks if "/" not in attack.source} - {""} <= present
        assert len(one.benign & present) > 0.9 * len(one.benign)
        for attack in one.attacks:
            assert not one.benign & {attack.source, *attack.others}
            assert times[0] <= attack.start_ns <= attack.end_ns <= times[-1] - 5 * NS
            assert all(attack.start_ns <= at <= attack.end_ns for at in attack.crossings.values())
            assert attack.crossings


def test_every_family_and_attack_occurs(made: list[Scenario]) -> None:
    assert set(scenarios.BENIGN) == {family for one in made for family in one.families}
    first_words = {attack.kind.split()[0] for one in made for attack in one.attacks}
    assert {"syn", "connect", "mass", "slow", "rotating", "udp", "ping", "flood"} <= first_words
    counts = Counter(len(one.attacks) for one in made)
    assert counts[0] > 2
    assert counts[1] > counts[2] > counts[0]
    versions = {packets.is_ipv4(one.packets["source"]).any() for one in made}
    assert versions == {True}


def test_slow_scans_hold_the_threshold_in_no_window(made: list[Scenario]) -> None:
    slow = [attack for one in made for attack in one.attacks if attack.kind == "slow"]
    assert slow
    assert {attack.detectors for attack in slow} == {(WALK,)}


def test_unreachables_come_once_a_second(made: list[Scenario]) -> None:
    seen = 0
    for one in made:
        is_error = np.isin(one.packets["protocol"], (1, 58)) & np.isin(one.packets["icmp_type"], (3, 1))
        errors = one.packets[is_error]
        for host in np.unique(errors["source"], axis=0):
            times = errors["time_ns"][(errors["source"] == host).all(axis=1)]
            seen += len(times)
            assert len(times) <= (times[-1] - times[0]) / NS + 2
    assert seen > 10


# --- the truth ---


def test_thresholds_are_the_detectors_defaults() -> None:
    fanout = KINDS[FANOUT].parameters_class()()
    walk = KINDS[WALK].parameters_class()()
    flood = KINDS[SYN_RATE].parameters_class()()
    limits = Thresholds()
    assert (limits.window_s, limits.ports, limits.hosts) == (fanout.window, fanout.ports, fanout.hosts)
    assert limits.ratio == pytest.approx(walk.beta / walk.alpha)
    assert limits.step == pytest.approx((1 - walk.theta1) / (1 - walk.theta0))
    assert limits.step == pytest.approx(walk.theta0 / walk.theta1)
    assert (limits.syn_rate, limits.few_sources) == (flood.minimum, flood.few_sources)


tried = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=40
).map(lambda rows: list({row[1:3]: row for row in sorted(rows)}.values()))


def probes(rows: list[tuple[int, int, int, bool]]) -> Probes:
    """Of (seconds, host, port, did it fail?), in order of time."""
    rows = sorted(rows)
    hosts = np.zeros((len(rows), 16), "u1")
    hosts[:, 15] = [host for _, host, _, _ in rows]
    columns = [np.array([row[column] for row in rows], "i8") for column in (0, 2)]
    return Probes(columns[0] * NS, hosts, columns[1], np.array([row[3] for row in rows], bool))


@settings(max_examples=200)
@given(tried, st.integers(1, 4), st.integers(1, 4))
def test_fanout_is_crossed_when_a_window_holds_enough(
    rows: list[tuple[int, int, int, bool]], ports: int, hosts: int
) -> None:
    def is_crossed(at: int) -> bool:
        window = [row for row in rows if at - 5 <= row[0] <= at and row[3]]
        by_host, by_port = defaultdict(set), defaultdict(set)
        for _, host, port, _ in window:
            by_host[host].add(port)
            by_port[port].add(host)
        return any(len(one) >= ports for one in by_host.values()) or any(
            len(one) >= hosts for one in by_port.values()
        )

    crossed = [at for at in range(13) if is_crossed(at)]
    limits = Thresholds(window_s=5, ports=ports, hosts=hosts)
    assert truth.fanout_crossing(probes(rows), limits) == (crossed[0] * NS if crossed else None)


@given(st.lists(st.booleans(), max_size=60))
def test_walk_is_by_steps_between_two_walls(outcomes: list[bool]) -> None:
    level, crossed = 0, []
    for at, failed in enumerate(outcomes):
        level = max(level + (1 if failed else -1), -7)
        if level == 7:  # 4^7 is more than 9999, and 4^6 is less
            crossed.append(at)
    found = truth.walk_crossing(
        probes([(at, at, 80, failed) for at, failed in enumerate(outcomes)]), Thresholds()
    )
    assert found == (crossed[0] * NS if crossed else None)


def test_walk_takes_each_service_once() -> None:
    rows = [(at, 1, at % 6, True) for at in range(99)]
    assert truth.walk_crossing(probes(rows), Thresholds()) is None
    assert truth.walk_crossing(probes([*rows, (99, 1, 7, True)]), Thresholds()) == 99 * NS


@given(st.lists(st.integers(0, 3 * NS), max_size=30))
def test_rate_is_of_any_second(times: list[int]) -> None:
    times.sort()
    crossed = [at for at in times if sum(at - NS <= one <= at for one in times) > 5]
    found = truth.rate_crossing(np.array(times, "i8"), Thresholds(syn_rate=5))
    assert (found is None) == (not crossed)
    assert found is None or found == crossed[0]


# --- scores ---

START = stage.START_NS
SCAN = Attack("syn vertical T4", "198.51.100.1", "10.0.0.9", START, START + 10 * NS, {FANOUT: START + NS})
ROTATING = Attack("rotating", "2001:db8:1:2::/64", "", START, START + 10 * NS, {FANOUT: START, WALK: START})
FLOOD = Attack("flood spoofed", "", "10.0.0.5", START, START + 10 * NS, {SYN_RATE: START + NS})
FEW = replace(FLOOD, kind="flood few", victim="10.0.0.6", others=frozenset({"198.51.100.7"}))
TRUTH = Scenario(
    seed=0,
    packets=np.zeros(0, packets.PACKET),
    attacks=(SCAN, ROTATING, FLOOD, FEW),
    benign=frozenset({"10.0.0.1", "10.0.0.2", "2001:db8::1"}),
    hard=frozenset({"10.0.0.2"}),
    families=(),
)


def said(second: float, source: str = "", victim: str = "", alert_id: str | None = None) -> Said:
    at = START + int(second * NS)
    alert = Alert(detector=FANOUT, kind="", start_ns=at, end_ns=at, source=source, victim=victim)
    return Said(at, replace(alert, alert_id=alert_id or f"{second} {source} {victim}"))


@pytest.mark.parametrize(
    ("alert", "verdict"),
    [
        (said(2, "198.51.100.1"), "right"),
        (said(2, "198.51.100.1", "10.0.0.1"), "right"),
        (said(69.9, "198.51.100.1"), "right"),
        (said(70.1, "198.51.100.1"), "other"),
        (said(-1, "198.51.100.1"), "other"),
        (said(2, "198.51.100.0/24"), "right"),
        (said(2, "", "10.0.0.9"), "right"),
        (said(2, "10.0.0.1", "10.0.0.9"), "benign"),
        (said(2, "10.0.0.2"), "hard"),
        (said(2, "10.0.0.0/24"), "hard"),
        (said(2, "", "10.0.0.1"), "benign"),
        (said(2, "192.0.2.1"), "other"),
        (said(2), "other"),
        (said(2, "2001:db8:1:2::77"), "right"),
        (said(2, "2001:db8:1:2::/64"), "right"),
        (said(2, "2001:db8:1:3::77"), "other"),
        (said(2, "2001:db8::/64"), "benign"),
        (said(2, "", "10.0.0.5"), "right"),
        (said(2, "192.0.2.77", "10.0.0.5"), "right"),  # one of those that are forged
        (said(2, "10.0.0.1", "10.0.0.5"), "benign"),  # a client of the victim
        (said(2, "198.51.100.7"), "right"),
        (said(2, "192.0.2.77", "10.0.0.6"), "other"),
        (said(2, "", "10.0.0.0/30"), "hard"),
    ],
)
def test_verdict(alert: Said, verdict: str) -> None:
    (event,) = scores.events([alert])
    assert scores.verdict(event, TRUTH) == verdict


def test_score_of_a_detector() -> None:
    alerts = [
        said(3, "198.51.100.1", alert_id="a"),
        said(1.5, "198.51.100.1", alert_id="b"),
        said(4, "198.51.100.1", alert_id="b"),
        said(5, "10.0.0.1"),
        said(6, "10.0.0.1"),
        said(7, "10.0.0.2"),
        said(8, "192.0.2.1"),
    ]
    alerts[2] = replace(alerts[2], alert=replace(alerts[2].alert, state=ENDED))
    one = scores.score(FANOUT, alerts, TRUTH)
    assert one.events == {"right": 1, "again": 1, "benign": 2, "hard": 1, "other": 1}
    assert (one.expected, one.found) == ({"syn": 1, "rotating": 1}, {"syn": 1})
    assert one.delays_s == (0.5,)
    assert (one.recall, one.precision, one.precision_with_hard) == (1 / 2, 1 / 4, 1 / 5)
    assert (one.efficiency, one.effectiveness) == (1 / 4, 1 / 2)  # four are named, two scan
    assert (one.false_positive_rate, one.false_positive_rate_with_hard) == (1 / 2, 2 / 3)


def test_finding_what_another_is_to_find_is_right_but_no_merit() -> None:
    one = scores.score(WALK, [said(2, "198.51.100.1")], TRUTH)
    assert (one.events, one.expected, one.found) == ({"right": 1}, {"rotating": 1}, {})
    assert (one.efficiency, one.effectiveness) == (1, 1 / 2)


def test_scores_add_up_and_nothing_is_nothing() -> None:
    one = scores.score(FANOUT, [said(2, "198.51.100.1"), said(5, "10.0.0.1")], TRUTH)
    two = scores.score(FANOUT, [said(4, "2001:db8:1:2::1")], TRUTH)
    both = one + two
    assert both.events == {"right": 2, "benign": 1}
    assert both.recall == 1 / 2
    assert both.delay_s == (2.5, pytest.approx(3.85))
    assert one + Score() == one
    empty = Score()
    assert (empty.recall, empty.precision, empty.efficiency, empty.delay_s) == (None,) * 4


def test_tables_have_a_row_a_detector_and_json_a_curve() -> None:
    one = scores.score(FANOUT, [said(2, "198.51.100.1"), said(5, "10.0.0.1")], TRUTH)
    totals = {(FANOUT, "default"): one, (FANOUT, "5 hosts"): one + one, (WALK, "default"): Score()}
    tables = "\n".join(detection.markdown(totals)).split("\n\n")
    rows = [[line.count("|") for line in table.splitlines()] for table in tables]
    assert [len(set(widths)) for widths in rows] == [1, 1, 1]
    assert [len(widths) - 2 for widths in rows] == [2, 2, 3]  # detectors, kinds, variants
    assert f"| {FANOUT} | 2 | 1 | 50.0 % | 2 | 0 | 50.0 % |" in tables[0]
    assert f"| {FANOUT} | 5 hosts | 50.0 % |" in tables[2]
    read = json.loads(json.dumps(detection.as_json(totals)))
    assert [(each["detector"], each["recall"]) for each in read] == [
        (FANOUT, 0.5),
        (FANOUT, 0.5),
        (WALK, None),
    ]


def test_every_variant_can_be_made() -> None:
    made = [(one.detector, one.analyser().name) for one in detection.variants(quick=False)]
    assert all(detector == name for detector, name in made)
    assert min(Counter(detector for detector, _ in made).values()) >= 6


def test_recorder_notes_when_something_was_said() -> None:
    class Talkative:
        name = "talkative"

        def assess(self, now_ns: int) -> list[Alert]:
            return [said(now_ns).alert]

        finish = assess

    recorder = detection.Recorder(Talkative())
    assert recorder.assess(1) + recorder.finish(2) == [one.alert for one in recorder.said]
    assert [one.at_ns for one in recorder.said] == [1, 2]
