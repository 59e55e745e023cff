"""What `flowmon doctor` says: what this host has, what it lacks, and what to do about it.

Rules:
- A section gathers (from flowmon/kernel and from /proc and /sys) and hands what
  it found to a `judge_…` function, which is pure and says what it means.
- Nothing raises: a section that fails becomes a finding that says so.
- Nothing is changed, and nothing left behind (see flowmon/kernel/probe.py).
- Where a right is missing, that is said once; what cannot be asked without it
  is left out.
"""

import errno
import importlib
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from pyroute2 import IPRoute
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowmon import abi
from flowmon.abi import Direction
from flowmon.errors import FlowmonError
from flowmon.kernel import attach, loader, pins, probe
from flowmon.kernel.attach import Filter
from flowmon.kernel.interfaces import Interface, interfaces
from flowmon.kernel.load_options import OBJECT
from flowmon.kernel.pins import MAP_LAYOUTS, PROGRAMS, PinSet
from flowmon.kernel.probe import TcxProgram


class Verdict(StrEnum):
    """Whether anything is to be done."""

    OK = "ok"
    WARNING = "warning"  # flowmon runs, but slower, or it sees less
    PROBLEM = "problem"  # flowmon does not run


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `advice` is empty where there is nothing to do."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """All findings about this host, in the order in which a user mends them. Never raises."""
    return [finding for what, section in _SECTIONS for finding in _guarded(what, section)]


def report(as_json: bool) -> int:  # noqa: FBT001 - the value of --json, passed on
    """Prints the findings; the exit status, 1 where there is a problem."""
    findings = examine()
    if as_json:
        json.dump([asdict(finding) for finding in findings], sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print_table(findings)
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def _print_table(findings: Iterable[Finding]) -> None:
    styles = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "bold red"}
    # Without markup: names of filters have square brackets in them.
    console = Console(width=None if os.isatty(1) else 120, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading)
    for finding in findings:
        verdict = Text(finding.verdict.value, styles[finding.verdict])
        table.add_row(verdict, finding.what, finding.found, finding.advice)
    console.print(table)


def _guarded(what: str, section: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return section()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a host, the other findings are wanted
        reason = f"cannot be looked at: {type(error).__name__}: {error}"
        return [Finding(what, Verdict.WARNING, reason, "report it, with `flowmon doctor --json`")]


# --- privileges and the system call ---

# include/uapi/linux/capability.h
_NET_ADMIN, _SYS_ADMIN, _PERFMON, _BPF = 12, 21, 38, 39


def judge_privileges(euid: int, effective: int) -> Finding:
    """Whether a process of this user and these effective capabilities (a bit each) may run flowmon.

    CAP_PERFMON is among them because the verifier forbids pointer comparisons without it.
    """
    if euid != 0:
        return Finding("privileges", Verdict.PROBLEM, f"user {euid}, not root", "run it with sudo")
    has = {number: bool(effective >> number & 1) for number in (_NET_ADMIN, _SYS_ADMIN, _PERFMON, _BPF)}
    needed = {
        "CAP_BPF": has[_BPF] or has[_SYS_ADMIN],
        "CAP_NET_ADMIN": has[_NET_ADMIN],
        "CAP_PERFMON": has[_PERFMON] or has[_SYS_ADMIN],
    }
    missing = [name for name, held in needed.items() if not held]
    if missing:
        return Finding(
            "privileges",
            Verdict.PROBLEM,
            f"root without {', '.join(missing)}",
            "give the container or service these capabilities",
        )
    return Finding("privileges", Verdict.OK, f"root with {', '.join(needed)}")


def _privileges() -> list[Finding]:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return [judge_privileges(os.geteuid(), int(fields["CapEff"], 16))]


def judge_library(version: str | None, reason: str) -> Finding:
    """Whether libbpf could be opened; `reason` is why not."""
    if version is None:
        return Finding("libbpf", Verdict.PROBLEM, reason, "install libbpf 1.x (Debian: apt install libbpf1)")
    return Finding("libbpf", Verdict.OK, f"version {version}")


def _library() -> list[Finding]:
    try:
        return [judge_library(probe.library_version(), "")]
    except (FlowmonError, AttributeError) as error:
        return [judge_library(None, str(error))]


def judge_kernel(release: str, bpf_error: int, *, is_root: bool) -> Finding:
    """Whether bpf(2) can be used; `bpf_error` is what it answers, 0 for success."""
    if bpf_error == 0:
        return Finding("kernel", Verdict.OK, f"{release}, bpf(2) works")
    if bpf_error == errno.ENOSYS:
        return Finding(
            "kernel",
            Verdict.PROBLEM,
            f"{release} has no bpf(2)",
            "use a kernel with CONFIG_BPF_SYSCALL=y; where a sandbox emulates the kernel, run flowmon on the host",
        )
    advice = "run it with sudo"
    if is_root:
        advice = "look for what forbids it: a container's capabilities or seccomp, or a security module"
    found = f"{release}, bpf(2) is refused: {os.strerror(bpf_error)}"
    return Finding("kernel", Verdict.PROBLEM, found, advice)


def _kernel() -> list[Finding]:
    if not _has_library():
        return []
    return [judge_kernel(platform.release(), probe.bpf_error(), is_root=os.geteuid() == 0)]


def _has_library() -> bool:
    try:
        probe.library_version()
    except (FlowmonError, AttributeError):
        return False
    return True


def _may_use_bpf() -> bool:
    return _has_library() and probe.bpf_error() == 0


# --- features ---


@dataclass(frozen=True)
class Feature:
    """Something that flowmon needs of the kernel."""

    what: str
    why_not: Callable[[], str | None]
    since: str


FEATURES = (
    Feature("LRU hash map", probe.lru_hash, "Linux 4.10"),
    Feature("mapped array", probe.mmapable_array, "Linux 5.5"),
    Feature("batch look-up", probe.batch_lookup, "Linux 5.6"),
    Feature("atomic exchange", probe.atomic_exchange, "Linux 5.12"),
    Feature("test run", probe.test_run, "Linux 4.12"),
    Feature("clsact", probe.clsact, "Linux 4.5, CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"),
)


def judge_feature(what: str, since: str, reason: str | None) -> Finding:
    """Whether a feature works; `reason` is why not, `since` what brought it."""
    if reason is None:
        return Finding(what, Verdict.OK, "works")
    return Finding(what, Verdict.PROBLEM, f"does not work: {reason}", f"use a kernel that has it ({since})")


def _features() -> list[Finding]:
    if not _may_use_bpf():
        return []
    found = []
    for feature in FEATURES:
        try:
            found.append(judge_feature(feature.what, feature.since, feature.why_not()))
        except PermissionError:
            continue  # no right to try it in a network namespace of its own
    return found


def judge_compiler(*, is_compiled: bool) -> Finding:
    """Whether programs run as machine code."""
    if is_compiled:
        return Finding("BPF JIT", Verdict.OK, "on")
    return Finding(
        "BPF JIT",
        Verdict.WARNING,
        "off: programs are interpreted, and each packet costs several times as much",
        "sysctl -w net.core.bpf_jit_enable=1",
    )


def _compiler() -> list[Finding]:
    is_compiled = probe.is_compiled() if _may_use_bpf() else None
    return [] if is_compiled is None else [judge_compiler(is_compiled=is_compiled)]


def _kernel_types() -> list[Finding]:
    """Informational: the programs use only what is stable between kernels."""
    has_types = Path("/sys/kernel/btf/vmlinux").exists()
    return [Finding("kernel BTF", Verdict.OK, "present" if has_types else "absent, and not needed")]


# --- where the programs come from ---


def judge_object(path: Path, refusal: str | None, *, is_present: bool, bcc_works: bool) -> Finding:
    """Whether there are programs to load; `refusal` is what the kernel has against those built."""
    if is_present and refusal is None:
        return Finding("BPF object", Verdict.OK, f"{path}")
    if is_present:
        return Finding(
            "BPF object",
            Verdict.PROBLEM,
            f"{path} is refused: {refusal}",
            "build it anew (make object) from this version's source",
        )
    if bcc_works:
        return Finding(
            "BPF object",
            Verdict.WARNING,
            f"none at {path}: BCC compiles the programs at each load",
            "build it (make object, which needs clang), here or on another host",
        )
    return Finding(
        "BPF object",
        Verdict.PROBLEM,
        f"none at {path}, and no BCC to compile the programs",
        "build it (make object, which needs clang), or install BCC and kernel headers",
    )


def _object() -> list[Finding]:
    path = OBJECT
    is_present = path.exists()
    may_load = _may_use_bpf() and all(finding.verdict is Verdict.OK for finding in _privileges())
    refusal = probe.object_loads(path) if is_present and may_load else None
    bcc_works = (
        not is_present and _import_bcc().is_bcc and _headers(platform.release(), os.environ) is not None
    )
    return [judge_object(path, refusal, is_present=is_present, bcc_works=bcc_works)]


@dataclass(frozen=True)
class BccModule:
    """What `import bcc` brings: where it is from (empty: nowhere), or why it fails."""

    origin: str = ""
    version: str = ""
    error: str = ""
    has_bpf: bool = False

    @property
    def is_bcc(self) -> bool:
        """Whether it is the BPF Compiler Collection."""
        return self.has_bpf


_RIGHT_BCC = (
    "apt install python3-bpfcc, and make the virtual environment with"
    " /usr/bin/python3 -m venv --system-site-packages"
)


def judge_bcc(module: BccModule, headers: str | None, *, has_object: bool) -> Finding:
    """Whether BCC can compile the programs. Where they are built, nobody needs it to."""
    missing = Verdict.OK if has_object else Verdict.WARNING
    unneeded = "; only needed for --loader bcc" if has_object else ""
    if not module.origin:
        return Finding("BCC", missing, f"not installed{unneeded}", "" if has_object else _RIGHT_BCC)
    if module.error:
        found = f"{module.origin} cannot be imported: {module.error}"
        return Finding("BCC", Verdict.WARNING, found, _RIGHT_BCC)
    if not module.is_bcc:
        return Finding(
            "BCC",
            Verdict.WARNING,
            f"{module.origin} is not the BPF Compiler Collection"
            " (the bcc that pip installs is a crystallography package)",
            f"pip uninstall bcc; {_RIGHT_BCC}",
        )
    if headers is None:
        found = f"{module.version}, but no kernel headers for it{unneeded}"
        advice = "install linux-headers of this kernel, or name their directory in BCC_KERNEL_SOURCE"
        return Finding("BCC", missing, found, "" if has_object else advice)
    return Finding("BCC", Verdict.OK, f"{module.version}, kernel headers in {headers}")


def _import_bcc() -> BccModule:
    try:
        spec = importlib.util.find_spec("bcc")
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return BccModule()
    origin = spec.origin or "bcc"
    try:
        module = importlib.import_module("bcc")
    except Exception as error:  # noqa: BLE001 - a foreign package may raise anything
        return BccModule(origin, error=f"{type(error).__name__}: {error}")
    return BccModule(origin, str(getattr(module, "__version__", "")), has_bpf=hasattr(module, "BPF"))


def _headers(release: str, environment: "os._Environ[str] | dict[str, str]") -> str | None:
    """Where BCC finds the kernel's headers, in its own order; None if nowhere."""
    named = environment.get("BCC_KERNEL_SOURCE")
    places = [named] if named else [f"/lib/modules/{release}/{tree}" for tree in ("build", "source")]
    places += ["/sys/kernel/kheaders.tar.xz"]
    return next((place for place in places if Path(place).exists()), None)


def _bcc() -> list[Finding]:
    headers = _headers(platform.release(), os.environ)
    return [judge_bcc(_import_bcc(), headers, has_object=OBJECT.exists())]


def judge_clang(path: str | None) -> Finding:
    """Informational: clang builds the object, and is not used afterwards."""
    return Finding("clang", Verdict.OK, path or "not installed; only needed to build the object")


def _clang() -> list[Finding]:
    return [judge_clang(shutil.which("clang"))]


# --- what is pinned ---


def judge_bpffs(*, is_mounted: bool, has_directory: bool) -> Finding:
    """Whether there is a place to pin."""
    if is_mounted:
        return Finding("bpffs", Verdict.OK, f"mounted at {pins.BPFFS}")
    if has_directory:
        return Finding(
            "bpffs",
            Verdict.WARNING,
            f"not mounted at {pins.BPFFS}",
            f"nothing, `flowmon load` mounts it; or, to have it after each boot, in /etc/fstab:"
            f" bpf {pins.BPFFS} bpf defaults 0 0",
        )
    return Finding(
        "bpffs",
        Verdict.PROBLEM,
        f"{pins.BPFFS} does not exist",
        "mount sysfs at /sys (into a container: the host's); or use a kernel with CONFIG_BPF_SYSCALL=y",
    )


def _bpffs() -> list[Finding]:
    return [judge_bpffs(is_mounted=pins.is_bpffs(pins.BPFFS), has_directory=pins.BPFFS.is_dir())]


def judge_pinned(pin_set: PinSet, wrong: Sequence[str], abi_version: int | None) -> Finding:
    """Whether what is pinned is this flowmon's: `wrong` are the maps that do not fit."""
    if wrong:
        return Finding("pinned table", Verdict.PROBLEM, "; ".join(wrong), "flowmon purge, then load again")
    if abi_version not in (None, abi.ABI_VERSION):
        return Finding(
            "pinned table",
            Verdict.PROBLEM,
            f"{pin_set.directory} is of a flowmon of ABI {abi_version}, this one is of {abi.ABI_VERSION}",
            "collect it with that one, then `flowmon purge` and load again",
        )
    return Finding("pinned table", Verdict.OK, f"{pin_set.table_path}, of this version's layout")


def _pinned() -> list[Finding]:
    pin_set = PinSet.default()
    try:
        present = [name for name in MAP_LAYOUTS if pin_set.map_path(name).exists()]
    except PermissionError:
        return []
    if not present:
        return [Finding("pinned table", Verdict.OK, "none: nothing is loaded")]
    if not _may_use_bpf():
        return []
    wrong = []
    for name in present:
        try:
            os.close(pin_set.open_map(name))
        except FlowmonError as error:
            wrong.append(str(error))
    version = None
    if "loaded" in present and not wrong:
        version = int(np.asarray(loader.read_loaded_info(pin_set))["abi_version"][0])
    return [judge_pinned(pin_set, wrong, version)]


# --- interfaces, and who else is on them ---


@dataclass(frozen=True)
class Neighbours:
    """What is on an interface, ours among it: filters and programs in the order in which they run."""

    interface: Interface
    filters: tuple[Filter, ...] = ()
    tcx: tuple[TcxProgram, ...] = ()
    has_ingress_qdisc: bool = False


def judge_interface(found: Neighbours) -> list[Finding]:
    """What on an interface hides packets from flowmon, or keeps it off; empty where nothing is."""
    name = found.interface.name
    what = f"interface {name}"
    findings = []
    if not found.interface.is_supported:
        findings.append(
            Finding(
                what,
                Verdict.WARNING,
                f"link type {found.interface.arphrd} (ARPHRD), which flowmon cannot read",
                "watch the interface that its packets come from or go to",
            ),
        )
    if found.has_ingress_qdisc:
        findings.append(
            Finding(
                what,
                Verdict.WARNING,
                "has an ingress qdisc, which keeps clsact and so flowmon off",
                f"if its owner agrees: tc qdisc del dev {name} ingress",
            ),
        )
    for direction in Direction:
        findings += _judge_tcx(what, [p for p in found.tcx if p.direction is direction])
        findings += _judge_filters(what, [f for f in found.filters if f.direction is direction])
    return findings


# The kernel keeps 15 characters of a program's name.
_OUR_PROGRAMS = frozenset(name[:15] for name in PROGRAMS)


def _judge_tcx(what: str, programs: Sequence[TcxProgram]) -> list[Finding]:
    """TCX runs before clsact, and any answer but TCX_NEXT ends the chain."""
    return [
        Finding(
            what,
            Verdict.WARNING,
            f"TCX {program.direction.name.lower()}: program {program.name or 'without a name'}"
            f" (id {program.program_id}), which runs before flowmon",
            "packets for which it ends the chain are not counted: ask its owner whether it does",
        )
        for program in programs
        if program.name not in _OUR_PROGRAMS
    ]


def _judge_filters(what: str, on_hook: Sequence[Filter]) -> list[Finding]:
    ahead = ahead_of_ours(on_hook)
    findings = []
    for filter_ in on_hook:
        hook = f"clsact {filter_.direction.name.lower()}"
        label = " ".join(filter(None, (filter_.kind, "filter", filter_.name)))
        found = f"{hook}: {label} at priority {filter_.priority}, which runs"
        if filter_ in ahead:
            advice = "packets for which it ends the chain are not counted: move it to a later priority"
            findings.append(Finding(what, Verdict.WARNING, f"{found} before flowmon", advice))
        elif not filter_.is_flowmons:
            findings.append(Finding(what, Verdict.OK, f"{found} after flowmon"))
    # The rules of one priority, u32's tables among them, are one thing to the user.
    return list(dict.fromkeys(findings))


def ahead_of_ours(on_hook: Sequence[Filter]) -> list[Filter]:
    """Those of a hook's filters, in the order in which they run, that run before flowmon's.

    Where flowmon is not there, those that would: it takes the first priority that
    is free or held by its like, and the kernel puts the newest of a priority first.
    """
    for place, filter_ in enumerate(on_hook):
        if filter_.is_flowmons:
            return list(on_hook[:place])
    last = attach.FIRST_PRIORITY + attach.PRIORITIES_TRIED
    for priority in range(attach.FIRST_PRIORITY, last):
        sharing = [f for f in on_hook if f.priority == priority]
        if all(f.kind == "bpf" and f.protocol == attach.ETH_P_ALL for f in sharing):
            return [f for f in on_hook if f.priority < priority]
    return list(on_hook)


def _interfaces() -> list[Finding]:
    with IPRoute() as netlink:
        known = interfaces(netlink)
        findings = [finding for one in known for finding in judge_interface(_neighbours(netlink, one))]
    if any(finding.verdict is not Verdict.OK for finding in findings):
        return findings
    names = ", ".join(interface.name for interface in known)
    return [*findings, Finding("interfaces", Verdict.OK, f"{names}: nothing that hides packets from flowmon")]


def _neighbours(netlink: IPRoute, interface: Interface) -> Neighbours:
    tcx = probe.tcx_programs(interface.index) if _has_library() else None
    return Neighbours(
        interface,
        tuple(attach.filters(netlink, interface.index)),
        tuple(tcx or ()),
        any(message.get("kind") == "ingress" for message in netlink.get_qdiscs(index=interface.index)),
    )


_SECTIONS: tuple[tuple[str, Callable[[], list[Finding]]], ...] = (
    ("privileges", _privileges),
    ("libbpf", _library),
    ("kernel", _kernel),
    ("kernel features", _features),
    ("BPF JIT", _compiler),
    ("kernel BTF", _kernel_types),
    ("bpffs", _bpffs),
    ("BPF object", _object),
    ("BCC", _bcc),
    ("clang", _clang),
    ("pinned table", _pinned),
    ("interfaces", _interfaces),
)
