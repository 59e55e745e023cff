"""Packets one by one, from the kernel's ring to files.

Rules:
- The ring is read whenever the collector is between two steps; what it held by then is written once an interval,
  or when much has gathered.
- Places of sessions are freed by the collector's clock: of those silent for the idle timeout; and where all are
  taken, one for each --accept-restart, that of the session least used.
- While a sink takes nothing, what came is kept, up to a bound. Then the ring fills up, and what it cannot
  hold is counted in the kernel's books.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowmon import abi
from flowmon.errors import SinkError
from flowmon.features.packets import feature_batch
from flowmon.kernel.clock import Clock
from flowmon.kernel.feature_source import FeatureBooks, FeatureSource
from flowmon.sinks.features import FeatureSink

Array = np.ndarray[Any, np.dtype[Any]]

log = logging.getLogger("flowmon")

WRITTEN_AT_ONCE = 1 << 17  # rows of the ring
KEPT_MOST = 1 << 20  # while a sink takes nothing: 128 MiB
SILENT_EVERY_NS = 1_000_000_000
FREED_AT_ONCE = 8  # least used sessions: an eighth of all at most


@dataclass(frozen=True)
class TapOptions:
    """idle_ns: a session that is silent for so long gives its place back. write_ns: between two writes."""

    idle_ns: int
    accept_restart_ns: int
    write_ns: int


class FeatureTap:
    """Reads `source` and writes to `sinks`, which are whoever opened them's. Close it after use."""

    def __init__(
        self, source: FeatureSource, sinks: Sequence[FeatureSink], options: TapOptions, clock: Clock
    ) -> None:
        self._source = source
        self._sinks = sinks
        self._options = options
        self._clock = clock
        self._gathered: list[Array] = []
        self._rows = 0
        self._unwritten: list[tuple[FeatureSink, Any, int]] = []
        self._complaint = ""
        self._books_before = source.books()
        self._lost_said = 0
        self._write_at_ns = self._silent_at_ns = self._accept_at_ns = 0
        self.written_packets = 0
        source.set_utc_offset(clock.utc_offset_ns())

    def close(self) -> None:
        """Closes the source."""
        self._source.close()

    def books(self) -> FeatureBooks:
        """What became of the packets since the tap was opened."""
        return self._source.books().since(self._books_before)

    @property
    def ring_rows(self) -> int:
        """How many packets may come between two reads."""
        return self._source.rows

    @property
    def unwritten_packets(self) -> int:
        """Those that were read, and no sink, or not each of them, has taken yet."""
        return self._rows + (self._unwritten[0][1].num_rows if self._unwritten else 0)

    def tend(self) -> None:
        """Reads what came, frees places, and writes when it is time."""
        self.read()
        self._source.set_utc_offset(self._clock.utc_offset_ns())
        now_ns = self._clock.now_mono_ns()
        self._free_places(now_ns)
        if now_ns >= self._write_at_ns:
            is_first = self._write_at_ns == 0
            self._write_at_ns = now_ns + self._options.write_ns
            if not is_first:
                self._write()

    def finish(self) -> list[str]:
        """Writes the rest; what the sinks complain of. Whoever comes next finds places free."""
        self._take()
        self._source.free_silent(max(0, self._clock.now_mono_ns() - self._options.idle_ns))
        self._write()
        complaints = [self._complaint] if self._complaint else []
        for sink in self._sinks:
            try:
                sink.finish()
            except SinkError as error:
                complaints.append(str(error))
        return complaints

    def report(self) -> None:
        """Logs one line that accounts for every packet of this run, of the protocols that were asked for."""
        books = self.books()
        parts = [f"{self.written_packets:,} written"]
        parts += [
            f"{number:,} {meaning}"
            for number, meaning in (
                (self.unwritten_packets, "could not be written and are lost"),
                (books.lost_packets, "lost, the ring was full: raise --ring-size"),
                (books.refused_packets, "of sessions that found no place (--sessions)"),
                (books.watched_packets, "of sessions at their limit (--packets-per-session)"),
                (books.elsewhere_packets, "at other points as well"),
            )
            if number
        ]
        level = logging.WARNING if self.unwritten_packets or books.lost_packets else logging.INFO
        log.log(level, "packet features: %s", "; ".join(parts))

    def read(self) -> None:
        """Reads what came. Much of it is written at once."""
        if self._rows >= KEPT_MOST:
            return
        self._take()
        if self._rows >= WRITTEN_AT_ONCE:
            self._write()
        lost = self.books().lost_packets
        if lost >= max(1, 2 * self._lost_said):
            log.warning("%d packets whose features were asked for are lost: raise --ring-size", lost)
            self._lost_said = lost

    def _take(self) -> None:
        packets = self._source.read()
        if len(packets):
            self._gathered.append(packets)
            self._rows += len(packets)

    def _free_places(self, now_ns: int) -> None:
        if now_ns >= self._silent_at_ns:
            self._silent_at_ns = now_ns + SILENT_EVERY_NS
            self._source.free_silent(max(0, now_ns - self._options.idle_ns))
        if not self._source.is_full() or not self._accept_at_ns:
            self._accept_at_ns = max(self._accept_at_ns, now_ns)
            return
        waited = now_ns - self._accept_at_ns
        number = waited // self._options.accept_restart_ns
        if number > 0:
            self._accept_at_ns = now_ns
            self._source.free_least_used(min(number, max(1, self._source.sessions // FREED_AT_ONCE)))

    def _write(self) -> None:
        try:
            self._write_unwritten()
            if self._rows:
                words = np.concatenate([abi.words(part) for part in self._gathered])
                packets = words.view(abi.FEATURE_PACKET)[:, 0]
                self._gathered, self._rows = [], 0
                offset_ns = self._clock.utc_offset_ns()
                batch = feature_batch(packets, offset_ns)
                # A capture's clock stands where the last pass was.
                latest_ns = max(self._clock.now_mono_ns(), int(packets["time_mono_ns"].max()))
                exported_at_ns = latest_ns + offset_ns
                self._unwritten = [(sink, batch, exported_at_ns) for sink in self._sinks]
                self._write_unwritten()
        except SinkError as error:
            if str(error) != self._complaint:
                log.warning("%s; packet features wait", error)
            self._complaint = str(error)
        else:
            self._complaint = ""

    def _write_unwritten(self) -> None:
        while self._unwritten:
            sink, batch, exported_at_ns = self._unwritten[0]
            sink.write(batch, exported_at_ns)
            self._unwritten.pop(0)
            if not self._unwritten:
                self.written_packets += batch.num_rows
