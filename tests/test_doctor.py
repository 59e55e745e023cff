"""What doctor says of what it finds, and that looking leaves no trace."""

import ctypes
import errno
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from flowmon import abi, doctor
from flowmon.abi import Direction
from flowmon.doctor import BccModule, Finding, Neighbours, Verdict
from flowmon.errors import KernelError
from flowmon.kernel import attach, libbpf, load_options, pins, probe
from flowmon.kernel.attach import Filter
from flowmon.kernel.interfaces import Interface
from flowmon.kernel.pins import PinSet
from flowmon.kernel.probe import TcxProgram
from netns import Host, Pair, wait_for

ETHERNET = Interface(2, "eth0", 1, is_up=True)
INFINIBAND = Interface(3, "ib0", 32, is_up=True)
OBJECT = Path("/somewhere/flowmon.bpf.o")

Result = TypeVar("Result")

NET_ADMIN, SYS_ADMIN, PERFMON, BPF = 1 << 12, 1 << 21, 1 << 38, 1 << 39


def bpf_filter(
    name: str, *, priority: int = 1, protocol: int = attach.ETH_P_ALL, kind: str = "bpf"
) -> Filter:
    """A filter on ingress; of its fields, only those that the judging looks at matter."""
    return Filter(
        ifindex=2,
        direction=Direction.INGRESS,
        priority=priority,
        handle=1,
        protocol=protocol,
        kind=kind,
        name=name,
    )


OURS = bpf_filter(attach.FILTER_PREFIX + "/sys/fs/bpf/flowmon/flows")
STRANGER = bpf_filter("stranger.o:[tc]")


# --- privileges and the system call ---


@pytest.mark.parametrize(
    ("effective", "verdict", "missing"),
    [
        (BPF | NET_ADMIN | PERFMON, Verdict.OK, ()),
        (SYS_ADMIN | NET_ADMIN, Verdict.OK, ()),  # CAP_BPF and CAP_PERFMON were split off CAP_SYS_ADMIN
        (BPF | NET_ADMIN, Verdict.PROBLEM, ("CAP_PERFMON",)),
        (SYS_ADMIN, Verdict.PROBLEM, ("CAP_NET_ADMIN",)),
        (0, Verdict.PROBLEM, ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")),
    ],
)
def test_names_the_capabilities_that_root_lacks(
    effective: int, verdict: Verdict, missing: tuple[str, ...]
) -> None:
    finding = doctor.judge_privileges(0, effective)
    assert finding.verdict is verdict
    assert bool(finding.advice) is bool(missing)
    if missing:
        assert finding.found == f"root without {', '.join(missing)}"


def test_who_is_not_root_is_told_to_be() -> None:
    finding = doctor.judge_privileges(1000, BPF | NET_ADMIN | PERFMON)
    assert (finding.verdict, finding.advice) == (Verdict.PROBLEM, "run it with sudo")


@pytest.mark.parametrize(
    ("error", "is_root", "said", "advised"),
    [
        (errno.ENOSYS, True, "has no bpf(2)", "CONFIG_BPF_SYSCALL"),
        (errno.EPERM, True, "is refused", "seccomp"),
        (errno.EPERM, False, "is refused", "sudo"),
    ],
)
def test_tells_a_kernel_without_bpf_from_one_that_forbids_it(
    *, error: int, is_root: bool, said: str, advised: str
) -> None:
    finding = doctor.judge_kernel("6.1.0", error, is_root=is_root)
    assert finding.verdict is Verdict.PROBLEM
    assert said in finding.found
    assert advised in finding.advice


def test_a_kernel_with_bpf_is_named() -> None:
    assert doctor.judge_kernel("6.1.0", 0, is_root=True) == Finding(
        "kernel", Verdict.OK, "6.1.0, bpf(2) works"
    )


def test_libbpf_by_its_version_or_the_reason_why_not() -> None:
    assert doctor.judge_library("1.1", "").verdict is Verdict.OK
    missing = doctor.judge_library(None, "libbpf.so.1 cannot be opened")
    assert missing.verdict is Verdict.PROBLEM
    assert "libbpf1" in missing.advice


def test_a_feature_that_fails_says_why_and_since_when_there_is_one() -> None:
    assert doctor.judge_feature("batch look-up", "Linux 5.6", None).verdict is Verdict.OK
    finding = doctor.judge_feature("batch look-up", "Linux 5.6", "Invalid argument")
    assert finding.verdict is Verdict.PROBLEM
    assert "Invalid argument" in finding.found
    assert "Linux 5.6" in finding.advice


def test_interpreted_programs_are_a_warning() -> None:
    assert doctor.judge_compiler(is_compiled=True).verdict is Verdict.OK
    finding = doctor.judge_compiler(is_compiled=False)
    assert finding.verdict is Verdict.WARNING
    assert "bpf_jit_enable=1" in finding.advice


# --- where the programs come from ---


@pytest.mark.parametrize(
    ("is_present", "refusal", "bcc_works", "verdict"),
    [
        (True, None, False, Verdict.OK),
        (True, "Invalid argument", True, Verdict.PROBLEM),
        (False, None, True, Verdict.WARNING),
        (False, None, False, Verdict.PROBLEM),
    ],
)
def test_there_must_be_programs_to_load(
    *, is_present: bool, refusal: str | None, bcc_works: bool, verdict: Verdict
) -> None:
    finding = doctor.judge_object(OBJECT, refusal, is_present=is_present, bcc_works=bcc_works)
    assert finding.verdict is verdict
    assert str(OBJECT) in finding.found
    assert bool(finding.advice) is (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("module", "headers", "has_object", "verdict", "said"),
    [
        (BccModule("/b.py", "0.26.0", has_bpf=True), "/headers", True, Verdict.OK, "/headers"),
        (BccModule("/b.py", "0.26.0", has_bpf=True), None, True, Verdict.OK, "no kernel headers"),
        (BccModule("/b.py", "0.26.0", has_bpf=True), None, False, Verdict.WARNING, "no kernel headers"),
        (BccModule(), "/headers", True, Verdict.OK, "only needed for --loader bcc"),
        (BccModule(), "/headers", False, Verdict.WARNING, "not installed"),
        (BccModule("/b.py", "1.0"), "/headers", True, Verdict.WARNING, "crystallography"),
        (BccModule("/b.py", error="OSError: libbcc.so.0"), None, True, Verdict.WARNING, "libbcc.so.0"),
    ],
)
def test_bcc_is_told_from_its_namesake(
    *, module: BccModule, headers: str | None, has_object: bool, verdict: Verdict, said: str
) -> None:
    finding = doctor.judge_bcc(module, headers, has_object=has_object)
    assert finding.verdict is verdict
    assert said in finding.found
    assert bool(finding.advice) is (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("source", "has_bpf", "error"),
    [
        ("class BPF: ...", True, ""),
        ("lattice = 'body-centred cubic'", False, ""),
        ("raise RuntimeError('no lattice')", False, "RuntimeError: no lattice"),
    ],
)
def test_a_module_named_bcc_is_judged_by_what_it_has(
    *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, has_bpf: bool, error: str
) -> None:
    (tmp_path / "bcc.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    module = doctor._import_bcc()
    sys.modules.pop("bcc", None)
    assert (module.origin, module.is_bcc, module.error) == (str(tmp_path / "bcc.py"), has_bpf, error)


def test_named_headers_go_before_those_of_the_kernel(tmp_path: Path) -> None:
    assert doctor._headers("no-such-release", {"BCC_KERNEL_SOURCE": str(tmp_path)}) == str(tmp_path)


def test_clang_is_never_a_problem() -> None:
    assert doctor.judge_clang(None).verdict is Verdict.OK
    assert doctor.judge_clang("/usr/bin/clang").found == "/usr/bin/clang"


# --- what is pinned ---


@pytest.mark.parametrize(
    ("is_mounted", "has_directory", "verdict"),
    [(True, True, Verdict.OK), (False, True, Verdict.WARNING), (False, False, Verdict.PROBLEM)],
)
def test_bpffs_can_be_mounted_where_its_directory_is(
    *, is_mounted: bool, has_directory: bool, verdict: Verdict
) -> None:
    assert doctor.judge_bpffs(is_mounted=is_mounted, has_directory=has_directory).verdict is verdict


@pytest.mark.parametrize(
    ("wrong", "abi_version", "verdict"),
    [
        ((), abi.ABI_VERSION, Verdict.OK),
        ((), None, Verdict.OK),
        ((), abi.ABI_VERSION + 1, Verdict.PROBLEM),
        (("flows is a map of another layout",), None, Verdict.PROBLEM),
    ],
)
def test_what_is_pinned_must_be_of_this_version(
    wrong: tuple[str, ...], abi_version: int | None, verdict: Verdict
) -> None:
    finding = doctor.judge_pinned(PinSet.default(), wrong, abi_version)
    assert finding.verdict is verdict
    assert ("purge" in finding.advice) is (verdict is Verdict.PROBLEM)


# --- interfaces ---


def test_our_own_filter_alone_is_not_worth_a_word() -> None:
    assert doctor.judge_interface(Neighbours(ETHERNET, filters=(OURS,))) == []


def test_a_filter_ahead_of_ours_is_a_warning_with_its_place() -> None:
    (finding,) = doctor.judge_interface(Neighbours(ETHERNET, filters=(STRANGER, OURS)))
    assert (finding.what, finding.verdict) == ("interface eth0", Verdict.WARNING)
    for detail in ("ingress", "stranger.o:[tc]", "priority 1", "before flowmon"):
        assert detail in finding.found


def test_a_filter_behind_ours_is_mentioned() -> None:
    (finding,) = doctor.judge_interface(Neighbours(ETHERNET, filters=(OURS, STRANGER)))
    assert finding.verdict is Verdict.OK
    assert "after flowmon" in finding.found


def test_the_rules_of_one_priority_are_one_finding() -> None:
    rules = (bpf_filter("", kind="u32"), bpf_filter("", kind="u32"))
    assert len(doctor.judge_interface(Neighbours(ETHERNET, filters=rules))) == 1


@pytest.mark.parametrize(
    ("on_hook", "ahead"),
    [
        ([], []),
        ([STRANGER], []),  # shares its priority, and the newest goes first
        ([bpf_filter("ip only", protocol=0x0800)], ["ip only"]),
        ([bpf_filter("", kind="flower"), bpf_filter("later", priority=3)], [""]),
        ([bpf_filter("1", kind="u32"), bpf_filter("2", priority=2, kind="u32"), OURS], ["1", "2"]),
    ],
)
def test_before_we_are_there_it_counts_where_we_would_be(on_hook: list[Filter], ahead: list[str]) -> None:
    assert [filter_.name for filter_ in doctor.ahead_of_ours(on_hook)] == ahead


def test_with_every_priority_taken_all_are_ahead() -> None:
    last = attach.FIRST_PRIORITY + attach.PRIORITIES_TRIED
    taken = [bpf_filter(str(p), priority=p, kind="u32") for p in range(attach.FIRST_PRIORITY, last)]
    assert doctor.ahead_of_ours(taken) == taken


def test_the_directions_are_judged_apart() -> None:
    ours_on_egress = Filter(
        2, Direction.EGRESS, 1, 1, attach.ETH_P_ALL, "bpf", attach.FILTER_PREFIX + "/sys/fs/bpf/flowmon/flows"
    )
    (finding,) = doctor.judge_interface(Neighbours(ETHERNET, filters=(STRANGER, ours_on_egress)))
    assert finding.verdict is Verdict.OK  # on ingress we are not yet, and would go first


def test_a_strangers_tcx_program_is_a_warning() -> None:
    programs = (
        TcxProgram(Direction.EGRESS, 7, "firewall"),
        TcxProgram(Direction.EGRESS, 8, "egress_ethernet"),
    )
    (finding,) = doctor.judge_interface(Neighbours(ETHERNET, tcx=programs))
    assert finding.verdict is Verdict.WARNING
    assert "TCX egress: program firewall (id 7)" in finding.found


def test_an_unreadable_link_type_and_an_ingress_qdisc_are_warnings() -> None:
    findings = doctor.judge_interface(Neighbours(INFINIBAND, has_ingress_qdisc=True))
    assert [finding.verdict for finding in findings] == [Verdict.WARNING, Verdict.WARNING]
    assert "link type 32" in findings[0].found
    assert "ingress qdisc" in findings[1].found


# --- the whole ---


def test_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[Finding]:
        raise RuntimeError("something else entirely")

    monkeypatch.setattr(
        doctor, "_SECTIONS", (("one", fail), ("two", lambda: [Finding("two", Verdict.OK, "")]))
    )
    first, second = doctor.examine()
    assert (first.what, first.verdict) == ("one", Verdict.WARNING)
    assert "something else entirely" in first.found
    assert second.verdict is Verdict.OK


def test_without_libbpf_the_rest_is_still_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise KernelError("libbpf.so.1 cannot be opened")

    monkeypatch.setattr(probe, "library_version", missing)
    findings = {finding.what: finding for finding in doctor.examine()}
    assert findings["libbpf"].verdict is Verdict.PROBLEM
    assert "kernel" not in findings
    assert "bpffs" in findings


@pytest.mark.parametrize(("verdict", "status"), [(Verdict.OK, 0), (Verdict.WARNING, 0), (Verdict.PROBLEM, 1)])
def test_the_exit_status_is_1_for_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verdict: Verdict, status: int
) -> None:
    finding = Finding("thing", verdict, "a filter [tc]", "mend it")
    monkeypatch.setattr(doctor, "examine", lambda: [finding])
    assert doctor.report(as_json=True) == status
    expected = {"what": "thing", "verdict": verdict.value, "found": "a filter [tc]", "advice": "mend it"}
    assert json.loads(capsys.readouterr().out) == [expected]
    assert doctor.report(as_json=False) == status
    assert "a filter [tc]" in capsys.readouterr().out


# --- on this kernel ---


def in_namespace(host: Host, function: Callable[[], Result]) -> Result:
    """What the function returns, called by a thread that is in the host's network namespace."""

    def run() -> Result:
        with Path(f"/run/netns/{host.namespace}").open() as namespace:
            assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
        return function()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(run).result()


def traces() -> dict[str, str]:
    """All that a probe could leave: qdiscs, links, namespaces, maps and programs, files in bpffs."""
    commands = {
        "qdiscs": ["tc", "qdisc", "show"],
        "links": ["ip", "-br", "link"],
        "named namespaces": ["ip", "netns", "list"],
    }
    found = {
        what: subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for what, command in commands.items()
    }
    found["bpffs"] = "\n".join(sorted(str(path) for path in pins.BPFFS.rglob("*flowmon_probe*")))
    found["descriptors"] = "\n".join(
        str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()
    )
    found["own namespace"] = str(Path("/proc/self/ns/net").readlink())
    return found


@pytest.mark.kernel
@pytest.mark.usefixtures("kernel")
def test_every_probe_works_on_this_kernel() -> None:
    assert {feature.what: feature.why_not() for feature in doctor.FEATURES} == {
        feature.what: None for feature in doctor.FEATURES
    }
    assert probe.bpf_error() == 0
    assert probe.is_compiled() is not None
    assert probe.library_version()[0] == "1"


@pytest.mark.kernel
@pytest.mark.usefixtures("kernel")
def test_examining_leaves_nothing_behind() -> None:
    doctor.examine()  # what is imported and opened once
    before = traces()
    doctor.examine()
    assert traces() == before


@pytest.mark.kernel
@pytest.mark.usefixtures("kernel")
def test_no_probe_is_in_the_kernel_afterwards() -> None:
    def listed() -> str:
        kinds = ("prog", "map")
        return "".join(
            subprocess.run(["bpftool", kind, "list"], check=True, capture_output=True, text=True).stdout
            for kind in kinds
        )

    doctor.examine()
    # The kernel takes a network namespace down a moment after its last process has gone.
    wait_for(lambda: "flowmon_probe" not in listed(), "the probes' maps and programs to go")


@pytest.mark.kernel
@pytest.mark.usefixtures("kernel")
def test_this_host_has_no_problem(pair: Pair) -> None:
    """Of what is pinned and attached by others on this host, nothing is said: in a namespace of its own."""
    findings = in_namespace(pair.left, doctor.examine)
    problems = [finding for finding in findings if finding.verdict is Verdict.PROBLEM]
    assert [finding for finding in problems if finding.what != "pinned table"] == []


@pytest.mark.kernel
@pytest.mark.usefixtures("kernel")
def test_who_is_not_root_gets_fewer_findings_and_no_traceback() -> None:
    """In a process of its own, since a user cannot be given up for a while."""
    code = (
        "import os; os.setgroups([]); os.setuid(65534); from flowmon import doctor; exit(doctor.report(True))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", f"import flowmon.doctor, rich.table; {code}"],
        cwd=Path(__file__).parent.parent,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert findings["privileges"]["advice"] == "run it with sudo"
    assert not findings.keys() & {feature.what for feature in doctor.FEATURES}
    closed = [finding["found"] for finding in findings.values() if "cannot be looked at" in finding["found"]]
    # The project may lie where only its owner may look.
    assert all(str(load_options.OBJECT) in found for found in closed)


@pytest.mark.kernel
def test_reports_a_strangers_filter(pair: Pair) -> None:
    pair.left.run("tc", "qdisc", "add", "dev", "veth0", "clsact")
    rule = "protocol ip u32 match u32 0 0 classid 1:1"
    pair.left.run("tc", "filter", "add", "dev", "veth0", "ingress", "prio", "1", *rule.split())
    before = pair.left.tc()
    findings = in_namespace(pair.left, doctor.examine)
    assert pair.left.tc() == before
    (finding,) = [finding for finding in findings if finding.what == "interface veth0"]
    assert finding.verdict is Verdict.WARNING
    assert finding.found == "clsact ingress: u32 filter at priority 1, which runs before flowmon"


@pytest.mark.kernel
def test_reports_a_strangers_tcx_program(pair: Pair) -> None:
    def attach_and_examine() -> list[Finding] | None:
        index = socket.if_nametoindex("veth0")
        if probe.tcx_programs(index) is None:
            return None
        with probe._mapped_array() as (array, _), probe._closing(probe._load_exchanging_program(array)) as fd:
            ingress = probe._TCX_ATTACH[Direction.INGRESS]
            with probe._closing(libbpf.library().bpf_link_create(fd, index, ingress, None)) as link:
                assert link > 0
                return doctor.examine()

    findings = in_namespace(pair.left, attach_and_examine)
    if findings is None:
        pytest.skip("this kernel has no TCX (Linux 6.6)")
    (finding,) = [finding for finding in findings if finding.what == "interface veth0"]
    assert finding.verdict is Verdict.WARNING
    assert finding.found.startswith("TCX ingress: program flowmon_probe (id ")


@pytest.mark.kernel
def test_reports_an_ingress_qdisc(pair: Pair) -> None:
    pair.left.run("tc", "qdisc", "add", "dev", "veth0", "ingress")
    findings = in_namespace(pair.left, doctor.examine)
    assert [(f.what, f.verdict) for f in findings if f.what.startswith("interface ")] == [
        ("interface veth0", Verdict.WARNING)
    ]


@pytest.mark.kernel
def test_the_newest_of_a_priority_runs_first(pair: Pair) -> None:
    """What `ahead_of_ours` rests on."""

    def names() -> list[str]:
        from pyroute2 import IPRoute

        with IPRoute() as netlink, probe._mapped_array() as (array, _):
            index = netlink.link_lookup(ifname="veth0")[0]
            netlink.tc("add", "clsact", index=index)
            with probe._closing(probe._load_exchanging_program(array)) as program:
                for handle, name in enumerate(("older", "newer"), start=1):
                    netlink.tc(
                        "add-filter",
                        "bpf",
                        index=index,
                        handle=handle,
                        parent=attach.PARENT[Direction.INGRESS],
                        prio=1,
                        protocol=attach.ETH_P_ALL,
                        fd=program,
                        name=name,
                        flags=1,
                    )
            return [filter_.name for filter_ in attach.filters(netlink, index)]

    assert in_namespace(pair.left, names) == ["newer", "older"]


@pytest.mark.kernel
@pytest.mark.usefixtures("kernel")
def test_a_file_that_is_no_object_is_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "flowmon.bpf.o"
    path.write_text("no ELF")
    assert "not a BPF object" in str(probe.object_loads(path))
