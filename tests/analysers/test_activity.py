"""The verdicts against the rules written out a biflow at a time, over passes that a real collector makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_table import FakeTable
from flowmon.analysers import activity
from flowmon.analysers.activity import (
    ACK,
    ACTIVITY,
    FIN,
    PSH,
    RST,
    SYN,
    URG,
    Activity,
    Outcome,
    Probe,
    Seen,
    Tracker,
    failed,
    identity,
    new_connections,
)
from flowmon.biflow import pair
from flowmon.collector import Collector, CollectorOptions
from flowmon.expiry import EndReason, Timeouts
from flowmon.kernel.flow_table import WATCHED_STATE
from samples import NS, key, turned

A, B, ROUTER = "192.0.2.1", "198.51.100.2", "203.0.113.9"
A6, B6 = "2001:db8::1", "2001:db8:ffff::2"
TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
ECHO, ECHO_V6, PORT_UNREACHABLE, HOST_UNREACHABLE = 8 << 8, 128 << 8, 3 << 8 | 3, 3 << 8 | 1
OFFSET_NS = 1_000_000 * NS
NOTHING = (Outcome.NONE, Probe.NONE)
DEFAULT = Timeouts()


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

    def reserve(self, rows: int) -> None: ...

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


# --- examples ---


@dataclass(frozen=True)
class Story:
    """Packets (seconds, whether it is an answer, flags), a look at the end, and the verdict."""

    packets: Sequence[tuple[float, bool, int]]
    look_at: float
    outcome: Outcome
    probe: Probe
    one: np.ndarray = field(default_factory=lambda: HTTP)


def tcp(*flags: int, of: float = 0.01) -> list[tuple[float, bool, int]]:
    """Packets to and fro, so many seconds apart: a negative one comes back."""
    return [(of * number, each < 0, abs(each)) for number, each in enumerate(flags)]


OK, SILENT, REFUSED, HALF = Outcome.SUCCEEDED, Outcome.SILENT, Outcome.REFUSED, Outcome.HALF_OPEN
SA, PA, RA, FA = SYN | ACK, PSH | ACK, RST | ACK, FIN | ACK
ONE_WAY = [(0.0, False, 0)]
BOTH_WAYS = [(0.0, False, 0), (0.01, True, 0)]

STORIES = {
    # attempts
    "handshake": Story(tcp(SYN, -SA, ACK), 0.03, OK, Probe.SYN),
    "handshake under way": Story(tcp(SYN, -SA), 0.03, Outcome.WAITING, Probe.SYN),
    "handshake not completed": Story(tcp(SYN, -SA), 1, HALF, Probe.SYN),
    "SYN scan, open": Story(tcp(SYN, -SA, RST), 0.03, HALF, Probe.SYN),
    "SYN scan, closed": Story(tcp(SYN, -RA), 0.03, REFUSED, Probe.SYN),
    "SYN, no answer yet": Story(tcp(SYN), 0.4, Outcome.WAITING, Probe.SYN),
    "SYN, no answer": Story(tcp(SYN), 1, Outcome.UNANSWERED, Probe.SYN),
    "SYN, silence": Story(tcp(SYN, SYN, of=1), 3.1, SILENT, Probe.SYN),
    "SYN sent again, answered": Story([*tcp(SYN, SYN, of=1), (2, True, SA), (2.1, False, ACK)], 4, OK, Probe.SYN),
    "ACK scan": Story(tcp(ACK, -RST), 0.03, REFUSED, Probe.ACK),
    "ACK scan, silence; or a keepalive, and the peer has gone": Story(tcp(ACK), 4, SILENT, Probe.ACK),
    "data sent again, the peer has gone": Story(tcp(ACK, ACK, of=2), 4, SILENT, Probe.ACK),
    "NULL scan": Story(tcp(0, -RA), 0.03, REFUSED, Probe.NULL),
    "FIN scan, with ECN": Story(tcp(FIN | 0xC0), 4, SILENT, Probe.FIN),
    "both open at once, then a reset": Story(tcp(SYN, -SYN, -RST), 4, *NOTHING),
    "FIN scan": Story(tcp(FIN), 4, SILENT, Probe.FIN),
    "Xmas scan": Story(tcp(FIN | PSH | URG), 4, SILENT, Probe.XMAS),
    "TCP to a host .255": Story(tcp(SYN), 4, SILENT, Probe.SYN, talk(A, "10.0.0.255", TCP, (40000, 80))),
    "UDP": Story(BOTH_WAYS, 0.1, OK, Probe.UDP, DNS),
    "UDP, silence": Story(ONE_WAY, 4, SILENT, Probe.UDP, DNS),
    "mDNS asked of one": Story(BOTH_WAYS, 4, OK, Probe.UDP, talk(A, B, UDP, (5353, 5353))),
    "QUIC": Story(BOTH_WAYS, 4, OK, Probe.UDP, TALKS["quic"]),
    "ping": Story(BOTH_WAYS, 0.1, OK, Probe.PING, PING),
    "ping with identifier 0, silence": Story(ONE_WAY, 4, SILENT, Probe.PING, talk(A, B, ICMP, (0, ECHO))),
    # health checks
    "check that closes": Story(tcp(SYN, -SA, ACK, FA, -FA, ACK), 0.1, OK, Probe.SYN),
    "check that resets with ACK": Story(tcp(SYN, -SA, RA), 0.1, OK, Probe.SYN),
    # no attempts
    "keepalive": Story(tcp(ACK, -ACK), 4, *NOTHING),
    "keepalive, then the server gives up": Story([*tcp(ACK, -ACK), (2, True, RA)], 4, *NOTHING),
    "closing after a pause": Story(tcp(FA, -FA, ACK), 4, *NOTHING),
    "closing after a pause, refused": Story(tcp(FA, -RST), 4, *NOTHING),
    "closing after a pause, silence": Story(tcp(FA), 4, *NOTHING),
    "the middle of a connection": Story(tcp(PA, -ACK, -PA, ACK), 4, *NOTHING),
    "the middle, then a reset": Story(tcp(PA, -ACK, -RA), 4, *NOTHING),
    "many ACKs, the peer has gone": Story(tcp(ACK, ACK, ACK), 4, *NOTHING),
    "many ACKs, then a reset": Story(tcp(ACK, ACK, ACK, -RST), 4, *NOTHING),
    "backscatter": Story(tcp(SA), 4, *NOTHING),
    "backscatter, refused by who never asked": Story(tcp(SA, -RST), 4, *NOTHING),
    "from the server's SYN on, then a reset": Story(tcp(SA, -ACK, -PA, -RA), 4, *NOTHING),
    "one way of a connection": Story(tcp(SYN, ACK, PA), 4, *NOTHING),
    "multicast": Story(ONE_WAY, 4, *NOTHING, TALKS["multicast"]),
    "multicast, IPv6": Story(ONE_WAY, 4, *NOTHING, TALKS["multicast, IPv6"]),
    "broadcast": Story(ONE_WAY, 4, *NOTHING, TALKS["broadcast"]),
    "broadcast to all": Story(ONE_WAY, 4, *NOTHING, talk("0.0.0.0", "255.255.255.255", UDP, (68, 67))),
    "ping of all": Story(ONE_WAY, 4, *NOTHING, talk(A, "192.0.2.255", ICMP, (5, ECHO))),
    "what SSDP answers": Story(ONE_WAY, 4, *NOTHING, TALKS["ssdp"]),
    "what DHCP offers": Story(ONE_WAY, 4, *NOTHING, talk("192.0.2.254", A, UDP, (67, 68))),
    "traceroute": Story(ONE_WAY, 4, *NOTHING, TALKS["traceroute"]),
    "fragments of UDP without their first": Story(ONE_WAY, 4, *NOTHING, talk(B, A, UDP, (0, 0))),
    "fragments of TCP without their first": Story(ONE_WAY, 4, *NOTHING, TALKS["fragments"]),
    "QUIC, silence": Story(ONE_WAY, 4, *NOTHING, TALKS["quic"]),
    "SCTP": Story(ONE_WAY, 4, *NOTHING, TALKS["sctp"]),
    "time exceeded": Story(ONE_WAY, 4, *NOTHING, talk(ROUTER, A, ICMP, (0, 11 << 8))),
}  # fmt: skip


@pytest.mark.parametrize("name", STORIES)
def test_verdict(name: str) -> None:
    story, scene = STORIES[name], Scene(Timeouts(linger_ns=10 * NS))
    for second, is_answer, flags in story.packets:
        scene.now = 100 + second
        scene.packet(answer(story.one) if is_answer else story.one, flags)
    scene.now = 100 + story.look_at
    (row,) = scene.look().rows
    assert (Outcome(row["outcome"]), Probe(row["probe"])) == (story.outcome, story.probe)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        ("unreachable", REFUSED),  # the destination says so
        ("router", SILENT),
    ],
)
def test_unreachable(error: str, outcome: Outcome) -> None:
    scene = Scene()
    scene.packet(DNS)
    scene.packet(TALKS[error])
    scene.now = 104
    rows = scene.look().rows
    assert rows["outcome"][rows["protocol"] == UDP].tolist() == [outcome]
    assert rows["probe"][rows["protocol"] == ICMP].tolist() == [Probe.NONE]


def test_silence_is_told_again_while_nothing_moves() -> None:
    scene, told = Scene(), []
    scene.packet(HTTP, SYN)
    for second in (100.1, 100.4, 100.6, 101, 103.1, 105, 115.5):
        scene.now = second
        told += [
            (second, row["outcome_before"], row["outcome"], row["end_reason"]) for row in scene.look().rows
        ]
    assert told == [
        (100.1, Outcome.NONE, Outcome.WAITING, EndReason.GOES_ON),
        (100.6, Outcome.WAITING, Outcome.UNANSWERED, EndReason.GOES_ON),
        (103.1, Outcome.UNANSWERED, SILENT, EndReason.GOES_ON),
        (115.5, SILENT, SILENT, EndReason.IDLE),
    ]


@pytest.mark.parametrize(
    ("packets", "outcome"), [((SYN, -SA), HALF), ((SYN, -RA), REFUSED), ((SYN,), Outcome.UNANSWERED)]
)
def test_what_is_forced_to_an_end_is_judged_as_it_stands(packets: Sequence[int], outcome: Outcome) -> None:
    scene = Scene()
    for flags in packets:
        scene.packet(HTTP if flags > 0 else answer(HTTP), abs(flags))
    rows = scene.look(everything=True).rows
    assert (rows["outcome"].tolist(), rows["end_reason"].tolist()) == ([outcome], [EndReason.FORCED])


def cut(scene: Scene) -> Activity:
    """What is told where one directed flow is too many, which ends a biflow at least."""
    return scene.look(excess=1)


@pytest.mark.parametrize(
    ("packets", "waits", "outcome"),
    [
        ((SYN,), 0.1, Outcome.CUT),
        ((SYN,), 0.6, Outcome.UNANSWERED),
        ((SYN,), 3.1, SILENT),
        ((SYN, -SA), 0.1, Outcome.CUT),
        ((SYN, -SA), 0.6, HALF),
        ((SYN, -SA, RST), 0.1, HALF),
        ((SYN, -SA, ACK), 0.1, OK),
        ((SYN, -RA), 0.1, REFUSED),
        ((PA, -ACK), 0.1, Outcome.NONE),
    ],
)
def test_what_is_cut_for_lack_of_room(packets: Sequence[int], waits: float, outcome: Outcome) -> None:
    """What went before counts; but that it was cut says nothing of an answer."""
    scene = Scene()
    for flags in packets:
        scene.packet(HTTP if flags > 0 else answer(HTTP), abs(flags))
    scene.now += waits
    rows = cut(scene).rows
    assert (rows["outcome"].tolist(), rows["end_reason"].tolist()) == (
        [outcome],
        [EndReason.LACK_OF_RESOURCES],
    )
    assert failed(rows).tolist() == [outcome not in (OK, Outcome.CUT, Outcome.NONE)]


def test_handshake_that_goes_on_after_it_was_cut_is_no_attempt_of_the_server() -> None:
    scene = Scene()
    scene.packet(HTTP, SYN)
    assert cut(scene).rows["outcome"].tolist() == [Outcome.CUT]
    for one, flags in ((answer(HTTP), SA), (HTTP, ACK), (HTTP, PA), (answer(HTTP), PA)):
        scene.packet(one, flags)
    scene.now += 4
    (row,) = scene.look().rows
    assert (Outcome(row["outcome"]), Probe(row["probe"])) == NOTHING


def test_last_ack_of_a_connection_that_was_cut_is_no_attempt_of_the_server() -> None:
    scene = Scene()
    for one, flags in ((HTTP, SYN), (answer(HTTP), SA), (HTTP, ACK), (HTTP, PA)):
        scene.packet(one, flags)
    assert cut(scene).rows["outcome"].tolist() == [OK]
    scene.packet(answer(HTTP), ACK)
    scene.now += 4
    (row,) = scene.look().rows
    assert (Outcome(row["outcome"]), Probe(row["probe"])) == NOTHING


def resolver() -> tuple[list[np.ndarray], Scene]:
    """Questions to a resolver, all cut before it answers."""
    questions = [talk(A, B, UDP, (40000 + number, 53)) for number in range(50)]
    scene = Scene()
    for one in questions:
        scene.packet(one)
    rows = scene.look(excess=len(questions)).rows
    assert (len(rows), {*rows["outcome"].tolist()}) == (len(questions), {Outcome.CUT})
    return questions, scene


@pytest.mark.parametrize("looks", [0, 1, 40])
def test_answers_after_their_questions_were_cut_are_no_attempts_of_the_resolver(looks: int) -> None:
    """Each is a new biflow, whose source is the resolver; nothing will come of it, at any time."""
    questions, scene = resolver()
    for _ in range(looks):
        scene.now += 2.5 / looks
        scene.look()
    for one in questions:
        scene.packet(answer(one))
    rows = []
    for wait in (0.1, 0.6, 3, 3, 30):
        scene.now += wait
        rows += scene.look().rows.tolist()
    told = np.array(rows, ACTIVITY)
    assert told["is_new"].sum() == len(questions)
    assert (told["source_address"] == questions[0]["destination_address"]).all()
    assert {*told["outcome"].tolist(), *told["probe"].tolist()} == {0}


def test_what_was_cut_is_not_remembered_for_long() -> None:
    """As what began anew with the same addresses and ports is an attempt."""
    questions, scene = resolver()
    for _ in range(3):
        scene.now += 3
        scene.look()
    for one in questions:
        scene.packet(one)
    scene.now += 3
    assert {*scene.look().rows["outcome"].tolist()} == {SILENT}


def test_question_that_was_answered_is_not_remembered_as_cut() -> None:
    scene = Scene()
    for one in (DNS, answer(DNS)):
        scene.packet(one)
    assert cut(scene).rows["outcome"].tolist() == [OK]
    scene.packet(DNS)
    scene.now += 0.6
    assert scene.look().rows["outcome"].tolist() == [Outcome.UNANSWERED]


def test_memory_of_what_was_cut_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "CUT_MOST", 20)
    questions, scene = resolver()
    for one in questions:
        scene.packet(answer(one))
    assert Counter(scene.look().rows["probe"].tolist()) == {Probe.NONE: 20, Probe.UDP: 30}


def test_packet_that_came_after_the_reading_is_not_old() -> None:
    scene = Scene()
    scene.table.packet(HTTP, scene.now + 0.1, flags=SYN)
    assert scene.look().rows["outcome"].tolist() == [Outcome.WAITING]


def test_record_whose_beginning_is_not_known_is_not_old() -> None:
    """Packets that came while the entry was locked do not say when."""
    scene = Scene()
    scene.packet(HTTP, SYN)
    scene.table.entries[HTTP.tobytes()]["first_seen_mono_ns"] = 0
    assert scene.look(everything=True).rows["outcome"].tolist() == [Outcome.UNANSWERED]


def test_verdict_stays_over_an_active_timeout() -> None:
    scene = Scene()
    for second in range(100, 161, 10):  # nobody answers
        scene.now = second
        scene.packet(DNS)
    assert (scene.look(excess=0).rows["end_reason"][0], scene.now) == (EndReason.ACTIVE, pytest.approx(160))
    scene.packet(answer(DNS))
    scene.packet(DNS)
    (row,) = scene.look().rows
    assert (row["outcome"], row["outcome_before"], row["is_new"]) == (SILENT, SILENT, False)
    assert (row["new_forward_packets"], row["new_reverse_packets"]) == (1, 1)


def test_record_that_another_collector_began_is_no_attempt() -> None:
    """Between two records, entries without a packet are in the table."""
    scene = Scene()
    for one in (HTTP, answer(HTTP), DNS, answer(DNS)):
        scene.table.packet(one, 30, flags=ACK)
        scene.table.packet(one, 100, flags=ACK)
    scene.look()
    assert set(scene.ends.reasons.values()) == {EndReason.ACTIVE}
    scene.watcher.tracker = Tracker()
    scene.now = 104
    scene.look()
    scene.packet(answer(DNS))
    (row,) = scene.look().rows
    assert (Outcome(row["outcome"]), Probe(row["probe"]), row["new_reverse_packets"]) == (*NOTHING, 1)


def test_age_is_of_this_record_not_of_an_entry_without_packets() -> None:
    """So that a reader of a table with a past does not take a question for an old one."""
    scene = Scene()
    for one in (DNS, answer(DNS)):
        scene.table.packet(one, 40)
        scene.table.packet(one, 95)
    scene.look()
    scene.watcher.tracker = Tracker()
    scene.now = 105
    scene.packet(DNS)
    scene.now += 0.1
    assert scene.look().rows["outcome"].tolist() == [Outcome.WAITING]


def test_flow_at_several_interfaces_is_one() -> None:
    scene = Scene(every_interface=True)
    for number, ifindex in enumerate((2, 3, 4)):
        for one, flags in ((HTTP, SYN), (answer(HTTP), SA), (HTTP, ACK)):
            scene.packet(talk_at(one, ifindex), flags, number=1 + number % 2)
    activity = scene.look()
    assert len(activity) == new_connections(activity.rows) == 1
    assert activity.rows["outcome"].tolist() == [OK]
    scene.now = 150
    assert scene.look().rows["end_reason"].tolist() == [EndReason.IDLE]
    assert len(scene.look()) == 0


def talk_at(one: np.ndarray, ifindex: int) -> np.ndarray:
    moved = one.copy()
    moved["ifindex"] = ifindex
    return moved


def test_seconds_are_since_the_first_flow_and_then_since_the_last_pass() -> None:
    scene = Scene()
    assert (scene.look().seconds, scene.look().at_ns) == (0, OFFSET_NS + 100 * NS)
    scene = Scene()
    scene.packet(HTTP, SYN)
    scene.now = 102.5
    assert scene.look().seconds == pytest.approx(2.5, abs=1e-5)
    scene.now = 112.5
    assert scene.look().seconds == 10


def test_equal_fields_have_equal_identities() -> None:
    rows = np.zeros(3, ACTIVITY)
    rows["source_address"][:, 15] = rows["destination_address"][:, 15] = (1, 2, 1)
    rows["destination_port"] = (80, 80, 81)
    assert identity(rows, "source_address").tolist() == identity(rows, "destination_address").tolist()
    assert len(set(identity(rows, "source_address", "destination_port").tolist())) == 3
    hashes = identity(rows, "source_address").tolist()
    assert hashes[0] == hashes[2] != hashes[1]


# --- the oracle ---


@dataclass
class Side:
    """One direction of a record, as somebody who reads its entry sees it."""

    packets: int = 0
    flags: int = 0
    syns: int = 0
    first_ns: int = 0

    @classmethod
    def of(cls, entry: np.ndarray | None) -> Side:
        if entry is None:
            return cls()
        names = ("packets", "tcp_control_bits", "syn_packets", "first_seen_mono_ns")
        return cls(*(int(entry[name][0]) for name in names))


@dataclass
class Known:
    forward: int = 0
    reverse: int = 0
    syns: int = 0
    outcome: int = 0
    probe: int = 0
    is_frozen: bool = False


def says(flags: int, bit: int) -> bool:
    return flags & bit != 0


def probe_of(one: np.ndarray, forward: Side, reverse: Side) -> Probe:
    """What the first direction tries, by the rules in the module's head."""
    (key_,) = one
    address, version = key_["destination_address"].tolist(), int(key_["ip_version"])
    source_port, port, protocol = (
        int(key_[name]) for name in ("source_port", "destination_port", "protocol")
    )
    to_many = address[12] >= 224 if version == 4 else address[0] == 0xFF
    if version == 4 and protocol != TCP and address[15] == 255:
        to_many = True
    if to_many or forward.packets == 0 or (source_port, port) == (0, 0):
        return Probe.NONE
    if (protocol, version) == (ICMP, 4) or (protocol, version) == (ICMPV6, 6):
        return Probe.PING if port in (ECHO, ECHO_V6) else Probe.NONE
    if protocol == UDP:
        is_answer = source_port in (67, 137, 1900, 3702, 5353, 5355)
        may_be_silent = is_answer or port == 443 or 33434 <= port < 33434 + 3 * 30
        return Probe.NONE if may_be_silent and reverse.packets == 0 else Probe.UDP
    return tcp_probe(forward, reverse) if protocol == TCP else Probe.NONE


def tcp_probe(forward: Side, reverse: Side) -> Probe:
    flags = {bit for bit in (FIN, SYN, RST, PSH, ACK, URG) if says(forward.flags, bit)}
    if SYN in flags:
        return Probe.SYN if ACK not in flags or says(reverse.flags, SYN) else Probe.NONE
    if flags == {ACK}:
        is_refused = {bit for bit in (FIN, SYN, RST, PSH, ACK, URG) if says(reverse.flags, bit)} == {RST}
        may_be = is_refused or reverse.packets == 0
        return Probe.ACK if may_be and forward.packets <= 2 else Probe.NONE
    known = {frozenset(): Probe.NULL, frozenset({FIN}): Probe.FIN, frozenset({FIN, PSH, URG}): Probe.XMAS}
    return known.get(frozenset(flags), Probe.NONE)


def verdict(
    one: np.ndarray, forward: Side, reverse: Side, age_s: float, reason: int, is_unreachable: bool
) -> tuple[Outcome, Probe]:
    probe = probe_of(one, forward, reverse)
    outcome = silence(age_s, reason)
    if outcome > Outcome.WAITING and is_unreachable:
        outcome = Outcome.REFUSED
    if reverse.packets:
        outcome = (
            answered(forward, reverse, age_s, reason) if one["protocol"][0] == TCP else Outcome.SUCCEEDED
        )
    if outcome == Outcome.WAITING and reason == EndReason.LACK_OF_RESOURCES:
        outcome = Outcome.CUT
    return NOTHING if Outcome.NONE in (outcome, probe) else (outcome, probe)


def silence(age_s: float, reason: int) -> Outcome:
    if age_s >= 3 or reason in (EndReason.IDLE, EndReason.ENDED):
        return Outcome.SILENT
    return Outcome.UNANSWERED if age_s >= 0.5 or is_over(reason) else Outcome.WAITING


def is_over(reason: int) -> bool:
    return reason in (EndReason.IDLE, EndReason.ACTIVE, EndReason.ENDED, EndReason.FORCED)


def answered(forward: Side, reverse: Side, age_s: float, reason: int) -> Outcome:
    if says(forward.flags, SYN) and says(reverse.flags, SYN) and says(reverse.flags, ACK):
        if says(forward.flags, ACK):
            return Outcome.SUCCEEDED
        is_given_up = says(forward.flags, RST) or is_over(reason) or age_s >= 0.5
        return Outcome.HALF_OPEN if is_given_up else Outcome.WAITING
    is_refused = says(reverse.flags, RST) and not says(reverse.flags, SYN)
    return Outcome.REFUSED if is_refused else Outcome.NONE


def since(now: int, before: int) -> int:
    return now - before if now >= before else now


class Oracle:
    """Remembers each biflow by the name of its talk, and says what a pass must tell."""

    def __init__(self) -> None:
        self.known: dict[str, Known] = {}
        self.cut: tuple[set[str], set[str]] = (
            set(),
            set(),
        )  # without an answer: of these 3 s, and of those before
        self.cut_since = 0
        self.last_ns: int | None = None
        self.begun: list[int] = []  # when each record of the pass began

    def told(self, scene: WalkScene) -> dict[str, dict[str, Any]]:
        """By name, the rows of the pass that the scene has just made."""
        before, now_known, rows = scene.entries_at_snapshot, {}, {}
        present = {name: one for name, one in TALKS.items() if sides_in(before, one)}
        unreachable = [self._error(before, one) for one in present.values()]
        for name, one in present.items():
            forward_key, reverse_key = sides_in(before, one)
            flow_id = flow_id_of(one)
            reason = scene.ends.reasons.get(flow_id, 0)
            entries = scene.entries_at_take if reason else before
            forward, reverse = (Side.of(entries.get(k.tobytes())) for k in (forward_key, reverse_key))
            if reverse_key.tobytes() not in before:
                reverse = Side()
            known = self.known.get(name) or Known(is_frozen=name in self.cut[0] | self.cut[1])
            firsts = [side.first_ns for side in (forward, reverse) if side.packets]
            self.begun += firsts
            age_s = max(0, scene.now_mono_ns() - min(firsts)) / NS if firsts else 0
            (address,) = forward_key[["source_address", "destination_address"]].tolist()
            says_so = [bytes(part) for part in address] in unreachable
            outcome, probe = verdict(forward_key, forward, reverse, age_s, reason, says_so)
            if known.is_frozen:
                outcome, probe = Outcome(known.outcome), Probe(known.probe)
            row = {
                "source_address": bytes(address[0]),
                "destination_address": bytes(address[1]),
                "source_port": int(forward_key["source_port"][0]),
                "destination_port": int(forward_key["destination_port"][0]),
                "protocol": int(one["protocol"][0]),
                "ip_version": int(one["ip_version"][0]),
                "outcome": outcome,
                "outcome_before": known.outcome,
                "probe": probe,
                "is_new": name not in self.known,
                "end_reason": reason,
                "forward_flags": forward.flags,
                "reverse_flags": reverse.flags,
                "forward_packets": forward.packets,
                "reverse_packets": reverse.packets,
                "new_forward_packets": since(forward.packets, known.forward),
                "new_reverse_packets": since(reverse.packets, known.reverse),
                "new_syn_packets": since(forward.syns, known.syns),
                "flow_id": flow_id,
            }
            if one["protocol"][0] in (ICMP, ICMPV6):
                row["destination_port"] = 0
            if row["new_forward_packets"] or row["new_reverse_packets"] or reason or outcome != known.outcome:
                rows[name] = row
            if reason == EndReason.ACTIVE:
                now_known[name] = Known(outcome=outcome, probe=probe, is_frozen=True)
            elif not reason:
                now_known[name] = Known(
                    forward.packets, reverse.packets, forward.syns, outcome, probe, known.is_frozen
                )
        self.known = now_known
        self._remember_cut(rows, scene.now_mono_ns())
        return rows

    def _remember_cut(self, rows: dict[str, dict[str, Any]], now_ns: int) -> None:
        if now_ns >= self.cut_since + 3 * NS:
            self.cut, self.cut_since = (set(), self.cut[0]), now_ns
        for name, row in rows.items():
            if row["protocol"] == TCP:
                may_go_on = row["outcome"] in (Outcome.NONE, Outcome.SUCCEEDED)
            else:
                may_go_on = row["reverse_packets"] == 0
            if row["end_reason"] == EndReason.LACK_OF_RESOURCES and may_go_on:
                self.cut[0].add(name)

    @staticmethod
    def _error(entries: dict[bytes, np.ndarray], one: np.ndarray) -> list[bytes]:
        """[attempt's source, destination] that an ICMP error speaks of, or nothing."""
        kind = (int(one["protocol"][0]), int(one["destination_port"][0]) >> 8)
        if kind not in ((ICMP, 3), (ICMPV6, 1)):
            return []
        forward, _ = sides_in(entries, one)
        return [bytes(forward[name][0].tolist()) for name in ("destination_address", "source_address")]

    def seconds(self, now_ns: int) -> float:
        """Since the last pass; of the first, since the earliest record began. To be asked after told()."""
        last_ns = min([*self.begun, now_ns]) if self.last_ns is None else self.last_ns
        self.last_ns = now_ns
        return (now_ns - last_ns) / NS


def sides_in(entries: dict[bytes, np.ndarray], one: np.ndarray) -> tuple[np.ndarray, np.ndarray] | tuple[()]:
    """The keys (forward, reverse): whichever was born first is forward."""
    there = [k for k in (one, answer(one)) if k.tobytes() in entries]
    if not there:
        return ()
    forward = min(there, key=lambda k: int(entries[k.tobytes()]["born_mono_ns"][0]))
    return forward, answer(forward)


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


FLAGS = st.sampled_from([0, SYN, SYN, SA, SA, ACK, ACK, PA, FA, RST, RA, FIN, FIN | PSH | URG, FIN | 0xC0])
NAMES = st.one_of(st.sampled_from(["http", "http", "dns"]), st.sampled_from(sorted(TALKS)))
PACKET = st.tuples(st.just("packet"), NAMES, st.booleans(), FLAGS, st.integers(1, 3))
EVICT = st.tuples(st.just("evict"), NAMES, st.booleans(), st.just(0), st.just(0))
WAITS = st.sampled_from([0.01, 0.3, 0.5, 1.0, 3.0, 10.0, 16.0, 31.0])
NOW_AND_THEN = st.sampled_from([False] * 9 + [True])


@dataclass(frozen=True)
class Round:
    """What happens up to a look, and during it."""

    packets: list[tuple[Any, ...]]
    evictions: list[tuple[Any, ...]]
    wait: float
    excess: int
    meanwhile: list[tuple[Any, ...]]
    restarts: bool


ROUNDS = st.lists(
    st.builds(
        Round,
        st.lists(PACKET, min_size=1, max_size=6),
        st.one_of(st.just([]), st.just([]), st.lists(EVICT, max_size=2)),
        WAITS,
        st.sampled_from([0, 0, 0, 2]),
        st.one_of(st.just([]), st.lists(st.one_of(PACKET, EVICT), max_size=2)),
        NOW_AND_THEN,
    ),
    min_size=4,
    max_size=9,
)


@settings(max_examples=150, deadline=None)
@given(ROUNDS, st.sampled_from([DEFAULT, Timeouts(20 * NS, 5 * NS, 0), Timeouts(2 * NS, 60 * NS, 4 * NS)]))
def test_every_pass_tells_what_the_rules_say(rounds: list[Round], timeouts: Timeouts) -> None:
    scene, oracle = WalkScene(timeouts), Oracle()
    for one in rounds:
        if one.restarts:
            scene.watcher.tracker, oracle = Tracker(), Oracle()
        for step in (*one.packets, *one.evictions):
            scene.do(*step)
        scene.now += one.wait
        look_and_compare(scene, oracle, one)


def look_and_compare(scene: WalkScene, oracle: Oracle, one: Round) -> None:
    scene.meanwhile, read_at = one.meanwhile, scene.now
    activity = scene.look(excess=one.excess)
    scene.now, now = read_at, scene.now
    assert activity.at_ns == scene.now_mono_ns() + OFFSET_NS
    expected = sorted(oracle.told(scene).values(), key=lambda row: row["flow_id"])
    assert [as_dict(row) for row in activity.rows] == expected
    assert activity.seconds == pytest.approx(oracle.seconds(scene.now_mono_ns()), abs=1e-9)
    scene.now = now


def as_dict(row: Any) -> dict[str, Any]:
    values = {name: row[name].tolist() for name in ACTIVITY.names or ()}
    return {name: bytes(value) if isinstance(value, list) else value for name, value in values.items()}


# --- conservation ---


@settings(max_examples=60, deadline=None)
@given(ROUNDS, st.integers())
def test_what_is_new_adds_up_to_all_however_often_one_looks(rounds: list[Round], looks: int) -> None:
    scene, sent = WalkScene(DEFAULT), Counter[tuple[int, bytes]]()
    for number, one in enumerate(rounds):
        for step in one.packets:
            scene.do(*step)
            _, name, is_answer, _, packets = step
            sender = TALKS[name]["destination_address" if is_answer else "source_address"][0]
            sent[flow_id_of(TALKS[name]), bytes(sender.tolist())] += packets
        scene.now += one.wait
        if looks >> number & 1:
            scene.look(excess=one.excess)
    scene.look(everything=True)
    found = Counter[tuple[int, bytes]]()
    for row in np.concatenate([one.rows for one in scene.watcher.activities]):
        for address, new in (("source", "forward"), ("destination", "reverse")):
            sender = bytes(row[f"{address}_address"].tolist())
            found[int(row["flow_id"]), sender] += int(row[f"new_{new}_packets"])
    assert found == sent


def flow_id_of(one: np.ndarray) -> int:
    return int(pair(one, np.ones(1, "u8"), every_interface=False).flow_id[0])
