"""Packet features of a capture, held against what tshark reads in every packet."""

import shutil
from functools import cache
from pathlib import Path

import pytest

from craft import Tcp, write_pcap
from feature_capture import frames
from kernel.feature_runs import Row, captures_of, features, rows_in
from kernel.offline import flowmon
from tshark_features import sessions_of

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.usefixtures("kernel"),
    pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark"),
]

ALL = 100_000
"""More packets than any session of the capture has."""
PORTS = ("sourceTransportPort", "destinationTransportPort")
NAMES = ("sourceAddress", "destinationAddress", *PORTS, "protocolIdentifier")
PROTOCOLS = {1, 6, 17, 58}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def capture(directory) -> tuple[Path, list[list[Row]]]:
    """A capture, and its sessions as tshark has them."""
    return made(directory, 0)


@cache
def made(directory: Path, seed: int) -> tuple[Path, list[list[Row]]]:
    path = directory / f"{seed}.pcap"
    write_pcap(path, frames(seed))
    return path, sessions_of(path)


def names_of(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in NAMES)


def differences(found: list[Row], expected: list[Row]) -> list[tuple[object, ...]]:
    """(session, index, column, ours, tshark's) of each value that is not the same."""
    return [
        (names_of(row), row["packetIndex"], column, ours.get(column, "missing"), value)
        for ours, row in zip(found, expected, strict=False)
        for column, value in row.items()
        if ours.get(column, "missing") != value
    ]


def test_capture_has_what_is_to_be_told_apart(capture):
    """That the comparison below has something to compare."""
    _, sessions = capture
    rows = [row for session in sessions for row in session]
    assert {row["protocolIdentifier"] for row in rows} == PROTOCOLS
    assert sum(len(session) > 100 for session in sessions) >= 6
    assert 100 in map(len, sessions)
    assert 1 in map(len, sessions)
    assert {row["biflowDirection"] for row in rows} == {1, 2}
    assert {row["fragmentFlags"] for row in rows} == {0, 0x20, 0x40, 0x80}
    # Pieces of 400 and 1200 octets, in units of 8: that tshark's numbers are these.
    assert {50, 100, 150, 300} <= {row["fragmentOffset"] for row in rows}
    flags = [row["tcpControlBits"] for row in rows if row["tcpControlBits"] is not None]
    assert {bit for each in flags for bit in range(12) if each >> bit & 1} == set(range(12))
    before_the_first = [row for row in rows if (row["tcpRelativeSequenceNumber"] or 0) > 2**31]
    assert before_the_first
    times = [row["observationTimeNanoseconds"] for row in rows]
    assert len(set(times)) == len(rows)
    assert any(time_ns % 1000 for time_ns in times)


@pytest.mark.parametrize(("limit", "seed"), [(ALL, 0), (100, 0), (5, 0), (1, 0), (100, 1)])
def test_first_packets_of_each_session_are_those_of_tshark(limit, seed, directory, tmp_path):
    path, sessions = made(directory, seed)
    one_round = ("--session-restart", "1000")
    found = captures_of(features(path, tmp_path, "--packets-per-session", str(limit), *one_round))
    expected = [session[:limit] for session in sessions]
    assert [(names_of(rows[0]), len(rows)) for rows in found] == [
        (names_of(rows[0]), len(rows)) for rows in expected
    ]
    assert [each for pair in zip(found, expected, strict=True) for each in differences(*pair)] == []
    assert list(found[0][0]) == ["flowId", *expected[0][0]]
    assert len({rows[0]["flowId"] for rows in found}) == len(found)


def test_each_session_is_a_flow_of_the_same_run(capture, tmp_path):
    """Same names, same direction, and a row for each packet that the records count."""
    path, _ = capture
    found = captures_of(features(path, tmp_path, "--packets-per-session", str(ALL)))
    records: dict[int, list[Row]] = {}
    for record in sorted(rows_in(tmp_path), key=lambda record: record["flowStartNanoseconds"]):
        if record["protocolIdentifier"] in PROTOCOLS:
            records.setdefault(record["flowId"], []).append(record)
    assert {rows[0]["flowId"] for rows in found} == set(records)
    for rows in found:
        session = records[rows[0]["flowId"]]
        assert names_of(rows[0]) == names_of(session[0])
        assert rows[0]["captureStartNanoseconds"] == session[0]["flowStartNanoseconds"]
        assert rows[-1]["observationTimeNanoseconds"] == max(each["flowEndNanoseconds"] for each in session)
        assert one_way(rows, 1) + one_way(rows, 2) == counted(session)


def one_way(rows: list[Row], way: int) -> tuple[int, int]:
    """Packets and octets of one direction."""
    lengths = [row["ipTotalLength"] for row in rows if row["biflowDirection"] == way]
    return len(lengths), sum(lengths)


def counted(session: list[Row]) -> tuple[int, ...]:
    """The same of both directions, as the records of a session have it; the second may begin with the other side."""
    totals = [0, 0, 0, 0]
    for record in session:
        turned = names_of(record) != names_of(session[0])
        forward = [record["packetDeltaCount"], record["octetDeltaCount"]]
        reverse = [record["reversePacketDeltaCount"], record["reverseOctetDeltaCount"]]
        numbers = reverse + forward if turned else forward + reverse
        totals = [total + each for total, each in zip(totals, numbers, strict=True)]
    return tuple(totals)


def test_flows_are_the_same_with_and_without_features(capture, tmp_path):
    path, _ = capture
    without, beside = flowmon(path, "-q", "-j"), flowmon(path, "-q", "-j", "-d", tmp_path, "--features")
    assert (beside.returncode, beside.stderr) == (0, "")
    assert beside.stdout == without.stdout


def test_relative_numbers_count_from_the_same_in_later_rounds(tmp_path):
    """The limit is one packet: of both handshake and data most were only watched."""
    path = tmp_path / "capture.pcap"
    tcp = Tcp(client_isn=2**32 - 50)
    said = [
        whose(1000 * at, "PA", seq=1 + 20 * at, ack=1 + 20 * at, octets=20)
        for at in range(1, 25)
        for whose in ((tcp.client, tcp.server)[at // 3 % 2],)
    ]
    write_pcap(path, [*tcp.handshake(), *said])
    found = features(path, tmp_path, "--packets-per-session", "1", "--session-restart", "2")
    assert [row["captureRound"] for row in found] == list(range(len(found)))
    assert {row["biflowDirection"] for row in found} == {1, 2}
    by_time = {row["observationTimeNanoseconds"]: row for session in sessions_of(path) for row in session}
    numbers = ("tcpRelativeSequenceNumber", "tcpRelativeAcknowledgementNumber", "interArrivalNanoseconds")
    for row in found:
        expected = by_time[row["observationTimeNanoseconds"]]
        assert {name: row[name] for name in numbers} == {name: expected[name] for name in numbers}
