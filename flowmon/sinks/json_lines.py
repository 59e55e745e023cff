"""Records as JSON lines: one object a record, its keys the columns' names.

The text is put together a column at a time; times are ISO 8601 with nanoseconds.
"""

import json
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowmon.errors import SinkError
from flowmon.sinks import Metering, SinkState


class JsonLinesSink:
    """Writes to a binary stream. What a full disk cut off goes on where it stopped."""

    def __init__(self, stream: BinaryIO) -> None:
        # Without a buffer of Python's between: it would not say how much of it was written.
        self._stream = getattr(stream, "raw", stream)
        self._rest = memoryview(b"")
        self._written_records = 0

    def reserve(self, rows: int, *, more: bool = False) -> None:
        """A stream gives no promise."""

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:  # noqa: ARG002
        """Writes the records, or the rest of those that it could not write the last time."""
        if not self._rest:
            self._rest = memoryview(b"".join(line.as_buffer() for line in json_lines(batch)))
        try:
            while self._rest:
                self._rest = self._rest[self._stream.write(self._rest) or 0 :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise SinkError(f"standard output cannot be written: {error.strerror}") from None
        self._written_records += batch.num_rows

    def report(self, metering: Metering) -> None:
        """Of no use here."""

    def state(self) -> SinkState:
        """What was written, and the octets of the batch that a full disk cut off."""
        written, rest = self._written_records, len(self._rest)
        return SinkState("standard output", "json-lines", waiting_octets=rest, sent_records=written)

    def finish(self) -> None:
        """Each write was whole."""

    def close(self) -> None:
        """Nothing is reserved."""


def json_lines(batch: pa.RecordBatch) -> pa.StringArray:
    """One line a record, each with its line feed."""
    pieces: list[pa.Array | pa.Scalar] = []
    for position, (field, column) in enumerate(zip(batch.schema, batch.columns, strict=True)):
        pieces.append(pa.scalar(("{" if position == 0 else ",") + json.dumps(field.name) + ":"))
        pieces.append(_json_values(column))
    pieces.append(pa.scalar("}\n"))
    return pc.binary_join_element_wise(*pieces, "", null_handling="replace", null_replacement="null")


def _json_values(column: pa.Array) -> pa.StringArray:
    """JSON text of each value; null stays null."""
    if pa.types.is_dictionary(column.type):
        quoted = pa.array([json.dumps(text) for text in column.dictionary.to_pylist()], pa.string())
        return quoted.take(column.indices)
    if pa.types.is_string(column.type):
        return _json_values(column.dictionary_encode())
    if pa.types.is_timestamp(column.type):
        text = pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ")
        return pc.binary_join_element_wise('"', text, '"', "")
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        flat = pc.cast(column.flatten(), pa.string())
        parts = [flat.take(pa.array(range(i, len(flat), size), pa.int64())) for i in range(size)]
        return pc.binary_join_element_wise("[", pc.binary_join_element_wise(*parts, ","), "]", "")
    if pa.types.is_list(column.type):
        return pc.binary_join_element_wise("[", _joined(column), "]", "")
    return pc.cast(column, pa.string())


def _joined(column: pa.ListArray) -> pa.StringArray:
    """Of each list, the JSON texts of its values with commas between; null stays null."""
    texts = pc.fill_null(_json_values(column.flatten()), "null")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts)
    return pc.if_else(column.is_valid(), pc.binary_join(lists, ","), None)
