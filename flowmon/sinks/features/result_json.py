"""Packets as JSON, session by session: DIR/result.json.

Rules:
- The file is an array of objects, one a line, one a capture of a session, in order of time of its first packet:
  `{"id": [source, port, destination, port, protocol], "packets": [[…], …]}`. A packet is a list of PACKET's columns;
  what it does not have is 0, so that the lists go into an array of integers.
- It is written at the end. Where more than `most` packets gather, those before are written at once, and the others
  go to result-2.json, result-3.json, …: memory is bounded. A session that goes on then is in both.
- A file appears under its name only when it is whole and on disk. The files of a run take the place of those of the
  run before: with the first of them, its result-2.json and so on go. At interfaces they stay instead (`keep`).
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowmon.arrow import from_numpy
from flowmon.features.sessions import Sessions, sessions
from flowmon.sinks.features.directory import OPTION, Directory
from flowmon.sinks.features.texts import octets, row_texts

Array = np.ndarray[Any, np.dtype[Any]]

MOST_PACKETS = 1_000_000
BATCHES = 256  # become one: of many small ones, most would be overhead
ROWS_AT_A_TIME = 65536  # become text

ID = (
    "sourceAddress",
    "sourceTransportPort",
    "destinationAddress",
    "destinationTransportPort",
    "protocolIdentifier",
)
PACKET = (
    "observationTimeNanoseconds",
    "biflowDirection",
    "ipTotalLength",
    "fragmentFlags",
    "fragmentOffset",
    "ipTTL",
    "ipClassOfService",
    "transportPayloadLength",
    "tcpControlBits",
    "tcpWindowSize",
    "tcpRelativeSequenceNumber",
    "tcpRelativeAcknowledgementNumber",
    "udpMessageLength",
    "icmpType",
    "icmpCode",
    "interArrivalNanoseconds",
)
_FURTHER = re.compile(r"result-(\d+)\.json")


class ResultJsonSink:
    """Gathers packets, and writes them to `directory`, which is made where it is not there."""

    def __init__(
        self, directory: Path, option: str = OPTION, most: int = MOST_PACKETS, *, keep: bool = False
    ) -> None:
        """option: how the user gives another directory. most: packets that are gathered. Raises SinkError.

        keep: files of earlier runs stay, and the first free number is the first of this one.
        """
        self._directory = Directory(directory, option)
        self._most = most
        self._files = self._last_number() if keep else 0
        self._gathered: list[pa.RecordBatch] = []
        self._fresh: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:  # noqa: ARG002
        """Gathers them; what was gathered before is written first where it would be too much."""
        if self._rows and self._rows + batch.num_rows > self._most:
            self._write()
        self._rows += batch.num_rows
        self._fresh.append(batch)
        if len(self._fresh) == BATCHES:
            self._gathered += _combined(self._fresh)
            self._fresh = []

    def finish(self) -> None:
        """Writes the rest, or an empty array where there was no packet. Raises SinkError; it can be repeated."""
        if self._rows or self._files == 0:
            self._write()

    def close(self) -> None:
        """Nothing is open."""
        self._forget()

    def _forget(self) -> None:
        self._gathered, self._fresh, self._rows = [], [], 0

    def _write(self) -> None:
        number = self._files + 1
        name = "result.json" if number == 1 else f"result-{number}.json"
        self._directory.write_whole(name, _pieces(self._gathered + self._fresh))
        if number == 1:
            self._remove_further()
        self._files = number
        self._forget()

    def _last_number(self) -> int:
        """Of the files that are there."""
        names = [path.name for path in self._directory.path.iterdir()]
        further = [int(found[1]) for found in map(_FURTHER.fullmatch, names) if found]
        return max(further, default=int("result.json" in names))

    def _remove_further(self) -> None:
        try:
            for path in self._directory.path.iterdir():
                if _FURTHER.fullmatch(path.name):
                    path.unlink()
        except OSError as error:
            raise self._directory.failed(error) from None


def _combined(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """One batch, or none where there are no rows."""
    return pa.Table.from_batches(batches).combine_chunks().to_batches() if batches else []


def _pieces(batches: list[pa.RecordBatch]) -> Iterator[bytes | memoryview]:
    """The file."""
    yield b"["
    for batch in _combined(batches):
        found = sessions(batch)
        for number, (first, last) in enumerate(pairwise(_cuts(found))):
            rows = found.rows[found.starts[first] : found.starts[last]]
            text, offsets = octets(_objects(batch.take(from_numpy(rows)), found.starts[first : last + 1]))
            # Each begins with a comma, which the first of all must not.
            yield text[1 if number == 0 else 0 : offsets[-1]]
    yield b"\n]\n"


def _cuts(found: Sessions) -> list[int]:
    """Sessions that pieces of about ROWS_AT_A_TIME begin with, and their end."""
    targets = np.arange(0, len(found.rows), ROWS_AT_A_TIME)
    return [*np.unique(np.searchsorted(found.starts[:-1], targets)).tolist(), len(found)]


def _objects(rows: pa.RecordBatch, starts: Array) -> pa.StringArray:
    """JSON of each session. rows: in order, session by session; starts: where each begins, and the end."""
    offsets = from_numpy((starts - starts[0]).astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, row_texts(rows, PACKET, null="0"))
    packets = pc.binary_join(lists, "],[")
    source, port, destination, other_port, protocol = (
        rows.column(name).take(offsets[:-1]).cast(pa.string()) for name in ID
    )
    ids = (',\n{"id":["', source, '",', port, ',"', destination, '",', other_port, ",", protocol)
    return pc.binary_join_element_wise(*ids, '],"packets":[[', packets, "]]}", "")
