"""Where records go. The only code that writes to disk or network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

if TYPE_CHECKING:
    from flowmon.kernel.flow_table import Books


@dataclass(frozen=True)
class Metering:
    """How the metering stands: the table's books; name and description of interfaces by index. at_ns: UTC."""

    books: Books
    interfaces: Mapping[int, tuple[str, str]]
    at_ns: int


@dataclass(frozen=True)
class SinkState:
    """How a sink stands. Records: data records; octets: as they wait, encoded.

    waiting_*: taken, and not sent or written yet, in memory and on disk; spooled_records: of them, those on
    disk. sent_records and lost_records are since the start; what is sent again counts again.
    complaint: why nothing goes out; empty while it does.
    """

    name: str
    kind: str
    waiting_records: int = 0
    waiting_octets: int = 0
    spooled_records: int = 0
    sent_records: int = 0
    lost_records: int = 0
    connected: bool = True
    complaint: str = ""


class Sink(Protocol):
    """Takes record batches of elements.RECORD_SCHEMA.

    `reserve` is asked before flows are taken out of the table: a sink that
    cannot take them raises SinkError then, and they stay where they are.
    """

    def reserve(self, rows: int, *, more: bool = False) -> None:
        """Makes sure that so many records can be written next. Raises SinkError.

        more: beside those that were asked for last, which another thread is about to write.
        """

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        """Writes records, durably; `exported_at_ns` is UTC. Raises SinkError, nothing written."""

    def report(self, metering: Metering) -> None:
        """Hears of the metering, about once a second."""

    def state(self) -> SinkState:
        """How it stands. Any thread may ask."""

    def finish(self) -> None:
        """No more records come: waits for those that are on their way. Raises SinkError for what did not arrive."""

    def close(self) -> None:
        """Gives back what was reserved."""
