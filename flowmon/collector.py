"""The walk: snapshot, pair, decide, take, record, write. Nothing else.

Rules:
- The kernel's table is the only flow table. The collector may be killed at any
  time; what it had not taken is still there.
- Sinks are asked for room before flows are taken. While a batch is recorded and written,
  the next is taken. What could not be written after all, two batches at most, is
  held, and no other flow is taken until it is.
- Between intervals the insertion counters are watched. Where the table would
  fill before the next look, flows end early (reason 5) instead of being evicted.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa

from flowmon import abi
from flowmon.analysers.activity import Seen, seen
from flowmon.biflow import NONE, Biflows, duplicates, pair
from flowmon.durations import Durations
from flowmon.errors import SinkError
from flowmon.expiry import AT_ONCE, Decision, EndReason, Timeouts, decide, end_all
from flowmon.first_packets import FirstPackets
from flowmon.kernel.clock import Clock, SystemClock
from flowmon.kernel.flow_table import Books, FlowTable, Look, Resident, Snapshot
from flowmon.pressure import Pressure
from flowmon.records import Context, EndedFlows, record_batch
from flowmon.sinks import Metering, Sink
from flowmon.watch import Watch

Array = np.ndarray[Any, np.dtype[Any]]

log = logging.getLogger("flowmon")

REPORT_SECONDS = 1.0  # between two reports to the sinks
RECORDED_AT_ONCE = 16384  # biflows: counters and columns of so many stay in the cache, and memory is bounded


@dataclass(frozen=True)
class CollectorOptions:
    """How flows end and what is reported."""

    interval_s: float = 1.0  # 0: one pass
    timeouts: Timeouts = field(default_factory=Timeouts)
    every_interface: bool = False
    observation_domain_id: int = 0


@dataclass
class Tally:
    """What this collector did, in its own time."""

    records: int = 0
    packets: int = 0  # in records
    duplicate_packets: int = 0  # taken, of points that did not report
    evicted_flows: int = 0
    new_connections: int = 0  # TCP, by their SYN
    by_reason: dict[str, int] = field(default_factory=dict)


class Collector:
    """Takes ended flows out of `table` and hands their records to `sinks`."""

    def __init__(
        self,
        table: FlowTable,
        sinks: Sequence[Sink],
        options: CollectorOptions,
        interface_names: Callable[[], dict[int, str]],
        clock: Clock | None = None,
        interface_descriptions: Callable[[], dict[int, str]] = dict,
        watch: Watch | None = None,
        publish: Callable[[Metering], None] | None = None,
    ) -> None:
        self.tally = Tally()
        self._table = table
        self._sinks = sinks
        self._options = options
        self._interface_names = interface_names
        self._interface_descriptions = interface_descriptions
        self._clock = clock or SystemClock()
        self._unwritten: list[tuple[Sink, pa.RecordBatch, int]] = []
        self._sink_complaint = ""
        self._evictions_said = 0
        self._report_at = 0.0
        self._watch = watch
        self._publish = publish
        self.durations = Durations()
        self._pressure = Pressure(table)
        self._writer = ThreadPoolExecutor(max_workers=1)  # one: batches are written in turn

    def run(
        self,
        stopped: Callable[[], bool],
        wait: Callable[[float], None],
        tend: Callable[[], None] = lambda: None,
    ) -> None:
        """Passes every interval until `stopped()`; `wait(seconds)` may return early. `tend()` comes in between."""
        next_pass = time.monotonic() + self._options.interval_s
        while not stopped():
            tend()
            excess = self._pressure.look()
            is_due = time.monotonic() >= next_pass
            # Where a sink takes nothing there is no relief, until an interval is over.
            if is_due or (excess > 0 and not self._sink_complaint):
                self.collect(excess=excess)
            if is_due:
                next_pass = max(next_pass + self._options.interval_s, time.monotonic())
            wait(min(self._pressure.look_again_s, max(0.0, next_pass - time.monotonic())))

    def collect(self, excess: int = 0, *, everything: bool = False) -> int:
        """One pass; the number of records. `everything` ends all flows (reason 4)."""
        is_ready = self._write_unwritten()
        if not is_ready and self._watch is None:
            self._report_if_due()
            return 0
        with self.durations.measure_pass():
            return self._pass(excess, is_ready=is_ready, everything=everything)

    def _pass(self, excess: int, *, is_ready: bool, everything: bool) -> int:
        """Takes nothing where a sink is not ready; analysers look all the same."""
        measure = self.durations.measure
        inserted, taken, made = self._table.inserted(), self._table.taken(), self._table.entries_made()
        started = time.monotonic()
        totals = self._table.totals()[1] if started >= self._report_at else None
        read_at_mono_ns = self._clock.now_mono_ns()
        with measure("snapshot"):
            look = self._look(read_at_mono_ns, excess, everything=everything)
        books = None if totals is None else self._table.books(totals, look.resident)
        self._notice_evictions(inserted - taken - look.resident.flows)
        written, left = 0, look.resident.entries
        for snapshot in self.durations.each("snapshot", look.parts):
            biflows, decision = self._decide(snapshot, read_at_mono_ns, excess, everything=everything)
            left -= int(np.count_nonzero(_leaving(decision)[biflows.conversation_of]))
            end = self._end(snapshot, biflows, decision, is_ready=is_ready)
            written, is_ready = written + end.written, end.is_ready
            if self._watch is not None:
                with measure("analyse"):
                    found = self._seen(snapshot, biflows, decision, end)
                    self._watch.passed(found, read_at_mono_ns, self._clock.utc_offset_ns())
            if not is_ready:
                break
        if books is not None:
            self._report(books)
        if is_ready:
            self._pressure.passed(made, left, time.monotonic() - started)
        return written

    def _end(self, snapshot: Snapshot, biflows: Biflows, decision: Decision, *, is_ready: bool) -> "_End":
        """Takes and writes what has ended, in chunks: while one is written, the next is taken."""
        end = _End(np.zeros(len(biflows), bool), np.zeros(len(biflows), bool), is_ready=is_ready)
        spare = duplicates(biflows)
        writing: Future[int] | None = None
        all_ended = np.flatnonzero(decision.reasons)  # by flow_id: the same order for the same capture
        try:
            for start in range(0, len(all_ended), RECORDED_AT_ONCE):
                ended = all_ended[start : start + RECORDED_AT_ONCE]
                end.is_ready = end.is_ready and self._reserve(ended, decision, more=writing is not None)
                if not end.is_ready:
                    break
                with self.durations.measure("take"):
                    flows, recorded = self._take(snapshot, biflows, decision, ended, spare)
                end.taken[ended] = end.recorded[recorded] = True
                if writing is not None:
                    end.written += self._written(writing, flows)
                    end.is_ready = not self._unwritten
                writing = self._writer.submit(self._write, flows)
        finally:
            # Whatever happens: sinks are not closed while one of them is written to.
            if writing is not None:
                futures.wait([writing])
        if writing is not None:
            end.written += writing.result()
        end.is_ready = end.is_ready and not self._unwritten
        if end.is_ready and end.written:
            self._relent()
        return end

    def _written(self, writing: Future[int], taken_meanwhile: EndedFlows) -> int:
        """How many records were written. Where a sink broke for good, the others get what was taken meanwhile."""
        try:
            return writing.result()
        except BaseException:
            batch, exported_at_ns = self._record(taken_meanwhile)
            for sink in self._sinks:
                with suppress(SinkError, OSError):
                    sink.write(batch, exported_at_ns)
            raise

    def _look(self, now_mono_ns: int, excess: int, *, everything: bool) -> Look:
        """Analysers watch all that is there, and what makes room is chosen of all."""
        if self._watch is not None or excess > 0:
            snapshot = self._table.snapshot()
            return Look(Resident.of(snapshot), iter((snapshot,)))
        return self._table.look(AT_ONCE if everything else self._options.timeouts, now_mono_ns)

    def _decide(
        self, snapshot: Snapshot, now_mono_ns: int, excess: int, *, everything: bool
    ) -> tuple[Biflows, Decision]:
        with self.durations.measure("pair"):
            biflows = self._pair(snapshot, every_interface=self._options.every_interface)
        with self.durations.measure("decide"):
            if everything:
                return biflows, end_all(biflows, snapshot.states)
            return biflows, decide(snapshot.states, biflows, self._options.timeouts, now_mono_ns, excess)

    def _pair(self, snapshot: Snapshot, *, every_interface: bool) -> Biflows:
        return pair(
            snapshot.keys,
            snapshot.states["born_mono_ns"],
            every_interface=every_interface,
            counting=snapshot.states["packets"] > 0,
        )

    def _seen(self, snapshot: Snapshot, biflows: Biflows, decision: Decision, end: "_End") -> Seen:
        """For analysers. What each interface reports by itself is one conversation to them, over when it is everywhere."""
        if not self._options.every_interface:
            return seen(snapshot.keys, snapshot.states, biflows, decision.reasons * end.recorded)
        together = self._pair(snapshot, every_interface=False)
        least = np.full(len(together), EndReason.LACK_OF_RESOURCES, "u1")
        np.minimum.at(
            least, together.conversation_of, (decision.reasons * end.taken)[biflows.conversation_of]
        )
        return seen(snapshot.keys, snapshot.states, together, least)

    def _take(
        self, snapshot: Snapshot, biflows: Biflows, decision: Decision, ended: Array, spare: Array
    ) -> tuple[EndedFlows, Array]:
        """The biflows `ended` with their final counters, but for those without a packet; and which are left.

        Those of their entries that are `spare` are taken along and dropped.
        """
        forward_rows, reverse_rows = biflows.forward[ended], biflows.reverse[ended]
        has_reverse = reverse_rows != NONE
        if len(spare):
            are_ended = np.zeros(len(biflows), bool)
            are_ended[ended] = True
            spare = spare[are_ended[biflows.conversation_of[spare]]]
        # What comes back is in step with `ended`: forward, then reverse.
        rows = np.concatenate((forward_rows, reverse_rows[has_reverse], spare))
        is_active = decision.reasons[biflows.conversation_of[rows]] == EndReason.ACTIVE
        taken = self._table.take(snapshot.keys.take(rows), is_active)
        counters = taken.counters
        forward, reverse = _directions(counters, taken.found, has_reverse)
        listed = None
        if taken.lists is not None:
            listed = FirstPackets(
                *_directions(taken.lists, taken.found, has_reverse), most=self._table.first_packets
            )
        packets = forward["packets"] + reverse["packets"]
        recorded = int(packets.sum())
        self.tally.packets += recorded
        self.tally.duplicate_packets += int(counters["packets"].sum()) - recorded
        flows = EndedFlows(
            keys=snapshot.keys.take(forward_rows),
            forward=forward,
            reverse=reverse,
            flow_id=biflows.flow_id[ended],
            reasons=decision.reasons[ended],
            first_packets=listed,
        )
        has_packets = packets > 0
        if self._watch is not None:
            chosen = np.concatenate((has_packets, has_packets[has_reverse], np.ones(len(spare), bool)))
            _bring_up_to_date(snapshot.states, rows[chosen], counters, np.flatnonzero(chosen))
        if has_packets.all():
            return flows, ended
        return _some(flows, has_packets), ended[has_packets]

    def _write(self, flows: EndedFlows) -> int:
        if len(flows) == 0:
            return 0
        batch, exported_at_ns = self._record(flows)
        self._unwritten += [(sink, batch, exported_at_ns) for sink in self._sinks]
        with self.durations.measure("write"):
            self._write_unwritten()
        log.debug("%d records, by reason so far %s", batch.num_rows, self.tally.by_reason)
        return len(flows)

    def _record(self, flows: EndedFlows) -> tuple[pa.RecordBatch, int]:
        """The records, and when they are exported."""
        offset = self._clock.utc_offset_ns()
        context = Context(offset, self._interface_names(), self._options.observation_domain_id)
        with self.durations.measure("record"):
            batch = record_batch(flows, context)
        self.tally.records += batch.num_rows
        self.tally.new_connections += _connections(flows)
        for reason, number in zip(*np.unique(flows.reasons, return_counts=True), strict=True):
            name = EndReason(reason).name.lower()
            self.tally.by_reason[name] = self.tally.by_reason.get(name, 0) + int(number)
        return batch, self._clock.now_mono_ns() + offset

    def _reserve(self, ended: Array, decision: Decision, *, more: bool) -> bool:
        """Whether every sink has room for these biflows."""
        rows = len(ended) - int(np.count_nonzero(decision.blank[ended]))
        if not rows:
            return True
        try:
            for sink in self._sinks:
                sink.reserve(rows, more=more)
        except SinkError as error:
            self._complain(error, "the flows stay in the table")
            return False
        return True

    def _write_unwritten(self) -> bool:
        """Writes what is held; False where a sink still does not take it."""
        while self._unwritten:
            sink, batch, exported_at_ns = self._unwritten[0]
            try:
                sink.write(batch, exported_at_ns)
            except SinkError as error:
                self._complain(error, f"{batch.num_rows} records are held and tried again")
                return False
            self._unwritten.pop(0)
        return True

    def finish(self) -> list[str]:
        """After the last pass: reports how it ended, and waits for the sinks; what these complain of."""
        self._writer.shutdown()
        if self._watch is not None:
            self._watch.finish()
        self._report(self._table.books())
        complaints = []
        # Side by side: each may have to wait for somebody else.
        with ThreadPoolExecutor(max_workers=max(1, len(self._sinks))) as pool:
            for finished in [pool.submit(sink.finish) for sink in self._sinks]:
                try:
                    finished.result()
                except SinkError as error:
                    complaints.append(str(error))
        return complaints

    def _report_if_due(self) -> None:
        if time.monotonic() >= self._report_at:
            self._report(self._table.books())

    def _report(self, books: Books) -> None:
        self._report_at = time.monotonic() + REPORT_SECONDS
        now_ns = self._clock.now_mono_ns() + self._clock.utc_offset_ns()
        names, present = self._interface_names(), self._interface_descriptions()
        interfaces = {index: (names[index], text) for index, text in present.items() if index in names}
        metering = Metering(books, interfaces, now_ns)
        for sink in self._sinks:
            sink.report(metering)
        if self._publish is not None:
            self._publish(metering)

    def resident(self) -> int:
        """Entries in the table, reckoned from the last pass."""
        return self._pressure.resident(self._table.entries_made())

    @property
    def refused_by(self) -> str:
        """What a sink complains of, while it takes no records; empty otherwise."""
        return self._sink_complaint

    @property
    def unwritten_records(self) -> int:
        """Records taken from the table that no sink has taken yet."""
        return sum(batch.num_rows for _, batch, _ in self._unwritten)

    def _complain(self, error: SinkError, consequence: str) -> None:
        """Says each different complaint once, not every interval."""
        if str(error) != self._sink_complaint:
            log.warning("%s; %s", error, consequence)
        self._sink_complaint = str(error)

    def _relent(self) -> None:
        if self._sink_complaint:
            log.warning("writing again")
        self._sink_complaint = ""

    def _notice_evictions(self, evicted_flows: int) -> None:
        """Says it when there are twice as many as were said: a flood shall not fill the log as well."""
        self.tally.evicted_flows = max(evicted_flows, self.tally.evicted_flows)
        if evicted_flows >= max(1, 2 * self._evictions_said):
            log.warning(
                "the table overflowed: %d directed flows evicted so far, uncollected; raise --max-flows",
                evicted_flows,
            )
            self._evictions_said = evicted_flows


def _directions(taken: Array, found: Array, has_reverse: Array) -> tuple[Array, Array]:
    """The rows of each direction, of what was taken: first the forward ones of all, then the reverse ones that there are.

    taken: FLOW_COUNTERS or FIRST_PACKETS. Zero where there is no such entry, or it was not found any more.
    """
    if not found.all():
        taken[:-1][~found] = np.zeros(1, taken.dtype)
    number = len(has_reverse)
    if has_reverse.all():
        return taken[:number], taken[number : 2 * number]
    # The last row stands for "no such entry": all zero.
    place = np.full(number, len(taken) - 1)
    place[has_reverse] = number + np.arange(np.count_nonzero(has_reverse))
    return taken[:number], taken.take(place)


def _connections(flows: EndedFlows) -> int:
    """TCP connections whose first record is among these."""
    is_tcp = flows.keys["protocol"] == abi.TCP
    return int(np.count_nonzero(is_tcp & (flows.forward["tcp_control_bits"] & abi.SYN != 0)))


def _some(flows: EndedFlows, chosen: Array) -> EndedFlows:
    """Those of bool[flows]."""
    rows = np.flatnonzero(chosen)
    first = flows.first_packets
    arrays = {one.name: getattr(flows, one.name) for one in fields(flows) if one.name != "first_packets"}
    return EndedFlows(
        **{name: array.take(rows) for name, array in arrays.items()},
        first_packets=None if first is None else first.take(rows),
    )


def _bring_up_to_date(states: Array, rows: Array, counters: Array, taken: Array) -> None:
    """What analysers see of flows that were taken: their final counters, which are those at `taken`."""
    for name in states.dtype.names or ():
        states[name][rows] = counters[name][taken]


def _leaving(decision: Decision) -> Array:
    """bool[biflows]: whose entries are deleted."""
    return (decision.reasons != EndReason.GOES_ON) & (decision.reasons != EndReason.ACTIVE)


@dataclass
class _End:
    """What became of the biflows of a snapshot. taken, recorded: bool[biflows]; blank and evicted ones leave no record."""

    taken: Array
    recorded: Array
    is_ready: bool  # the sinks take more
    written: int = 0
