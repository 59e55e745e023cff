"""Pairs the two directions of a flow, and the points that saw it.

Rules (RFC 5103, direction assignment section 5):
- A conversation is the 5-tuple without its direction, with VLANs, tunnel, IP version
  and, for ICMP, the identifier and message class (which stand in the key).
- At each point (interface and hook) a direction is one entry of the table. Of
  several points, the one that saw the direction first reports it; the others
  are duplicates, which end with it and are not reported. A point without a
  packet in this record leaves that to one that has some (the path changed).
- With `every_interface` each interface's entries are a conversation of their own.
- Forward is the direction seen first. An entry's birth decides, which an active
  timeout does not move, so the direction of a long flow never turns.
- Conversations are found by a 64-bit hash. Where two share one, the hash is
  taken again with another seed, so that a collision cannot mix two flows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

NONE = -1  # no entry
ICMP = (1, 58)
NOT_COUNTING = np.uint64(1 << 62)  # later than any time that the clock will show
NEVER = np.uint64((1 << 63) - 1)


@dataclass(frozen=True)
class Biflows:
    """Conversations of one snapshot.

    forward, reverse: int64[n], rows of the snapshot's keys; reverse is NONE where
        only one direction was seen.
    flow_id: uint64[n], of the conversation: the same for both directions, at
        every point and time.
    conversation_of: int64[entries], the conversation that each entry of the
        snapshot belongs to (as one of the two above, or as a duplicate).
    is_forward: bool[entries], whether it is of the forward direction.
    """

    forward: Array
    reverse: Array
    flow_id: Array
    conversation_of: Array
    is_forward: Array

    def __len__(self) -> int:
        return len(self.forward)


def pair(
    keys: Array, born_mono_ns: Array, *, every_interface: bool, counting: Array | None = None
) -> Biflows:
    """The conversations of `keys` (FLOW_KEY[entries]).

    born_mono_ns: uint64[entries], 0 where no packet came yet. counting:
    bool[entries], whether the record has packets; None stands for all.
    """
    conversation, turned = canonical(keys)
    flow_id = hash_rows(conversation, seed=0)
    identity, group_hash = conversation, flow_id
    if every_interface:
        identity = np.column_stack([conversation, keys["ifindex"].astype("u8")])
        group_hash = hash_rows(identity, seed=0)
    group_of, groups = _groups(identity, group_hash)
    born = np.where(born_mono_ns == 0, NEVER, born_mono_ns)
    rank = born if counting is None else np.where(counting, born, born | NOT_COUNTING)
    sides = (~turned, turned)
    reporters = [_earliest(group_of, rank, side, groups) for side in sides]
    births = [_birth(group_of, born, side, groups) for side in sides]
    swap = births[1] < births[0]
    forward = np.where(swap, reporters[1], reporters[0])
    reverse = np.where(swap, reporters[0], reporters[1])
    return Biflows(forward, reverse, flow_id[forward], group_of, turned == swap[group_of])


def duplicates(biflows: Biflows) -> Array:
    """int64[n]: rows of the snapshot that no biflow reports: other points saw the same."""
    reports = np.zeros(len(biflows.conversation_of), bool)
    reports[biflows.forward] = True
    reports[biflows.reverse[biflows.reverse != NONE]] = True
    return np.flatnonzero(~reports)


def canonical(keys: Array) -> tuple[Array, Array]:
    """(uint64[n, 6] that both directions share, bool[n]: was this one turned round?).

    The side with the lower address, then port, comes first.
    """
    source = _big_endian_words(keys["source_address"])
    destination = _big_endian_words(keys["destination_address"])
    source_port = keys["source_port"].astype("u8")
    destination_port = keys["destination_port"].astype("u8")
    # Identifier and message class are not of one side or the other.
    has_ports = ~np.isin(keys["protocol"], ICMP)
    turned = _greater(
        (source[:, 0], source[:, 1], source_port * has_ports),
        (destination[:, 0], destination[:, 1], destination_port * has_ports),
    )
    rows = np.empty((6, len(keys)), "u8").T  # each column lies together
    for column in (0, 1):
        rows[:, column] = np.where(turned, destination[:, column], source[:, column])
        rows[:, column + 2] = np.where(turned, source[:, column], destination[:, column])
    rows[:, 4] = np.where(
        turned & has_ports, destination_port << 16 | source_port, source_port << 16 | destination_port
    )
    rows[:, 5] = (
        keys["customer_vlan_id"].astype("u8") << 48
        | keys["vlan_id"].astype("u8") << 32
        | keys["in_tunnel"].astype("u8") << 16
        | keys["protocol"].astype("u8") << 8
        | keys["ip_version"]
    )
    return rows, turned


def hash_rows(rows: Array, seed: int) -> Array:
    """uint64[n]: each row mixed word by word (the finaliser of MurmurHash3, public domain)."""
    mixed = np.full(len(rows), (seed * 0x9E3779B97F4A7C15 + 0x243F6A8885A308D3) & (2**64 - 1), "u8")
    for column in range(rows.shape[1]):
        mixed ^= rows[:, column]
        mixed *= np.uint64(0xFF51AFD7ED558CCD)
        mixed ^= mixed >> np.uint64(33)
        mixed *= np.uint64(0xC4CEB9FE1A85EC53)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _big_endian_words(addresses: Array) -> Array:
    """uint64[n, 2] that compare as the 16 bytes do."""
    return np.ascontiguousarray(addresses).view(">u8").astype("u8")


def _greater(left: tuple[Array, ...], right: tuple[Array, ...]) -> Array:
    """bool[n]: whether the tuple of columns `left` comes after `right`."""
    greater = np.zeros(len(left[0]), bool)
    equal = np.ones(len(left[0]), bool)
    for a, b in zip(left, right, strict=True):
        greater |= equal & (a > b)
        equal &= a == b
    return greater


def _groups(identity: Array, hashes: Array) -> tuple[Array, int]:
    """(int64[n], how many): which group of equal identity each row is of."""
    seed = 0
    while True:
        order = np.argsort(hashes)
        sorted_hashes = hashes[order]
        is_new = np.ones(len(order), bool)
        is_new[1:] = sorted_hashes[1:] != sorted_hashes[:-1]
        same = np.flatnonzero(~is_new)
        rows, rows_before = order[same], order[same - 1]
        if all(np.array_equal(column[rows], column[rows_before]) for column in identity.T):
            group_of = np.empty(len(order), np.int64)
            group_of[order] = np.cumsum(is_new) - 1
            return group_of, int(np.count_nonzero(is_new))
        seed += 1
        hashes = hash_rows(identity, seed)


def _earliest(group_of: Array, rank: Array, chosen: Array, groups: int) -> Array:
    """int64[groups]: of the chosen entries, the one of the lowest rank in each group, or NONE."""
    rows = np.flatnonzero(chosen)
    group, rank = group_of[rows], rank[rows]
    lowest = np.full(groups, np.iinfo("u8").max, "u8")
    np.minimum.at(lowest, group, rank)
    is_lowest = rank == lowest[group]
    earliest = np.full(groups, NONE, np.int64)
    # Of equals NumPy keeps the last written: the first of them.
    earliest[group[is_lowest][::-1]] = rows[is_lowest][::-1]
    return earliest


def _birth(group_of: Array, born: Array, chosen: Array, groups: int) -> Array:
    """uint64[groups]: when the first of the chosen entries was born; later than NEVER where there is none."""
    births = np.full(groups, NEVER + np.uint64(1), "u8")
    np.minimum.at(births, group_of[chosen], born[chosen])
    return births
