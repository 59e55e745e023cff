"""libbpf through ctypes: the calls that flowmon needs, errors raised as OSError.

File descriptors are plain integers; buffers are NumPy arrays whose memory the
kernel reads and writes in place.
"""

import ctypes
import mmap
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from flowmon.errors import KernelError

Array = np.ndarray[Any, np.dtype[Any]]

MAP_TYPE_LRU_HASH = 9


class _MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    ]


class ProgramInfo(ctypes.Structure):
    """The head of struct bpf_prog_info."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
    ]


class TestRunOptions(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


class MapInfo:
    """Identity, type, sizes and name of a map that is open."""

    def __init__(self, raw: _MapInfo) -> None:
        self.id: int = raw.id
        self.type: int = raw.type
        self.key_size: int = raw.key_size
        self.value_size: int = raw.value_size
        self.max_entries: int = raw.max_entries
        self.name: str = raw.name.decode()


PrintCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

_POINTER_RESULTS = (
    "bpf_object__open_file",
    "bpf_object__find_map_by_name",
    "bpf_object__find_program_by_name",
    "bpf_map__initial_value",
    "bpf_program__section_name",
)
_POINTER_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "bpf_object__open_file": (ctypes.c_char_p, ctypes.c_void_p),
    "bpf_object__load": (ctypes.c_void_p,),
    "bpf_object__close": (ctypes.c_void_p,),
    "bpf_object__find_map_by_name": (ctypes.c_void_p, ctypes.c_char_p),
    "bpf_object__find_program_by_name": (ctypes.c_void_p, ctypes.c_char_p),
    "bpf_map__set_max_entries": (ctypes.c_void_p, ctypes.c_uint32),
    "bpf_program__set_autoload": (ctypes.c_void_p, ctypes.c_bool),
    "bpf_map__reuse_fd": (ctypes.c_void_p, ctypes.c_int),
    "bpf_map__initial_value": (ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)),
    "bpf_map__fd": (ctypes.c_void_p,),
    "bpf_program__fd": (ctypes.c_void_p,),
    "bpf_program__section_name": (ctypes.c_void_p,),
    "bpf_obj_get": (ctypes.c_char_p,),
    "bpf_prog_get_fd_by_id": (ctypes.c_uint32,),
    "bpf_map_get_fd_by_id": (ctypes.c_uint32,),
    "bpf_prog_bind_map": (ctypes.c_int, ctypes.c_int, ctypes.c_void_p),
    "bpf_obj_pin": (ctypes.c_int, ctypes.c_char_p),
    "bpf_obj_get_info_by_fd": (ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)),
    "bpf_map_lookup_elem": (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
    "bpf_map_update_elem": (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64),
    "bpf_map_delete_elem": (ctypes.c_int, ctypes.c_void_p),
    "bpf_map_get_next_key": (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
    "bpf_map_lookup_batch": (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_uint32),
        ctypes.c_void_p,
    ),
    "bpf_prog_test_run_opts": (ctypes.c_int, ctypes.POINTER(TestRunOptions)),
}


@cache
def library() -> ctypes.CDLL:
    """Libbpf 1.x, with argument types set. Raises KernelError where it is not installed."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise KernelError(f"libbpf.so.1 cannot be opened ({error}): install it (Debian: libbpf1)") from None
    for name, arguments in _POINTER_ARGUMENTS.items():
        function = getattr(lib, name)
        function.argtypes = arguments
        if name in _POINTER_RESULTS:
            function.restype = ctypes.c_void_p
    lib.libbpf_set_print.argtypes = (PrintCallback,)
    return lib


_DEBUG = 2  # LIBBPF_DEBUG: what libbpf does, step by step, in a thousand lines a load

_callback: Callable[..., int] | None = None  # the C side keeps a pointer to it


def set_print(write: Callable[[str], None] | None) -> None:
    """Sends what libbpf warns of and tells (and the verifier's log) line by line to `write`; None drops it."""
    global _callback  # noqa: PLW0603 - there is one libbpf in a process
    libc = ctypes.CDLL(None)

    def forward(level: int, template: bytes, arguments: int | None) -> int:
        if write is not None and level != _DEBUG:
            text = ctypes.create_string_buffer(1 << 16)
            libc.vsnprintf(text, ctypes.c_size_t(len(text)), template, ctypes.c_void_p(arguments))
            write(text.value.decode(errors="replace").rstrip())
        return 0

    _callback = PrintCallback(forward)
    library().libbpf_set_print(_callback)


def check(result: int, what: str) -> int:
    """The result of a libbpf call that returns a negative errno; raises OSError(what)."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def open_pinned(path: Path) -> int:
    """A descriptor of the object pinned at `path`."""
    return check(library().bpf_obj_get(os.fsencode(path)), str(path))


def pin(fd: int, path: Path) -> None:
    """Pins a map or program."""
    check(library().bpf_obj_pin(fd, os.fsencode(path)), str(path))


def is_map(fd: int) -> bool:
    """Whether a BPF descriptor is of a map, and not of a program or link."""
    return "map_type:" in Path(f"/proc/self/fdinfo/{fd}").read_text()


def map_info(fd: int) -> MapInfo:
    """What the kernel says of a map."""
    raw = _MapInfo()
    size = ctypes.c_uint32(ctypes.sizeof(raw))
    check(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(raw), ctypes.byref(size)), "map info")
    return MapInfo(raw)


def bind_map(program: int, map_fd: int) -> None:
    """Lets the program hold the map, though it does not use it (Linux 5.10)."""
    check(library().bpf_prog_bind_map(program, map_fd, None), "binding a map to a program")


def maps_of_program(program_id: int) -> list[int]:
    """Descriptors of the maps that a loaded program holds. Raises OSError where it is gone."""
    program = check(library().bpf_prog_get_fd_by_id(program_id), f"program {program_id}")
    try:
        ids = (ctypes.c_uint32 * 64)()
        raw = ProgramInfo(nr_map_ids=len(ids), map_ids=ctypes.addressof(ids))
        size = ctypes.c_uint32(ctypes.sizeof(raw))
        check(
            library().bpf_obj_get_info_by_fd(program, ctypes.byref(raw), ctypes.byref(size)), "program info"
        )
        return [check(library().bpf_map_get_fd_by_id(ids[i]), f"map {ids[i]}") for i in range(raw.nr_map_ids)]
    finally:
        os.close(program)


def _address(array: Array) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("the kernel reads and writes contiguous memory only")
    return int(array.ctypes.data)


def lookup(fd: int, key: Array, value: Array) -> bool:
    """Fills `value`; False where the map has no such key."""
    result = library().bpf_map_lookup_elem(fd, _address(key), _address(value))
    if result == -2:
        return False
    check(result, "map look-up")
    return True


def update(fd: int, key: Array, value: Array) -> None:
    """Sets an element, new or not."""
    check(library().bpf_map_update_elem(fd, _address(key), _address(value), 0), "map update")


def delete(fd: int, key: Array) -> None:
    """Removes an element, if it is there."""
    result = library().bpf_map_delete_elem(fd, _address(key))
    if result != -2:
        check(result, "map delete")


def keys(fd: int, dtype: np.dtype[Any]) -> Array:
    """All keys of a small hash map."""
    found: list[Array] = []
    current = np.zeros(1, dtype)
    most = map_info(fd).max_entries
    result = library().bpf_map_get_next_key(fd, None, _address(current))
    while result == 0 and len(found) < most:  # of one that changes, the walk may begin anew
        found.append(current.copy())
        result = library().bpf_map_get_next_key(fd, _address(current), _address(current))
    if result not in (0, -2):
        check(result, "next key")
    return np.concatenate(found) if found else np.zeros(0, dtype)


def lookup_batch(fd: int, cursor: Array, keys: Array, values: Array, *, first: bool) -> tuple[int, bool]:
    """One BPF_MAP_LOOKUP_BATCH: (elements filled in, whether more follow).

    `cursor` holds the place between calls (8 bytes). Raises OSError ENOSPC where
    a hash bucket does not fit; the cursor is then as before.
    """
    count = ctypes.c_uint32(len(keys))
    result = library().bpf_map_lookup_batch(
        fd,
        None if first else _address(cursor),
        _address(cursor),
        _address(keys),
        _address(values),
        ctypes.byref(count),
        None,
    )
    if result == -2:
        return count.value, False
    check(result, "map look-up batch")
    return count.value, True


def run_syscall_program(fd: int) -> None:
    """BPF_PROG_TEST_RUN of a program of type SYSCALL, once."""
    options = TestRunOptions(sz=ctypes.sizeof(TestRunOptions))
    check(library().bpf_prog_test_run_opts(fd, ctypes.byref(options)), "BPF_PROG_TEST_RUN")


def into_memory(fd: int, dtype: np.dtype[Any], entries: int) -> Array:
    """An mmapable array map as a NumPy array: what is written there, the programs see."""
    return np.frombuffer(mmap.mmap(fd, entries * dtype.itemsize), dtype, entries)


def test_run(fd: int, packet: Array, repeat: int) -> None:
    """BPF_PROG_TEST_RUN of a TC program, `repeat` times on a packet of at least 14 bytes.

    A signal cuts it short without an error: the caller looks how far it came.
    """
    timed_run(fd, packet, repeat)


def timed_run(fd: int, packet: Array, repeat: int) -> float:
    """As `test_run`; the mean of the runs in nanoseconds, by the kernel's own measure."""
    options = TestRunOptions(
        sz=ctypes.sizeof(TestRunOptions),
        data_in=_address(packet),
        data_size_in=packet.nbytes,
        repeat=repeat,
    )
    result = library().bpf_prog_test_run_opts(fd, ctypes.byref(options))
    if result != -4:
        check(result, "BPF_PROG_TEST_RUN")
    return float(options.duration)


@cache
def cpu_ids() -> int:
    """One more than the highest number that a CPU can have."""
    spans = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    return int(spans[-1].split("-")[-1]) + 1


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map holds for a key."""
    spans = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    return sum(int(span.split("-")[-1]) - int(span.split("-")[0]) + 1 for span in spans)
