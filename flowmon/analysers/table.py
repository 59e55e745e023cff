"""Rows found by a 64-bit hash, a whole pass at a time.

Rules:
- The hashes are held sorted beside the numbers of their rows, so a look-up is a binary search
  and an addition a merge: what an opponent chooses as hashes costs nothing extra.
- Rows are numbered in the order in which they came; to keep some numbers them anew.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

NONE = -1  # no row
_SMALLEST = 1024


def opaque(values: Array) -> Array:
    """The same memory without its fields: NumPy copies records whole a few times faster than by field."""
    return values.view(f"V{values.dtype.itemsize}") if values.dtype.names else values


class Table:
    """Rows with the fields of `dtype`, each under a hash of its own; a field is an array of its own."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        self._sorted = np.empty(0, "u8")
        self._number = np.empty(0, "i8")
        self._columns = {name: np.zeros(_SMALLEST, self._dtype[name]) for name in self._dtype.names or ()}

    def __len__(self) -> int:
        return len(self._sorted)

    def __getitem__(self, name: str) -> Array:
        """A field of all rows; to change it changes it here. Valid until rows are added or dropped."""
        return self._columns[name][: len(self)]

    def rows(self, numbers: Array) -> Array:
        """dtype[n]: copies of the rows with these numbers."""
        copied = np.empty(len(numbers), self._dtype)
        for name in self._columns:
            copied[name] = self[name][numbers]
        return copied

    def put(self, name: str, numbers: Array, values: Array) -> None:
        """Sets a field of some rows."""
        opaque(self[name])[numbers] = opaque(values)

    def number(self, hashes: Array) -> tuple[Array, Array]:
        """(int64[n] numbers of the rows, bool[n] is it new): adds zeroed rows for those that are new.

        hashes: uint64[n], ascending, no two alike.
        """
        at, known = self._look_up(hashes)
        new = ~known
        numbers = np.empty(len(hashes), "i8")
        numbers[known] = self._number[at[known]]
        numbers[new] = np.arange(len(self), len(self) + np.count_nonzero(new))
        if new.any():
            self._merge(at[new], hashes[new], numbers[new])
        return numbers, new

    def find(self, hashes: Array) -> Array:
        """int64[n]: the numbers of the rows of uint64[n] hashes; NONE where there is none."""
        at, known = self._look_up(hashes)
        numbers = np.full(len(hashes), NONE, "i8")
        numbers[known] = self._number[at[known]]
        return numbers

    def hashes(self) -> Array:
        """uint64[rows]: of each row, its hash."""
        by_number = np.empty(len(self), "u8")
        by_number[self._number] = self._sorted
        return by_number

    def keep(self, kept: Array) -> None:
        """Drops the rows that are not `kept` (bool[rows]); the order of the others stays."""
        for name in self._columns:
            self._columns[name] = opaque(self[name])[kept].view(self._dtype[name])
        renumbered = np.cumsum(kept) - 1
        in_order = kept[self._number]
        self._sorted = self._sorted[in_order]
        self._number = renumbered[self._number[in_order]]

    def _look_up(self, hashes: Array) -> tuple[Array, Array]:
        """(int64[n] where each stands or would, bool[n] is it there)."""
        at = np.searchsorted(self._sorted, hashes)
        known = at < len(self)
        known[known] = self._sorted[at[known]] == hashes[known]
        return at, known

    def _merge(self, at: Array, hashes: Array, numbers: Array) -> None:
        size = len(self) + len(hashes)
        for name, column in self._columns.items():
            if size > len(column):
                self._columns[name] = grown = np.zeros(max(2 * len(column), size, _SMALLEST), column.dtype)
                opaque(grown)[: len(self)] = opaque(column[: len(self)])
        places = at + np.arange(len(at))
        is_old = np.ones(size, bool)
        is_old[places] = False
        self._sorted = _merged(self._sorted, hashes, places, is_old)
        self._number = _merged(self._number, numbers, places, is_old)


def _merged(old: Array, new: Array, places: Array, is_old: Array) -> Array:
    merged = np.empty(len(is_old), old.dtype)
    merged[is_old] = old
    merged[places] = new
    return merged
