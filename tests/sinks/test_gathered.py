"""Batches put together: by the hour, not too many, in order, each record once whatever the sink behind says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowmon.elements import RECORD_SCHEMA
from flowmon.errors import SinkError
from flowmon.sinks import Metering
from flowmon.sinks.gathered import NS_PER_HOUR, GatheringSink
from flowmon.sinks.json_lines import JsonLinesSink
from flowmon.sinks.parquet import ParquetSink
from samples import batch

AT = 472_222 * NS_PER_HOUR  # 2023-11-14 22:00:00 UTC
LAST = AT + NS_PER_HOUR - 1


class Inner:
    """A sink that keeps what it is told, and refuses as often as it is asked to."""

    def __init__(self) -> None:
        self.refusals = 0
        self.reserved: list[int] = []
        self.written: list[tuple[pa.RecordBatch, int]] = []
        self.closed = 0

    def reserve(self, rows: int, *, more: bool = False) -> None:
        self.reserved.append(rows)

    def write(self, records: pa.RecordBatch, exported_at_ns: int) -> None:
        if self.refusals:
            self.refusals -= 1
            raise SinkError("the disk is full")
        self.written.append((records, exported_at_ns))

    def report(self, metering: Metering) -> None:
        pass

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1

    def names(self) -> list[list[str]]:
        """Of each batch written, the names of the interfaces, which tell records apart."""
        return [records.column("interfaceName").to_pylist() for records, _ in self.written]

    def times(self) -> list[int]:
        return [exported_at_ns for _, exported_at_ns in self.written]


class Unready(Inner):
    """A sink that refuses when it is asked for room."""

    def reserve(self, rows: int, *, more: bool = False) -> None:
        if self.refusals:
            self.refusals -= 1
            raise SinkError("the disk is full")
        super().reserve(rows)


def named(*names: str) -> pa.RecordBatch:
    """A record for each name, in a dictionary of this batch's own."""
    return batch(len(names), names=dict(enumerate(names, 1)))


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture
def sink(inner: Inner) -> GatheringSink:
    return GatheringSink(inner)


def test_nothing_is_written_before_it_has_to_be(sink: GatheringSink, inner: Inner) -> None:
    sink.reserve(1000)
    sink.write(named("a"), AT)
    sink.write(named("b"), LAST)
    assert (inner.reserved, inner.written) == ([], [])


def test_flush_writes_all_as_one_batch_at_the_time_of_the_last(sink: GatheringSink, inner: Inner) -> None:
    for number, name in enumerate("abc"):
        sink.write(named(name, name), AT + number)
    sink.flush()
    assert inner.names() == [["a", "a", "b", "b", "c", "c"]]
    assert inner.times() == [AT + 2]
    assert inner.reserved == [6]


def test_flush_of_nothing_writes_nothing(sink: GatheringSink, inner: Inner) -> None:
    sink.flush()
    sink.write(named("a"), AT)
    sink.flush()
    sink.flush()
    assert inner.names() == [["a"]]


def test_batch_without_records_makes_no_difference(sink: GatheringSink, inner: Inner) -> None:
    sink.write(batch().slice(0, 0), AT)
    sink.flush()
    assert sum(records.num_rows for records, _ in inner.written) == 0
    sink.write(named("a"), AT)
    sink.write(batch().slice(0, 0), AT)
    sink.flush()
    assert [names for names in inner.names() if names] == [["a"]]


def test_batches_of_one_hour_are_one_and_the_next_hour_begins_another(
    sink: GatheringSink, inner: Inner
) -> None:
    for name, exported_at_ns in (("a", AT), ("b", LAST), ("c", LAST + 1), ("d", LAST + 5 * NS_PER_HOUR)):
        sink.write(named(name), exported_at_ns)
    sink.flush()
    assert inner.names() == [["a", "b"], ["c"], ["d"]]
    assert inner.times() == [LAST, LAST + 1, LAST + 5 * NS_PER_HOUR]


def test_first_hour_of_1970_is_an_hour_too(sink: GatheringSink, inner: Inner) -> None:
    for name, exported_at_ns in (("a", 0), ("b", NS_PER_HOUR - 1), ("c", NS_PER_HOUR)):
        sink.write(named(name), exported_at_ns)
    sink.flush()
    assert inner.names() == [["a", "b"], ["c"]]


def test_many_records_are_written_before_the_hour_is_over(inner: Inner) -> None:
    sink = GatheringSink(inner, rows=4)
    for name in "abcdefg":
        sink.write(named(name, name), AT)
        assert sum(map(len, inner.names())) >= 2 * (ord(name) - ord("a") + 1) - 5
    sink.flush()
    assert inner.names() == [["a", "a", "b", "b"], ["c", "c", "d", "d"], ["e", "e", "f", "f"], ["g", "g"]]


def test_dictionaries_become_one(sink: GatheringSink, inner: Inner) -> None:
    """Of names that both have, that one has, and that are missing."""
    sink.write(named("a", "b"), AT)
    sink.write(named("b", "c"), AT)
    sink.write(batch(3, names={2: "a"}), AT)
    sink.flush()
    ((records, _),) = inner.written
    records.validate(full=True)
    assert records.schema.equals(RECORD_SCHEMA)
    names = records.column("interfaceName")
    assert names.to_pylist() == ["a", "b", "b", "c", None, "a", None]
    assert len(set(names.dictionary.to_pylist())) == len(names.dictionary)


def test_every_column_comes_through(sink: GatheringSink, inner: Inner) -> None:
    parts = [named("a", "b", "c"), named("d"), named("a").slice(0, 1), named("x", "y", "z").slice(1, 2)]
    for part in parts:
        sink.write(part, AT)
    sink.flush()
    ((records, _),) = inner.written
    assert records.to_pylist() == [record for part in parts for record in part.to_pylist()]


@pytest.mark.parametrize("kind", [Inner, Unready])
@pytest.mark.parametrize("refusals", [1, 3])
def test_refused_flush_is_told_and_can_be_repeated(kind: Callable[[], Inner], refusals: int) -> None:
    inner = kind()
    sink = GatheringSink(inner)
    sink.write(named("a"), AT)
    sink.write(named("b"), AT + 1)
    inner.refusals = refusals
    for _ in range(refusals):
        with pytest.raises(SinkError, match="the disk is full"):
            sink.flush()
    sink.flush()
    sink.flush()
    assert (inner.names(), inner.times()) == ([["a", "b"]], [AT + 1])


@pytest.mark.parametrize("kind", [Inner, Unready])
@pytest.mark.parametrize("rows", [2, 100], ids=["too-many", "hour"])
def test_refused_write_keeps_what_it_had_and_does_not_take_the_new(
    kind: Callable[[], Inner], rows: int
) -> None:
    """So who writes a refused batch again, as the collector does, writes it once."""
    next_at = AT if rows == 2 else LAST + 1
    inner = kind()
    sink = GatheringSink(inner, rows)
    sink.write(named("a", "b"), AT)
    inner.refusals = 2
    for _ in range(2):
        with pytest.raises(SinkError, match="the disk is full"):
            sink.write(named("c"), next_at)
    sink.write(named("c"), next_at)
    assert (inner.names(), inner.times()) == ([["a", "b"]], [AT])
    sink.flush()
    assert (inner.names(), inner.times()) == ([["a", "b"], ["c"]], [AT, next_at])


def test_what_comes_after_a_refused_flush_goes_with_it(sink: GatheringSink, inner: Inner) -> None:
    sink.write(named("a"), AT)
    inner.refusals = 1
    with pytest.raises(SinkError):
        sink.flush()
    sink.write(named("b"), AT + 1)
    sink.flush()
    assert inner.names() == [["a", "b"]]


def test_other_errors_come_through_as_they_are(
    sink: GatheringSink, inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError

    sink.write(named("a"), AT)
    with monkeypatch.context() as patch:
        patch.setattr(inner, "write", gone)
        with pytest.raises(BrokenPipeError):
            sink.flush()
    sink.flush()
    assert inner.names() == [["a"]]


def test_close_closes_the_other_and_writes_nothing(sink: GatheringSink, inner: Inner) -> None:
    sink.write(named("a"), AT)
    sink.close()
    assert (inner.closed, inner.written) == (1, [])


def test_closing_a_parquet_sink_leaves_only_what_was_flushed(tmp_path: Path) -> None:
    sink = GatheringSink(ParquetSink(tmp_path))
    sink.write(named("a", "b"), AT)
    sink.flush()
    sink.write(named("c"), AT)
    sink.close()
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert path.parent == tmp_path / "date=2023-11-14" / "hour=22"
    assert pq.ParquetFile(path).read().column("interfaceName").to_pylist() == ["a", "b"]


def test_json_lines_come_in_the_order_of_writing(tmp_path: Path) -> None:
    with (tmp_path / "lines").open("wb") as stream:
        sink = GatheringSink(JsonLinesSink(stream))
        for name in "abc":
            sink.write(named(name), AT)
        sink.flush()
    lines = (tmp_path / "lines").read_text().splitlines()
    assert [json.loads(line)["interfaceName"] for line in lines] == ["a", "b", "c"]


def test_whatever_the_sizes_and_times_every_record_is_written_once(inner: Inner) -> None:
    sink = GatheringSink(inner, rows=10)
    random = np.random.default_rng(1)
    expected, exported_at_ns = [], AT
    for _ in range(60):
        names = [f"{len(expected)}-{number}" for number in range(random.integers(1, 8))]
        expected += names
        exported_at_ns += int(random.integers(0, NS_PER_HOUR // 4))
        inner.refusals = int(random.integers(0, 2))
        for _ in range(2):
            try:
                sink.write(named(*names), exported_at_ns)
                break
            except SinkError:
                continue
        inner.refusals = 0
    sink.flush()
    assert [name for names in inner.names() for name in names] == expected
    hours = [exported_at_ns // NS_PER_HOUR for exported_at_ns in inner.times()]
    assert hours == sorted(hours)
    assert all(len(names) < 10 + 8 for names in inner.names())
