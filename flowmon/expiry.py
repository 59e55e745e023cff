"""Decides which biflows have ended, and why.

Rules (IANA flowEndReason, element 136):
- A biflow is looked at as a whole: its last packet is the last of either
  direction, at any point that saw it; so all its entries end together.
- 3, end of flow: TCP, `linger` after the last packet, once there was an RST, or
  a FIN from each direction that exists, wherever it was seen.
- 1, idle: no packet for `idle_timeout`.
- 2, active: `active_timeout` since the record began. It goes on, and so do the
  entries: sequence numbers and window scale outlive the record.
- 4, forced: the metering process is being shut down.
- 5, lack of resources: the table is filling up (`excess` entries must go).
- An entry that saw no packet since its last record leaves without another one.
- The clock decides, not packets.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from flowmon.abi import Closing
from flowmon.biflow import NONE, Biflows

Array = np.ndarray[Any, np.dtype[Any]]

NS = 1_000_000_000


class EndReason(IntEnum):
    """IANA flowEndReason, and 0 for a flow that goes on."""

    GOES_ON = 0
    IDLE = 1
    ACTIVE = 2
    ENDED = 3
    FORCED = 4
    LACK_OF_RESOURCES = 5


AGED_NS = 1 * NS  # silent for so long: the first to go for lack of room
FEW_PACKETS = 3


@dataclass(frozen=True)
class Timeouts:
    """Nanoseconds."""

    idle_ns: int = 15 * NS
    active_ns: int = 60 * NS
    linger_ns: int = 1 * NS


AT_ONCE = Timeouts(idle_ns=0, active_ns=0, linger_ns=0)


@dataclass(frozen=True)
class Decision:
    """reasons: uint8[biflows], EndReason; blank: bool[biflows], to leave without a record."""

    reasons: Array
    blank: Array


def decide(
    states: Array, biflows: Biflows, timeouts: Timeouts, now_mono_ns: int, excess: int = 0
) -> Decision:
    """Which biflows of a snapshot's `states` (FLOW_STATE) have ended at `now_mono_ns`.

    `excess` > 0: at least so many entries must go for lack of room.
    """
    conversations = len(biflows)
    group = biflows.conversation_of
    started = states["packets"] > 0
    last = _per_group(np.maximum, states["last_seen_mono_ns"], group, conversations, 0)
    begun = np.where(started, states["first_seen_mono_ns"], np.iinfo("u8").max)
    first = _per_group(np.minimum, begun, group, conversations, np.iinfo("u8").max)
    packets = _per_group(np.add, states["packets"], group, conversations, 0)

    silent = _elapsed(now_mono_ns, last)
    reasons = np.zeros(conversations, "u1")
    reasons[_elapsed(now_mono_ns, first) >= timeouts.active_ns] = EndReason.ACTIVE
    reasons[silent >= timeouts.idle_ns] = EndReason.IDLE
    reasons[_closed(states, biflows) & (silent >= timeouts.linger_ns)] = EndReason.ENDED
    blank = packets == 0
    if excess > 0:
        _relieve(reasons, blank, silent, packets, group, excess)
    reasons[blank & (reasons == EndReason.ACTIVE)] = EndReason.GOES_ON
    return Decision(reasons, blank)


def end_all(biflows: Biflows, states: Array) -> Decision:
    """All biflows, forced: what is left when the metering process shuts down."""
    packets = _per_group(np.add, states["packets"], biflows.conversation_of, len(biflows), 0)
    return Decision(np.full(len(biflows), EndReason.FORCED, "u1"), packets == 0)


def _relieve(reasons: Array, blank: Array, silent: Array, packets: Array, group: Array, excess: int) -> None:
    """Ends more for lack of room, step by step, until `excess` entries are to go.

    First single packets that were silent for a second, then all that were, then
    what has few packets (a flood's attempts and the answers to them), then everything.
    """
    entries = np.bincount(group, minlength=len(reasons))
    aged = silent >= AGED_NS
    steps = (blank, aged & (packets == 1), aged, packets <= FEW_PACKETS, np.ones(len(reasons), bool))
    for step in steps:
        going = (reasons != EndReason.GOES_ON) & (reasons != EndReason.ACTIVE)
        if entries[going].sum() >= excess:
            return
        reasons[step & ~going] = EndReason.LACK_OF_RESOURCES


def _per_group(operation: Any, values: Array, group: Array, groups: int, start: int) -> Array:
    result = np.full(groups, start, "u8")
    operation.at(result, group, values)
    return result


def _elapsed(now_mono_ns: int, since: Array) -> Array:
    """Nanoseconds, 0 where `since` is later than now (a packet came after the reading)."""
    now = np.uint64(now_mono_ns)
    return np.where(since < now, now - since, np.uint64(0))


def _closed(states: Array, biflows: Biflows) -> Array:
    """bool[biflows]: whether the TCP connection is over."""
    closing, conversations = states["tcp_closing"], len(biflows)
    reset = _any(closing & Closing.RST != 0, biflows.conversation_of, conversations)
    fin = closing & Closing.FIN != 0
    forward = _any(fin & biflows.is_forward, biflows.conversation_of, conversations)
    reverse = _any(fin & ~biflows.is_forward, biflows.conversation_of, conversations)
    return reset | (forward & (reverse | (biflows.reverse == NONE)))


def _any(entries: Array, group: Array, groups: int) -> Array:
    """bool[groups]: whether it holds of an entry of the group."""
    found = np.zeros(groups, bool)
    found[group[entries]] = True
    return found
