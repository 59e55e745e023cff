"""Puts the programs on interfaces, and takes exactly those off again.

Rules:
- A filter is ours by its name, which holds the path of the table that it counts
  into. It is found by asking the kernel, never by a list of our own: what a
  killed process left is found as well.
- A clsact qdisc is added only where there is none, and deleted only where we
  added it and nobody's filter is left on it.
- Other programs take the place of ours in one step: no packet passes between the two.
- Qdiscs and filters of others are never replaced, changed or deleted. Ours goes
  first (priority 1) where that place is free, to see what a later filter drops.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyroute2 import IPRoute
from pyroute2.netlink import nla_base
from pyroute2.netlink.exceptions import NetlinkError

from flowmon import abi
from flowmon.abi import Direction
from flowmon.errors import ConfigError, KernelError
from flowmon.kernel import libbpf
from flowmon.kernel.interfaces import Interface
from flowmon.kernel.pins import PinSet

FILTER_PREFIX = "flowmon:"
FILTER_HANDLE = 0xF10
FIRST_PRIORITY = 1
PRIORITIES_TRIED = 16
ETH_P_ALL = 3
TCA_BPF_ID = 11
PARENT = {Direction.INGRESS: 0xFFFFFFF2, Direction.EGRESS: 0xFFFFFFF3}


@dataclass(frozen=True)
class Filter:
    """A TC filter on a clsact hook."""

    ifindex: int
    direction: Direction
    priority: int
    handle: int
    protocol: int
    kind: str
    name: str
    program_id: int = 0  # of a BPF filter

    @property
    def is_flowmons(self) -> bool:
        """Whether a flowmon put it there."""
        return self.kind == "bpf" and self.name.startswith(FILTER_PREFIX)

    def is_of(self, pin_set: PinSet) -> bool:
        """Whether it counts into the table of this pin set."""
        return self.kind == "bpf" and self.name == filter_name(pin_set)


def filter_name(pin_set: PinSet) -> str:
    """The name of our filters (`tc filter show` prints it)."""
    return f"{FILTER_PREFIX}{pin_set.table_path}"


def filters(netlink: IPRoute, ifindex: int) -> list[Filter]:
    """All filters on both clsact hooks of an interface, everybody's."""
    found = []
    for direction, parent in PARENT.items():
        for message in _dump_filters(netlink, ifindex, parent):
            options = message.get("options")
            if not message["handle"] or message["parent"] != parent:
                continue  # the head of a priority, or of another hook
            found.append(
                Filter(
                    ifindex=ifindex,
                    direction=direction,
                    priority=message["info"] >> 16,
                    handle=message["handle"],
                    protocol=socket.ntohs(message["info"] & 0xFFFF),
                    kind=str(message.get("kind") or ""),
                    name=str(options.get("TCA_BPF_NAME") or "") if options else "",
                    program_id=_program_id(options) if message.get("kind") == "bpf" else 0,
                )
            )
    return found


def _program_id(options: Any) -> int:
    """The attribute TCA_BPF_ID, for which pyroute2 has no name."""
    for _, value in options["attrs"] if options else ():
        if isinstance(value, nla_base) and value["header"]["type"] == TCA_BPF_ID:
            (number,) = struct.unpack_from("=I", value.data, value.offset + 4)
            return int(number)
    return 0


def _dump_filters(netlink: IPRoute, ifindex: int, parent: int) -> list[Any]:
    try:
        return list(netlink.get_filters(index=ifindex, parent=parent))
    except NetlinkError as error:
        if error.code in (errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOENT):
            return []  # no clsact there, or no interface any more
        raise


def has_clsact(netlink: IPRoute, ifindex: int) -> bool:
    """Whether the interface has the clsact qdisc (an ingress qdisc is another matter)."""
    return any(message.get("kind") == "clsact" for message in netlink.get_qdiscs(index=ifindex))


class Attachments:
    """The interfaces of one pin set that the programs are on."""

    def __init__(self, pin_set: PinSet, netlink: IPRoute) -> None:
        self._netlink = netlink
        self._map = pin_set.open_map("attachments")
        self._programs = {
            (direction, has_ethernet): f"{direction.name.lower()}_{'ethernet' if has_ethernet else 'ip'}"
            for direction in Direction
            for has_ethernet in (True, False)
        }
        self._pin_set = pin_set

    def close(self) -> None:
        """Lets go of the map; what is attached stays so."""
        os.close(self._map)

    def attach(self, interface: Interface, directions: frozenset[Direction]) -> list[Direction]:
        """Attaches where the programs are not yet; the directions that are new.

        Raises ConfigError for a type of link that is not supported, KernelError
        where the kernel refuses.
        """
        if not interface.is_supported:
            raise ConfigError(
                f"{interface.name} is of link type {interface.arphrd} (ARPHRD), which flowmon cannot read"
            )
        present = {f.direction for f in filters(self._netlink, interface.index) if f.is_of(self._pin_set)}
        missing = sorted(directions - present)
        if not missing:
            return []
        record = self._record(interface.index)
        try:
            if self._ensure_clsact(interface):
                record["made_clsact"] = 1
                self._write(interface.index, record)
            for direction in missing:
                self._add_filter(interface, direction)
                record["directions"] |= 1 << direction
                self._write(interface.index, record)
        except NetlinkError as error:
            reason = os.strerror(error.code)
            raise KernelError(f"{interface.name}: the kernel refuses the TC filter: {reason}") from None
        return missing

    def detach(self, ifindex: int) -> bool:
        """Takes our filters off, and the clsact that we made if it is empty; whether any was there."""
        ours = [f for f in filters(self._netlink, ifindex) if f.is_of(self._pin_set)]
        for filter_ in ours:
            self._netlink.tc(
                "del-filter",
                "bpf",
                index=ifindex,
                handle=filter_.handle,
                parent=PARENT[filter_.direction],
                prio=filter_.priority,
                protocol=filter_.protocol,
            )
        if self._record(ifindex)["made_clsact"][0] and has_clsact(self._netlink, ifindex):
            self._give_up_clsact(ifindex)
        libbpf.delete(self._map, np.array([ifindex], "u4"))
        return bool(ours)

    def renew(self, interface: Interface) -> bool:
        """Puts the programs that are pinned now in place of those attached, without a gap; whether any was there."""
        try:
            ours = [f for f in filters(self._netlink, interface.index) if f.is_of(self._pin_set)]
            for filter_ in ours:
                place = (interface, filter_.direction, filter_.priority)
                self._put("replace-filter", *place, handle=filter_.handle)
        except NetlinkError as error:
            if error.code in (errno.ENODEV, errno.ENOENT):  # it went away meanwhile
                return False
            raise KernelError(
                f"{interface.name}: the kernel refuses the TC filter: {os.strerror(error.code)}"
            ) from None
        return bool(ours)

    def _give_up_clsact(self, ifindex: int) -> None:
        """Deletes the clsact that we made, or leaves that to another table's flowmon that is still on it."""
        left = filters(self._netlink, ifindex)
        if not left:
            self._netlink.tc("del", "clsact", index=ifindex)
        for filter_ in left:
            if filter_.is_flowmons:
                heir = PinSet.of_table(Path(filter_.name.removeprefix(FILTER_PREFIX)))
                with attachments(heir, self._netlink) as others:
                    record = others._record(ifindex)  # noqa: SLF001 - another of this class
                    record["made_clsact"] = 1
                    others._write(ifindex, record)  # noqa: SLF001
                return

    def recorded(self) -> list[int]:
        """The ifindexes that we noted; an interface that vanished may be among them."""
        return [int(index) for index in libbpf.keys(self._map, np.dtype("u4"))]

    def noted_hooks(self) -> dict[int, list[Direction]]:
        """The hooks that we attached to by ifindex, whether or not somebody took the programs off since."""
        noted = {index: int(self._record(index)["directions"][0]) for index in self.recorded()}
        return {
            index: [direction for direction in Direction if directions & 1 << direction]
            for index, directions in noted.items()
        }

    def forget(self, ifindex: int) -> None:
        """Drops the note of an interface that vanished (its filters went with it)."""
        libbpf.delete(self._map, np.array([ifindex], "u4"))

    def _record(self, ifindex: int) -> np.ndarray[Any, np.dtype[Any]]:
        record = np.zeros(1, abi.ATTACHMENT)
        libbpf.lookup(self._map, np.array([ifindex], "u4"), record)
        return record

    def _write(self, ifindex: int, record: np.ndarray[Any, np.dtype[Any]]) -> None:
        libbpf.update(self._map, np.array([ifindex], "u4"), record)

    def _ensure_clsact(self, interface: Interface) -> bool:
        if has_clsact(self._netlink, interface.index):
            return False
        try:
            self._netlink.tc("add", "clsact", index=interface.index)
        except NetlinkError as error:
            if error.code == errno.EEXIST:  # an ingress qdisc sits in its place
                raise KernelError(
                    f"{interface.name} has an ingress qdisc, which excludes clsact:"
                    f" replace it (tc qdisc replace dev {interface.name} clsact) if its owner agrees"
                ) from None
            raise
        return True

    def _add_filter(self, interface: Interface, direction: Direction) -> None:
        for priority in range(FIRST_PRIORITY, FIRST_PRIORITY + PRIORITIES_TRIED):
            try:
                self._put("add-filter", interface, direction, priority, handle=FILTER_HANDLE)
                return
            except NetlinkError as error:
                # Another kind of filter, or another protocol, holds this priority.
                if error.code not in (errno.EINVAL, errno.EEXIST):
                    raise
        raise KernelError(
            f"{interface.name} {direction.name.lower()}: the TC priorities"
            f" {FIRST_PRIORITY} to {FIRST_PRIORITY + PRIORITIES_TRIED - 1} are all taken by others"
        )

    def _put(
        self, command: str, interface: Interface, direction: Direction, priority: int, handle: int
    ) -> None:
        fd = self._pin_set.open_program(self._programs[direction, interface.has_ethernet])
        try:
            self._netlink.tc(
                command,
                "bpf",
                index=interface.index,
                handle=handle,
                parent=PARENT[direction],
                prio=priority,
                protocol=ETH_P_ALL,
                fd=fd,
                name=filter_name(self._pin_set),
                flags=1,  # TCA_BPF_FLAG_ACT_DIRECT: the program's return value is the verdict
            )
        finally:
            os.close(fd)


@contextmanager
def attachments(pin_set: PinSet, netlink: IPRoute) -> Iterator[Attachments]:
    """The attachments of a pin set, closed at the end (what is attached stays so)."""
    opened = Attachments(pin_set, netlink)
    try:
        yield opened
    finally:
        opened.close()
