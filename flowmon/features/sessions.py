"""Which rows are of one session."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flowmon.arrow import to_numpy

Array = np.ndarray[Any, np.dtype[Any]]

# A session's flowId is a hash; two conversations that share one hardly begin in the same nanosecond.
CAPTURE = ("flowId", "captureStartNanoseconds", "captureRound")


@dataclass(frozen=True)
class Sessions:
    """Rows put in order, session by session.

    rows: int64[n], the rows of the batch. starts: int64[sessions + 1], where each session begins in `rows`,
    and where the last one ends.
    """

    rows: Array
    starts: Array

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def first_rows(self) -> Array:
        """int64[sessions]: of each session, its first row."""
        return self.rows[self.starts[:-1]]


def sessions(batch: pa.RecordBatch) -> Sessions:
    """Of rows of FEATURES_SCHEMA: each capture of a session by itself, in order of time of its first packet.

    Within one, rows are in order of packetIndex.
    """
    capture = [numbers(batch.column(name)) for name in CAPTURE]
    order = np.lexsort((numbers(batch.column("packetIndex")), *reversed(capture)))
    is_first = np.ones(len(order), bool)
    is_first[1:] = np.logical_or.reduce([np.diff(values[order]) != 0 for values in capture])
    starts = np.flatnonzero(is_first)
    times = numbers(batch.column("observationTimeNanoseconds"))[order[starts]]
    by_time = np.lexsort((order[starts], times))
    lengths = np.diff(starts, append=len(order))[by_time]
    new_starts = np.concatenate([[0], np.cumsum(lengths)])
    moved = np.repeat(starts[by_time] - new_starts[:-1], lengths)
    return Sessions(order[moved + np.arange(len(order))], new_starts)


def numbers(column: pa.Array) -> Array:
    """The values of numbers or times (nanoseconds since the epoch) that has no nulls."""
    return to_numpy(column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column)
