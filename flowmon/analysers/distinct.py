"""Distinct members of many groups over a sliding window, failed and succeeded apart.

Rules:
- Time is cut into halves of the window. What counts is the half under way and the one before: all
  of any burst shorter than a half, nothing that is older than a window.
- A member (a contact) that succeeded in that time counts as succeeded, whatever failed besides,
  so a late answer takes its failure back.
- A group of up to `exact` members is held as a set. A larger one is held as HyperLogLog sketches
  (Flajolet et al. 2007; Apache DataSketches), of those that failed and of those that succeeded;
  who only failed is what the union has beyond the latter.
- Beyond `members`, the groups with the fewest go first, and of these the oldest, so that a flood of
  sources with one contact each does not hide a scanner. Beyond `sketches`, the one that was seen
  least recently goes. `evicted` counts the members that went so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasketches import hll_sketch, hll_union, tgt_hll_type  # type: ignore[import-untyped]

from flowmon.analysers.alerts import EXAMPLES_MOST
from flowmon.analysers.contacts import CONTACT, Contacts, grouped, parts
from flowmon.analysers.table import Table, opaque

Array = np.ndarray[Any, np.dtype[Any]]

LOG2_REGISTERS = 11  # a relative standard error of 2 %, in 2 kB
AFTER_EVICTION = 0.75  # of what may be held: so that not every pass evicts
_NEVER = -(1 << 62)
_SIZE_SHIFT = 48  # leaves room for three days in nanoseconds, and for sizes of 16 bits

MEMBER = np.dtype([("contact", CONTACT), ("group", "i8"), ("failed_half", "i8"), ("succeeded_half", "i8")])
GROUP = np.dtype(
    [
        ("contact", CONTACT),  # any of its members
        ("hash", "u8"),
        ("source", "u8"),  # hash
        ("failed", "i8"),  # members in the window
        ("succeeded", "i8"),  # likewise
        ("first_ns", "i8"),  # failure in the window, or earlier without a pause of one; 0: none
        ("last_ns", "i8"),  # failure
        ("seen_ns", "i8"),  # last member
        ("is_touched", "?"),  # a failure since `crossed` was asked
        ("is_sketched", "?"),
        ("protocol", "u1"),  # of `contact`
        ("is_mixed", "?"),  # of several protocols
    ]
)


@dataclass(frozen=True)
class Limits:
    """How much is held: members of a group as a set, members altogether, groups as sketches."""

    exact: int
    members: int
    sketches: int


@dataclass(frozen=True)
class Threshold:
    """When a group has crossed: so many members failed, and they are this share of all."""

    failed: int
    share: float

    def is_crossed(self, failed: Array, succeeded: Array) -> Array:
        """bool[n]."""
        return (failed >= self.failed) & (failed >= self.share * (failed + succeeded))


@dataclass(frozen=True)
class Seen:
    """What is added: contacts (CONTACT[n]) with their hashes, ascending, and their sources' and groups'.

    succeeded, failed: bool[n]; of several attempts at one both may be true.
    """

    contacts: Array
    hash: Array
    source: Array
    group: Array
    succeeded: Array
    failed: Array

    def __len__(self) -> int:
        return len(self.hash)

    def part(self, chosen: Any) -> "Seen":
        """The chosen ones, by a mask or a slice."""
        return Seen(
            opaque(self.contacts)[chosen].view(CONTACT),
            self.hash[chosen],
            self.source[chosen],
            self.group[chosen],
            self.succeeded[chosen],
            self.failed[chosen],
        )


def seen(contacts: Contacts, group: Array, succeeded: Array, failed: Array) -> Seen:
    """Contacts of a pass as members of the groups (uint64[n])."""
    return Seen(contacts.rows, contacts.hash, contacts.source, group, succeeded, failed)


class Distinct:
    """Counts the distinct members of groups. half_ns: half of the window."""

    def __init__(self, half_ns: int, limits: Limits) -> None:
        self._half_ns = half_ns
        self._half = _NEVER
        self._limits = limits
        self._members = Table(MEMBER)
        self._groups = Table(GROUP)
        self._sketches: dict[int, Sketch] = {}  # by the group's hash
        self.evicted = 0

    @property
    def members(self) -> int:
        """How many are held; those in sketches are not."""
        return len(self._members)

    @property
    def groups(self) -> int:
        """How many are held."""
        return len(self._groups)

    @property
    def sketches(self) -> int:
        """How many groups are held as such."""
        return len(self._sketches)

    @property
    def window_start_ns(self) -> int:
        """Nothing that counts is earlier."""
        return (self._half - 1) * self._half_ns

    def is_over(self, now_ns: int) -> bool:
        """Is the half under way over?"""
        return now_ns // self._half_ns > self._half

    def turn(self, now_ns: int) -> None:
        """Goes on to the half of `now_ns`, and forgets what is older than the one before it."""
        if not self.is_over(now_ns):
            return
        passed = now_ns // self._half_ns - self._half
        self._half += passed
        if passed > 1:
            self._members, self._groups, self._sketches = Table(MEMBER), Table(GROUP), {}
            return
        self._recount()
        for sketch in self._sketches.values():
            sketch.turn()
        self._read_sketches(list(self._sketches))
        self._groups["first_ns"][self._groups["failed"] == 0] = 0
        self._keep(self._groups_in_use())

    def add(self, added: Seen, at_ns: int) -> None:
        """Takes in members at a time of the half under way."""
        for part in parts(added.group, self._limits.members):
            self._add(added.part(part), at_ns)

    def crossed(self, threshold: Threshold) -> Array:
        """uint64[n]: the sources of groups that are over it, and had failures since this was last asked."""
        groups = self._groups
        touched = np.flatnonzero(groups["is_touched"])
        groups["is_touched"][touched] = False
        over = threshold.is_crossed(groups["failed"][touched], groups["succeeded"][touched])
        return np.unique(groups["source"][touched[over]])

    def groups_of(self, sources: Array, threshold: Threshold) -> Array:
        """GROUP[n]: those of the sources (uint64[n]) that are over the threshold."""
        groups = self._groups
        over = np.flatnonzero(threshold.is_crossed(groups["failed"], groups["succeeded"]))
        return groups.rows(over[np.isin(groups["source"][over], sources)])

    def examples(self, hashes: Array) -> dict[int, Array]:
        """CONTACT[n] of some failed members of each group, by its hash (uint64[n], none twice)."""
        found: dict[int, Array] = {}
        for number, members in self._members_in(self._groups.find(hashes)):
            _, failed = self._verdict(members)
            chosen = np.sort(members[failed])[:EXAMPLES_MOST]
            found[int(self._groups["hash"][number])] = self._members["contact"][chosen]
        return {**found, **{h: self._sketches[h].examples for h in hashes.tolist() if h in self._sketches}}

    def _members_in(self, groups: Array) -> Iterator[tuple[int, Array]]:
        """Of each of the groups that has some: its number, and int64[n] its members'."""
        wanted = np.zeros(len(self._groups), bool)
        wanted[groups] = True
        succeeded, failed = self._verdict()
        chosen = np.flatnonzero((succeeded | failed) & wanted[self._members["group"]])
        group = self._members["group"][chosen]
        order, starts = grouped(group.view("u8"))
        for part in np.split(order, starts[1:]) if len(starts) else ():
            yield int(group[part[0]]), chosen[part]

    def _add(self, added: Seen, at_ns: int) -> None:
        group = self._group_of(added, at_ns)
        is_sketched = self._groups["is_sketched"][group]
        if is_sketched.any():
            self._add_to_sketches(added.part(is_sketched))
            added, group = added.part(~is_sketched), group[~is_sketched]
        self._add_members(added, group)
        self._sketch_the_large(group)
        self._evict()

    def _group_of(self, added: Seen, at_ns: int) -> Array:
        """int64[n]: the group's number of each; takes down when they were seen."""
        order, starts = grouped(added.group)
        first = order[starts]
        number, new = self._groups.number(added.group[first])
        self._describe(added, first[new], number[new])
        group = np.empty(len(order), "i8")
        group[order] = np.repeat(number, np.diff(np.append(starts, len(order))))
        groups = self._groups
        groups["is_mixed"][group[added.contacts["protocol"] != groups["protocol"][group]]] = True
        failed = group[added.failed]
        groups["is_touched"][failed] = True
        groups["first_ns"][failed[groups["first_ns"][failed] == 0]] = at_ns
        groups["last_ns"][failed] = at_ns
        groups["seen_ns"][number] = at_ns
        return group

    def _describe(self, added: Seen, first: Array, number: Array) -> None:
        """Takes down what new groups (numbers) are, each by its `first` member."""
        contacts = opaque(added.contacts)[first].view(CONTACT)
        self._groups.put("contact", number, contacts)
        self._groups.put("protocol", number, contacts["protocol"])
        self._groups.put("hash", number, added.group[first])
        self._groups.put("source", number, added.source[first])

    def _add_members(self, added: Seen, group: Array) -> None:
        number, new = self._members.number(added.hash)
        members = self._members
        members.put("contact", number[new], opaque(added.contacts)[new])
        members["group"][number] = group
        for name in ("failed_half", "succeeded_half"):
            members[name][number[new]] = _NEVER
        before = self._verdict(number)
        members["succeeded_half"][number[added.succeeded]] = self._half
        members["failed_half"][number[added.failed]] = self._half
        after = self._verdict(number)
        for name, was, is_now in zip(("succeeded", "failed"), before, after, strict=True):
            for changed, difference in ((is_now & ~was, 1), (was & ~is_now, -1)):
                if changed.any():
                    self._groups[name][:] += difference * self._count(group[changed])

    def _verdict(self, members: Any = slice(None)) -> tuple[Array, Array]:
        """(bool[n] succeeded, bool[n] failed) in the window, of the members with these numbers."""
        succeeded = self._members["succeeded_half"][members] >= self._half - 1
        return succeeded, ~succeeded & (self._members["failed_half"][members] >= self._half - 1)

    def _count(self, group: Array) -> Array:
        """int64[groups]: how often each is in int64[n] numbers."""
        return np.bincount(group, minlength=len(self._groups))

    def _add_to_sketches(self, added: Seen) -> None:
        order, starts = grouped(added.group)
        for part in np.split(order, starts[1:]):
            failed, succeeded = part[added.failed[part]], part[added.succeeded[part]]
            sketch = self._sketches[int(added.group[part[0]])]
            sketch.add(added.hash[failed], added.hash[succeeded])
            sketch.show(added.contacts[failed])
        self._read_sketches(added.group[order[starts]].tolist())

    def _read_sketches(self, hashes: list[int]) -> None:
        if not hashes:
            return
        number = self._groups.find(np.array(hashes, "u8"))
        counts = np.array([self._sketches[one].counts() for one in hashes])
        self._groups["failed"][number] = counts[:, 0]
        self._groups["succeeded"][number] = counts[:, 1]

    def _sketch_the_large(self, candidates: Array) -> None:
        """Turns those of the groups (int64[n] numbers) that have grown too large into sketches."""
        sizes = self._groups["failed"][candidates] + self._groups["succeeded"][candidates]
        large = np.unique(candidates[sizes > self._limits.exact])
        if len(large) == 0:
            return
        hashes = self._members.hashes()
        for number, members in self._members_in(large):
            self._sketches[int(self._groups["hash"][number])] = self._sketch_of(members, hashes[members])
            self._members["failed_half"][members] = self._members["succeeded_half"][members] = _NEVER
        self._groups["is_sketched"][large] = True
        self._read_sketches(self._groups["hash"][large].tolist())
        self._evict_sketches()

    def _sketch_of(self, members: Array, hashes: Array) -> "Sketch":
        halves = [self._members[name][members] for name in ("failed_half", "succeeded_half")]
        sketch = Sketch()
        sketch.show(self._members["contact"][members[self._verdict(members)[1]]])
        sketch.add_earlier(*(hashes[half == self._half - 1] for half in halves))
        sketch.add(*(hashes[half == self._half] for half in halves))
        return sketch

    def _evict_sketches(self) -> None:
        excess = len(self._sketches) - self._limits.sketches
        if excess <= 0:
            return
        groups = self._groups
        sketched = np.flatnonzero(groups["is_sketched"])
        size = groups["failed"][sketched] + groups["succeeded"][sketched]
        order = np.lexsort((size, groups["seen_ns"][sketched]))[:excess]
        out = sketched[order]
        for one in groups["hash"][out].tolist():
            del self._sketches[one]
        self.evicted += int(size[order].sum())
        groups["is_sketched"][out] = False
        groups["failed"][out] = groups["succeeded"][out] = 0

    def _evict(self) -> None:
        if len(self._members) <= self._limits.members:
            return
        groups = self._groups
        size = np.where(groups["is_sketched"], 0, groups["failed"] + groups["succeeded"])
        # In one word, since to sort by two keys takes five times as long: sizes are small.
        since_ns = np.clip(groups["seen_ns"] - self.window_start_ns, 0, 2**_SIZE_SHIFT - 1)
        order = np.argsort((size.astype("u8") << _SIZE_SHIFT) | since_ns.astype("u8"))
        excess = int(size.sum()) - int(AFTER_EVICTION * self._limits.members)
        out = order[: np.searchsorted(np.cumsum(size[order]), excess) + 1] if excess > 0 else order[:0]
        out = out[~groups["is_sketched"][out]]
        kept = self._groups_in_use()
        kept[out] = False
        self.evicted += int(size[out].sum())
        self._keep(kept)

    def _recount(self) -> None:
        for name, chosen in zip(("succeeded", "failed"), self._verdict(), strict=True):
            self._groups[name][:] = self._count(self._members["group"][chosen])

    def _groups_in_use(self) -> Array:
        """bool[groups]: whether any member is left in the window."""
        return (self._groups["failed"] > 0) | (self._groups["succeeded"] > 0)

    def _keep(self, groups: Array) -> None:
        """Drops the other groups (bool[groups]), and the members that do not count."""
        for one in self._groups["hash"][~groups & self._groups["is_sketched"]].tolist():
            del self._sketches[one]
        succeeded, failed = self._verdict()
        self._members.keep((succeeded | failed) & groups[self._members["group"]])
        renumbered = np.cumsum(groups) - 1
        self._members["group"][:] = renumbered[self._members["group"]]
        self._groups.keep(groups)


class Sketch:
    """Of one group, the members of this half and of the window: that failed, and that succeeded.

    examples: CONTACT[n], the latest that failed.
    """

    def __init__(self) -> None:
        self.examples = np.empty(0, CONTACT)
        self._window = (_empty(), _empty())
        self._half = (_empty(), _empty())

    def add(self, failed: Array, succeeded: Array) -> None:
        """Takes in hashes (uint64[n]) of the half under way."""
        _update(self._half, failed, succeeded)
        _update(self._window, failed, succeeded)

    def add_earlier(self, failed: Array, succeeded: Array) -> None:
        """Takes in hashes (uint64[n]) of the half before."""
        _update(self._window, failed, succeeded)

    def show(self, failed: Array) -> None:
        """Takes examples from CONTACT[n]."""
        if len(failed):
            self.examples = np.concatenate([failed[:EXAMPLES_MOST], self.examples])[:EXAMPLES_MOST]

    def turn(self) -> None:
        """The half under way becomes the one before."""
        self._window, self._half = self._half, (_empty(), _empty())

    def counts(self) -> tuple[int, int]:
        """(failed, succeeded) in the window, estimated; who did both succeeded."""
        failed, succeeded = (round(one.get_estimate()) for one in self._window)
        if failed and succeeded:
            union = hll_union(LOG2_REGISTERS)
            for one in self._window:
                union.update(one)
            failed = max(round(union.get_estimate()) - succeeded, 0)
        return failed, succeeded


def _empty() -> hll_sketch:
    return hll_sketch(LOG2_REGISTERS, tgt_hll_type.HLL_8)


def _update(pair: tuple[hll_sketch, hll_sketch], failed: Array, succeeded: Array) -> None:
    for sketch, hashes in zip(pair, (failed, succeeded), strict=True):
        update = sketch.update
        for one in hashes.view("i8").tolist():
            update(one)
