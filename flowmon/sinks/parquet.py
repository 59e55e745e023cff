"""Records as Parquet files in Hive partitions: DIR/date=YYYY-MM-DD/hour=HH/….parquet.

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
from flowmon.sinks import Metering

# Generous: measured at 250 bytes a record and 40 kB a file at worst.
BYTES_PER_RECORD = 512
BYTES_PER_FILE = 128 * 1024
COMPRESSION = "zstd"
NS = 1_000_000_000


log = logging.getLogger("flowmon")


class ParquetSink:
    """Writes one file a batch under `directory`, which is made where it is not there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._host = socket.gethostname()
        self._sequence = 0
        self._reserved: int | None = None
        self._temporary = directory / f".flowmon-{self._host}-{os.getpid()}.tmp"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self.reserve(0)
        except OSError as error:
            raise SinkError(_cannot_write(directory, error)) from None

    def reserve(self, rows: int) -> None:
        """Allocates a temporary file with room for `rows` records."""
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
            raise SinkError(_cannot_write(self._directory, error)) from None
        return self._reserved

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        """Writes one file; an empty batch makes none."""
        if batch.num_rows == 0:
            return
        fd = self._reserved if self._reserved is not None else self._open_reserved(batch.num_rows)
        exported_at = datetime.fromtimestamp(exported_at_ns // NS, UTC)
        partition = self._directory / f"date={exported_at:%Y-%m-%d}" / f"hour={exported_at:%H}"
        name = f"flows-{exported_at:%Y%m%dT%H%M%S}.{exported_at_ns % NS:09}-{self._host}-{os.getpid()}-{self._sequence}.parquet"
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
            raise SinkError(_cannot_write(self._directory, error)) from None
        os.close(fd)
        self._reserved = None
        self._sequence += 1
        _sync_directories(changed)

    def report(self, metering: Metering) -> None:
        """Of no use here."""

    def finish(self) -> None:
        """Each write was whole."""

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
        for path in self._directory.glob(f".flowmon-{self._host}-*.tmp"):
            process = path.stem.removeprefix(f".flowmon-{self._host}-")
            if process.isdecimal() and not Path(f"/proc/{process}").exists():
                path.unlink(missing_ok=True)


def _cannot_write(directory: Path, error: OSError) -> str:
    return f"{directory} cannot be written ({error.strerror}): make room or give another directory (-d)"


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
