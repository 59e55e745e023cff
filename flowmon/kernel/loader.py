"""Loads the programs, by libbpf or by BCC, and pins them with their maps.

Rules:
- What is pinned already is used, not replaced: a table outlives `unload`, and
  loading on one more interface finds the programs that are there.
- Sizes and settings are decided here, at load; nothing is rebuilt for them.
- A load that fails leaves nothing behind that was not there before.
"""

import ctypes
import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flowmon import abi
from flowmon.errors import ConfigError, KernelError
from flowmon.kernel import libbpf, pins
from flowmon.kernel.bcc_dialect import bcc_source
from flowmon.kernel.clock import monotonic_ns, utc_offset_ns
from flowmon.kernel.feature_source import FeatureSource
from flowmon.kernel.load_options import NO_FEATURES, OBJECT, SOURCE, Features, Guard, LoadOptions
from flowmon.kernel.pins import MAP_LAYOUTS, NOT_WITH_BCC, PROGRAMS, TAKE, PinSet

GUARDED_SOURCES = 16384  # in the guard's registry

REPLAY_PROGRAMS = ("ingress_ethernet", TAKE, "replay", "replay_records")
REPLAY_MAPS = ("replay_packets", "replay_chunk", "replay_state", "replay_target")
ALL_PROGRAMS = (*PROGRAMS, "replay", "replay_records")

# What BCC knows the sizes of maps by.
_BCC_SIZES = {"guard": "MAX_GUARDED", "first_packets": "MAX_LISTED", "take_lists": "TAKE_LISTED"}


def ensure_loaded(pin_set: PinSet, options: LoadOptions) -> bool:
    """Loads and pins the programs unless they are there; says whether it did.

    Raises KernelError or ConfigError with what to do.
    """
    require_root()
    if pin_set.has_programs():
        check_loaded(pin_set)
        return False
    pins.prepare_directory(pin_set.directory)
    before = set(pin_set.directory.iterdir())
    # Whom the list denied before an unload, it denies again.
    denies = pin_set.map_path("loaded").exists() and loaded_options(pin_set).deny
    options = replace(options, deny=options.deny or denies)
    try:
        loader = _choose_loader(options)
        _discard_maps_of_another_size(pin_set, options)
        if loader is abi.Loader.LIBBPF:
            _load_with_libbpf(pin_set, options)
        else:
            _load_with_bcc(pin_set, options)
        _note(pin_set, options, loader)
    except BaseException:
        for path in set(pin_set.directory.iterdir()) - before:
            path.unlink()
        if not before:
            pin_set.remove()
        raise
    return True


def change(pin_set: PinSet, options: LoadOptions) -> None:
    """Loads the programs anew on the maps that are there, and pins them in place of the old.

    What is attached goes on as it was until it is attached anew; then it is to be noted.
    """
    _discard_maps_of_another_size(pin_set, options)
    loader = abi.Loader[options.loader.upper()]
    if loader is abi.Loader.LIBBPF:
        _load_with_libbpf(pin_set, options)
    else:
        _load_with_bcc(pin_set, options)


def note(pin_set: PinSet, options: LoadOptions) -> None:
    """Notes that this is how the programs were loaded."""
    _note(pin_set, options, abi.Loader[options.loader.upper()])


def loaded_options(pin_set: PinSet) -> LoadOptions:
    """How that was loaded which is there. Raises KernelError where nothing is, or not yet."""
    info = read_loaded_info(pin_set)[0]
    if not info["loader"]:
        raise KernelError(f"{pin_set.table_path} is being loaded at this moment: try again")
    guard = Guard(int(info["guard_ports"]), int(info["guard_window_s"]), int(info["guard_block_s"]))
    features = Features(
        int(info["features_packets"]),
        int(info["features_sessions"]),
        abi.FeaturesProtocol(int(info["features_protocols"])),
        int(info["features_restart_ns"]),
        int(info["features_ring_octets"]),
    )
    return LoadOptions(
        loader=abi.Loader(int(info["loader"])).name.lower(),
        time_source=abi.TimeSource(int(info["time_source"])),
        decap=bool(info["decap"]),
        first_packets=int(info["first_packets"]),
        deny=bool(info["deny"]),
        guard=guard if guard.ports else None,
        features=features if features.packets else None,
        owner_pid=int(info["owner_pid"]),
    )


def check_loaded(pin_set: PinSet) -> None:
    """Raises KernelError where nothing is pinned, or what another version means differently."""
    os.close(pin_set.open_map("flows"))
    version = int(read_loaded_info(pin_set)["abi_version"][0])
    if version != abi.ABI_VERSION:
        raise KernelError(
            f"{pin_set.table_path} was loaded by another version of flowmon (layout {version}, this one has"
            f" {abi.ABI_VERSION}): collect it with that one, then `flowmon purge` and load again"
        )


def require_root() -> None:
    """Raises KernelError for who may not load programs."""
    if os.geteuid() != 0:
        raise KernelError("flowmon needs root (CAP_BPF and CAP_NET_ADMIN): run it with sudo")


def table_bytes(pin_set: PinSet) -> int:
    """Kernel memory that the flow table holds, by the kernel's own account."""
    fd = pin_set.open_map("flows")
    try:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
            if line.startswith("memlock:"):
                return int(line.split()[1])
    finally:
        os.close(fd)
    return 0


def table_info(pin_set: PinSet) -> libbpf.MapInfo:
    """What the kernel says of the pinned table: its size, its identity."""
    fd = pin_set.open_map("flows")
    try:
        return libbpf.map_info(fd)
    finally:
        os.close(fd)


def _choose_loader(options: LoadOptions) -> abi.Loader:
    if options.loader != "bcc" and options.object_path.exists():
        return abi.Loader.LIBBPF
    if options.loader == "bcc" or (options.loader == "auto" and options.object_path == OBJECT):
        if options.features:
            raise ConfigError(
                "packet features need the built object, BCC does not do: `make object`, or leave --features out"
            )
        return abi.Loader.BCC
    raise ConfigError(
        f"no BPF object at {options.object_path}: build it (make object) or load with --loader bcc"
    )


def _optional_sizes(options: LoadOptions) -> dict[str, int]:
    """Entries of the maps that only some options need: the least there can be where they do not."""
    lists, features = options.first_packets > 0, options.features or NO_FEATURES
    return {
        "guard": GUARDED_SOURCES if options.guard else 1,
        "first_packets": options.max_flows if lists else 1,
        "take_lists": abi.TAKE_BATCH if lists else 1,
        "sessions": features.sessions,
        "feature_ring": features.ring_octets,
    }


def _discard_maps_of_another_size(pin_set: PinSet, options: LoadOptions) -> None:
    """A guard that comes or goes takes another registry, and so do lists of first packets and features."""
    for name, wanted in _optional_sizes(options).items():
        path = pin_set.map_path(name)
        if not path.exists():
            continue
        fd = pin_set.open_map(name)
        size = libbpf.map_info(fd).max_entries
        os.close(fd)
        # As many lists as flows: the table's size is not to be changed, and not known here.
        if (size > 1) != (wanted > 1) if name == "first_packets" else size != wanted:
            if name == "sessions":
                pin_set.map_path("session_gate").unlink(missing_ok=True)  # which counts them
            path.unlink()


def _reused_maps(pin_set: PinSet) -> dict[str, int]:
    """Descriptors of the maps that are pinned."""
    return {name: pin_set.open_map(name) for name in MAP_LAYOUTS if pin_set.map_path(name).exists()}


@contextmanager
def _loaded_object(
    options: LoadOptions, programs: tuple[str, ...], maps: tuple[str, ...], reused: dict[str, int]
) -> Iterator[dict[str, int]]:
    """Descriptors of the programs and maps that are named; they are closed at the end."""
    lib = libbpf.library()
    said: list[str] = []
    libbpf.set_print(said.append)
    opened = lib.bpf_object__open_file(os.fsencode(options.object_path), None)
    if not opened:
        raise ConfigError(f"{options.object_path} is not a BPF object that libbpf can open: {_last(said)}")
    try:
        map_handles = {name: _find(lib.bpf_object__find_map_by_name, opened, name, options) for name in maps}
        sizes = {
            "flows": options.max_flows,
            "totals": libbpf.cpu_ids() * abi.TOTALS_SLOTS,
            "feature_books": libbpf.cpu_ids(),
            "replay_packets": abi.REPLAY_BATCH,
            **_optional_sizes(options),
        }
        for name, handle in map_handles.items():
            if name in reused:
                libbpf.check(lib.bpf_map__reuse_fd(handle, reused[name]), name)
            elif name in sizes:
                libbpf.check(lib.bpf_map__set_max_entries(handle, sizes[name]), name)
        _write_settings(opened, options)
        handles = {
            name: _find(lib.bpf_object__find_program_by_name, opened, name, options) for name in ALL_PROGRAMS
        }
        _check_section(handles, options)
        for name, handle in handles.items():
            libbpf.check(lib.bpf_program__set_autoload(handle, name in programs), name)
        result = lib.bpf_object__load(opened)
        if result < 0:
            raise KernelError(_why_not_loaded(-result, said, options))
        yield {name: lib.bpf_map__fd(handle) for name, handle in map_handles.items()} | {
            name: lib.bpf_program__fd(handles[name]) for name in programs
        }
    finally:
        lib.bpf_object__close(opened)
        libbpf.set_print(None)


def _load_with_libbpf(pin_set: PinSet, options: LoadOptions) -> None:
    reused = _reused_maps(pin_set)
    try:
        with _loaded_object(options, PROGRAMS, tuple(MAP_LAYOUTS), reused) as descriptors:
            for name in MAP_LAYOUTS:
                if name not in reused:
                    libbpf.pin(descriptors[name], pin_set.map_path(name))
            for name in PROGRAMS:
                _pin_program(descriptors[name], pin_set, name)
    finally:
        for fd in reused.values():
            os.close(fd)


class PrivateSet:
    """Programs and maps to replay packets, of this process alone: pinned nowhere, gone with it.

    Close it after use.
    """

    def __init__(self, options: LoadOptions) -> None:
        require_root()
        self.first_packets = options.first_packets
        self.loader = _choose_loader(options)
        if self.loader is abi.Loader.LIBBPF:
            maps = (*MAP_LAYOUTS, *REPLAY_MAPS)
            with _loaded_object(options, REPLAY_PROGRAMS, maps, {}) as descriptors:
                self._descriptors = {name: os.dup(fd) for name, fd in descriptors.items()}
        else:
            self._load_with_bcc(options)
        program = np.array([self._descriptors["ingress_ethernet"]], "u4")
        libbpf.update(self._descriptors["replay_target"], np.zeros(1, "u4"), program)

    def _load_with_bcc(self, options: LoadOptions) -> None:
        """BCC shares maps by their pins only: they are there for as long as it compiles."""
        pins.mount_bpffs()
        for left in pins.BPFFS.glob("flowmon-private-*"):
            if not Path("/proc", left.name.rpartition("-")[2]).exists():
                PinSet(left).remove()  # of a process that was killed
        pin_set = PinSet(pins.BPFFS / f"flowmon-private-{os.getpid()}")
        pins.prepare_directory(pin_set.directory)
        try:
            module = _compile_with_bcc(pin_set, options)
            functions = {name: _load_function(module, name) for name in REPLAY_PROGRAMS}
            self._descriptors = {
                name: pin_set.open_map(name) for name in MAP_LAYOUTS if name not in NOT_WITH_BCC
            }
            self._descriptors |= {name: os.dup(module[name.encode()].get_fd()) for name in REPLAY_MAPS}
            self._descriptors |= {name: os.dup(fd) for name, fd in functions.items()}
        finally:
            pin_set.remove()

    def open_map(self, name: str) -> int:
        """A descriptor of a map."""
        return os.dup(self._descriptors[name])

    def open_program(self, name: str) -> int:
        """A descriptor of a program."""
        return os.dup(self._descriptors[name])

    def close(self) -> None:
        """Closes the descriptors: the kernel frees all of it."""
        for fd in self._descriptors.values():
            os.close(fd)


def _pin_program(fd: int, pin_set: PinSet, name: str) -> None:
    """Pins a program, and has it hold all the maps: while it is attached, none of them can get lost."""
    for map_fd in _reused_maps(pin_set).values():
        libbpf.bind_map(fd, map_fd)
        os.close(map_fd)
    path = pin_set.program_path(name)
    path.unlink(missing_ok=True)  # `take` outlives an unload
    libbpf.pin(fd, path)


def recover(pin_set: PinSet, program_id: int) -> None:
    """Pins again the maps that an attached program of this pin set holds, and loads on them.

    Pins get lost with the mount of bpffs that they are in: that of `ip netns
    exec` ends with its command.
    """
    pins.prepare_directory(pin_set.directory)
    for fd in libbpf.maps_of_program(program_id):
        name = libbpf.map_info(fd).name
        if name in MAP_LAYOUTS and not pin_set.map_path(name).exists():
            libbpf.pin(fd, pin_set.map_path(name))
        os.close(fd)
    ensure_loaded(pin_set, loaded_options(pin_set))


def _find(find: Any, opened: int, name: str, options: LoadOptions) -> int:
    handle: int | None = find(opened, name.encode())
    if not handle:
        raise ConfigError(f"{options.object_path} has no {name}: it is not an object of this flowmon")
    return handle


def _check_section(programs: dict[str, int], options: LoadOptions) -> None:
    for name, program in programs.items():
        raw = ctypes.cast(libbpf.library().bpf_program__section_name(program), ctypes.c_char_p).value
        section = (raw or b"").decode()
        if section != options.section:
            raise ConfigError(f"{options.object_path} has {name} in section {section}, not {options.section}")


def _write_settings(opened: int, options: LoadOptions) -> None:
    """Settings are all of .rodata: one struct."""
    lib = libbpf.library()
    handle = _find(lib.bpf_object__find_map_by_name, opened, ".rodata", options)
    size = ctypes.c_size_t()
    address = lib.bpf_map__initial_value(handle, ctypes.byref(size))
    values = np.zeros(1, abi.SETTINGS)
    for name, value in options.settings().items():
        values[name] = value
    if size.value != values.nbytes:
        raise ConfigError(f"{options.object_path} has other settings than this flowmon: build it again")
    ctypes.memmove(address, values.ctypes.data, values.nbytes)


def _last(said: list[str]) -> str:
    return said[-1] if said else "no reason given"


def _why_not_loaded(error: int, said: list[str], options: LoadOptions) -> str:
    reason = os.strerror(error)
    if error == errno.ENOSYS:
        return pins.NO_BPF
    if any("map 'flows': failed to create" in line for line in said):
        return (
            f"the kernel makes no table of {options.max_flows} flows ({reason}): give a smaller --max-flows"
        )
    if error in (errno.EPERM, errno.EACCES) and not any("BEGIN PROG LOAD LOG" in line for line in said):
        return f"the kernel refuses BPF programs ({reason}): see `flowmon doctor`"
    log = [line for text in said for line in text.splitlines() if line.strip()]
    verdict = next((line for line in reversed(log) if not _is_noise(line)), "")
    return f"the kernel refused the programs: {reason} {verdict[:200]}".rstrip()


def _is_noise(line: str) -> bool:
    """Whether a line of the log says nothing of the reason."""
    return "libbpf:" in line or "--" in line or line.startswith("processed ")


def _load_with_bcc(pin_set: PinSet, options: LoadOptions) -> None:
    module = _compile_with_bcc(pin_set, options)
    for name in PROGRAMS:
        _pin_program(_load_function(module, name), pin_set, name)


def _compile_with_bcc(pin_set: PinSet, options: LoadOptions) -> Any:
    try:
        from bcc import BPF
    except ImportError:
        raise KernelError(
            "BCC's Python module is not importable: install python3-bpfcc and make the virtual"
            " environment with /usr/bin/python3 and --system-site-packages"
            " (the bcc of PyPI is another package)"
        ) from None
    flags = ["-w", "-DFLOWMON_BCC", f"-DMAX_FLOWS={options.max_flows}", f"-DREPLAY_BATCH={abi.REPLAY_BATCH}"]
    flags += [f"-DTOTALS_CPUS={libbpf.cpu_ids()}"]
    sizes = _optional_sizes(options)
    flags += [f"-D{macro}={sizes[name]}" for name, macro in _BCC_SIZES.items()]
    flags += [f"-DSETTING_{name}={value}" for name, value in options.settings().items()]
    flags += [f'-DPIN_{name}="{pin_set.map_path(name)}"' for name in MAP_LAYOUTS]
    for fd in _reused_maps(pin_set).values():
        os.close(fd)  # opened for the check of their layout only
    try:
        return BPF(text=bcc_source(SOURCE).encode(), cflags=flags)
    except Exception as error:  # noqa: BLE001 - BCC raises nothing narrower
        raise _bcc_refused(error) from None


def _load_function(module: Any, name: str) -> int:
    try:
        return int(module.load_func(name.encode(), module.SCHED_CLS).fd)
    except Exception as error:  # noqa: BLE001 - BCC raises nothing narrower
        raise _bcc_refused(error) from None


def _bcc_refused(error: Exception) -> KernelError:
    return KernelError(
        f"BCC cannot compile or load the programs ({error}): it needs kernel headers in"
        f" /lib/modules/{platform.release()}/build or BCC_KERNEL_SOURCE; see `flowmon doctor`"
    )


def _note(pin_set: PinSet, options: LoadOptions, loader: abi.Loader) -> None:
    info = read_loaded_info(pin_set)  # of an earlier load, or zero
    settings = options.settings()
    for name in set(settings).intersection(abi.LOADED_INFO.names or ()):
        info[name] = settings[name]
    info["features_ring_octets"] = (options.features or NO_FEATURES).ring_octets
    info["abi_version"] = abi.ABI_VERSION
    info["loader"] = loader
    info["owner_pid"] = options.owner_pid
    info["loaded_mono_ns"] = monotonic_ns()
    write_loaded_info(pin_set, info)
    if options.features:
        source = FeatureSource(pin_set)
        source.set_utc_offset(utc_offset_ns())
        source.close()


def read_loaded_info(pin_set: PinSet) -> np.ndarray[Any, np.dtype[Any]]:
    """What the loader left: one LOADED_INFO."""
    fd = pin_set.open_map("loaded")
    info = np.zeros(1, abi.LOADED_INFO)
    libbpf.lookup(fd, np.zeros(1, "u4"), info)
    os.close(fd)
    return info


def write_loaded_info(pin_set: PinSet, info: np.ndarray[Any, np.dtype[Any]]) -> None:
    """Leaves word for those who come later."""
    fd = pin_set.open_map("loaded")
    libbpf.update(fd, np.zeros(1, "u4"), info)
    os.close(fd)
