"""Flows and alerts as Parquet files in Hive partitions: DIR/date=YYYY-MM-DD/hour=HH/….parquet.

Rules:
- A file appears under its name only when it is whole and on disk: written under a
  temporary name, synced, renamed, and the directory synced.
- Room is allocated before flows leave the table, so that a full disk keeps them there.
- The partition is the hour (UTC) of the writing, not of each flow.
- What a killed process left half-written is removed at the next start.
"""

import contextlib
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flowmon import __version__
from flowmon.errors import SinkError
from flowmon.sinks import Metering, SinkState

# Generous: measured at 250 bytes a record and 40 kB a file at worst.
BYTES_PER_RECORD = 512
BYTES_PER_FILE = 128 * 1024
COMPRESSION = "zstd"
NS = 1_000_000_000


log = logging.getLogger("flowmon")


class ParquetSink:
    """Writes one file of flows a batch under `directory`, which is made where it is not there."""

    def __init__(self, directory: Path) -> None:
        self._files = PartitionedFiles(directory, "flows", "-d")
        self._name = str(directory)
        self._written_records = 0

    def reserve(self, rows: int) -> None:
        """Allocates a temporary file with room for `rows` records."""
        self._files.reserve(rows)

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        """Writes one file; an empty batch makes none."""
        self._files.write(batch, exported_at_ns)
        self._written_records += batch.num_rows

    def report(self, metering: Metering) -> None:
        """Of no use here."""

    def state(self) -> SinkState:
        """What was written; nothing waits."""
        return SinkState(self._name, "parquet", sent_records=self._written_records)

    def finish(self) -> None:
        """Each write was whole."""

    def close(self) -> None:
        """Removes the temporary file, if there is one."""
        self._files.close()


class PartitionedFiles:
    """Files of one kind, each a batch; their names begin with `kind`. Raises SinkError where there can be none.

    option: how the user gives another directory.
    """

    def __init__(self, directory: Path, kind: str, option: str) -> None:
        self._directory = directory
        self._kind = kind
        self._option = option
        self._host = socket.gethostname()
        self._sequence = 0
        self._reserved: int | None = None
        # Of flows as it always was, so that an older version's leftovers are found.
        self._leftover = f".flowmon-{self._host}-" if kind == "flows" else f".flowmon-{kind}-{self._host}-"
        self._temporary = directory / f"{self._leftover}{os.getpid()}.tmp"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self.reserve(0)
        except OSError as error:
            raise self._failed(error) from None

    def reserve(self, rows: int) -> None:
        """Allocates a temporary file with room for `rows` records. Raises SinkError."""
        self._open_reserved(rows)

    def _open_reserved(self, rows: int) -> int:
        self.close()
        size = BYTES_PER_FILE + rows * BYTES_PER_RECORD
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._reserved = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            os.posix_fallocate(self._reserved, 0, size)
        except OSError as error:
            self.close()
            raise self._failed(error) from None
        return self._reserved

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        """Writes one file; an empty batch makes none. Raises SinkError, nothing written."""
        if batch.num_rows == 0:
            return
        fd = self._reserved if self._reserved is not None else self._open_reserved(batch.num_rows)
        exported_at = datetime.fromtimestamp(exported_at_ns // NS, UTC)
        partition = self._directory / f"date={exported_at:%Y-%m-%d}" / f"hour={exported_at:%H}"
        at = f"{exported_at:%Y%m%dT%H%M%S}.{exported_at_ns % NS:09}"
        name = f"{self._kind}-{at}-{self._host}-{os.getpid()}-{self._sequence}.parquet"
        changed = [partition]
        try:
            if not partition.exists():
                changed += [partition.parent, self._directory]
                partition.mkdir(parents=True, exist_ok=True)
            size = self._write_table(fd, batch)
            os.ftruncate(fd, size)
            os.fsync(fd)
            self._temporary.rename(partition / name)
        except OSError as error:
            self.close()
            raise self._failed(error) from None
        os.close(fd)
        self._reserved = None
        self._sequence += 1
        _sync_directories(changed)

    def close(self) -> None:
        """Removes the temporary file, if there is one."""
        if self._reserved is not None:
            os.close(self._reserved)
            self._reserved = None
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _write_table(self, fd: int, batch: pa.RecordBatch) -> int:
        """Writes from the start of the file; its length."""
        os.lseek(fd, 0, os.SEEK_SET)
        metadata = dict(batch.schema.metadata or {})
        metadata |= {b"flowmon.version": __version__.encode(), b"flowmon.host": self._host.encode()}
        schema = batch.schema.with_metadata(metadata)
        with os.fdopen(os.dup(fd), "wb") as file:
            with pq.ParquetWriter(file, schema, compression=COMPRESSION) as writer:
                writer.write_batch(batch.replace_schema_metadata(metadata))
            file.flush()
            return file.tell()

    def _remove_leftovers(self) -> None:
        for path in self._directory.glob(f"{self._leftover}*.tmp"):
            process = path.stem.removeprefix(self._leftover)
            if process.isdecimal() and not Path(f"/proc/{process}").exists():
                path.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> SinkError:
        return SinkError(
            f"{self._directory} cannot be written ({error.strerror}):"
            f" make room or give another directory ({self._option})"
        )


def _sync_directories(paths: list[Path]) -> None:
    """Makes the names in them durable. A failure is said, but the records are not to be written a second time."""
    try:
        for path in paths:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    except OSError as error:
        log.warning("%s: the new file's name may not outlive a power cut (%s)", paths[0], error.strerror)
