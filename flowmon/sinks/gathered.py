"""Batches put together before they are written: a capture ends a few flows at a time."""

from dataclasses import replace

import pyarrow as pa

from flowmon.sinks import Metering, Sink, SinkState

NS_PER_HOUR = 3_600_000_000_000
ROWS = 65536


class GatheringSink:
    """Hands batches on to another sink when there are `rows` records, at the turn of an hour, and at the end.

    So each hour of a capture has its partition, and few files.
    """

    def __init__(self, sink: Sink, rows: int = ROWS) -> None:
        self._sink = sink
        self._most = rows
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._exported_at_ns = 0

    def reserve(self, rows: int, *, more: bool = False) -> None:
        """Nothing yet: room is asked for when it is written."""

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        """Keeps the batch. Raises SinkError where earlier ones could not be written now."""
        if exported_at_ns // NS_PER_HOUR != self._exported_at_ns // NS_PER_HOUR or self._rows >= self._most:
            self.flush()
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._exported_at_ns = exported_at_ns

    def flush(self) -> None:
        """Writes what was kept."""
        if not self._rows:
            return
        table = pa.Table.from_batches(self._batches).unify_dictionaries().combine_chunks()
        (batch,) = table.to_batches()
        self._sink.reserve(batch.num_rows)
        self._sink.write(batch, self._exported_at_ns)
        self._batches, self._rows = [], 0

    def report(self, metering: Metering) -> None:
        """Passes it on."""
        self._sink.report(metering)

    def state(self) -> SinkState:
        """The other sink's, and what is kept here."""
        inner = self._sink.state()
        return replace(inner, waiting_records=inner.waiting_records + self._rows)

    def finish(self) -> None:
        """Writes what was kept, and waits until it has arrived."""
        self.flush()
        self._sink.finish()

    def close(self) -> None:
        """Closes the other sink; what was not flushed is given up."""
        self._sink.close()
