"""Packets that the programs hand over one by one, and the places of sessions that they capture.

Rules:
- The programs take places, and only this frees them: the place of a session that was
  silent for the idle timeout; and where all are taken, every so often that of the one
  least used.
- Whoever reads is the only reader: the collector's lock on the table sees to that.
"""

import os
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from flowmon import abi
from flowmon.kernel import libbpf
from flowmon.kernel.flow_table import map_into_memory
from flowmon.kernel.pins import MapSource
from flowmon.kernel.ring import Ring, room

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class FeatureBooks:
    """What became of the packets whose features were asked for, on the wire.

    lost: the ring was full. refused: their session found no place. watched: of sessions at their
    limit. elsewhere: captured at the point that saw their direction first.
    """

    captured_packets: int
    lost_packets: int
    refused_packets: int
    watched_packets: int
    elsewhere_packets: int

    def since(self, before: "FeatureBooks") -> "FeatureBooks":
        """What has come since."""
        return FeatureBooks(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


_BOOKS = tuple(FeatureBooks.__dataclass_fields__)


class FeatureSource:
    """The ring and the sessions of a loaded table. Close it after use.

    sessions: how many places there are. rows: how many packets the ring holds.
    """

    def __init__(self, source: MapSource) -> None:
        self._sessions = source.open_map("sessions")
        self.sessions = libbpf.map_info(self._sessions).max_entries
        self._gate = map_into_memory(source, "session_gate", abi.SESSION_GATE, 1)
        self._books = map_into_memory(source, "feature_books", abi.FEATURE_BOOKS, libbpf.cpu_ids())
        ring = source.open_map("feature_ring")
        ring_octets = libbpf.map_info(ring).max_entries
        self._ring = Ring(ring, ring_octets, abi.FEATURE_PACKET)
        self.rows = room(ring_octets, abi.FEATURE_PACKET)
        os.close(ring)
        self._keys = np.empty(self.sessions, abi.FLOW_KEY)
        self._states = np.empty(self.sessions, abi.SESSION)

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self._sessions)

    def read(self) -> Array:
        """FEATURE_PACKET[n]: what came since the last time."""
        return self._ring.read()

    def set_utc_offset(self, offset_ns: int) -> None:
        """UTC less the packets' clock, by which sessions that begin from now on say when they began."""
        self._gate["utc_offset_ns"] = offset_ns

    def books(self) -> FeatureBooks:
        """As they stand."""
        return FeatureBooks(**{name: int(self._books[name].sum()) for name in _BOOKS})

    def is_full(self) -> bool:
        """Whether all places are taken."""
        return int(self._gate["taken"][0] - self._gate["freed"][0]) >= self.sessions

    def free_silent(self, before_mono_ns: int) -> int:
        """Frees the places of sessions without a packet since then; how many."""
        keys, last_seen = self._snapshot()
        return self._free(keys, np.flatnonzero(last_seen < before_mono_ns))

    def free_least_used(self, number: int) -> int:
        """Frees the places of those whose latest packet is the oldest; how many."""
        keys, last_seen = self._snapshot()
        return self._free(keys, np.argsort(last_seen, kind="stable")[:number])

    def _snapshot(self) -> tuple[Array, Array]:
        """Keys, and when each was last seen."""
        cursor = np.zeros(1, "u8")
        count, _ = libbpf.lookup_batch(self._sessions, cursor, self._keys, self._states, first=True)
        return self._keys[:count], self._states["sides"]["last_seen_mono_ns"][:count].max(axis=1)

    def _free(self, keys: Array, rows: Array) -> int:
        for row in rows:
            libbpf.delete(self._sessions, keys[row : row + 1])
            self._gate["freed"] += np.uint64(
                1
            )  # one by one: who is killed in between has lost one place at most
        return len(rows)
