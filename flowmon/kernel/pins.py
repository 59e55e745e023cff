"""Where programs and maps stay between processes: one directory of bpffs.

Rules:
- A directory holds one set: the flow table, its companions and the programs.
- What is pinned must be of this build's layout, or nothing is done with it.
- Nothing is pinned outside the directory; `purge` leaves not even that.
- Interface indexes mean something in one network namespace only, so each
  namespace has a directory of its own: flowmon, and flowmon/netns-COOKIE in all
  but the host's own. (A cookie is never used again, an inode number is.)
"""

import ctypes
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flowmon import abi
from flowmon.errors import KernelError
from flowmon.kernel import libbpf

BPFFS = Path("/sys/fs/bpf")
SO_NETNS_COOKIE = 71  # Linux 5.14
HOST_ONLY = Path("/proc/sys/net/core/netdev_budget")  # a sysctl of the host's own network namespace
DEFAULT_TABLE = "flows"
RUN_DIRECTORY = Path("/run/flowmon")  # what lives as long as a process: pid files, locks

NO_BPF = "this kernel has no bpf system call: flowmon needs Linux 5.14 or later with CONFIG_BPF_SYSCALL"

U4 = np.dtype("u4")
NOTHING = np.dtype([])

# Every map of a pin set: name, key and value as the programs declare them.
MAP_LAYOUTS: dict[str, tuple[np.dtype[Any], np.dtype[Any]]] = {
    "flows": (abi.FLOW_KEY, abi.FLOW_COUNTERS),
    "first_packets": (abi.FLOW_KEY, abi.FIRST_PACKETS),
    "totals": (U4, abi.INTERFACE_TOTALS),
    "totals_in_use": (U4, abi.TOTALS_IN_USE),
    "take_requests": (U4, abi.TAKE_REQUEST),
    "take_results": (U4, abi.FLOW_COUNTERS),
    "take_lists": (U4, abi.FIRST_PACKETS),
    "take_books": (U4, abi.TAKE_BOOKS),
    "loaded": (U4, abi.LOADED_INFO),
    "attachments": (U4, abi.ATTACHMENT),
    "deny": (abi.DENY_KEY, abi.DENY_ENTRY),
    "guard": (abi.GUARD_SOURCE, abi.GUARD_ENTRY),
    "blank_guard": (U4, abi.GUARD_ENTRY),
    "guard_books": (U4, abi.GUARD_BOOKS),
    "sessions": (abi.FLOW_KEY, abi.SESSION),
    "session_gate": (U4, abi.SESSION_GATE),
    "feature_books": (U4, abi.FEATURE_BOOKS),
    "feature_ring": (NOTHING, NOTHING),
}
NOT_WITH_BCC = ("sessions", "session_gate", "feature_books", "feature_ring")
OBSERVERS = ("ingress_ethernet", "egress_ethernet", "ingress_ip", "egress_ip")
TAKE = "take"
PROGRAMS = (*OBSERVERS, TAKE)

_BPF_FS_MAGIC = 0xCAFE4A11


class MapSource(Protocol):
    """Where maps and programs are got from."""

    def open_map(self, name: str) -> int:
        """A descriptor, for the caller to close."""

    def open_program(self, name: str) -> int:
        """A descriptor, for the caller to close."""


@dataclass(frozen=True)
class PinSet:
    """The directory of one set, and the name of the flow table in it."""

    directory: Path
    table: str = DEFAULT_TABLE

    @classmethod
    def default(cls, table: str = DEFAULT_TABLE) -> "PinSet":
        """The set of this network namespace."""
        directory = BPFFS / "flowmon"
        if not HOST_ONLY.exists():
            directory /= f"netns-{network_namespace()}"
        return cls(directory, table)

    @classmethod
    def of_table(cls, path: Path) -> "PinSet":
        """The set whose flow table is pinned at `path`."""
        return cls(path.parent, path.name)

    def map_path(self, name: str) -> Path:
        """Where the map is pinned that the programs call `name`."""
        if name == "flows":
            return self.directory / self.table
        return self.directory / (self._prefix + name)

    def program_path(self, name: str) -> Path:
        """Where a program is pinned."""
        return self.directory / f"{self._prefix}program_{name}"

    @property
    def _prefix(self) -> str:
        """Keeps apart what belongs to another table in the same directory."""
        return "" if self.table == DEFAULT_TABLE else f"{self.table}-"

    @property
    def table_path(self) -> Path:
        """Where the flow table is pinned."""
        return self.map_path("flows")

    def has_table(self) -> bool:
        """Whether a flow table is pinned here (its layout unchecked)."""
        return self.table_path.exists()

    def has_programs(self) -> bool:
        """Whether the programs are pinned here."""
        return all(self.program_path(name).exists() for name in PROGRAMS)

    def open_map(self, name: str) -> int:
        """A descriptor of a pinned map of this build's layout.

        Raises KernelError where there is none, or of another layout.
        """
        path = self.map_path(name)
        try:
            fd = libbpf.open_pinned(path)
        except OSError as error:
            raise KernelError(_why_not_open(path, error)) from None
        try:
            if not libbpf.is_map(fd):
                raise KernelError(f"{path} is pinned, but is no map: give the flow table's path")
            _check_layout(path, name, libbpf.map_info(fd))
        except KernelError:
            os.close(fd)
            raise
        return fd

    def open_program(self, name: str) -> int:
        """A descriptor of a pinned program. Raises KernelError where there is none."""
        path = self.program_path(name)
        try:
            return libbpf.open_pinned(path)
        except OSError as error:
            raise KernelError(_why_not_open(path, error)) from None

    def remove_observers(self) -> None:
        """Unpins what meets packets; the table stays, and `take` with it."""
        for name in OBSERVERS:
            self.program_path(name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Unpins all, and the directory where nothing of others is in it."""
        for name in PROGRAMS:
            self.program_path(name).unlink(missing_ok=True)
        for name in MAP_LAYOUTS:
            self.map_path(name).unlink(missing_ok=True)
        for directory in (self.directory, self.directory.parent):
            if directory.is_dir() and not is_bpffs_root(directory) and not any(directory.iterdir()):
                directory.rmdir()


def _why_not_open(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{path} may not be opened: run as root"
    if error.errno == errno.ENOSYS:
        return NO_BPF
    if isinstance(error, FileNotFoundError):
        return f"nothing is pinned at {path}: load first (flowmon load --iface NAME)"
    return f"{path} cannot be opened: {error.strerror}"


def _check_layout(path: Path, name: str, info: libbpf.MapInfo) -> None:
    key, value = MAP_LAYOUTS[name]
    found = (info.key_size, info.value_size)
    expected = (key.itemsize, value.itemsize)
    wrong_type = name == "flows" and info.type != libbpf.MAP_TYPE_LRU_HASH
    if found != expected or wrong_type:
        raise KernelError(
            f"{path} is a map of another layout (keys of {found[0]} and values of {found[1]} bytes,"
            f" expected {expected[0]} and {expected[1]}): made by another version or program;"
            " collect it with that one, then `flowmon purge` and load again"
        )


class _Statfs(ctypes.Structure):
    _fields_ = [("f_type", ctypes.c_long), ("rest", ctypes.c_long * 30)]


def is_bpffs(path: Path) -> bool:
    """Whether `path` is on a mounted bpffs."""
    libc = ctypes.CDLL(None, use_errno=True)
    status = _Statfs()
    return libc.statfs(os.fsencode(path), ctypes.byref(status)) == 0 and status.f_type == _BPF_FS_MAGIC


def network_namespace() -> int:
    """The cookie of this network namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        raw = any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int.from_bytes(raw, sys.byteorder)


def is_bpffs_root(path: Path) -> bool:
    """Whether bpffs is mounted at just this place."""
    return path.name == BPFFS.name and is_bpffs(path) and not is_bpffs(path.parent)


def mount_bpffs() -> None:
    """Mounts bpffs at /sys/fs/bpf where it is not."""
    if is_bpffs(BPFFS):
        return
    if not BPFFS.is_dir():
        raise KernelError(f"{BPFFS} does not exist: this kernel has no BPF, or sysfs is not mounted")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", 0, None) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise KernelError(f"bpffs cannot be mounted at {BPFFS} ({reason}): run as root, on a kernel with BPF")


@contextmanager
def changing() -> Iterator[None]:
    """One process at a time loads, attaches or takes away: a lock that leaves no file."""
    fd = os.open(BPFFS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def prepare_directory(directory: Path) -> None:
    """Makes the set's directory on bpffs."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError(f"{directory} cannot be made: {error.strerror}") from None
    if not is_bpffs(directory):
        raise KernelError(f"{directory} is not on bpffs: give a path under {BPFFS}")
