"""The first packets of records: the lists of both directions, merged by time.

Rules:
- A record has the first `most` packets of its two directions together, in order of
  their times; of equal times, forward comes first. Within a direction the order is
  that in which they were counted.
- Where a direction's list was lost (evicted, apart from the flow), the record has none:
  what is left would be a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flowmon.abi import FIRST_PACKETS_LOST

Array = np.ndarray[Any, np.dtype[Any]]

FORWARD, REVERSE = 1, 2  # IANA biflowDirection: initiator, reverseInitiator


@dataclass(frozen=True)
class FirstPackets:
    """What the kernel listed of some biflows. forward, reverse: FIRST_PACKETS[n], without arrivals where there were none.

    most: of a record, at most abi.FIRST_PACKETS_MOST.
    """

    forward: Array
    reverse: Array
    most: int

    def __len__(self) -> int:
        return len(self.forward)

    def take(self, rows: Array) -> FirstPackets:
        """Those of some rows."""
        return FirstPackets(self.forward.take(rows), self.reverse.take(rows), self.most)


@dataclass(frozen=True)
class Merged:
    """One list a record: its packets are those from offsets[n] up to offsets[n + 1].

    offsets: int32[n + 1]. lengths: uint16, octets of IP, directions: uint8, times_mono_ns: uint64, of all
    records one after the other. is_known: bool[n]; where it is not, the list is empty.
    """

    offsets: Array
    lengths: Array
    directions: Array
    times_mono_ns: Array
    is_known: Array


def merged(first: FirstPackets) -> Merged:
    """Both directions together."""
    forward, reverse = first.forward, first.reverse
    is_known = (forward["arrivals"] != FIRST_PACKETS_LOST) & (reverse["arrivals"] != FIRST_PACKETS_LOST)
    sides = [_packets(side, is_known, first.most) for side in (forward, reverse)]
    rows, lengths, times = (np.concatenate(parts) for parts in zip(*sides, strict=True))
    directions = np.repeat(np.array([FORWARD, REVERSE], "u1"), [len(side[0]) for side in sides])
    order = np.lexsort((times, rows))  # what is equal stays as it was: forward first
    counts = np.bincount(rows, minlength=len(first))
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = order[rank < first.most]
    offsets = np.concatenate(([0], np.cumsum(np.minimum(counts, first.most))))
    return Merged(offsets.astype(np.int32), lengths[order], directions[order], times[order], is_known)


def _packets(side: Array, is_known: Array, most: int) -> tuple[Array, Array, Array]:
    """(rows, lengths, times) of a direction's packets, one after the other, no more than `most` of an arrival."""
    arrivals = np.where(is_known, side["arrivals"], 0)
    width = int(arrivals.max(initial=0))
    is_there = np.arange(width) < arrivals[:, np.newaxis]
    segments, each, last, times = (
        side[name][:, :width][is_there]
        for name in ("segments", "segment_lengths", "last_lengths", "times_mono_ns")
    )
    rows = np.repeat(np.arange(len(side)), arrivals)
    shown = np.minimum(segments, most).astype(np.int64)
    lengths = np.repeat(each, shown)
    are_whole = segments <= most
    lengths[(np.cumsum(shown) - 1)[are_whole]] = last[are_whole]
    return np.repeat(rows, shown), lengths, np.repeat(times, shown)
