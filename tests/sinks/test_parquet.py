"""Parquet files: whole or not there, where they belong, and read by what people use."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from flowmon import __version__
from flowmon.elements import ELEMENTS, RECORD_SCHEMA, SCHEMA_VERSION
from flowmon.errors import SinkError
from flowmon.sinks.parquet import HARDLY_REPEATED, ParquetSink
from samples import NS, batch

HOST = socket.gethostname()
AT = 1_700_000_000 * NS  # 2023-11-14 22:13:20 UTC
HOUR = Path("date=2023-11-14") / "hour=22"


def files(directory: Path) -> list[Path]:
    """Of all files, hidden ones too, the paths below `directory`."""
    return sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())


def complaint(error: pytest.ExceptionInfo[SinkError], directory: Path) -> str:
    """What is said, which is one line, names the directory and says what to do."""
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{directory} cannot be written (")
    assert "another directory (-d)" in message
    return message


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[ParquetSink]:
    made = ParquetSink(tmp_path)
    yield made
    made.close()


def test_file_is_in_the_partition_of_the_hour_of_writing(sink: ParquetSink, tmp_path: Path) -> None:
    for exported_at_ns, partition in (
        (AT, HOUR),
        (AT + 2799 * NS, HOUR),
        (AT + 2800 * NS, Path("date=2023-11-14") / "hour=23"),
        (AT + 6400 * NS, Path("date=2023-11-15") / "hour=00"),
    ):
        before = files(tmp_path)
        sink.write(batch(), exported_at_ns)
        (new,) = set(files(tmp_path)) - set(before)
        assert new.parent == partition
        assert new.match("flows-*.parquet")


def test_file_holds_the_records_and_says_who_wrote_them(sink: ParquetSink, tmp_path: Path) -> None:
    written = batch(5)
    sink.reserve(5)
    sink.write(written, AT)
    (path,) = tmp_path.rglob("*.parquet")
    read = pq.ParquetFile(path).read()
    assert read.schema.equals(RECORD_SCHEMA)
    assert read.to_pylist() == written.to_pylist()
    metadata = read.schema.metadata
    assert metadata[b"flowmon.schema_version"] == str(SCHEMA_VERSION).encode()
    assert metadata[b"flowmon.version"] == __version__.encode()
    assert metadata[b"flowmon.host"] == HOST.encode()


def test_interface_without_a_name(sink: ParquetSink, tmp_path: Path) -> None:
    written = batch(3, names={2: "eth0"})
    sink.write(written, AT)
    (path,) = tmp_path.rglob("*.parquet")
    assert pq.ParquetFile(path).read().to_pylist() == written.to_pylist()


def test_what_hardly_repeats_has_no_dictionary(sink: ParquetSink, tmp_path: Path) -> None:
    sink.write(batch(5), AT)
    (path,) = tmp_path.rglob("*.parquet")
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunks = [group.column(number) for number in range(group.num_columns)]
    encodings = {chunk.path_in_schema.split(".")[0]: chunk.encodings for chunk in chunks}
    assert list(encodings) == RECORD_SCHEMA.names
    plain = {name for name, of_column in encodings.items() if "RLE_DICTIONARY" not in of_column}
    times = {name for name in RECORD_SCHEMA.names if "timestamp" in str(RECORD_SCHEMA.field(name).type)}
    assert times < plain
    assert {"flowId", "interArrivalSquareSum", "reverseTtlHistogram"} < plain
    assert not plain & {"sourceAddress", "interfaceName", "packetDeltaCount", "protocolIdentifier"}
    # What the oldest readers know.
    assert {encoding for of_column in encodings.values() for encoding in of_column} <= {
        "PLAIN",
        "RLE",
        "RLE_DICTIONARY",
    }


def test_what_hardly_repeats_are_elements() -> None:
    assert {element.name for element in ELEMENTS} > HARDLY_REPEATED


def test_two_batches_of_one_instant_are_two_files(sink: ParquetSink, tmp_path: Path) -> None:
    for _ in range(2):
        sink.write(batch(), AT)
    assert len(list(tmp_path.rglob("*.parquet"))) == 2


def test_file_has_its_name_only_when_it_is_whole(
    sink: ParquetSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, list[Path]]] = []

    def watch(name: str, call: Callable[..., None]) -> None:
        def watching(*arguments: int) -> None:
            seen.append((name, [path for path in files(tmp_path) if not path.name.startswith(".")]))
            call(*arguments)

        monkeypatch.setattr(os, name, watching)

    watch("ftruncate", os.ftruncate)
    watch("fsync", os.fsync)
    sink.reserve(3)
    sink.write(batch(), AT)
    (path,) = files(tmp_path)
    # Cut to its length, synced, renamed, and the directories synced, which are new.
    assert seen == [("ftruncate", []), ("fsync", []), *[("fsync", [path])] * 3]


@pytest.fixture
def readable(sink: ParquetSink, tmp_path: Path) -> Path:
    """Two partitions, and a file that is being written."""
    sink.write(batch(2), AT)
    sink.write(batch(3), AT + 3600 * NS)
    sink.reserve(1000)
    return tmp_path


def test_duckdb_reads_the_directory(readable: Path) -> None:
    query = f"""SELECT date::VARCHAR, hour::INT, count(*), sum(packetDeltaCount)::INT, any_value(sourceAddress)
        FROM read_parquet('{readable}/**/*.parquet', hive_partitioning = true) GROUP BY ALL ORDER BY ALL"""
    expected = [("2023-11-14", 22, 2, 2, "192.0.2.1"), ("2023-11-14", 23, 3, 3, "192.0.2.1")]
    assert duckdb.sql(query).fetchall() == expected


def test_pandas_reads_the_directory(readable: Path) -> None:
    frame = pd.read_parquet(readable)
    assert frame.groupby(["date", "hour"], observed=True)["packetDeltaCount"].sum().to_dict() == {
        ("2023-11-14", 22): 2,
        ("2023-11-14", 23): 3,
    }
    assert set(frame["sourceAddress"]) == {"192.0.2.1"}


def test_polars_reads_the_directory(readable: Path) -> None:
    frame = pl.read_parquet(readable / "**/*.parquet", hive_partitioning=True)
    sums = frame.group_by("date", "hour").agg(pl.sum("packetDeltaCount")).sort("hour")
    assert [(str(date), hour, packets) for date, hour, packets in sums.rows()] == [
        ("2023-11-14", 22, 2),
        ("2023-11-14", 23, 3),
    ]
    assert frame["sourceAddress"].unique().to_list() == ["192.0.2.1"]


def test_empty_batch_makes_no_file(sink: ParquetSink, tmp_path: Path) -> None:
    sink.write(batch().slice(0, 0), AT)
    sink.close()
    assert files(tmp_path) == []


def test_closing_leaves_only_records(sink: ParquetSink, tmp_path: Path) -> None:
    sink.write(batch(), AT)
    sink.reserve(100)
    assert len(files(tmp_path)) == 2
    sink.close()
    assert [path.suffix for path in files(tmp_path)] == [".parquet"]


def test_file_is_no_longer_than_its_records(sink: ParquetSink, tmp_path: Path) -> None:
    sink.reserve(100_000)
    sink.write(batch(), AT)
    (path,) = tmp_path.rglob("*.parquet")
    assert path.stat().st_size < 200_000 < 100_000 * 512


# --- what cannot be written ---


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    directory = tmp_path / "file" / "records"
    with pytest.raises(SinkError) as error:
        ParquetSink(directory)
    assert "Not a directory" in complaint(error, directory)


def test_directory_without_permission(tmp_path: Path) -> None:
    """In a user namespace of its own, so that root too may write only where it is allowed to."""
    tmp_path.chmod(0o500)
    code = f"from pathlib import Path; from flowmon.sinks.parquet import ParquetSink; ParquetSink(Path({str(tmp_path)!r}))"
    command = ["unshare", "--user", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"flowmon.errors.SinkError: {tmp_path} cannot be written (Permission denied)")


def test_directory_that_allows_no_file() -> None:
    directory = Path("/proc/self/fd")  # not even root's
    with pytest.raises(SinkError) as error:
        ParquetSink(directory)
    complaint(error, directory)


def test_failed_write_leaves_no_file_and_can_be_repeated(
    sink: ParquetSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    sink.reserve(3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(SinkError) as error:
            sink.write(batch(), AT)
    assert "Input/output error" in complaint(error, tmp_path)
    assert list(tmp_path.rglob("*.parquet")) == []
    sink.write(batch(), AT)
    (repeated,) = tmp_path.rglob("*.parquet")
    sink.write(batch(), AT + 3600 * NS)
    (other,) = set(tmp_path.rglob("*.parquet")) - {repeated}
    assert repeated.read_bytes() == other.read_bytes()


def test_directory_removed_meanwhile_is_made_again(sink: ParquetSink, tmp_path: Path) -> None:
    sink.reserve(3)
    shutil.rmtree(tmp_path)
    for _ in range(2):  # it may complain once, but must not stay broken
        try:
            sink.write(batch(), AT)
            break
        except SinkError:
            tmp_path.mkdir(exist_ok=True)
    assert [pq.ParquetFile(path).metadata.num_rows for path in tmp_path.rglob("*.parquet")] == [3]


@pytest.fixture
def tiny_disk(kernel: None, tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "flowmon-test", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.kernel
def test_full_disk_is_noticed_before_flows_are_taken(tiny_disk: Path) -> None:
    sink = ParquetSink(tiny_disk)
    sink.reserve(100)
    with pytest.raises(SinkError) as error:
        sink.reserve(10_000)
    assert "No space left on device" in complaint(error, tiny_disk)
    assert files(tiny_disk) == []
    assert shutil.disk_usage(tiny_disk).used == 0
    sink.reserve(3)
    sink.write(batch(), AT)
    assert len(files(tiny_disk)) == 1


@pytest.mark.kernel
def test_what_was_reserved_can_be_written_on_a_disk_that_fills_up(tiny_disk: Path) -> None:
    sink = ParquetSink(tiny_disk)
    sink.reserve(500)
    with pytest.raises(OSError, match="No space left"):
        (tiny_disk / "filler").write_bytes(bytes(1 << 20))
    (tiny_disk / "filler").write_bytes(
        bytes((tiny_disk / "filler").stat().st_size - 16384)
    )  # directories need a page
    sink.write(batch(500), AT)
    (path,) = tiny_disk.rglob("*.parquet")
    assert pq.ParquetFile(path).metadata.num_rows == 500


# --- leftovers ---


def leftover(directory: Path, process: int, host: str = HOST) -> Path:
    path = directory / f".flowmon-{host}-{process}.tmp"
    path.write_bytes(b"half")
    return path


@pytest.fixture
def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_leftover_of_a_dead_process_goes_and_of_a_living_one_stays(tmp_path: Path, dead_process: int) -> None:
    dead, living = leftover(tmp_path, dead_process), leftover(tmp_path, os.getppid())
    ParquetSink(tmp_path).close()
    assert (dead.exists(), living.exists()) == (False, True)


def test_leftover_of_another_host_stays(tmp_path: Path, dead_process: int) -> None:
    other = leftover(tmp_path, dead_process, "elsewhere")
    namesake = leftover(tmp_path, dead_process, f"{HOST}-2")
    numbered = namesake.with_name(f".flowmon-{HOST}-{dead_process}-{dead_process}.0.tmp")
    numbered.write_bytes(b"half")
    ParquetSink(tmp_path).close()
    assert (other.exists(), namesake.exists(), numbered.exists()) == (True, True, True)


def test_killed_process_leaves_what_the_next_start_removes(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from flowmon.sinks.parquet import ParquetSink;"
        "ParquetSink(Path(sys.argv[1])).reserve(9); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=False)
    assert len(files(tmp_path)) == 1
    ParquetSink(tmp_path).close()
    assert files(tmp_path) == []


# --- at the edges ---


def test_partition_is_the_old_one_to_the_last_nanosecond(sink: ParquetSink, tmp_path: Path) -> None:
    sink.write(batch(), AT + 2800 * NS - 1)
    (path,) = tmp_path.rglob("*.parquet")
    assert path.parent == tmp_path / HOUR


@pytest.mark.parametrize("step", ["open", "fsync"])
def test_directory_that_cannot_be_synced_is_said_and_nothing_written_twice(
    sink: ParquetSink,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    real = getattr(os, step)

    def broken(file: Path | int, *rest: int) -> int | None:
        path = Path(f"/proc/self/fd/{file}") if isinstance(file, int) else Path(file)
        if path.is_dir():
            raise OSError(5, "Input/output error")
        return real(file, *rest)

    sink.reserve(3)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, broken)
        sink.write(batch(), AT)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    sink.write(batch(), AT)
    assert [pq.ParquetFile(path).metadata.num_rows for path in tmp_path.rglob("*.parquet")] == [3, 3]


def test_reserving_twice_leaves_one_file_and_no_descriptor(sink: ParquetSink, tmp_path: Path) -> None:
    sink.reserve(3)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    small = (tmp_path / files(tmp_path)[0]).stat().st_size
    sink.reserve(3000)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    (only,) = files(tmp_path)
    status = (tmp_path / only).stat()
    assert status.st_size > small
    assert status.st_blocks * 512 >= status.st_size  # allocated, not a hole
    sink.write(batch(), AT)
    assert [path.suffix for path in files(tmp_path)] == [".parquet"]


def test_room_for_more_is_beside_that_of_the_batch_in_hand(sink: ParquetSink, tmp_path: Path) -> None:
    sink.reserve(3)
    (first,) = files(tmp_path)
    sink.reserve(3000, more=True)
    (second,) = set(files(tmp_path)) - {first}
    assert (tmp_path / second).stat().st_blocks * 512 >= 3000 * 512
    sink.write(batch(), AT)
    assert [path.name for path in tmp_path.rglob("*.tmp")] == [Path(second).name]
    sink.write(batch(), AT)
    assert [path.suffix for path in files(tmp_path)] == [".parquet", ".parquet"]
    sink.reserve(3)
    sink.reserve(3, more=True)
    sink.close()
    assert len(files(tmp_path)) == 2


def test_file_in_place_of_the_directory_is_untouched(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(SinkError) as error:
        ParquetSink(path)
    complaint(error, path)
    assert path.read_text() == "mine"
    assert files(tmp_path) == [Path("taken")]
