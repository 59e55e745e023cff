"""Between NumPy and Arrow without a copy.

pyarrow's own `pa.array` and `to_numpy` import pandas where that is installed,
which costs the first pass a third of a second and 40 MB.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, np.dtype[Any]]


def from_numpy(values: Array) -> pa.Array:
    """An array of numbers, in the memory of `values` where that is contiguous."""
    plain = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(plain.dtype), len(plain), [None, pa.py_buffer(plain)])


def to_numpy(column: pa.Array) -> Array:
    """The values of numbers (in place) or booleans that has no nulls."""
    values, span = column.buffers()[1], slice(column.offset, column.offset + len(column))
    if pa.types.is_boolean(column.type):
        octets = np.frombuffer(values or b"", "u1")
        return np.unpackbits(octets, bitorder="little")[span].astype(bool)
    return np.frombuffer(values or b"", column.type.to_pandas_dtype())[span]


def strings(texts: Sequence[str]) -> pa.StringArray:
    """An array of texts."""
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))
