"""A flow table in memory, for tests of what looks at one."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from flowmon import abi
from flowmon.abi import Closing
from flowmon.analysers.activity import FIN, RST
from flowmon.biflow import canonical
from flowmon.expiry import Timeouts
from flowmon.kernel.flow_table import FLOW_STATE, POINT, Books, Look, Resident, Snapshot, Taken
from samples import NS

RECORD_FIELDS = (abi.FLOW_COUNTERS.names or ())[(abi.FLOW_COUNTERS.names or ()).index("first_seen_mono_ns") :]


class FakeTable:
    """FlowTable's methods over a dictionary; `packet` is the kernel's side."""

    def __init__(self, max_flows: int = 1000, state: np.dtype[Any] = FLOW_STATE) -> None:
        self.max_flows = max_flows
        self.state = state
        self.entries: dict[bytes, np.ndarray] = {}
        self._inserted = self._taken = self._made = 0

    def packet(self, one: np.ndarray, second: float, number: int = 1, flags: int = 0) -> None:
        self._made += one.tobytes() not in self.entries
        entry = self.entries.setdefault(one.tobytes(), np.zeros(1, abi.FLOW_COUNTERS))
        if entry["packets"] == 0:
            self._inserted += 1
            entry["first_seen_mono_ns"] = second * NS
            if entry["born_mono_ns"] == 0:
                entry["born_mono_ns"] = second * NS
        entry["packets"] += number
        entry["last_seen_mono_ns"] = second * NS
        entry["tcp_control_bits"] |= flags
        entry["syn_packets"] += number * (flags & abi.SYN != 0)
        entry["tcp_closing"] |= (flags & FIN != 0) * Closing.FIN | (flags & RST != 0) * Closing.RST

    def evict(self, one: np.ndarray) -> None:
        del self.entries[one.tobytes()]

    def inserted(self) -> int:
        return self._inserted

    def entries_made(self) -> int:
        return self._made

    def taken(self) -> int:
        return self._taken

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        totals = np.zeros(1, abi.INTERFACE_TOTALS)
        totals["flows_inserted"] = self._inserted
        return np.zeros(1, POINT), totals

    def books(self, totals: np.ndarray | None = None, resident: Resident | None = None) -> Books:
        """What a real one makes of `totals` and what is in it, as far as a test looks at it."""
        inserted = self.totals()[1] if totals is None else totals
        numbers = dict.fromkeys((one.name for one in fields(Books)), 0) | {
            "ignored_packets": {},
            "ignored_octets": {},
            "flows_inserted": int(inserted["flows_inserted"].sum()),
            "taken_flows": self._taken,
            "resident_flows": (resident or self.resident()).flows,
        }
        return Books(**numbers)

    def resident(self) -> Resident:
        return Resident.of(self.snapshot())

    def look(self, timeouts: Timeouts, now_mono_ns: int) -> Look:
        """Each conversation of which an entry is due."""
        found = self.snapshot()
        conversations = [one.tobytes() for one in canonical(found.keys)[0]]
        due = {
            conversation
            for conversation, state in zip(conversations, found.states, strict=True)
            if is_due(state, timeouts, now_mono_ns)
        }
        rows = np.flatnonzero([one in due for one in conversations])
        part = Snapshot(found.keys[rows], found.states[rows])
        return Look(Resident.of(found), iter((part,) if len(rows) else ()))

    def snapshot(self) -> Snapshot:
        keys = np.frombuffer(b"".join(self.entries), abi.FLOW_KEY)
        states = np.zeros(len(keys), self.state)
        for row, entry in enumerate(self.entries.values()):
            for name in self.state.names or ():
                states[name][row] = entry[name][0]
        begun = states["first_seen_mono_ns"]
        states["first_seen_mono_ns"] = np.where(begun == 0, states["last_seen_mono_ns"], begun)
        return Snapshot(keys, states)

    def take(self, keys: np.ndarray, keep_entry: np.ndarray) -> Taken:
        counters, found = np.zeros(len(keys) + 1, abi.FLOW_COUNTERS), np.zeros(len(keys), bool)
        for row, (one, keep) in enumerate(zip(keys, keep_entry, strict=True)):
            entry = self.entries.get(one.tobytes())
            if entry is None:
                counters[row]["packets"] = 999  # what an earlier batch left there
                continue
            found[row], counters[row] = True, entry[0]
            self._taken += int(entry["packets"][0] > 0)
            if keep:
                for name in RECORD_FIELDS:
                    entry[name] = 0
            else:
                del self.entries[one.tobytes()]
        return Taken(counters, found)

    @property
    def packets(self) -> int:
        return sum(int(entry["packets"][0]) for entry in self.entries.values())


def is_due(state: np.void, timeouts: Timeouts, now_mono_ns: int) -> bool:
    """Whether an entry by itself says that its conversation may be over."""
    silent = max(0, now_mono_ns - int(state["last_seen_mono_ns"]))
    age = max(0, now_mono_ns - int(state["first_seen_mono_ns"]))
    return bool(
        silent >= timeouts.idle_ns
        or (state["tcp_closing"] and silent >= timeouts.linger_ns)
        or (state["packets"] and age >= timeouts.active_ns)
    )
