"""Blocks between the thread that makes them and the one that sends them: in memory, then on disk.

Rules:
- Whoever puts never waits for the network: for the spool's disk at most.
- Blocks go out in the order of `put`. Memory is the front, the spool the rear: while
  there is any file, a block goes to the spool, and memory is read first.
- Each block that is taken ends in `sent` or `put_back`, itself or what its `after` gave.
- A file stays until its block is `sent`, so a crash loses nothing that was on disk. The
  next process sends again what was under way, though it may have arrived.
- What a bound forces out is counted, the oldest first. Only a disk that fails costs the
  newest block, as there is nowhere to put it.
- The memory bound is on the content of the blocks that wait, not of those taken.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from flowmon.ipfix.block import Block
from flowmon.sinks.spool import Lost, Spool, cannot_write, totals, warn_once

SMALL_BYTES = 256 << 10  # of blocks that are put together


@dataclass(frozen=True)
class NotSent:
    """What was lost since the start; when first and last: UTC, 0 if never."""

    records: int = 0
    packets: int = 0
    octets: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def plus(self, lost: Lost, now_ns: int) -> "NotSent":
        """With what was lost at `now_ns`."""
        return NotSent(
            self.records + lost.records,
            self.packets + lost.packets,
            self.octets + lost.octets,
            self.first_ns or now_ns,
            now_ns,
        )


class Backlog:
    """A queue for one thread that puts and one that takes. It closes the spool that it is given."""

    def __init__(self, memory_bytes: int, spool: Spool | None = None) -> None:
        self._limit = memory_bytes
        self._spool = spool
        self._memory: deque[Block] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._woken = False
        self._closed = False
        self.not_sent = NotSent()

    @property
    def has_spool(self) -> bool:
        """Whether what waits at the end is kept on disk."""
        return self._spool is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits; what was taken does not."""
        with self._changed:
            return not self._memory and not (self._spool and self._spool.waiting)

    @property
    def is_filled(self) -> bool:
        """Whether there is no spool, and half of the memory is used."""
        with self._changed:
            return self._spool is None and 2 * self._bytes > self._limit

    @property
    def waiting_records(self) -> int:
        """Data records that wait, in memory and on disk."""
        with self._changed:
            in_memory = sum(int(block.records.sum()) for block in self._memory)
            return in_memory + (self._spool.waiting_records if self._spool else 0)

    @property
    def waiting_bytes(self) -> int:
        """Content in memory and length of the files on disk."""
        with self._changed:
            return self._bytes + (self._spool.waiting_bytes if self._spool else 0)

    @property
    def spooled_records(self) -> int:
        """Data records that wait on disk."""
        with self._changed:
            return self._spool.waiting_records if self._spool else 0

    def put(self, block: Block) -> None:
        """Adds it as the newest; an empty one is ignored. After `close` it is counted as not sent."""
        if not len(block):
            return
        with self._changed:
            if self._closed:
                self._count(totals(block))
            elif self._spool and not self._fits_in_memory(block, self._spool):
                self._append(block, self._spool)
            else:
                self._add(block)
                self._bytes += block.content.nbytes
                self._shrink(self._limit, keep=1)
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Block | None:
        """The oldest; None if there is none within the timeout, or `wake` or `close` was called."""
        with self._changed:
            self._changed.wait_for(self._is_ready, timeout_s)
            self._woken = False
            return None if self._closed else self._oldest()

    def put_back(self, blocks: Sequence[Block]) -> None:
        """Makes them the oldest again, in this order: not sent after all. Of an empty one all was sent."""
        with self._changed:
            for block in reversed(blocks):
                if not len(block):
                    self._forget(block)
                elif not self._closed:
                    self._memory.appendleft(block)
                    self._bytes += block.content.nbytes
                elif not (self._spool and self._spool.holds(block)):
                    self._count(totals(block))
            if not self._closed:
                self._shrink(self._limit, keep=1)
            self._changed.notify_all()

    def sent(self, block: Block) -> None:
        """Lets its file go: it has arrived, for all that can be known."""
        with self._changed:
            self._forget(block)

    def wake(self) -> None:
        """Makes the `take` that waits return, or else the next one, at once."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> int:
        """Moves what is in memory in front of what is on disk; the records for which there was no room."""
        with self._changed:
            if self._closed:
                return 0
            before = self.not_sent.records
            self._shrink(0, keep=0)
            self._closed = True
            if self._spool:
                self._spool.close()
            self._changed.notify_all()
            return self.not_sent.records - before

    def _add(self, block: Block) -> None:
        """As the newest; small ones are put together, so that a long wait is not many files in the end."""
        last = self._memory[-1] if self._memory else None
        if type(last) is Block and last.content.nbytes + block.content.nbytes <= SMALL_BYTES:
            self._memory[-1] = last.joined(block)
        else:
            self._memory.append(block)

    def _is_ready(self) -> bool:
        return bool(self._woken or self._closed or self._memory or (self._spool and self._spool.waiting))

    def _fits_in_memory(self, block: Block, spool: Spool) -> bool:
        """A file whose block is under way keeps it out too: it may come back, and is older."""
        return spool.empty and self._bytes + block.content.nbytes <= self._limit

    def _append(self, block: Block, spool: Spool) -> None:
        try:
            forced_out = spool.append(block)
        except OSError as error:
            warn_once(cannot_write(spool.directory, error))
            forced_out = [totals(block)]
        for lost in forced_out:
            self._count(lost)

    def _oldest(self) -> Block | None:
        if self._memory:
            block = self._memory.popleft()
            self._bytes -= block.content.nbytes
            return block
        oldest = self._spool.read_oldest() if self._spool else None
        while self._spool and isinstance(oldest, Lost):
            self._count(oldest)
            oldest = self._spool.read_oldest()
        return oldest if isinstance(oldest, Block) else None

    def _shrink(self, limit: int, keep: int) -> None:
        """Moves the newest in memory to the spool; where that takes no more, drops the oldest, but `keep`."""
        while self._bytes > limit:
            if self._spool and self._has_moved(self._memory[-1], self._spool):
                self._bytes -= self._memory.pop().content.nbytes
            elif len(self._memory) > keep:
                oldest = self._memory.popleft()
                self._bytes -= oldest.content.nbytes
                self._count(totals(oldest))
            else:
                break

    def _has_moved(self, block: Block, spool: Spool) -> bool:
        try:
            return spool.prepend(block)
        except OSError as error:
            warn_once(cannot_write(spool.directory, error))
            return False

    def _forget(self, block: Block) -> None:
        # After `close` the directory may be another process's.
        if self._spool and not self._closed:
            self._spool.remove(block)

    def _count(self, lost: Lost) -> None:
        self.not_sent = self.not_sent.plus(lost, time.time_ns())
