"""Runs of `flowmon -r --features`, and what they wrote, as rows of integers and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kernel.offline import flowmon

Row = dict[str, Any]
"""Column → value; times are integer ns since 1970 UTC."""


def features(capture: Path, directory: Path, *options: str) -> list[Row]:
    """The rows of `flowmon -r CAPTURE -d DIRECTORY --features OPTIONS`, which must succeed."""
    done = flowmon(capture, "-d", directory, "--features", *options)
    assert done.returncode == 0, done.stderr
    return rows_in(directory / "_features")


def rows_in(directory: Path) -> list[Row]:
    """All rows below a directory of Parquet partitions, in the order in which they were written to each file."""
    return [row for file in sorted(directory.glob("date=*/hour=*/*.parquet")) for row in _rows(file)]


def _rows(file: Path) -> list[Row]:
    table = pq.ParquetFile(file).read()
    for at, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            assert field.type == pa.timestamp("ns", tz="UTC")
            table = table.set_column(at, field.name, table.column(at).cast(pa.int64()))
    return table.to_pylist()


def captures_of(rows: list[Row]) -> list[list[Row]]:
    """The rows of each capture of a session, in the order that they have; captures in order of their first packet."""
    captures: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        capture = row["flowId"], row["captureStartNanoseconds"], row["captureRound"]
        captures.setdefault(capture, []).append(row)
    return sorted(captures.values(), key=lambda rows: rows[0]["observationTimeNanoseconds"])
