"""The verdict on each kind of attempt, over passes that a real collector makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from activity_scenes import (
    DNS,
    ECHO,
    FA,
    HTTP,
    ICMP,
    NOTHING,
    OFFSET_NS,
    PA,
    PING,
    RA,
    ROUTER,
    SA,
    TALKS,
    TCP,
    UDP,
    A,
    B,
    Scene,
    answer,
    talk,
)
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
    Tracker,
    failed,
    identity,
    new_connections,
)
from flowmon.expiry import EndReason, Timeouts
from samples import NS

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
