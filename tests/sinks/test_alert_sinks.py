"""Alerts arrive as they are: in words, at syslog and the journal, as JSON lines and as Parquet."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmon.analysers.alerts import ALERT_FIELDS, ALERT_SCHEMA, ENDED, UPDATED, Alert, alert_batch
from flowmon.errors import ConfigError, FlowmonError, SinkError
from flowmon.sinks.alerts import alert_sinks
from flowmon.sinks.alerts.files import JsonAlerts, ParquetAlerts
from flowmon.sinks.alerts.logs import JournalAlerts, SyslogAlerts
from flowmon.sinks.json_lines import json_lines
from flowmon.sinks.parquet import ParquetSink
from samples import batch

NS = 1_000_000_000
AT = 1_700_000_000 * NS  # 2023-11-14 22:13:20 UTC
SCAN = Alert(
    alert_id="a1",
    detector="port-fanout",
    kind="vertical",
    start_ns=AT,
    end_ns=AT + NS + 1,
    source="10.0.0.1",
    victim="10.0.0.2",
    protocol=6,
    ports=120,
    attempts=120,
    failures=118,
    example_ports=(22, 23, 25),
    confidence=0.98,
)
SCAN_SENTENCE = (
    "started port-fanout vertical: 10.0.0.1 → 10.0.0.2 tcp:"
    " 120 ports, 118 of 120 attempts failed, confidence 0.98"
)
FLOOD = Alert(
    alert_id="b2",
    state=UPDATED,
    detector="syn-rate",
    kind="flood",
    start_ns=AT,
    end_ns=AT,
    victim="2001:db8::1",
    protocol=6,
    port=443,
    sources=5000,
    rate=2345.678,
    action="would block",
)
FLOOD_SENTENCE = (
    "updated syn-rate flood: many → 2001:db8::1 port 443/tcp:"
    " 5000 sources, up to 2346 a second, confidence 1.00, would block"
)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with bound(tmp_path / "socket") as made:
        yield made


def bound(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(path))
    made.settimeout(2)
    return made


# --- in words ---


def test_standard_error_has_a_line_an_alert(capsys: pytest.CaptureFixture[str]) -> None:
    (sink,) = alert_sinks(["stderr"])
    sink.write([SCAN, FLOOD])
    assert capsys.readouterr().err.splitlines() == [
        f"2023-11-14T22:13:21Z {SCAN_SENTENCE}",
        f"2023-11-14T22:13:20Z {FLOOD_SENTENCE}",
    ]


def test_standard_error_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    (sink,) = alert_sinks(["stderr"])
    monkeypatch.setattr("sys.stderr", None)
    with pytest.raises(SinkError, match=r"^standard error cannot be written: it is closed$"):
        sink.write([SCAN])


# --- syslog and journal ---


@pytest.mark.parametrize(("state", "priority"), [("started", 3 * 8 + 4), ("updated", 29), ("ended", 29)])
def test_syslog(listener: socket.socket, state: str, priority: int) -> None:
    sink = SyslogAlerts(Path(listener.getsockname()))
    sink.write([replace(SCAN, state=state)])
    sink.close()
    said = re.fullmatch(rf"<{priority}>flowmon\[{os.getpid()}\]: (.+)", listener.recv(9999).decode())
    assert said is not None
    assert said[1].startswith(f"{state} port-fanout vertical: 10.0.0.1 → 10.0.0.2 tcp: 120 ports")


def entries(datagram: bytes) -> list[tuple[str, str]]:
    """An octet at a time, as systemd.io/JOURNAL_NATIVE_PROTOCOL says."""
    found, rest = [], datagram
    while rest:
        name = bytearray()
        while rest[0:1] not in (b"=", b"\n"):
            name += rest[0:1]
            rest = rest[1:]
        if rest[0:1] == b"=":
            value, _, rest = rest[1:].partition(b"\n")
        else:
            size = int.from_bytes(rest[1:9], "little")
            value, end, rest = rest[9 : 9 + size], rest[9 + size : 10 + size], rest[10 + size :]
            assert end == b"\n"
        text = name.decode("ascii")
        assert set(text) <= set(string.ascii_uppercase + string.digits + "_")
        assert text[0] in string.ascii_uppercase
        assert len(text) <= 64
        found.append((text, value.decode()))
    return found


def test_journal_has_the_columns_as_fields(listener: socket.socket) -> None:
    sink = JournalAlerts(Path(listener.getsockname()))
    sink.write([SCAN, FLOOD])
    sink.close()
    assert entries(listener.recv(9999)) == [
        ("MESSAGE", SCAN_SENTENCE),
        ("PRIORITY", "4"),
        ("SYSLOG_FACILITY", "3"),
        ("SYSLOG_IDENTIFIER", "flowmon"),
        ("FLOWMON_ALERT_ID", "a1"),
        ("FLOWMON_ALERT_STATE", "started"),
        ("FLOWMON_DETECTOR", "port-fanout"),
        ("FLOWMON_ALERT_KIND", "vertical"),
        ("FLOWMON_ALERT_START_NANOSECONDS", str(AT)),
        ("FLOWMON_ALERT_END_NANOSECONDS", str(AT + NS + 1)),
        ("FLOWMON_SOURCE_ADDRESS", "10.0.0.1"),
        ("FLOWMON_DESTINATION_ADDRESS", "10.0.0.2"),
        ("FLOWMON_PROTOCOL_IDENTIFIER", "6"),
        ("FLOWMON_DISTINCT_PORTS", "120"),
        ("FLOWMON_ATTEMPTS", "120"),
        ("FLOWMON_FAILURES", "118"),
        *(("FLOWMON_EXAMPLE_PORTS", port) for port in ("22", "23", "25")),
        ("FLOWMON_CONFIDENCE", "0.98"),
    ]
    second = entries(listener.recv(9999))
    assert ("PRIORITY", "5") in second
    assert ("FLOWMON_ACTION", "would block") in second
    assert "FLOWMON_SOURCE_ADDRESS" not in dict(second)


def test_journal_values_with_line_feeds_arrive_whole(listener: socket.socket) -> None:
    odd = "a\nMESSAGE=b\n\nü="
    JournalAlerts(Path(listener.getsockname())).write([replace(SCAN, action=odd)])
    fields = entries(listener.recv(9999))
    assert [value for name, value in fields if name == "FLOWMON_ACTION"] == [odd]
    assert [name for name, _ in fields].count("MESSAGE") == 1


@pytest.mark.parametrize("make", [SyslogAlerts, JournalAlerts])
def test_daemon_that_is_not_there_or_starts_anew(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "socket"
    with pytest.raises(SinkError) as error:
        make(path)
    assert str(error.value).startswith(f"{path} takes no alerts (No such file or directory): ")
    first = bound(path)
    sink = make(path)
    first.close()
    path.unlink()
    for _ in range(2):
        with pytest.raises(SinkError):
            sink.write([SCAN])
    with bound(path) as second:
        sink.write([SCAN])
        assert b"port-fanout" in second.recv(9999)
    sink.close()


# --- JSON lines ---


def expected(alerts: list[Alert]) -> list[dict[str, Any]]:
    """A slow, obvious reading of the columns."""
    found = []
    for alert in alerts:
        row = {}
        for one in ALERT_FIELDS:
            value = getattr(alert, one.name)
            if pa.types.is_timestamp(one.metadata["type"]):
                value = f"{pa.scalar(value // NS, pa.timestamp('s')).as_py().isoformat()}.{value % NS:09}Z"
            if isinstance(value, tuple):
                value = list(value)
            row[one.metadata["name"]] = None if value == "" else value
        found.append(row)
    return found


texts = st.text(max_size=4)
alerts_of_all_kinds = st.builds(
    Alert,
    alert_id=texts,
    detector=texts,
    kind=texts,
    start_ns=st.integers(0, 2**62),
    end_ns=st.integers(0, 2**62),
    source=texts,
    protocol=st.none() | st.integers(0, 255),
    attempts=st.none() | st.integers(0, 2**64 - 1),
    rate=st.none() | st.floats(0, 1e40),
    example_hosts=st.lists(texts, max_size=3).map(tuple),
    example_ports=st.lists(st.integers(0, 65535), max_size=3).map(tuple),
    confidence=st.floats(0, 1),
)


@given(st.lists(alerts_of_all_kinds, max_size=4), st.integers(0, 3))
def test_json_says_what_the_alerts_say(alerts: list[Alert], skipped: int) -> None:
    lines = json_lines(alert_batch(alerts).slice(skipped)).to_pylist()
    assert [json.loads(line) for line in lines] == expected(alerts[skipped:])
    assert all(line.endswith("}\n") and line.count("\n") == 1 for line in lines)


@given(st.lists(st.none() | st.lists(st.none() | st.integers(0, 9), max_size=3), max_size=5))
def test_json_lists_with_nulls(values: list[Any]) -> None:
    records = pa.RecordBatch.from_arrays([pa.array(values, pa.list_(pa.int8()))], ["list"])
    assert [json.loads(line)["list"] for line in json_lines(records).to_pylist()] == values


def test_json_is_appended_and_follows_a_rotated_file(tmp_path: Path) -> None:
    path = tmp_path / "alerts.json"
    path.write_text("{}\n")
    (sink,) = alert_sinks([f"json:{path}"])
    sink.write([SCAN])
    path.rename(tmp_path / "alerts.json.1")
    sink.write([FLOOD, SCAN])
    sink.write([])
    sink.close()
    read = [
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("alerts.json.1", "alerts.json")
    ]
    assert read == [[{}, *expected([SCAN])], expected([FLOOD, SCAN])]


def test_json_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    (sink,) = alert_sinks(["json:-"])
    print("before")
    sink.write([SCAN])
    sink.close()
    first, second = capfd.readouterr().out.splitlines()
    assert (first, json.loads(second)) == ("before", *expected([SCAN]))


@pytest.mark.parametrize("room", [0, 1, 300, 700])
def test_json_lines_that_a_full_disk_cut_off_are_made_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    sink = JsonAlerts(str(tmp_path / "alerts"))
    real = os.write

    def nearly_full(fd: int, text: bytes) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(fd, text[:room])
        room -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", nearly_full)
        for _ in range(2):
            with pytest.raises(SinkError, match=r"/alerts cannot be written \(No space left on device\): "):
                sink.write([SCAN, SCAN])
    sink.write([FLOOD])
    read = [json.loads(line) for line in (tmp_path / "alerts").read_text().splitlines()]
    assert read[-1:] == expected([FLOOD])
    assert read[:-1] == expected([SCAN] * (len(read) - 1))


# --- Parquet ---


def test_parquet_in_partitions_beside_flows(tmp_path: Path) -> None:
    flows = ParquetSink(tmp_path)
    times = iter([AT, AT + 3600 * NS])
    (sink,) = alert_sinks([f"parquet:{tmp_path}"], lambda: next(times))
    flows.reserve(3)
    sink.write([SCAN, FLOOD])
    sink.write([replace(SCAN, state=ENDED)])
    flows.write(batch(3), AT)
    flows.close()
    sink.close()
    query = f"""SELECT date::VARCHAR, hour::INT, alertId, alertState, examplePorts, distinctPorts::INT,
            epoch_ns(alertEndNanoseconds)
        FROM read_parquet('{tmp_path}/**/alerts-*.parquet', hive_partitioning = true) ORDER BY ALL"""
    assert duckdb.sql(query).fetchall() == [
        ("2023-11-14", 22, "a1", "started", [22, 23, 25], 120, AT + NS + 1),
        ("2023-11-14", 22, "b2", "updated", [], None, AT),
        ("2023-11-14", 23, "a1", "ended", [22, 23, 25], 120, AT + NS + 1),
    ]
    (path,) = tmp_path.rglob("alerts-20231114T22*.parquet")
    assert pq.read_schema(path).remove_metadata().equals(ALERT_SCHEMA)
    (of_flows,) = tmp_path.rglob("flows-*.parquet")
    assert pq.read_metadata(of_flows).num_rows == 3
    assert list(tmp_path.rglob(".*")) == []


def test_parquet_leftover_of_a_dead_process_goes(tmp_path: Path) -> None:
    host = socket.gethostname()
    dead = [tmp_path / f".flowmon-{kind}{host}-999999999.tmp" for kind in ("alerts-", "")]
    for path in dead:
        path.touch()
    ParquetAlerts(tmp_path, lambda: AT).close()
    assert [path.exists() for path in dead] == [False, True]


# --- the option ---


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([""], "--alerts  is not known: expected stderr, syslog, journal, json:PATH (-: standard output) or parquet:DIR"),
        (["mail"], "--alerts mail is not known: expected stderr, syslog, journal, json:PATH"),
        (["STDERR"], "--alerts STDERR is not known: expected stderr, "),
        (["mail:json:x"], "--alerts mail:json:x is not known: expected stderr, "),
        (["json"], "--alerts json names no path: expected json:PATH (-: standard output)"),
        (["json:"], "--alerts json: names no path: expected json:PATH (-: standard output)"),
        (["parquet:"], "--alerts parquet: names no path: expected parquet:DIR"),
        (["stderr:x"], "--alerts stderr:x: stderr takes nothing more: expected stderr"),
        (["stderr", "stderr"], "--alerts stderr stands there twice"),
    ],
)  # fmt: skip
def test_texts_that_mean_nothing(texts: list[str], message: str) -> None:
    complain(texts, ConfigError, message)


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_paths_that_cannot_be_written(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "x"
    complain([f"{kind}:{path}"], SinkError, f"{path} cannot be written (Not a directory): make room or give")


def complain(texts: list[str], kind: type[FlowmonError], message: str) -> None:
    with pytest.raises(kind) as error:
        alert_sinks(texts)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_those_before_are_closed_where_one_cannot_be_opened(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "missing" / "alerts"
    with pytest.raises(SinkError):
        alert_sinks([f"parquet:{good}", f"json:{bad}"])
    assert list(good.iterdir()) == []
