"""Rows as text, a column at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Array = np.ndarray[Any, np.dtype[Any]]


def row_texts(batch: pa.RecordBatch, names: Sequence[str], null: str) -> pa.StringArray:
    """Of each row, these columns with commas between; times as nanoseconds since the epoch."""
    texts = [_texts(batch.column(name)) for name in names]
    return pc.binary_join_element_wise(*texts, ",", null_handling="replace", null_replacement=null)


def octets(texts: pa.StringArray) -> tuple[memoryview, Array]:
    """(all of them one after another, int32[n + 1] where each begins and the last one ends); n is not 0."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(texts.buffers()[2]), offsets


def _texts(column: pa.Array) -> pa.StringArray:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return column.cast(pa.string())
