"""A capture file through the same program and the same collector as live traffic.

Rules:
- Each packet runs through the kernel program with the capture's time; flows expire by
  that clock. A pass over the table comes before the first packet of each interval.
- The table is this process's own and pinned nowhere: nothing is left behind, however
  it ends, and several captures can be read at once.
- Every packet of the file is in the books: in a record, or ignored for a reason.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from flowmon.abi import TimeSource
from flowmon.captures.reader import Capture
from flowmon.collector import Collector, CollectorOptions, Tally
from flowmon.errors import FlowmonError, SinkError
from flowmon.features.tap import SILENT_EVERY_NS, FeatureTap
from flowmon.kernel.feature_source import FeatureSource
from flowmon.kernel.flow_table import FLOW_STATE, WATCHED_STATE, Books, FlowTable
from flowmon.kernel.load_options import LoadOptions
from flowmon.kernel.loader import PrivateSet
from flowmon.kernel.replay import Feed, Replay, feed_of
from flowmon.outputs import FeatureOutput, Watching
from flowmon.sinks import Sink
from flowmon.sinks.gathered import NS_PER_HOUR, ROWS, GatheringSink
from flowmon.sinks.json_lines import JsonLinesSink
from flowmon.stop import Stop
from flowmon.watch import Watch

log = logging.getLogger("flowmon")

NS = 1_000_000_000
NEVER = 1 << 63
# Directed flows in the table where nobody says how many: by the size of the file.
LEAST_FLOWS = 1 << 14
MOST_FLOWS = 1 << 18
OCTETS_PER_FLOW = 64  # a packet's header in the file, and hardly any packet
FULL = 0.6  # of the table, when flows have to make room
LEAST_STEP = 256  # packets between two looks at how full it is
PROGRESS_PACKETS = 8192  # between two looks at how far it is


class TruncatedCaptureError(FlowmonError):
    """The file ends or breaks off in the middle."""


class StoppedError(FlowmonError):
    """A signal ended the reading."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass
class _CaptureClock:
    """The time of the packet in hand. The table's 0 means never, so its times are one later."""

    mono_ns: int = 1

    def advance(self, mono_ns: int) -> None:
        """Never goes back, whatever the packets' order."""
        self.mono_ns = max(self.mono_ns, mono_ns)

    def now_mono_ns(self) -> int:
        return self.mono_ns

    def utc_offset_ns(self) -> int:
        return -1


def read_capture(
    path: str,
    open_sinks: Callable[[], list[Sink]],
    load_options: LoadOptions,
    max_flows: int | None,
    options: CollectorOptions,
    watching: Watching,
    features: FeatureOutput,
) -> None:
    """Meters a pcap or pcapng file (`-`: standard input) into sinks, which are opened once it can be read.

    Analysers see it by the capture's clock.

    max_flows: the table's size; None chooses by the size of the file, as 0 does for the features' sessions.

    SIGINT and SIGTERM end the reading; what was read is written.

    Raises CaptureError where it cannot be read; TruncatedCaptureError where it ends too
    early and StoppedError where it was ended (what came before has been written);
    SinkError where records cannot be written.
    """
    stop = Stop()
    with Capture(path) as capture:
        size = max_flows or _table_size(capture.size)
        load_options = replace(load_options, max_flows=size, time_source=TimeSource.SKB_TSTAMP)
        if load_options.features and not load_options.features.sessions:
            sessions = _table_size(capture.size) // 4
            load_options = replace(load_options, features=replace(load_options.features, sessions=sessions))
        source = PrivateSet(load_options)
        sinks = [_gathering(sink, capture) for sink in open_sinks()]
        try:
            watch = watching.watch(options.interval_s)
            clock = _CaptureClock()
            tap = _tap(source, features, options, clock) if load_options.features else None
            reading = Reading(capture, source, sinks, options, stop, watch, tap, clock)
            books, tally = reading.run()
        finally:
            source.close()
            for sink in sinks:
                sink.close()
            features.close()
            watching.close()
        _report(capture, books, tally)
        if tap is not None:
            tap.report()
        if reading.complaints:
            raise SinkError("; ".join(reading.complaints))
        if stop.requested:
            raise StoppedError(f"{capture.name}: stopped after {books.seen_packets:,} packets", stop.status)
        if capture.cut_short:
            raise TruncatedCaptureError(capture.cut_short)


def _tap(
    source: PrivateSet, features: FeatureOutput, options: CollectorOptions, clock: _CaptureClock
) -> FeatureTap:
    """Writes each hour of a capture in few files."""
    tap_options = replace(features.tap_options(options), write_ns=NS_PER_HOUR)
    return FeatureTap(FeatureSource(source), features.open(), tap_options, clock)


def _gathering(sink: Sink, capture: Capture) -> GatheringSink:
    """Whoever reads lines along from a pipe sees them as they come."""
    is_live = capture.size == 0 and isinstance(sink, JsonLinesSink)
    return GatheringSink(sink, rows=1 if is_live else ROWS)


def _table_size(octets: int) -> int:
    """A power of two; the largest for a pipe, whose end nobody knows."""
    if octets == 0:
        return MOST_FLOWS
    wanted = max(LEAST_FLOWS, octets // OCTETS_PER_FLOW)
    return min(MOST_FLOWS, 1 << (wanted - 1).bit_length())


class Reading:
    """One capture on its way into records."""

    def __init__(
        self,
        capture: Capture,
        source: PrivateSet,
        sinks: list[GatheringSink],
        options: CollectorOptions,
        stop: Stop,
        watch: Watch | None = None,
        tap: FeatureTap | None = None,
        clock: _CaptureClock | None = None,
    ) -> None:
        """tap: by the same clock; closed at the end of `run`."""
        self._capture = capture
        self._stop = stop
        self._sinks = sinks
        self._table = FlowTable(
            source, WATCHED_STATE if watch else FLOW_STATE, first_packets=source.first_packets
        )
        self._replay = Replay(source)
        self._clock = clock or _CaptureClock()
        self._collector = Collector(self._table, sinks, options, dict, self._clock, watch=watch)
        self._tap = tap
        self._ring_room = max(1, tap.ring_rows // 2) if tap else 0
        self.complaints: list[str] = []
        self._interval_ns = int(options.interval_s * NS)
        self._room = int(self._table.max_flows * FULL)

    def run(self) -> tuple[Books, Tally]:
        """The books at the end, and what the collector did."""
        try:
            with _progress(self._capture) as advance:
                self._feed(advance)
            self._collect()  # what has ended, for its own reason
            self._collect(everything=True)
            self.complaints = self._collector.finish()
            if self._tap is not None:
                self.complaints += self._tap.finish()
            return self._table.books(), self._collector.tally
        finally:
            self._replay.close()
            self._table.close()
            if self._tap is not None:
                self._tap.close()

    def _feed(self, advance: Callable[[], None]) -> None:
        """Every packet; passes in between where an interval is over or the table fills up."""
        feed = feed_of(self._capture, self._replay)
        next_ns = feed.next_time_ns()
        look_at = self._room
        count = 0
        while next_ns is not None and not self._stop.requested:
            before_ns = next_ns + self._interval_ns if self._interval_ns else NEVER
            while next_ns is not None and next_ns < before_ns and not self._stop.requested:
                count += self._step(feed, next_ns, before_ns, min(PROGRESS_PACKETS, look_at - count))
                advance()
                if count == look_at:
                    self._clock.advance(self._replay.flush())
                    look_at = count + self._make_room()
                next_ns = feed.next_time_ns()
            self._clock.advance(self._replay.flush())
            if next_ns is not None and next_ns >= before_ns:
                self._clock.advance(next_ns + 1)
                self._collect()

    def _step(self, feed: Feed, next_ns: int, before_ns: int, most: int) -> int:
        """Feeds some packets: of features no more than the ring holds, and so few that places are freed in time."""
        if self._tap is None:
            return feed.feed(before_ns, most)
        self._clock.advance(next_ns + 1)
        self._tap.tend()
        fed = feed.feed(min(before_ns, next_ns + SILENT_EVERY_NS), min(most, self._ring_room))
        self._replay.flush()
        self._tap.read()
        return fed

    def _make_room(self) -> int:
        """Ends flows early where the table would overflow (reason 5); for how many packets there is room now."""
        resident = self._collector.resident()
        if resident >= self._room:
            self._collect(excess=resident - self._room // 2)
            resident = self._collector.resident()
        return max(LEAST_STEP, self._room - resident)

    def _collect(self, excess: int = 0, *, everything: bool = False) -> None:
        self._collector.collect(excess, everything=everything)
        if self._collector.refused_by:
            raise SinkError(self._collector.refused_by)


@contextmanager
def _progress(capture: Capture) -> Iterator[Callable[[], None]]:
    """A bar on standard error where that is a terminal; what is yielded moves it."""
    if sys.stderr is None or not sys.stderr.isatty() or not log.isEnabledFor(logging.INFO):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(capture.name, total=capture.size or None)
        yield lambda: progress.update(task, completed=capture.position())


def _report(capture: Capture, books: Books, tally: Tally) -> None:
    """One line that accounts for every packet."""
    ignored = {reason: number for reason, number in books.ignored_packets.items() if number}
    parts = [f"{tally.packets:,} in {tally.records:,} records"]
    if ignored:
        parts.append(f"{sum(ignored.values()):,} ignored ({_listed(ignored)})")
    if capture.skipped_packets:
        parts.append(f"{capture.skipped_packets:,} skipped, of link types that cannot be read")
    if books.evicted_packets:
        parts.append(f"{books.evicted_packets:,} lost with evicted flows: raise --max-flows")
    line = f"{capture.name}: {books.seen_packets + capture.skipped_packets:,} packets: {'; '.join(parts)}"
    if books.orphan_fragments:
        line += f"; {books.orphan_fragments:,} fragments without their first were counted with ports 0"
    log.log(logging.WARNING if books.evicted_packets else logging.INFO, "%s", line)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.items())
