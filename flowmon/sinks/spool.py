"""Blocks on disk: a directory of Arrow IPC files, one a block, a row a message.

Rules:
- A file appears under its name only when it is whole and on disk: written under a
  temporary name, synced, renamed, and the directory synced.
- Files are named by a number that gives their order. The first number is the middle
  of the range, so that a block can be put in front as well as behind.
- A file that is read stays until `remove` says that its block has arrived. What was
  read and not removed is found again by the next process, so it may be sent twice:
  after a crash no more than was under way, after a power cut also what was removed
  in the seconds before, whose disappearance is not synced.
- Beyond the limit the oldest files go, but never the one just written. Nothing is lost
  with a file whose block has been read, so that is not counted.
- A file that cannot be read back is set aside as *.broken, which no limit counts.
- Nothing is read to count: the index is in memory, and each file's metadata holds
  its entry for the next process.
- One process a directory, by a lock; one thread at a time, by the caller's lock.
"""

import contextlib
import fcntl
import functools
import json
import logging
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flowmon.errors import SinkError
from flowmon.ipfix.block import Block

VERSION = 1
METADATA = b"flowmon.spool"
SCHEMA = pa.schema(
    [("content", pa.binary()), ("records", pa.int64()), ("packets", pa.int64()), ("octets", pa.int64())]
)
DIGITS = 12
MIDDLE = 10**DIGITS // 2
NAME = "[0-9]" * DIGITS + ".arrow"
# What a disk, Arrow, JSON and a file that says something else raise.
UNREADABLE = (OSError, pa.ArrowException, ValueError, LookupError, TypeError, AttributeError)

log = logging.getLogger("flowmon")


@dataclass(frozen=True)
class Lost:
    """Data records that will not be sent, and the packets and IP octets of their flows."""

    records: int
    packets: int
    octets: int


@dataclass(frozen=True)
class SpoolFile:
    """The index entry of a file. size: bytes on disk."""

    number: int
    size: int
    messages: int
    totals: Lost


@dataclass(frozen=True)
class SpooledBlock(Block):
    """A block that was read from `file`; so is its `after`, of which the file then holds more."""

    file: SpoolFile


def totals(block: Block) -> Lost:
    """What is lost with all of `block`."""
    return Lost(int(block.records.sum()), int(block.packets.sum()), int(block.octets.sum()))


@functools.lru_cache(maxsize=64)
def warn_once(message: str) -> None:
    """Says it the first time only: a full disk refuses every block."""
    log.warning("%s", message)


class Spool:
    """Blocks in order under `directory`, which is made where it is not there. limit_bytes: of all files."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory = directory
        self._limit = limit_bytes
        self._temporary = directory / ".block.tmp"
        self._waiting: deque[SpoolFile] = deque()
        self._read: dict[int, SpoolFile] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock: int | None = _locked(directory)
        except OSError as error:
            raise SinkError(cannot_write(directory, error)) from None
        try:
            self._write_temporary(b"flowmon")
            self._temporary.unlink()
            self._find_files()
        except OSError as error:
            self.close()
            raise SinkError(cannot_write(directory, error)) from None
        self._size = sum(file.size for file in self._waiting)

    @property
    def directory(self) -> Path:
        """Where the files are."""
        return self._directory

    @property
    def empty(self) -> bool:
        """Whether there is no file at all, neither waiting nor read."""
        return not self._waiting and not self._read

    @property
    def waiting(self) -> int:
        """Files that have not been read."""
        return len(self._waiting)

    @property
    def waiting_records(self) -> int:
        """Data records in files that have not been read."""
        return sum(file.totals.records for file in self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """Length of the files that have not been read."""
        return sum(file.size for file in self._waiting)

    def append(self, block: Block) -> list[Lost]:
        """Writes `block` behind all others; what the limit forced out. OSError if it cannot be written."""
        file = self._write(self._last + 1, block, _serialised(block))
        self._last += 1
        self._waiting.append(file)
        self._size += file.size
        return self._force_out()

    def prepend(self, block: Block) -> bool:
        """Writes `block` in front of all that wait; False if there is no room. OSError as `append`.

        Where its file is still there, it waits again, holding no more than is left of the block.
        """
        if isinstance(block, SpooledBlock) and self.holds(block):
            self._return(block)
            return True
        serialised = _serialised(block)
        if not self.empty and self._size + len(serialised) > self._limit:
            return False
        file = self._write(self._first - 1, block, serialised)
        self._first -= 1
        self._waiting.appendleft(file)
        self._size += file.size
        return True

    def read_oldest(self) -> SpooledBlock | Lost | None:
        """The block that waits longest; what was lost, if its file is broken; None if there is none."""
        if not self._waiting:
            return None
        file = self._waiting.popleft()
        try:
            block = _read_block(self._path(file.number), file)
        except UNREADABLE as error:
            self._size -= file.size
            self._set_aside(self._path(file.number), error)
            return file.totals
        self._read[file.number] = file
        return block

    def holds(self, block: Block) -> bool:
        """Whether the file that `block` was read from is still there."""
        return isinstance(block, SpooledBlock) and block.file.number in self._read

    def remove(self, block: Block) -> None:
        """Deletes the file that `block` was read from, if it is still there."""
        if isinstance(block, SpooledBlock) and self.holds(block):
            self._delete(self._read.pop(block.file.number))

    def close(self) -> None:
        """Leaves the directory to others."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:0{DIGITS}}.arrow"

    def _find_files(self) -> None:
        for path in sorted(self._directory.glob(NAME)):
            try:
                self._waiting.append(_read_entry(path))
            except UNREADABLE as error:
                self._set_aside(path, error)
        # Broken ones count too, lest a later one be set aside under the same name.
        numbers = [int(path.name[:DIGITS]) for path in self._directory.glob(NAME + "*")]
        self._first = min(numbers, default=MIDDLE)
        self._last = max(numbers, default=MIDDLE - 1)

    def _return(self, block: SpooledBlock) -> None:
        file = self._read.pop(block.file.number)
        if len(block) < file.messages:
            try:
                shorter = self._write(file.number, block, _serialised(block))
                self._size += shorter.size - file.size
                file = shorter
            except OSError as error:
                # The longer file is still there, so nothing is lost: its first messages are sent twice.
                warn_once(cannot_write(self._directory, error))
        self._waiting.appendleft(file)

    def _force_out(self) -> list[Lost]:
        lost = []
        while self._size > self._limit and len(self._read) + len(self._waiting) > 1:
            if self._read:
                self._delete(self._read.pop(min(self._read)))
            else:
                file = self._waiting.popleft()
                self._delete(file)
                lost.append(file.totals)
        return lost

    def _delete(self, file: SpoolFile) -> None:
        self._size -= file.size
        try:
            self._path(file.number).unlink(missing_ok=True)
        except OSError as error:
            warn_once(cannot_write(self._directory, error))

    def _write(self, number: int, block: Block, serialised: pa.Buffer) -> SpoolFile:
        try:
            self._write_temporary(serialised)
            self._temporary.replace(self._path(number))
        except OSError:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            raise
        _sync_names(self._directory)
        return SpoolFile(number, len(serialised), len(block), totals(block))

    def _write_temporary(self, content: pa.Buffer | bytes) -> None:
        with self._temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _set_aside(self, path: Path, error: BaseException) -> None:
        log.warning("%s cannot be read back and is set aside as %s.broken (%s)", path, path.name, error)
        with contextlib.suppress(OSError):
            path.rename(path.with_name(path.name + ".broken"))


def cannot_write(directory: Path, error: OSError) -> str:
    """What is said of a directory that cannot be written."""
    return (
        f"{directory} cannot be written ({error.strerror or error}): give another directory (--ipfix-spool)"
    )


def _locked(directory: Path) -> int:
    """A file descriptor that keeps other processes out of `directory` until it is closed."""
    fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        message = f"{directory} is used by another flowmon: give each its own directory (--ipfix-spool)"
        raise SinkError(message) from None
    except OSError:
        os.close(fd)
        raise
    return fd


def _serialised(block: Block) -> pa.Buffer:
    """An Arrow IPC file."""
    offsets = np.concatenate(([0], block.ends)).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(block.content))]
    columns = [pa.Array.from_buffers(pa.binary(), len(block), buffers)]
    columns += [pa.array(column, pa.int64()) for column in (block.records, block.packets, block.octets)]
    said = {"version": VERSION, "messages": len(block)} | vars(totals(block))
    said["templates"] = {str(number): record.hex() for number, record in block.templates.items()}
    batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA.with_metadata({METADATA: json.dumps(said)}))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _read_entry(path: Path) -> SpoolFile:
    """Without the block. One of UNREADABLE if it is not a file of ours."""
    with path.open("rb") as stream:
        said = _said(pa.ipc.open_file(stream).schema)
        size = os.fstat(stream.fileno()).st_size
    counts = Lost(int(said["records"]), int(said["packets"]), int(said["octets"]))
    return SpoolFile(int(path.name[:DIGITS]), size, int(said["messages"]), counts)


def _read_block(path: Path, file: SpoolFile) -> SpooledBlock:
    """All of it, in arrays of its own. One of UNREADABLE if it is not what the index says."""
    with path.open("rb") as stream:
        batch = pa.ipc.open_file(stream).get_batch(0)
    said = _said(batch.schema)
    batch.validate(full=True)
    _, offsets, data = batch.column("content").buffers()
    ends = np.frombuffer(offsets, np.int32)[1 : batch.num_rows + 1].astype(np.int64)
    content = np.frombuffer(data, np.uint8)[: ends[-1]].copy()
    records, packets, octets = (np.array(batch.column(name)) for name in ("records", "packets", "octets"))
    templates = {int(number): bytes.fromhex(record) for number, record in said["templates"].items()}
    block = SpooledBlock(content, ends, records, packets, octets, templates, file)
    if len(block) != file.messages or totals(block) != file.totals:
        raise ValueError("its messages are not those of its metadata")
    return block


def _said(schema: pa.Schema) -> dict[str, Any]:
    """What the metadata say of a file."""
    said: dict[str, Any] = json.loads((schema.metadata or {})[METADATA])
    if said["version"] != VERSION or not schema.equals(SCHEMA):
        raise ValueError(f"format version {said['version']} where {VERSION} was expected, or other columns")
    return said


def _sync_names(directory: Path) -> None:
    """Makes the names in it durable. A failure is said, but the block is there all the same."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        warn_once(f"{directory}: a new file's name may not outlive a power cut ({error.strerror})")
