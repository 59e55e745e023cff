"""The flow table in the kernel, read into NumPy: no Python object per flow.

Rules:
- `look` and `snapshot` change nothing. While packets arrive they are of no one
  moment, so totals come from what `take` returns.
- A snapshot copies every entry; a look hands out only conversations that may be over,
  for a sixth of the time (kernel/scan.py).
- `take` copies an entry's counters and deletes it (or begins a new record in it)
  under the entry's lock, in the kernel: no packet is lost between the two.
- The books are in the kernel too, so they outlive the collector.
"""

import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowmon import abi
from flowmon.errors import KernelError
from flowmon.expiry import Timeouts
from flowmon.kernel import libbpf, scan
from flowmon.kernel.pins import MapSource
from flowmon.kernel.scan import Scan

Array = np.ndarray[Any, np.dtype[Any]]

log = logging.getLogger("flowmon")

SCAN_BATCH = 8192  # more is no faster

# What expiry and pairing look at; the rest of the counters is read when a flow is taken. Aligned, it is several times
# faster to reckon with.
FLOW_STATE = np.dtype(
    [(name, abi.SCAN_ROW[name]) for name in abi.SCAN_ROW.names or () if name not in ("key", "padding")],
    align=True,
)
# What analysers look at besides.
WATCHED_STATE = np.dtype(
    [
        *((name, FLOW_STATE[name]) for name in FLOW_STATE.names or ()),
        ("tcp_control_bits", "u2"),
        ("syn_packets", "u8"),
    ],
    align=True,
)

POINT = np.dtype([("ifindex", "u4"), ("direction", "u4")])
_NEVER = Timeouts(idle_ns=1 << 62, active_ns=1 << 62, linger_ns=1 << 62)


@dataclass(frozen=True)
class Snapshot:
    """Entries of the table: `keys` (FLOW_KEY) and `states` (FLOW_STATE or WATCHED_STATE), in step, each key once."""

    keys: Array
    states: Array

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Resident:
    """What is in the table: entries, those whose record has begun, and their packets and layer 2 octets."""

    entries: int
    flows: int
    packets: int
    octets: int

    @classmethod
    def of(cls, snapshot: Snapshot) -> "Resident":
        """Of all that a snapshot has."""
        states = snapshot.states
        return cls(
            entries=len(snapshot),
            flows=int(np.count_nonzero(states["packets"])),
            packets=int(states["packets"].sum()),
            octets=int(states["layer2_octets"].sum()),
        )


@dataclass(frozen=True)
class Look:
    """What is in the table, and snapshots of all that may have ended, in parts: each whole conversations."""

    resident: Resident
    parts: Iterator[Snapshot]


@dataclass(frozen=True)
class Taken:
    """What was taken out of the table, in step with the keys that were asked for.

    counters: FLOW_COUNTERS, with one more row, all zero. found: bool, which were still there; the others
    were evicted since the snapshot. lists: FIRST_PACKETS as the counters, or None where none are listed.
    Counters and lists are good until the take after the next.
    """

    counters: Array
    found: Array
    lists: Array | None = None


@dataclass(frozen=True)
class Books:
    """Where every packet and flow went, as far as the kernel knows.

    Packets are on the wire, octets layer 2. `resident_*` is in the table now.
    `late_packets` are counted ones, but in packets, octets and flags only;
    `orphan_fragments` are counted with ports 0, their first fragment was not seen.
    `dropped_*` are seen ones that the deny-list or the guard dropped.
    """

    seen_packets: int
    seen_octets: int
    counted_packets: int
    counted_octets: int
    ignored_packets: dict[str, int]
    ignored_octets: dict[str, int]
    flows_inserted: int
    insertions_failed: int
    late_packets: int
    orphan_fragments: int
    dropped_packets: int
    dropped_octets: int
    taken_flows: int
    taken_packets: int
    taken_octets: int
    resident_flows: int
    resident_packets: int
    resident_octets: int

    @property
    def evicted_flows(self) -> int:
        """Directed flows that the LRU table dropped unseen. Exact while no packet arrives."""
        return max(0, self.flows_inserted - self.taken_flows - self.resident_flows)

    @property
    def evicted_packets(self) -> int:
        """Packets of the evicted flows."""
        return max(0, self.counted_packets - self.taken_packets - self.resident_packets)

    @property
    def evicted_octets(self) -> int:
        """Layer 2 octets of the evicted flows."""
        return max(0, self.counted_octets - self.taken_octets - self.resident_octets)


class FlowTable:
    """An open flow table with its companions. Close it after use.

    state: what a snapshot reads of each entry, FLOW_STATE or WATCHED_STATE. first_packets: how many
    of a record the programs list (LoadOptions).
    """

    def __init__(
        self, source: MapSource, state: np.dtype[Any] = FLOW_STATE, *, first_packets: int = 0
    ) -> None:
        self._state = state
        self.first_packets = first_packets
        self._flows = source.open_map("flows")
        self._totals = map_into_memory(
            source, "totals", abi.INTERFACE_TOTALS, libbpf.cpu_ids() * abi.TOTALS_SLOTS
        ).reshape(-1, abi.TOTALS_SLOTS)
        self._in_use = map_into_memory(source, "totals_in_use", abi.TOTALS_IN_USE, 1)
        self._take = source.open_program("take")
        info = libbpf.map_info(self._flows)
        self.id, self.max_flows = info.id, info.max_entries
        self._requests = map_into_memory(source, "take_requests", abi.TAKE_REQUEST, abi.TAKE_BATCH)
        self._results = map_into_memory(source, "take_results", abi.FLOW_COUNTERS, abi.TAKE_BATCH)
        listed = abi.TAKE_BATCH if first_packets else 1
        self._taken_lists = map_into_memory(source, "take_lists", abi.FIRST_PACKETS, listed)
        self._books = map_into_memory(source, "take_books", abi.TAKE_BOOKS, 1)
        self._packet = np.zeros(64, "u1")
        self._counters = [
            np.empty(0, abi.FLOW_COUNTERS) for _ in range(2)
        ]  # kept from take to take, as below
        self._lists = [np.empty(0, abi.FIRST_PACKETS) for _ in range(2)]  # likewise
        self._make_scan_buffers(SCAN_BATCH)
        self._scan: Scan | None = None
        self._can_scan = scan.OBJECT.exists()

    def close(self) -> None:
        """Closes the descriptors; the table stays."""
        if self._scan is not None:
            self._scan.close()
        for fd in (self._flows, self._take):
            os.close(fd)

    def look(self, timeouts: Timeouts, now_mono_ns: int) -> Look:
        """Conversations that may be over at `now_mono_ns`, and maybe others with them.

        The parts are to be read before the next look, or the next question for what is resident.
        """
        if self._scan is None:
            self._scan = self._open_scan(self.max_flows)
        if self._scan is None:
            snapshot = self.snapshot()
            return Look(Resident.of(snapshot), iter((snapshot,)))
        resident = _resident(self._scan.find(timeouts, now_mono_ns))
        return Look(resident, (_snapshot_of(rows) for rows in self._scan.fetch()))

    def resident(self) -> Resident:
        """What is in the table now."""
        opened = self._scan or self._open_scan(0)  # who only asks needs no room for rows
        if opened is None:
            return Resident.of(self.snapshot())
        try:
            return _resident(opened.find(_NEVER, 0))
        finally:
            if opened is not self._scan:
                opened.close()

    def _open_scan(self, max_flows: int) -> Scan | None:
        """None where the table has to be copied: BCC compiled what is attached, this it does not."""
        if not self._can_scan:
            return None
        try:
            return Scan(self._flows, max_flows)
        except KernelError as error:
            self._can_scan = False
            log.warning("%s; each look copies the whole table instead", error)
            return None

    def snapshot(self) -> Snapshot:
        """All entries, in no order."""
        all_keys: list[Array] = []
        all_states: list[Array] = []
        cursor = np.zeros(1, "u8")
        first = more = True
        while more:
            keys, counters = self._scan_keys, self._scan_counters
            try:
                count, more = libbpf.lookup_batch(self._flows, cursor, keys, counters, first=first)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                # A hash bucket with more entries than that: once, if ever.
                self._make_scan_buffers(2 * len(keys))
                continue
            first = False
            states = np.empty(count, self._state)
            for name in self._state.names or ():
                states[name] = counters[name][:count]
            states["packets"] += counters["late_packets"][:count]
            states["layer2_octets"] += counters["late_layer2_octets"][:count]
            if "tcp_control_bits" in (self._state.names or ()):
                states["tcp_control_bits"] |= counters["late_tcp_control_bits"][:count].astype("u2")
            # Late packets alone do not begin a record: it begins where the entry left off.
            begun = states["first_seen_mono_ns"]
            states["first_seen_mono_ns"] = np.where(begun == 0, states["last_seen_mono_ns"], begun)
            all_keys.append(abi.words(keys)[:count].copy())
            all_states.append(abi.words(states))
        return Snapshot(
            np.concatenate(all_keys).view(abi.FLOW_KEY)[:, 0],
            np.concatenate(all_states).view(self._state)[:, 0],
        )

    def _make_scan_buffers(self, entries: int) -> None:
        """Kept from scan to scan: fresh memory costs more than the scan."""
        self._scan_keys = np.empty(entries, abi.FLOW_KEY)
        self._scan_counters = np.empty(entries, abi.FLOW_COUNTERS)

    def take(self, keys: Array, keep_entry: Array) -> Taken:
        """What is in the entries of `keys`.

        An entry with `keep_entry` begins a new record and stays; the others are deleted.
        """
        counters = _room(self._counters, len(keys))
        lists = _room(self._lists, len(keys)) if self.first_packets else None
        found = np.zeros(len(keys), bool)
        for start in range(0, len(keys), abi.TAKE_BATCH):
            part = slice(start, start + abi.TAKE_BATCH)
            size = len(keys[part])
            abi.words(self._requests)[:size, : abi.words(keys).shape[1]] = abi.words(keys[part])
            self._requests["keep_entry"][:size] = keep_entry[part]
            self._requests["found"][:size] = 0
            self._books["cursor"] = 0
            while (done := int(self._books["cursor"][0])) < size:
                libbpf.test_run(self._take, self._packet, repeat=size - done)
            found[part] = self._requests["found"][:size]
            abi.words(counters)[start : start + size] = abi.words(self._results)[:size]
            if lists is not None:
                abi.words(lists)[start : start + size] = abi.words(self._taken_lists)[:size]
        return Taken(counters, found, lists)

    def inserted(self) -> int:
        """Directed flows that began a record so far."""
        return self._sum("flows_inserted")

    def entries_made(self) -> int:
        """Entries made so far: cheap, for watching the pressure between intervals."""
        return self._sum("entries_made")

    def _sum(self, field: str) -> int:
        return int(self._totals[field][:, self._slots_in_use()].sum())

    def _slots_in_use(self) -> Array:
        return np.flatnonzero(self._in_use["slots"][0])

    def taken(self) -> int:
        """Directed flows taken so far."""
        return int(self._books["taken_flows"][0])

    def totals(self) -> tuple[Array, Array]:
        """(POINT, INTERFACE_TOTALS summed over the CPUs) of each observation point that saw a packet."""
        slots = self._slots_in_use()
        of_cpus = self._totals[:, slots]
        rows = np.flatnonzero(of_cpus["in_use"])
        found = of_cpus.reshape(-1)[rows]
        points = np.empty(len(rows), POINT)
        points["ifindex"] = found["ifindex"]
        points["direction"] = slots[rows % max(1, len(slots))] & 1
        distinct, which = np.unique(points, return_inverse=True)
        sums = np.zeros(len(distinct), abi.INTERFACE_TOTALS)
        for name in abi.INTERFACE_TOTALS.names or ():
            np.add.at(sums[name], which, found[name])
        sums["ifindex"] = distinct["ifindex"]
        return distinct, sums

    def books(self, totals: Array | None = None, resident: Resident | None = None) -> Books:
        """The books as they stand. Exact while no packet arrives; close to it otherwise.

        totals: INTERFACE_TOTALS of before the look, so that nothing seems evicted
        that came in between; read now if they are not given.
        """
        if totals is None:
            _, totals = self.totals()
        if resident is None:
            resident = self.resident()
        taken = self._books[0]
        return Books(
            **{name: int(totals[name].sum()) for name in _SUMMED},
            ignored_packets=_by_reason(totals["ignored_packets"]),
            ignored_octets=_by_reason(totals["ignored_octets"]),
            taken_flows=int(taken["taken_flows"]),
            taken_packets=int(taken["taken_packets"]),
            taken_octets=int(taken["taken_octets"]),
            resident_flows=resident.flows,
            resident_packets=resident.packets,
            resident_octets=resident.octets,
        )


def _room(buffers: list[Array], rows: int) -> Array:
    """The one of two buffers that was not in use last, for so many rows and one that is zero."""
    buffers.reverse()
    if len(buffers[0]) <= rows:
        buffers[0] = np.empty(rows + 1, buffers[0].dtype)
    room = buffers[0][: rows + 1]
    abi.words(room)[-1] = 0
    return room


def _resident(found: np.void) -> Resident:
    """Of SCAN_STATE."""
    return Resident(
        *(int(found[name]) for name in ("entries", "flows", "packets", "layer2_octets")),
    )


def _snapshot_of(rows: Array) -> Snapshot:
    """SCAN_ROW[n] as a snapshot of its own."""
    key_words = abi.FLOW_KEY.itemsize // 8
    keys, states = abi.words(rows)[:, :key_words].copy(), abi.words(rows)[:, key_words:].copy()
    return Snapshot(keys.view(abi.FLOW_KEY)[:, 0], states.view(FLOW_STATE)[:, 0])


_SUMMED = (
    "seen_packets",
    "seen_octets",
    "counted_packets",
    "counted_octets",
    "flows_inserted",
    "insertions_failed",
    "late_packets",
    "orphan_fragments",
    "dropped_packets",
    "dropped_octets",
)


def _by_reason(ignored: Array) -> dict[str, int]:
    sums = ignored.sum(axis=0)
    return {reason.name.lower(): int(sums[reason]) for reason in abi.Ignored}


def map_into_memory(source: MapSource, name: str, dtype: np.dtype[Any], entries: int) -> Array:
    """An mmapable array map as a NumPy array: what is written there, the programs see."""
    fd = source.open_map(name)
    try:
        return libbpf.into_memory(fd, dtype, entries)
    finally:
        os.close(fd)
