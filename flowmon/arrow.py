"""Between NumPy and Arrow without a copy, and without pandas.

pyarrow's own `pa.array` and `to_numpy` import pandas where that is installed,
which costs a third of a second of CPU and 40 MB: in the first pass, or, worse,
with the first alert, while the attack that it tells of takes the CPU.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
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


class _NoPandas(MetaPathFinder):
    """Finds no pandas."""

    def find_spec(self, fullname: str, *_where: Any) -> None:
        if fullname == "pandas":
            raise ImportError("pandas is left out")


def leave_pandas_out() -> None:
    """Has pyarrow do without pandas in this process, for good: it tries to import it once."""
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)
