"""Where records go. The only code that writes to disk or network."""

from typing import Protocol

import pyarrow as pa


class Sink(Protocol):
    """Takes record batches of elements.RECORD_SCHEMA.

    `reserve` is asked before flows are taken out of the table: a sink that
    cannot take them raises SinkError then, and they stay where they are.
    """

    def reserve(self, rows: int) -> None:
        """Makes sure that so many records can be written next. Raises SinkError."""

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        """Writes records, durably; `exported_at_ns` is UTC. Raises SinkError, nothing written."""

    def close(self) -> None:
        """Gives back what was reserved."""
