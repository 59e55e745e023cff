"""`flowmon -r --features`, as a user runs it: which packets are captured, what is said of the others, what is refused."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from craft import CLIENT, SERVER, Frame, Tcp, udp, write_pcap
from feature_capture import frames
from flowmon.features.packets import FEATURES_SCHEMA
from kernel.feature_runs import Row, captures_of, features, rows_in
from kernel.offline import EPOCH, NS, flowmon, in_order, number, packet_at, text_of
from refusal import assert_refused

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("kernel")]

TCP, UDP = 6, 17
ICMP = {1, 58}
FIRST_PORT = 5000
PACKETS = [
    "observationTimeNanoseconds",
    "biflowDirection",
    "ipTotalLength",
    "fragmentFlags",
    "fragmentOffset",
    "ipTTL",
    "ipClassOfService",
    "transportPayloadLength",
    "tcpControlBits",
    "tcpWindowSize",
    "tcpRelativeSequenceNumber",
    "tcpRelativeAcknowledgementNumber",
    "udpMessageLength",
    "icmpType",
    "icmpCode",
    "interArrivalNanoseconds",
]
"""Of each packet in result.json."""


@pytest.fixture(scope="module")
def varied(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("varied") / "varied.pcap"
    write_pcap(path, frames())
    return path


@pytest.fixture(scope="module")
def varied_rows(varied, tmp_path_factory) -> list[Row]:
    """What a run without further options writes of it."""
    return features(varied, tmp_path_factory.mktemp("rows"))


def datagrams(path: Path, sessions: dict[int, list[float]]) -> Path:
    """A capture of sessions, by client port, each with a datagram at these seconds."""
    made = [
        packet_at(at, udp(CLIENT, SERVER, FIRST_PORT + session, 9, 30))
        for session, times in sessions.items()
        for at in times
    ]
    write_pcap(path, in_order(made))
    return path


def session_of(rows: list[Row]) -> int:
    return rows[0]["sourceTransportPort"] - FIRST_PORT


def sizes(rows: list[Row]) -> list[tuple[int, int]]:
    """(session, packets) of each capture of a session."""
    return [(session_of(capture), len(capture)) for capture in captures_of(rows)]


def told(done: subprocess.CompletedProcess[str], what: str) -> int:
    """The number before these words, in the line that sums up the packet features; 0 where it has none."""
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "packet features: " in line)
    found = re.search(rf"([\d,]+) {what}", line)
    return number(found[1]) if found else 0


# --- which sessions ---


@pytest.mark.parametrize(
    ("option", "protocols"),
    [("tcp", {TCP}), ("icmp, UDP", {UDP, *ICMP})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_protocols(option, protocols, varied, varied_rows, tmp_path):
    found = features(varied, tmp_path, "--protocols", option)
    assert found == [row for row in varied_rows if row["protocolIdentifier"] in protocols]
    assert {row["protocolIdentifier"] for row in found} == protocols


def test_as_many_sessions_as_there_are_places(tmp_path):
    """Ten at a time, twenty packets each; those that come first have the places, and keep them."""
    times = [at / 40 for at in range(20)]
    capture = datagrams(
        tmp_path / "x.pcap", {session: [at + session / 1000 for at in times] for session in range(10)}
    )
    done = flowmon(capture, "-d", tmp_path, "--features", "--sessions", "3")
    assert sizes(rows_in(tmp_path / "_features")) == [(0, 20), (1, 20), (2, 20)]
    assert told(done, "written") == 60
    assert told(done, "of sessions that found no place") == 140


def test_places_are_kept_for_as_long_as_accept_restart_says(tmp_path):
    """Five sessions that all go on for ten seconds, two places."""
    capture = datagrams(
        tmp_path / "x.pcap", {session: [at / 4 + session / 100 for at in range(40)] for session in range(5)}
    )
    done = flowmon(capture, "-d", tmp_path, "--features", "--sessions", "2", "--accept-restart", "1000")
    assert sizes(rows_in(tmp_path / "_features")) == [(0, 40), (1, 40)]
    assert told(done, "of sessions that found no place") == 120


def test_session_least_used_makes_room(tmp_path):
    """Two fall silent and one goes on; the newcomer finds a place in a second or two, and is captured from there on."""
    newcomer = [0.5 + at / 4 for at in range(40)]
    capture = datagrams(
        tmp_path / "x.pcap",
        {0: [0, 0.1], 1: [0.2, 0.3], 2: [0.21 + at / 4 for at in range(40)], 3: newcomer},
    )
    done = flowmon(capture, "-d", tmp_path, "--features", "--sessions", "3", "--accept-restart", "1")
    *others, late = captures_of(rows_in(tmp_path / "_features"))
    assert [(session_of(rows), len(rows)) for rows in others] == [(0, 2), (1, 2), (2, 40)]
    assert session_of(late) == 3
    refused = told(done, "of sessions that found no place")
    assert len(late) + refused == len(newcomer)
    assert 2 <= refused <= 10
    assert [row["packetIndex"] for row in late] == list(range(len(late)))
    assert late[0]["captureStartNanoseconds"] == late[0]["observationTimeNanoseconds"]
    assert late[0]["interArrivalNanoseconds"] == 0


def test_silent_sessions_give_their_places_back(tmp_path):
    """One after the other, twenty seconds apart: one place is enough, whatever else is asked for."""
    capture = datagrams(
        tmp_path / "x.pcap", {session: [20 * session, 20 * session + 1] for session in range(4)}
    )
    found = features(capture, tmp_path, "--sessions", "1", "--accept-restart", "1000")
    assert sizes(found) == [(0, 2), (1, 2), (2, 2), (3, 2)]


def test_session_that_came_back_is_captured_as_a_new_one(tmp_path):
    """After the idle timeout, as its flow record is a new one."""
    capture = datagrams(tmp_path / "x.pcap", {0: [0, 1, 40, 41, 42]})
    first, second = captures_of(features(capture, tmp_path))
    assert [row["packetIndex"] for row in first + second] == [0, 1, 0, 1, 2]
    assert [row["interArrivalNanoseconds"] for row in first + second] == [0, NS, 0, NS, NS]
    assert first[0]["flowId"] == second[0]["flowId"]
    assert first[0]["captureStartNanoseconds"] != second[0]["captureStartNanoseconds"]
    assert {row["captureRound"] for row in first + second} == {0}


# --- rounds ---


def test_session_that_goes_on_is_captured_again(tmp_path):
    """A packet a second: five, and five more from five seconds after the limit was reached; and so on."""
    capture = datagrams(tmp_path / "x.pcap", {0: list(range(31))})
    found = captures_of(features(capture, tmp_path, "--packets-per-session", "5", "--session-restart", "5"))
    began = found[0][0]["observationTimeNanoseconds"]
    seconds = [[(row["observationTimeNanoseconds"] - began) // NS for row in rows] for rows in found]
    assert seconds == [[0, 1, 2, 3, 4], [9, 10, 11, 12, 13], [18, 19, 20, 21, 22], [27, 28, 29, 30]]
    for at, rows in enumerate(found):
        assert [row["packetIndex"] for row in rows] == list(range(len(rows)))
        assert {row["captureRound"] for row in rows} == {at}
        assert {row["captureStartNanoseconds"] for row in rows} == {began}
        assert [row["interArrivalNanoseconds"] for row in rows] == [NS if at else 0] + [NS] * (len(rows) - 1)
    assert len({row["flowId"] for rows in found for row in rows}) == 1


def test_without_a_pause_no_packet_is_left_out_and_the_ring_need_not_hold_them_all(tmp_path):
    """20,000 packets of one session in rounds of 100; the ring holds 7710."""
    frame = packet_at(0, udp(CLIENT, SERVER, FIRST_PORT, 9, 30))
    path = tmp_path / "x.pcap"
    write_pcap(path, [Frame(frame.time_ns + at * 1000, frame.octets) for at in range(20_000)])
    done = flowmon(path, "-d", tmp_path, "--features", "--session-restart", "0", "--ring-size", "1")
    found = rows_in(tmp_path / "_features")
    assert [(row["captureRound"], row["packetIndex"]) for row in found] == [
        (at // 100, at % 100) for at in range(20_000)
    ]
    assert told(done, "written") == 20_000
    assert told(done, "lost") == 0


def test_what_lies_beyond_the_limit_is_told(tmp_path):
    capture = datagrams(tmp_path / "x.pcap", {0: [at / 10 for at in range(30)], 1: [1, 2]})
    done = flowmon(capture, "-d", tmp_path, "--features", "--packets-per-session", "12")
    assert told(done, "written") == 12 + 2
    assert told(done, "of sessions at their limit") == 18


# --- forms ---


def test_json_has_each_session_as_one_object(varied, varied_rows, tmp_path):
    done = flowmon(varied, "-d", tmp_path, "--features", "--features-format", "json")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (tmp_path / "_features").iterdir()] == ["result.json"]
    found = json.loads((tmp_path / "_features" / "result.json").read_text())
    expected = [
        {
            "id": [
                rows[0]["sourceAddress"],
                rows[0]["sourceTransportPort"],
                rows[0]["destinationAddress"],
                rows[0]["destinationTransportPort"],
                rows[0]["protocolIdentifier"],
            ],
            "packets": [[row[column] or 0 for column in PACKETS] for row in rows],
        }
        for rows in captures_of(varied_rows)
    ]
    assert found == expected


def test_debug_writes_a_file_for_each_session_as_well(varied, varied_rows, tmp_path):
    found = features(varied, tmp_path, "--debug")
    assert found == varied_rows
    expected = {csv_name(rows[0]): [csv_line(row) for row in rows] for rows in captures_of(varied_rows)}
    directory = tmp_path / "_features" / "_sessions"
    assert {file.name for file in directory.glob("*.csv")} == set(expected)
    for name, lines in expected.items():
        header, *written = read_csv(directory / name)
        assert header == FEATURES_SCHEMA.names
        assert written == lines


def csv_name(row: Row) -> str:
    source = f"{row['sourceAddress']}-{row['sourceTransportPort']}"
    destination = f"{row['destinationAddress']}-{row['destinationTransportPort']}"
    return f"{source}___{destination}___{row['captureStartNanoseconds']}.csv"


def csv_line(row: Row) -> list[str]:
    return ["" if value is None else str(value) for value in row.values()]


def read_csv(path: Path) -> Iterator[list[str]]:
    with path.open(newline="") as file:
        yield from csv.reader(file)


def test_columns_are_those_that_are_documented(varied_rows):
    assert list(varied_rows[0]) == FEATURES_SCHEMA.names


def test_packets_lie_beside_the_flows_by_the_hour(tmp_path):
    """In the directory of the flows under a name that readers of Parquet leave out, or where the user says."""
    capture = datagrams(tmp_path / "x.pcap", {0: [3599, 3600.5], 1: [7300]})
    found = features(capture, tmp_path / "one")
    assert len(found) == 3
    hours = {
        file.parent.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("features-*.parquet")
    }
    assert hours <= {Path(f"_features/date=2026-01-01/hour={hour:02}") for hour in range(3)}
    done = flowmon(
        capture, "-d", tmp_path / "two", "--features", "--features-directory", tmp_path / "elsewhere"
    )
    assert done.returncode == 0, done.stderr
    assert rows_in(tmp_path / "elsewhere") == found
    assert not (tmp_path / "two" / "_features").exists()


def test_with_a_directory_of_their_own_flows_are_printed(tmp_path):
    capture = datagrams(tmp_path / "x.pcap", {0: [1, 2]})
    done = flowmon(capture, "--features", "--features-directory", tmp_path / "packets")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["packetDeltaCount"] == 2
    assert len(rows_in(tmp_path / "packets")) == 2


def test_without_the_option_there_are_none(varied, tmp_path):
    done = flowmon(varied, "-d", tmp_path)
    assert done.returncode == 0, done.stderr
    assert [directory.name for directory in tmp_path.iterdir()] == ["date=2026-01-01"]
    assert "packet features" not in done.stderr


def test_capture_without_packets_has_no_features(tmp_path):
    path = tmp_path / "empty.pcap"
    write_pcap(path, [])
    done = flowmon(path, "-d", tmp_path, "--features")
    assert told(done, "written") == 0
    assert rows_in(tmp_path / "_features") == []


def test_capture_without_times(tmp_path):
    path = tmp_path / "x.pcap"
    write_pcap(path, [Frame(0, Tcp().client(0, "S", seq=at).octets) for at in range(3)])
    found = features(path, tmp_path)
    assert [row["packetIndex"] for row in found] == [0, 1, 2]
    assert {text_of(row["observationTimeNanoseconds"]) for row in found} == {EPOCH}
    assert {row["interArrivalNanoseconds"] for row in found} == {0}


def test_times_that_go_backwards(tmp_path):
    """The first in the file is the first; the clock does not go back, as for flows, so no interval is negative."""
    path = tmp_path / "x.pcap"
    times = [3, 1, 2, 4, 0]
    write_pcap(path, [packet_at(at, udp(CLIENT, SERVER, FIRST_PORT, 9, 30)) for at in times])
    found = features(path, tmp_path)
    assert [row["packetIndex"] for row in found] == list(range(5))
    began = found[0]["captureStartNanoseconds"]
    assert [(row["observationTimeNanoseconds"] - began) // NS for row in found] == [0, 0, 0, 1, 1]
    assert [row["interArrivalNanoseconds"] for row in found] == [0, 0, 0, NS, 0]


# --- what is refused ---

REFUSED = {
    "no packets": (["--packets-per-session", "0"], ["--packets-per-session", "0"]),
    "more than the ring holds": (
        ["--packets-per-session", "10000000", "--ring-size", "1"],
        ["--packets-per-session", "10000000", "1 MiB", "7710", "--ring-size"],
    ),
    "ring of no power of two": (["--ring-size", "3"], ["--ring-size", "3", "power of two"]),
    "unknown protocol": (["--protocols", "tcp,sctp"], ["--protocols", "sctp", "tcp, udp, icmp"]),
    "no protocol": (["--protocols", ""], ["--protocols"]),
    "no sessions": (["--sessions", "0"], ["--sessions", "0"]),
    "unknown format": (["--features-format", "csv"], ["--features-format", "parquet", "json"]),
    "negative time": (["--session-restart", "-1"], ["--session-restart", "-1"]),
    "no time": (["--accept-restart", "nan"], ["--accept-restart", "nan"]),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_usage_is_one_clear_line_and_nothing_made(options, words, varied, tmp_path):
    assert_refused(flowmon(varied, "-d", tmp_path / "made", "--features", *options), 2, *words)
    assert list(tmp_path.iterdir()) == []


def test_features_need_a_directory(varied):
    assert_refused(flowmon(varied, "--features"), 2, "-d", "--features-directory")


def test_directory_that_cannot_be_written(varied, tmp_path):
    """A file is there already."""
    (tmp_path / "file").touch()
    done = flowmon(varied, "-d", tmp_path, "--features", "--features-directory", tmp_path / "file")
    assert_refused(done, 1, str(tmp_path / "file"), "cannot be written", "--features-directory")


# --- what is in a file is not to be lost ---


@pytest.mark.parametrize("interval", ["0", "1", "3600"])
def test_places_are_freed_whatever_the_interval(interval, tmp_path):
    capture = datagrams(tmp_path / "x.pcap", {session: [20 * session] for session in range(60)})
    found = features(capture, tmp_path, "--sessions", "2", "-i", interval)
    assert sizes(found) == [(session, 1) for session in range(60)]


def test_a_small_ring_is_enough(tmp_path):
    times = [at / 50_000 for at in range(20_000)]
    capture = datagrams(tmp_path / "x.pcap", {0: times, 1: [at + 0.000_001 for at in times]})
    found = features(capture, tmp_path, "--ring-size", "1", "--packets-per-session", "7000")
    assert sizes(found) == [(0, 7000), (1, 7000)]


def test_there_are_places_for_all_of_a_file(tmp_path):
    capture = datagrams(tmp_path / "x.pcap", {session: [session / 10_000] for session in range(3000)})
    assert len(features(capture, tmp_path)) == 3000
