"""Packets in files: whole or not there, and read by what people use."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_samples import ICMPV6, OFFSET, UDP, packet, plain, random_packets, rows_of, session
from flowmon.errors import SinkError
from flowmon.features.packets import FEATURES_SCHEMA, feature_batch
from flowmon.features.sessions import CAPTURE
from flowmon.sinks.features import FeatureSink, directory, result_json
from flowmon.sinks.features.parquet import HARDLY_REPEATED, ParquetFeatureSink
from flowmon.sinks.features.result_json import ID, PACKET, ResultJsonSink
from flowmon.sinks.features.session_csv import SessionCsvSink
from samples import NS, key

AT = 1_700_000_000 * NS  # 2023-11-14 22:13:20 UTC
BEGAN = OFFSET + NS
HERE, THERE = "192.0.2.1", "198.51.100.2"
SINKS: list[Callable[[Path], FeatureSink]] = [ParquetFeatureSink, ResultJsonSink, SessionCsvSink]


def files(of: Path) -> list[str]:
    """Of all files, hidden ones too, the paths below `of`."""
    return sorted(str(path.relative_to(of)) for path in of.rglob("*") if path.is_file())


def some_rows() -> pa.RecordBatch:
    """Two sessions, which took turns."""
    udp = key(protocol=UDP, ports=(53, 53))
    both = np.concatenate([session(key(), 5), session(udp, 3, NS + 500, udp_length=108)])
    return rows_of(both[np.argsort(both["time_mono_ns"], kind="stable")])


# --- what cannot be written ---


def complaint(error: pytest.ExceptionInfo[SinkError], of: Path) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{of} cannot be written (")
    assert message.endswith("give another directory (--features-directory)")


@pytest.mark.parametrize("make", SINKS)
def test_directory_that_cannot_be_made(make: Callable[[Path], FeatureSink], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SinkError) as error:
        make(tmp_path / "file" / "features")
    complaint(error, tmp_path / "file" / "features")


@pytest.mark.parametrize("make", SINKS)
def test_directory_that_allows_no_file(make: Callable[[Path], FeatureSink]) -> None:
    with pytest.raises(SinkError) as error:
        make(Path("/proc/self/fd"))  # not even root's
    complaint(error, Path("/proc/self/fd"))


@pytest.mark.parametrize("make", SINKS)
def test_directory_is_made_and_nothing_is_left_in_it(
    make: Callable[[Path], FeatureSink], tmp_path: Path
) -> None:
    sink = make(tmp_path / "a" / "b")
    sink.write(some_rows().slice(0, 0), AT)
    sink.close()
    assert files(tmp_path) == []


@pytest.mark.parametrize("make", SINKS[:2])
@pytest.mark.parametrize("before", [[], ["result.json"]])
def test_killed_writer_leaves_no_half_file_under_its_name(
    make: type[ParquetFeatureSink], before: list[str], tmp_path: Path
) -> None:
    """Killed where all is written but not synced. What was there before stays as it was."""
    for name in before:
        (tmp_path / name).write_text("[]")
    script = (
        "import os, sys; from pathlib import Path;"
        "from test_features_sinks import *;"
        f"sink = {make.__name__}(Path(sys.argv[1])); sink.write(some_rows(), AT);"
        "os.fsync = lambda fd: os.kill(os.getpid(), 9);"
        "sink.write(some_rows(), AT); sink.finish()"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], check=False, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == -9
    whole = [name for name in files(tmp_path) if not name.startswith(".")]
    assert len(files(tmp_path)) == len(whole) + 1
    if make is ParquetFeatureSink:
        (written,) = set(whole) - set(before)
        assert plain(pq.ParquetFile(tmp_path / written).read()) == plain(some_rows())
    else:
        assert whole == before
    assert all((tmp_path / name).read_text() == "[]" for name in before)
    # The next one takes away what was left.
    sink = make(tmp_path)
    sink.write(some_rows(), AT)
    sink.finish()
    sink.close()
    assert not any(name.startswith(".") for name in files(tmp_path))


# --- Parquet ---


def test_parquet_is_in_the_partition_of_the_hour_and_reads_back(tmp_path: Path) -> None:
    sink = ParquetFeatureSink(tmp_path)
    sink.write(some_rows(), AT)
    sink.write(some_rows(), AT + 3600 * NS)
    sink.finish()
    sink.close()
    first, second = files(tmp_path)
    assert Path(first).match("date=2023-11-14/hour=22/features-*.parquet")
    assert Path(second).match("date=2023-11-14/hour=23/features-*.parquet")
    read = pq.ParquetFile(tmp_path / first).read()
    assert read.schema.equals(FEATURES_SCHEMA)
    assert read.schema.metadata[b"flowmon.features_schema_version"] == b"1"
    assert plain(read) == plain(some_rows())
    frame = pd.read_parquet(tmp_path)
    assert frame.groupby("hour", observed=True)["ipTotalLength"].sum().to_dict() == {22: 1120, 23: 1120}
    query = f"SELECT count(*) FROM '{tmp_path}/**/*.parquet' WHERE tcpControlBits IS NULL"
    assert duckdb.sql(query).fetchall() == [(6,)]


def test_parquet_has_dictionaries_of_what_repeats(tmp_path: Path) -> None:
    sink = ParquetFeatureSink(tmp_path)
    sink.write(some_rows(), AT)
    (path,) = tmp_path.rglob("*.parquet")
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunks = [group.column(number) for number in range(group.num_columns)]
    assert {c.path_in_schema for c in chunks if "RLE_DICTIONARY" not in c.encodings} == HARDLY_REPEATED


def test_parquet_that_could_not_be_written_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = ParquetFeatureSink(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        with pytest.raises(SinkError) as error:
            sink.write(some_rows(), AT)
    complaint(error, tmp_path)
    assert files(tmp_path) == []
    sink.write(some_rows(), AT)
    sink.close()
    assert len(files(tmp_path)) == 1


def no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- JSON ---


def written(of: Path, *batches: pa.RecordBatch, most: int = 1000) -> dict[str, Any]:
    """All the files of a run."""
    sink = ResultJsonSink(of, most=most)
    for batch in batches:
        sink.write(batch, AT)
    sink.finish()
    sink.close()
    return {name: json.loads((of / name).read_text()) for name in files(of)}


def expected_json(*batches: pa.RecordBatch) -> list[dict[str, Any]]:
    rows = [row for batch in batches for row in plain(batch)]
    rows.sort(key=lambda row: row["packetIndex"])
    found: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in CAPTURE), []).append(row)
    objects = [
        {"id": [of[0][name] for name in ID], "packets": [[row[name] or 0 for name in PACKET] for row in of]}
        for of in found.values()
    ]
    return sorted(objects, key=lambda one: one["packets"][0][0])


def test_result_is_an_object_a_session(tmp_path: Path) -> None:
    udp = key("2001:db8::1", "2001:db8::2", (5000, 53), UDP)
    batch = rows_of(
        packet(tcp_control_bits=2, window=1000, fragment=0x4000, class_of_service=8),
        packet(udp, time_mono_ns=NS + 5, udp_length=48, last_ip_length=88, interval_ns=7),
    )
    tcp_packet = [BEGAN, 1, 140, 64, 0, 64, 8, 100, 2, 1000, 0, 0, 0, 0, 0, 0]
    udp_packet = [BEGAN + 5, 1, 88, 0, 0, 64, 0, 48, 0, 0, 0, 0, 48, 0, 0, 7]
    assert written(tmp_path, batch) == {
        "result.json": [
            {"id": [HERE, 40000, THERE, 443, 6], "packets": [tcp_packet]},
            {"id": ["2001:db8::1", 5000, "2001:db8::2", 53, 17], "packets": [udp_packet]},
        ]
    }
    assert len((tmp_path / "result.json").read_text().splitlines()) == 4


def test_packets_of_icmp(tmp_path: Path) -> None:
    echo = key("2001:db8::1", "2001:db8::2", (77, 128 << 8), ICMPV6)
    (one,) = written(tmp_path, rows_of(packet(echo, icmp_type=128, icmp_code=3)))["result.json"]
    assert one["id"] == ["2001:db8::1", 0, "2001:db8::2", 0, 58]
    assert one["packets"][0][-3:] == [128, 3, 0]


def test_packets_of_a_session_come_together_from_many_batches(tmp_path: Path) -> None:
    batch = some_rows()
    late_first = [batch.slice(row, 1) for row in reversed(range(batch.num_rows))]
    found = written(tmp_path, *late_first)
    assert found == {"result.json": expected_json(batch)}
    assert [len(one["packets"]) for one in found["result.json"]] == [5, 3]
    assert np.array(found["result.json"][0]["packets"]).dtype == np.int64


@given(st.integers(0, 2**32), st.lists(st.integers(0, 30), max_size=4))
def test_result_is_the_oracles(
    tmp_path_factory: pytest.TempPathFactory, seed: int, numbers: list[int]
) -> None:
    batches = [feature_batch(random_packets(seed + n, number), OFFSET) for n, number in enumerate(numbers)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result_json, "ROWS_AT_A_TIME", 7)
        patch.setattr(result_json, "BATCHES", 2)
        found = written(tmp_path_factory.mktemp("json"), *batches, most=10_000)
    assert found == {"result.json": expected_json(*batches)}


def test_no_packets_are_an_empty_array(tmp_path: Path) -> None:
    assert written(tmp_path) == {"result.json": []}
    assert written(tmp_path, some_rows().slice(0, 0)) == {"result.json": []}


def test_more_packets_than_are_gathered_go_to_further_files(tmp_path: Path) -> None:
    batch = some_rows()
    pieces = [batch.slice(start, 2) for start in range(0, 8, 2)]
    found = written(tmp_path, *pieces, most=5)
    assert found == {
        "result.json": expected_json(*pieces[:2]),
        "result-2.json": expected_json(*pieces[2:]),
    }
    assert written(tmp_path, batch, batch, most=3).keys() == {"result.json", "result-2.json"}


def test_files_take_the_place_of_the_run_before(tmp_path: Path) -> None:
    mine = tmp_path / "result-of-mine.json"
    mine.write_text("1")
    assert len(written(tmp_path, *[some_rows()] * 3, most=8)) == 4
    found = written(tmp_path, some_rows())
    assert found == {"result.json": expected_json(some_rows()), "result-of-mine.json": 1}


def test_further_files_of_the_run_before_stay_until_there_is_a_new_one(tmp_path: Path) -> None:
    before = written(tmp_path, *[some_rows()] * 3, most=8)
    sink = ResultJsonSink(tmp_path)
    sink.write(some_rows(), AT)
    sink.close()  # without finishing
    assert {name: json.loads((tmp_path / name).read_text()) for name in files(tmp_path)} == before


@pytest.mark.parametrize("step", ["write", "finish"])
def test_result_that_could_not_be_written_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    sink = ResultJsonSink(tmp_path, most=8)
    first, second = some_rows(), rows_of(session(key(ports=(1, 2)), 4))
    sink.write(first, AT)
    with monkeypatch.context() as patch:
        patch.setattr(directory.os, "fsync", no_room)
        with pytest.raises(SinkError) as error:
            sink.finish() if step == "finish" else sink.write(second, AT)
    complaint(error, tmp_path)
    assert files(tmp_path) == []
    sink.write(second, AT)
    sink.finish()
    found = {name: json.loads((tmp_path / name).read_text()) for name in files(tmp_path)}
    assert found == {"result.json": expected_json(first), "result-2.json": expected_json(second)}


def test_finishing_twice_writes_once(tmp_path: Path) -> None:
    sink = ResultJsonSink(tmp_path)
    sink.write(some_rows(), AT)
    sink.finish()
    sink.finish()
    assert files(tmp_path) == ["result.json"]


# --- a CSV a session ---

TCP_FILE = f"{HERE}-40000___{THERE}-443___{BEGAN}.csv"
UDP_FILE = f"{HERE}-53___{THERE}-53___{BEGAN + 500}.csv"


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def as_texts(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]


def test_each_session_has_a_file(tmp_path: Path) -> None:
    SessionCsvSink(tmp_path).write(some_rows(), AT)
    assert files(tmp_path) == sorted([TCP_FILE, UDP_FILE])
    rows = plain(some_rows())
    for name, protocol in ((TCP_FILE, 6), (UDP_FILE, 17)):
        expected = [row for row in rows if row["protocolIdentifier"] == protocol]
        assert lines_of(tmp_path / name) == as_texts(expected)
        assert (tmp_path / name).read_bytes().endswith(b"\n")
    frame = pd.read_csv(tmp_path / TCP_FILE)
    assert list(frame.columns) == FEATURES_SCHEMA.names
    assert frame["flowId"].astype("u8").tolist() == [row["flowId"] for row in rows[:1]] * 5
    assert pd.to_datetime(frame["captureStartNanoseconds"])[0] == pd.Timestamp(BEGAN, unit="ns")


def test_colons_of_addresses_are_kept(tmp_path: Path) -> None:
    SessionCsvSink(tmp_path).write(rows_of(session(key("2001:db8::1", "fe80::2"), 1)), AT)
    assert files(tmp_path) == [f"2001:db8::1-40000___fe80::2-443___{BEGAN}.csv"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_later_packets_are_appended(tmp_path: Path, size: int) -> None:
    sink = SessionCsvSink(tmp_path)
    batch = some_rows()
    for start in range(0, batch.num_rows, size):
        sink.write(batch.slice(start, size), AT)
    (tmp_path / "whole").mkdir()
    SessionCsvSink(tmp_path / "whole").write(batch, AT)
    for name in (TCP_FILE, UDP_FILE):
        assert (tmp_path / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_rounds_of_a_session_are_in_one_file(tmp_path: Path) -> None:
    SessionCsvSink(tmp_path).write(rows_of(session(key(), 2), session(key(), 2, round=1)), AT)
    found = lines_of(tmp_path / TCP_FILE)
    assert [row["captureRound"] for row in found] == ["0", "0", "1", "1"]


def test_no_file_stays_open(tmp_path: Path) -> None:
    sink = SessionCsvSink(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    sink.write(rows_of(*(session(key(ports=(port, 1)), 1) for port in range(1, 100))), AT)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(files(tmp_path)) == 99


def test_file_of_an_earlier_run_is_begun_anew(tmp_path: Path) -> None:
    for _ in range(2):
        sink = SessionCsvSink(tmp_path)
        for _ in range(2):
            sink.write(rows_of(session(key(), 3)), AT)
        assert len(lines_of(tmp_path / TCP_FILE)) == 6
        sink.close()
        os.utime(tmp_path / TCP_FILE, ns=(AT, AT))


def test_batch_is_written_to_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = SessionCsvSink(tmp_path)
    sink.write(rows_of(session(key(), 3)), AT)
    before = (tmp_path / TCP_FILE).read_bytes()
    real, calls = os.write, []

    def half_of_the_second(fd: int, octets: memoryview) -> int:
        calls.append(fd)
        if len(calls) == 3:
            no_room()
        return real(fd, octets[:30] if len(calls) == 2 else octets)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half_of_the_second)
        with pytest.raises(SinkError) as error:
            sink.write(some_rows(), AT)
    complaint(error, tmp_path)
    assert len(calls) == 3
    assert files(tmp_path) == [TCP_FILE]
    assert (tmp_path / TCP_FILE).read_bytes() == before
    sink.write(some_rows(), AT)
    assert [len(lines_of(tmp_path / name)) for name in (TCP_FILE, UDP_FILE)] == [8, 3]


def test_a_large_batch_is_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    SessionCsvSink(whole).write(some_rows(), AT)
    monkeypatch.setattr("flowmon.sinks.features.session_csv.ROWS_AT_A_TIME", 2)
    SessionCsvSink(parts).write(some_rows(), AT)
    assert files(parts) == files(whole)
    assert all((parts / name).read_bytes() == (whole / name).read_bytes() for name in files(whole))
