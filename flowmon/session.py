"""One run of flowmon on a pin set: load, attach, follow, collect, and undo what it did.

Rules:
- What was loaded or attached before is used and left; what this run loaded or
  attached in the foreground, it takes away again, however it ends.
- One collector a table: an advisory lock, which dies with its holder.
"""

import fcntl
import logging
import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pyroute2 import IPRoute

from flowmon import abi
from flowmon.abi import Direction
from flowmon.errors import ConfigError, FlowmonError, KernelError
from flowmon.kernel import interfaces as net
from flowmon.kernel import loader, pins
from flowmon.kernel.attach import Attachments, attachments, filters
from flowmon.kernel.interfaces import Interface
from flowmon.kernel.load_options import DEFAULT_MAX_FLOWS, LoadOptions
from flowmon.kernel.pins import PinSet

log = logging.getLogger("flowmon")

BOTH = frozenset(Direction)


@dataclass(frozen=True)
class Where:
    """Which interfaces, and which hooks of them."""

    names: tuple[str, ...] = ()
    every: bool = False
    directions: frozenset[Direction] = BOTH

    @property
    def anywhere(self) -> bool:
        """Whether interfaces were asked for at all."""
        return self.every or bool(self.names)


@dataclass
class Work:
    """What a run did, for it to be undone."""

    loaded: bool  # the programs and the table are this run's
    attached: list[Interface]  # by this run; the follower adds to it
    followed_before: frozenset[Direction]
    table_id: int  # of the kernel: what is pinned there later may be another

    def holds(self, pin_set: PinSet) -> bool:
        """Whether the table of this run is still the one that is pinned."""
        return is_pinned(pin_set, self.table_id)


def is_pinned(pin_set: PinSet, table_id: int) -> bool:
    """Whether the table with that identity is pinned."""
    try:
        return loader.table_info(pin_set).id == table_id
    except KernelError:
        return False


def load(pin_set: PinSet, options: LoadOptions, where: Where) -> Work:
    """Loads and attaches.

    A name that does not exist is found out before anything is done.
    """
    loader.require_root()
    with IPRoute() as netlink, pins.changing():
        chosen = _chosen(netlink, where)
        if pin_set.map_path("loaded").exists() and not pin_set.has_programs():
            _check_not_collected(pin_set, options)
        loaded = loader.ensure_loaded(pin_set, options)
        if not loaded:
            _check_same(pin_set, options)
            known = loader.loaded_options(pin_set)
            _change(
                pin_set, replace(known, deny=known.deny or options.deny, guard=options.guard or known.guard)
            )
        with attachments(pin_set, netlink) as attached:
            new: list[Interface] = []
            try:
                for interface in chosen:
                    new += [interface] if attached.attach(interface, where.directions) else []
            except FlowmonError:
                for interface in new:
                    attached.detach(interface.index)
                if loaded:
                    pin_set.remove()
                raise
        work = Work(loaded, new, _followed(pin_set), loader.table_info(pin_set).id)
        if where.every:
            _follow(pin_set, where.directions)
        if options.owner_pid:
            _take_over(pin_set, work)
    return work


def _take_over(pin_set: PinSet, work: Work) -> None:
    """What a killed owner left is this run's, as what it loaded itself."""
    info = loader.read_loaded_info(pin_set)
    owner = int(info["owner_pid"][0])
    if owner and not Path(f"/proc/{owner}").exists():
        work.loaded = True
        work.attached = [interface for interface, _ in attached_interfaces(pin_set)]
        info["owner_pid"] = os.getpid()
        loader.write_loaded_info(pin_set, info)


def change(pin_set: PinSet, denies: Callable[[], bool]) -> bool:
    """Has the programs look at the deny-list, or not; whether that is a change. Asked under the lock.

    Programs of other settings take the place of those attached, without a gap.
    """
    loader.require_root()
    with pins.changing():
        return _change(pin_set, replace(loader.loaded_options(pin_set), deny=denies()))


def _change(pin_set: PinSet, options: LoadOptions) -> bool:
    if options == loader.loaded_options(pin_set):
        return False
    if not pin_set.has_programs():  # after an unload: for the next load
        loader.note(pin_set, options)
        return True
    loader.change(pin_set, options)
    with IPRoute() as netlink, attachments(pin_set, netlink) as attached:
        for interface in net.interfaces(netlink):
            attached.renew(interface)
    loader.note(pin_set, options)
    return True


def unload(pin_set: PinSet, names: tuple[str, ...] = ()) -> list[str]:
    """Detaches from the named interfaces, or from all and unpins the programs; the names.

    The table stays pinned with its flows, for a collector or a later load.
    """
    loader.require_root()
    with pins.changing():
        return _unload(pin_set, names)


def _unload(pin_set: PinSet, names: tuple[str, ...]) -> list[str]:
    with IPRoute() as netlink:
        chosen = [net.interface_named(netlink, name) for name in names]
        with attachments(pin_set, netlink) as attached:
            detached = [
                interface.name
                for interface in chosen or net.interfaces(netlink)
                if attached.detach(interface.index)
            ]
    if not names:
        _follow(pin_set, frozenset())
        pin_set.remove_observers()
    return detached


def detach(pin_set: PinSet, work: Work) -> None:
    """Takes the programs off the interfaces that this run attached them to, and follows no more."""
    with pins.changing():
        if not work.holds(pin_set):
            return
        _follow(pin_set, work.followed_before)
        with IPRoute() as netlink, attachments(pin_set, netlink) as open_attachments:
            for interface in work.attached:
                open_attachments.detach(interface.index)


def purge(pin_set: PinSet, work: Work | None = None) -> list[str]:
    """Detaches everywhere and unpins all: flows that were not collected are gone; the names.

    With `work`, only if the table is still that of the run.
    """
    loader.require_root()
    with pins.changing():
        if work is not None and not work.holds(pin_set):
            return []
        detached = _unload(pin_set, ()) if pin_set.map_path("attachments").exists() else []
        pin_set.remove()
        return detached


def attached_interfaces(pin_set: PinSet) -> list[tuple[Interface, list[Direction]]]:
    """Where the programs are, by what the kernel says."""
    with IPRoute() as netlink:
        found = []
        for interface in net.interfaces(netlink):
            hooks = sorted(f.direction for f in filters(netlink, interface.index) if f.is_of(pin_set))
            if hooks:
                found.append((interface, hooks))
        return found


def find(pin_set: PinSet) -> PinSet:
    """The pin set, its pins restored from the attached programs where they got lost."""
    loader.require_root()
    pins.mount_bpffs()
    if not pin_set.has_table():
        with IPRoute() as netlink, pins.changing():
            for interface in net.interfaces(netlink):
                for filter_ in filters(netlink, interface.index):
                    if filter_.is_of(pin_set) and not pin_set.has_table():
                        loader.recover(pin_set, filter_.program_id)
    return pin_set


@contextmanager
def collector_lock(pin_set: PinSet) -> Iterator[None]:
    """Holds the table for one collector. Raises KernelError where another one has it."""
    pins.RUN_DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = _lock_path(pin_set)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.samefile(f"/proc/self/fd/{file.fileno()}")  # or its holder removed it just now
        except (BlockingIOError, FileNotFoundError):
            raise KernelError(
                f"another collector reads {pin_set.table_path}: end that first (flowmon stop, or the one in the foreground)"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it
                pins.RUN_DIRECTORY.rmdir()


class Follower:
    """Knows the interfaces' names, and attaches to those that appear where that was asked for."""

    def __init__(self, pin_set: PinSet, where: Where, attached: list[Interface]) -> None:
        self._pin_set = pin_set
        self._where = where
        self._attached = attached
        self._netlink = IPRoute()
        self._events = net.link_events()
        self._names: dict[int, str] = {}
        self._descriptions: dict[int, str] = {}
        self._refused: set[int] = set()
        self._look()

    def close(self) -> None:
        """Closes the sockets."""
        self._events.close()
        self._netlink.close()

    def names(self) -> dict[int, str]:
        """Interface names by index, of those that vanished too."""
        return self._names

    def descriptions(self) -> dict[int, str]:
        """What those that are there now are said to be, by index; empty where nothing is."""
        return self._descriptions

    def wait(self, seconds: float) -> None:
        """Sleeps, and looks at the interfaces when one of them changes."""
        readable, _, _ = select.select([self._events], [], [], seconds)
        if readable:
            net.drain_events(self._events)
            self._look()

    def _look(self) -> None:
        known = net.interfaces(self._netlink)
        self._names.update({interface.index: interface.name for interface in known})
        self._descriptions = {interface.index: interface.description for interface in known}
        directions = _followed(self._pin_set)
        # Nobody exchanges the programs meanwhile.
        with pins.changing(), attachments(self._pin_set, self._netlink) as attached:
            present = {interface.index for interface in known}
            for index in attached.recorded():
                if index not in present:
                    log.warning("%s is gone", self._names.get(index, f"interface {index}"))
                    attached.forget(index)
            for interface in known:
                if interface.name in self._where.names:
                    self._attach(attached, interface, self._where.directions)
                elif directions and interface.is_up:
                    self._attach(attached, interface, directions)

    def _attach(self, attached: Attachments, interface: Interface, directions: frozenset[Direction]) -> None:
        if interface.index in self._refused:
            return
        try:
            if attached.attach(interface, directions):
                self._attached.append(interface)
                log.info("attached to %s", interface.name)
        except FlowmonError as error:
            self._refused.add(interface.index)
            log.warning("%s", error)


def _chosen(netlink: IPRoute, where: Where) -> list[Interface]:
    chosen = [net.interface_named(netlink, name) for name in where.names]
    if where.every:
        up = [interface for interface in net.interfaces(netlink) if interface.is_up]
        for interface in up:
            if not interface.is_supported:
                log.warning(
                    "%s is left out: link type %d (ARPHRD) cannot be read", interface.name, interface.arphrd
                )
        chosen += [interface for interface in up if interface.is_supported and interface not in chosen]
    return chosen


def _check_same(pin_set: PinSet, options: LoadOptions) -> None:
    """Raises ConfigError where what is loaded is not what was asked for."""
    by = abi.Loader(int(loader.read_loaded_info(pin_set)["loader"][0])).name.lower()
    if options.loader not in ("auto", by):
        raise ConfigError(f"the programs were loaded by {by}: `flowmon purge` first, or leave --loader out")
    size = loader.table_info(pin_set).max_entries
    if options.max_flows not in (size, DEFAULT_MAX_FLOWS):
        raise ConfigError(
            f"the table that is loaded holds {size} flows, not {options.max_flows}:"
            " `flowmon purge` first (its flows are lost), or leave --max-flows out"
        )
    if options.features:
        check_features(pin_set, options)
    listed = loader.loaded_options(pin_set).first_packets
    if options.first_packets not in (listed, 0):
        raise ConfigError(
            f"what is loaded lists the first {listed} packets of a record, not {options.first_packets}:"
            " `flowmon unload` first (the flows stay), or leave --splt out"
        )
    if options.decap != bool(loader.read_loaded_info(pin_set)["decap"][0]):
        raise ConfigError(
            f"what is loaded counts flows {'outside' if options.decap else 'inside'} tunnels:"
            " `flowmon purge` first (its flows are lost), or the other choice of --decap"
        )


def check_features(pin_set: PinSet, options: LoadOptions) -> None:
    """Raises ConfigError where what is loaded captures other packets than those that were asked for, or none."""
    if options.features != loader.loaded_options(pin_set).features:
        raise ConfigError(
            "what is loaded captures no packet features, or others: `flowmon unload` first (the flows stay),"
            " then load with --features; or leave it out"
        )


def _check_not_collected(pin_set: PinSet, options: LoadOptions) -> None:
    """Raises KernelError where a collector has maps open that the load would take others in place of."""
    known = loader.loaded_options(pin_set)
    if (options.features, options.first_packets) == (known.features, known.first_packets):
        return
    path = _lock_path(pin_set)
    if not path.exists():
        return
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KernelError(
                f"a collector reads {pin_set.table_path}, and would not notice other features or lists:"
                " end it first (flowmon stop, or the one in the foreground)"
            ) from None


def _lock_path(pin_set: PinSet) -> Path:
    return pins.RUN_DIRECTORY / f"table-{loader.table_info(pin_set).id}.lock"


def _follow(pin_set: PinSet, directions: frozenset[Direction]) -> None:
    info = loader.read_loaded_info(pin_set)
    info["follow_directions"] = sum(1 << direction for direction in directions)
    loader.write_loaded_info(pin_set, info)


def _followed(pin_set: PinSet) -> frozenset[Direction]:
    wanted = int(loader.read_loaded_info(pin_set)["follow_directions"][0])
    return frozenset(direction for direction in Direction if wanted & 1 << direction)
