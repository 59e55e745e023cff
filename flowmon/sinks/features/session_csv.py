"""Packets as CSV, a file a session: DIR/source-port___destination-port___timestamp.csv.

Rules:
- The timestamp is captureStart, in nanoseconds since 1970. All rounds of a session are in its file.
- A header line with the columns' names, then a line a packet. What a packet does not have is empty.
- Packets that come later are appended. No file stays open, however many sessions there are.
- A batch is written to all its files, or to none. It is not synced: this is for looking at, not for keeping.
- A file that was there before the run is begun anew: the same capture again gives the same files.
"""

import contextlib
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from flowmon.arrow import from_numpy
from flowmon.features.packets import FEATURES_SCHEMA
from flowmon.features.sessions import numbers, sessions
from flowmon.sinks.features.directory import OPTION, Directory
from flowmon.sinks.features.texts import octets, row_texts

HEADER = (",".join(FEATURES_SCHEMA.names) + "\n").encode()
ROWS_AT_A_TIME = 1 << 18  # become text: Arrow holds 2 GiB of it together
_NAME = ("sourceAddress", "sourceTransportPort", "destinationAddress", "destinationTransportPort")


class SessionCsvSink:
    """Writes to `directory`, which is made where it is not there."""

    def __init__(self, directory: Path, option: str = OPTION) -> None:
        """option: how the user gives another directory. Raises SinkError."""
        self._directory = Directory(directory, option)

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:  # noqa: ARG002
        """Appends each session's rows to its file. Raises SinkError, nothing written."""
        before: list[tuple[Path, int]] = []
        try:
            self._directory.make()
            for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                for name, lines in _files(batch.slice(start, ROWS_AT_A_TIME)):
                    path = self._directory.path / name
                    before.append((path, self._size(path)))
                    _append(*before[-1], lines)
        except OSError as error:
            _restore(before)
            raise self._directory.failed(error) from None

    def finish(self) -> None:
        """Each write was whole."""

    def close(self) -> None:
        """Nothing is open."""

    def _size(self, path: Path) -> int:
        """Of what this run wrote; 0 where the file is not there, or of an earlier run."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return 0
        return status.st_size if status.st_mtime_ns >= self._directory.opened_ns else 0


def _files(batch: pa.RecordBatch) -> Iterator[tuple[str, memoryview]]:
    """(name, lines) of each session."""
    found = sessions(batch)
    rows = batch.take(from_numpy(found.rows))
    lines = pc.binary_join_element_wise(row_texts(rows, FEATURES_SCHEMA.names, null=""), "\n", "")
    text, offsets = octets(lines)
    firsts = batch.take(from_numpy(found.first_rows))
    began = numbers(firsts.column("captureStartNanoseconds")).tolist()
    names = zip(*(firsts.column(name).to_pylist() for name in _NAME), began, strict=True)
    for (source, port, destination, other_port, at), (first, last) in zip(
        names, pairwise(offsets[found.starts].tolist()), strict=True
    ):
        yield f"{source}-{port}___{destination}-{other_port}___{at}.csv", text[first:last]


def _append(path: Path, size: int, lines: memoryview) -> None:
    """size: of what stays of the file, and is written after."""
    with path.open("ab" if size else "wb", buffering=0) as file:
        rest = memoryview(b"".join((b"" if size else HEADER, lines)))
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]


def _restore(before: list[tuple[Path, int]]) -> None:
    """Cuts files to the size that they had, and removes those that were not there."""
    for path, size in reversed(before):
        with contextlib.suppress(OSError):
            if size:
                os.truncate(path, size)
            else:
                path.unlink(missing_ok=True)
