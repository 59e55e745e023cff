"""What this kernel can do, found out by doing it.

Rules:
- A probe does the thing itself; no version is compared, since distributions
  port features back and sandboxes take them away.
- Nothing is left behind: maps and programs are never pinned and go with their
  descriptor; the qdisc is tried in a network namespace without a name, which
  goes with the thread that made it. (The kernel may load the modules sch_ingress
  and cls_bpf for it, as it would for flowmon itself.)
- A probe returns `None` where the thing works, else the reason as text.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import pack

import numpy as np
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from flowmon.abi import Direction
from flowmon.kernel import libbpf
from flowmon.kernel.attach import ETH_P_ALL, PARENT

# include/uapi/linux/bpf.h
_MAP_TYPE_ARRAY = 2
_PROG_TYPE_SCHED_CLS = 3
_F_MMAPABLE = 1 << 10
_TCX_ATTACH = {Direction.INGRESS: 46, Direction.EGRESS: 47}
_MOST_TCX_PROGRAMS = 64  # the kernel allows no more on a hook (BPF_MPROG_MAX)

# The namespace made for a probe holds a loopback interface and nothing else.
_CLONE_NEWNET = 0x40000000
_LOOPBACK = 1

_SMALLEST_PACKET = 64
_EXCHANGED = 0x5EED


class _MapCreateOpts(ctypes.Structure):
    """struct bpf_map_create_opts, as of libbpf 1.0."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class TcxProgram:
    """A program on a TCX hook, which runs before every clsact filter."""

    direction: Direction
    program_id: int
    name: str


def library_version() -> str:
    """The version of libbpf, as it says itself. Raises KernelError where it is not installed."""
    get_version = libbpf.library().libbpf_version_string
    get_version.restype = ctypes.c_char_p
    return str(get_version().decode()).removeprefix("v")


def bpf_error() -> int:
    """0 where bpf(2) exists and this process may use it, else its errno (ENOSYS, EPERM)."""
    try:
        os.close(_create_map(_MAP_TYPE_ARRAY, value_size=8, entries=1))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def lru_hash() -> str | None:
    """Whether an LRU hash map, the type of the flow table, can be made."""
    return _why_not(lambda: os.close(_create_map(libbpf.MAP_TYPE_LRU_HASH, value_size=8, entries=64)))


def mmapable_array() -> str | None:
    """Whether what is written into a mapped array is what the kernel looks up."""

    def attempt() -> None:
        with _mapped_array() as (fd, memory):
            memory[0] = _EXCHANGED
            value = np.zeros(1, "u8")
            libbpf.lookup(fd, np.zeros(1, "u4"), value)
            _expect(int(value[0]), _EXCHANGED)

    return _why_not(attempt)


def batch_lookup() -> str | None:
    """Whether one call reads many entries of an LRU hash map."""

    def attempt() -> None:
        with _closing(_create_map(libbpf.MAP_TYPE_LRU_HASH, value_size=8, entries=64)) as fd:
            for key in (1, 2):
                libbpf.update(fd, np.array([key], "u4"), np.array([key], "u8"))
            keys, values = np.zeros(64, "u4"), np.zeros(64, "u8")
            cursor = np.zeros(1, "u8")
            count, _ = libbpf.lookup_batch(fd, cursor, first=True, keys=keys, values=values)
            _expect(count, 2)

    return _why_not(attempt)


def atomic_exchange() -> str | None:
    """Whether a TC program with an atomic exchange, which locks a flow, passes the verifier."""

    def attempt() -> None:
        with _mapped_array() as (fd, _):
            os.close(_load_exchanging_program(fd))

    return _why_not(attempt)


def test_run() -> str | None:
    """Whether BPF_PROG_TEST_RUN runs that program, with the effect that it should have."""

    def attempt() -> None:
        with _mapped_array() as (fd, memory), _closing(_load_exchanging_program(fd)) as program:
            libbpf.test_run(program, np.zeros(_SMALLEST_PACKET, "u1"), repeat=1)
            _expect(int(memory[0]), _EXCHANGED)

    return _why_not(attempt)


def is_compiled() -> bool | None:
    """Whether the kernel compiles programs (JIT) instead of interpreting them; None if it does not say."""
    try:
        with _mapped_array() as (fd, _), _closing(_load_exchanging_program(fd)) as program:
            return bool(_program_info(program).jited_prog_len)
    except OSError:
        return None


def clsact() -> str | None:
    """Whether a TC program can be put on a clsact qdisc, both ways.

    Raises PermissionError where this process may not make a network namespace to
    try it in.
    """
    with _mapped_array() as (fd, _), _closing(_load_exchanging_program(fd)) as program:
        return _in_new_network(lambda: _why_not(lambda: _attach_to_loopback(program)))


def object_loads(path: Path) -> str | None:
    """Whether the kernel takes every program of a built object. Nothing is pinned.

    The flow table is made small for it: how large it can be is not the question.
    """
    lib = libbpf.library()
    said: list[str] = []
    libbpf.set_print(said.append)
    try:
        opened = lib.bpf_object__open_file(os.fsencode(path), None)
        if not opened:
            return f"not a BPF object: {_verdict(said)}"
        try:
            flows = lib.bpf_object__find_map_by_name(opened, b"flows")
            if not flows:
                return "no object of flowmon: it has no map named flows"
            libbpf.check(lib.bpf_map__set_max_entries(flows, 1024), "flows")
            result = lib.bpf_object__load(opened)
            return f"{os.strerror(-result)}: {_verdict(said)}" if result < 0 else None
        finally:
            lib.bpf_object__close(opened)
    finally:
        libbpf.set_print(None)


def tcx_programs(ifindex: int) -> list[TcxProgram] | None:
    """The programs on both TCX hooks, in the order they run; None where the kernel cannot be asked."""
    found = []
    for direction, attach_type in _TCX_ATTACH.items():
        identifiers = (ctypes.c_uint32 * _MOST_TCX_PROGRAMS)()
        count = ctypes.c_uint32(_MOST_TCX_PROGRAMS)
        flags = ctypes.c_uint32()
        result = libbpf.library().bpf_prog_query(
            ctypes.c_int(ifindex), attach_type, 0, ctypes.byref(flags), identifiers, ctypes.byref(count)
        )
        if result < 0 and -result != errno.ENOENT:
            return None
        numbers = identifiers[: count.value]
        found += [TcxProgram(direction, number, _program_name(number)) for number in numbers]
    return found


def _why_not(attempt: Callable[[], None]) -> str | None:
    try:
        attempt()
    except NetlinkError as error:
        return os.strerror(error.code)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _expect(found: int, expected: int) -> None:
    if found != expected:
        raise OSError(errno.EIO, f"it answers {found:#x} where {expected:#x} is right")


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _create_map(map_type: int, *, value_size: int, entries: int, flags: int = 0) -> int:
    """A new map with keys of 4 bytes."""
    options = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), map_flags=flags)
    result = libbpf.library().bpf_map_create(
        map_type, b"flowmon_probe", 4, value_size, entries, ctypes.byref(options)
    )
    return libbpf.check(result, "map creation")


@contextmanager
def _mapped_array() -> Iterator[tuple[int, libbpf.Array]]:
    """An array map of one u64, and that u64 in this process's memory."""
    with _closing(_create_map(_MAP_TYPE_ARRAY, value_size=8, entries=1, flags=_F_MMAPABLE)) as fd:
        yield fd, np.frombuffer(mmap.mmap(fd, mmap.PAGESIZE), "u8", 1)


def _instruction(opcode: int, registers: int, offset: int = 0, immediate: int = 0) -> bytes:
    """A struct bpf_insn; `registers` is the source in the high half byte, the destination in the low."""
    return pack("=BBhi", opcode, registers, offset, immediate)


def _load_exchanging_program(array: int) -> int:
    """A TC program that puts _EXCHANGED into the array's first value, by an atomic exchange."""
    instructions = (
        _instruction(0x62, 0x0A, offset=-4),  # *(u32 *)(r10 - 4) = 0
        _instruction(0xBF, 0xA2),  # r2 = r10
        _instruction(0x07, 0x02, immediate=-4),  # r2 += -4
        _instruction(0x18, 0x11, immediate=array),  # r1 = the map, in two instructions
        _instruction(0x00, 0x00),
        _instruction(0x85, 0x00, immediate=1),  # r0 = bpf_map_lookup_elem(r1, r2)
        _instruction(0x15, 0x00, offset=2),  # if r0 == 0 go to the end
        _instruction(0xB7, 0x01, immediate=_EXCHANGED),  # r1 = _EXCHANGED
        _instruction(0xDB, 0x10, immediate=0xE1),  # r1 = atomic_xchg((u64 *)r0, r1)
        _instruction(0xB7, 0x00, immediate=-1),  # r0 = TC_ACT_UNSPEC
        _instruction(0x95, 0x00),  # return r0
    )
    code = b"".join(instructions)
    result = libbpf.library().bpf_prog_load(
        _PROG_TYPE_SCHED_CLS, b"flowmon_probe", b"GPL", code, ctypes.c_size_t(len(instructions)), None
    )
    return libbpf.check(result, "program load")


def _program_info(fd: int) -> libbpf.ProgramInfo:
    info = libbpf.ProgramInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    result = libbpf.library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size))
    libbpf.check(result, "program info")
    return info


def _program_name(identifier: int) -> str:
    """The name of a loaded program; empty where it has none, or went meanwhile."""
    fd = libbpf.library().bpf_prog_get_fd_by_id(ctypes.c_uint32(identifier))
    if fd < 0:
        return ""
    with _closing(fd):
        return str(_program_info(fd).name.decode(errors="replace"))


def _in_new_network(attempt: Callable[[], str | None]) -> str | None:
    """What `attempt` returns, run by a thread of its own in a network namespace of its own."""

    def run() -> str | None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise PermissionError(number, os.strerror(number))
        return attempt()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(run).result()


def _attach_to_loopback(program: int) -> None:
    with IPRoute() as netlink:
        netlink.tc("add", "clsact", index=_LOOPBACK)
        for parent in PARENT.values():
            netlink.tc(
                "add-filter",
                "bpf",
                index=_LOOPBACK,
                parent=parent,
                prio=1,
                protocol=ETH_P_ALL,
                fd=program,
                name="flowmon_probe",
                flags=1,  # TCA_BPF_FLAG_ACT_DIRECT
            )


def _verdict(said: list[str]) -> str:
    """The last line of the verifier's log that says something, or of libbpf's."""
    lines = [line.strip() for text in said for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "libbpf:" not in line and not line.startswith(("--", "processed "))]
    return (telling or lines or ["no reason given"])[-1][:200]
