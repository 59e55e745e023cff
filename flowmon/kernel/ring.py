"""A BPF ring buffer of rows of one size, read in bulk: no Python object per row.

Rules (kernel/bpf/ringbuf.c):
- Each row has a header of 8 octets: its length, and a bit that is set until it is whole.
  Rows are read up to the first that is not.
- The data are mapped twice, one after the other, so that rows lie together even where
  the ring begins anew.
- Two positions only grow: the kernel's, behind the last row, and ours, behind what was read.
"""

import mmap
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

HEADER_WORDS = 1
_BUSY = np.uint64(1 << 31)


def room(octets: int, dtype: np.dtype[Any]) -> int:
    """How many rows a ring of so many octets holds."""
    return octets // (8 * HEADER_WORDS + dtype.itemsize)


class Ring:
    """The reader of a ring, of which there may be one. dtype: of the rows, whole words of 8 octets."""

    def __init__(self, fd: int, octets: int, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._stride = HEADER_WORDS + dtype.itemsize // 8  # in words
        self._octets = octets
        page = mmap.PAGESIZE
        self._read = np.frombuffer(mmap.mmap(fd, page), "u8", 1)
        produced = mmap.mmap(fd, page + 2 * octets, prot=mmap.PROT_READ, offset=page)
        self._written = np.frombuffer(produced, "u8", 1)
        self._words = np.frombuffer(produced, "u8", 2 * octets // 8, offset=page)

    def read(self) -> Array:
        """The rows that are there, in the order in which their places were given out; they leave the ring."""
        start, end = int(self._read[0]), int(self._written[0])
        count = (end - start) // (8 * self._stride)
        first = (start & (self._octets - 1)) // 8
        found = self._words[first : first + count * self._stride].reshape(count, self._stride)
        unfinished = np.flatnonzero(found[:, 0] & _BUSY)
        if len(unfinished):
            found = found[: unfinished[0]]
        rows = found[:, HEADER_WORDS:].copy()
        self._read[0] = start + len(rows) * 8 * self._stride
        return rows.view(self._dtype)[:, 0] if len(rows) else np.zeros(0, self._dtype)
