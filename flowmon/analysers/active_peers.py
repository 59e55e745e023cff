"""Who is being served: the distinct sources per port that were answered lately.

Rules:
- A peer is a source address at one (IP version, protocol, destination port); however many connections it
  has, it is one.
- It is active where a biflow of it has new packets and was answered. Of TCP: the handshake was completed, or
  the connection is older than the watch and both sides speak. SYN and ACK alone are no service: who forges a
  source gets as much of a server. An RST is no answer.
- The window slides, exactly: a peer leaves when its latest activity is older than the window. The time of an
  activity is that of the reading which showed it.
- Where there are more than `most`, those go that were silent for longest; they are counted.
- The state is replaced, never changed, so another thread may ask for it at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowmon.analysers.activity import NS, Activity, Outcome, identity
from flowmon.analysers.alerts import Alert
from flowmon.analysers.parameters import check, parameter
from flowmon.text import address_column

Array = np.ndarray[Any, np.dtype[Any]]

TCP = 6
SYN, RST, ACK = 0x02, 0x04, 0x10
PORTS = 1 << 16

PEER = np.dtype(
    [
        ("hash", "u8"),
        ("last_ns", "i8"),
        ("address", "u1", 16),
        ("port", "u2"),
        ("ip_version", "u1"),
        ("protocol", "u1"),
    ]
)


@dataclass(frozen=True)
class ActivePeersParameters:
    """What can be said of active-peers."""

    ports: str = parameter("1-1023", "which destination ports, as `22+80+8000-8100`, or `all`")
    window: float = parameter(60.0, "for how long a peer stays active after its last packet", above=0)
    most: int = parameter(262_144, "how many peers are remembered", least=1)

    def __post_init__(self) -> None:
        check(self)
        chosen_ports(self.ports)


@dataclass(frozen=True)
class Peer:
    """Somebody who is being served; address as text."""

    address: str
    ip_version: int
    port: int
    protocol: int


def chosen_ports(text: str) -> Array:
    """bool[65536] of "22+80+8000-8100" (or with commas) or "all". Raises ValueError."""
    chosen = np.zeros(PORTS, bool)
    if text == "all":
        return ~chosen
    for part in text.replace(",", "+").split("+"):
        first, dash, last = part.partition("-")
        bounds = [first, last] if dash else [first, first]
        if not all(bound.isascii() and bound.isdigit() and int(bound) < PORTS for bound in bounds):
            raise ValueError(f"ports: expected ports such as 22+80+8000-8100, or all, not {part!r}")
        low, high = map(int, bounds)
        if low > high:
            raise ValueError(f"ports: expected the lower port first, not {part!r}")
        chosen[low : high + 1] = True
    return chosen


class ActivePeers:
    """Counts the distinct sources that are being served, per port. It raises no alerts."""

    name = "active-peers"

    def __init__(self, parameters: ActivePeersParameters | None = None) -> None:
        self._parameters = parameters or ActivePeersParameters()
        self._chosen = chosen_ports(self._parameters.ports)
        self._window_ns = int(self._parameters.window * NS)
        self._peers = np.empty(0, PEER)
        self._evicted = 0

    def observe(self, activity: Activity) -> None:
        """Takes in who was answered."""
        rows = activity.rows[_active(activity.rows)]
        rows = rows[self._chosen[rows["destination_port"]]]
        peers = _joined(self._peers, _peers(rows, activity.at_ns))
        self._peers = self._bounded(self._within(peers, activity.at_ns))

    def assess(self, now_ns: int) -> list[Alert]:
        """Nothing; peers whose window is over leave."""
        self._peers = self._within(self._peers, now_ns)
        return []

    def finish(self, now_ns: int) -> list[Alert]:
        """Nothing."""
        return self.assess(now_ns)

    def gauges(self) -> Mapping[str, int]:
        """peers: remembered; peers_evicted: forgotten for want of room."""
        return {"peers": len(self._peers), "peers_evicted": self._evicted}

    def counts(self) -> dict[tuple[int, int, int], int]:
        """Distinct sources by (IP version, protocol, port), as of the latest reading."""
        peers = self._peers
        served = peers["ip_version"].astype("u4") << 24 | peers["protocol"].astype("u4") << 16 | peers["port"]
        distinct, counts = np.unique(served, return_counts=True)
        pairs = zip(distinct.tolist(), counts.tolist(), strict=True)
        return {(one >> 24, one >> 16 & 0xFF, one & 0xFFFF): count for one, count in pairs}

    def peers(self) -> list[Peer]:
        """Who is active, by IP version, protocol, port and address."""
        peers = self._peers
        words = np.ascontiguousarray(peers["address"]).view(">u8")
        order = np.lexsort((words[:, 1], words[:, 0], peers["port"], peers["protocol"], peers["ip_version"]))
        peers = peers[order]
        texts = address_column(peers["address"], peers["ip_version"] == 4).to_pylist()
        columns = (peers[name].tolist() for name in ("ip_version", "port", "protocol"))
        return [Peer(*values) for values in zip(texts, *columns, strict=True)]

    def _within(self, peers: Array, now_ns: int) -> Array:
        """Those in the window. What is later than now was read before the clock was set back."""
        kept = peers[peers["last_ns"] >= now_ns - self._window_ns]
        kept["last_ns"] = np.minimum(kept["last_ns"], now_ns)
        return kept

    def _bounded(self, peers: Array) -> Array:
        excess = len(peers) - self._parameters.most
        if excess <= 0:
            return peers
        self._evicted += excess
        return np.delete(peers, np.argsort(peers["last_ns"], kind="stable")[:excess])


def _active(rows: Array) -> Array:
    """bool[n]: something is new, and it was answered."""
    moved = (rows["new_forward_packets"] > 0) | (rows["new_reverse_packets"] > 0)
    both = rows["reverse_packets"] > 0
    forward, reverse = rows["forward_flags"], rows["reverse_flags"]
    # A SYN and ACK in the forward direction is backscatter, to which an RST is the reply.
    speaks = ((forward & (SYN | ACK)) == ACK) & ((reverse & (RST | ACK)) == ACK)
    older = (rows["outcome"] == Outcome.NONE) & speaks
    completed = rows["outcome"] == Outcome.SUCCEEDED
    return moved & both & ((rows["protocol"] != TCP) | completed | older)


def _peers(rows: Array, at_ns: int) -> Array:
    """PEER[m], distinct, sorted by hash."""
    hashes = identity(rows, "source_address", "ip_version", "protocol", "destination_port")
    hashes, first = np.unique(hashes, return_index=True)
    peers = np.empty(len(first), PEER)
    peers["hash"], peers["last_ns"] = hashes, at_ns
    for name, field in (
        ("address", "source_address"),
        ("port", "destination_port"),
        ("ip_version", "ip_version"),
        ("protocol", "protocol"),
    ):
        peers[name] = rows[field][first]
    return peers


def _joined(known: Array, active: Array) -> Array:
    """PEER[m], sorted by hash; of a peer in both, what is active now."""
    hashes = np.ascontiguousarray(known["hash"])
    at = np.searchsorted(active["hash"], hashes)
    again = np.zeros(len(known), bool)
    inside = at < len(active)
    again[inside] = active["hash"][at[inside]] == hashes[inside]
    peers = np.concatenate([known[~again], active])
    return peers[np.argsort(peers["hash"], kind="stable")]
