"""What a user types, and what comes of it: above all, of what cannot be."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowmon.kernel.pins import BPFFS
from netns import collector, wait_for
from refusal import assert_refused


def flowmon(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flowmon", *arguments],
        capture_output=True, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


def test_help_is_quick_and_names_every_command():
    flowmon("--help")
    begun = time.monotonic()
    done = flowmon("-h")
    assert time.monotonic() - begun < 1
    for command in ("doctor", "load", "purge", "start", "status", "stop", "unload"):
        assert command in done.stdout


def test_version():
    assert flowmon("--version").stdout.startswith("flowmon, version ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-i", "-1"), ("-i -1", "0")),
        (("-i", "soon"), ("soon",)),
        (("--idle-timeout", "-3"), ("--idle-timeout -3",)),
        (("--linger", "-0.5"), ("--linger -0.5",)),
        (("--idle-timeout", "nan"), ("--idle-timeout nan",)),
        (("-i", "nan"), ("-i nan",)),
        (("--active-timeout", "inf"), ("--active-timeout inf",)),
        (("-p", ""), ("name",)),
        (("-p", "a.b"), ("a.b", "dot")),
        (("-p", "x" * 300), ("200",)),
        (("-f", ""), ("-f", "empty")),
        (("-d", ""), ("-d", "empty")),
        (("purge", "-p", ""), ("name",)),
        (("--direction", "sideways"), ("sideways", "ingress")),
        (("--loader", "magic"), ("magic", "bcc")),
        (("--max-flows", "0"), ("--max-flows", "0")),
        (("--all", "--iface", "lo"), ("--all", "--iface")),
        (("--nonsense",), ("--nonsense",)),
        (("nonsense",), ("nonsense",)),
        (("load",), ("--iface", "--all")),
        (("start", "--iface", "lo"), ("-d",)),
        (("-f", "/sys/fs/bpf/x", "-p", "y"), ("-f", "-p")),
        (("-p", "a/b"), ("-p", "a/b")),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_wrong_usage_is_one_line_and_status_2(arguments, words):
    assert_refused(flowmon(*arguments), 2, *words)


@pytest.mark.parametrize(
    "arguments",
    [("--iface", "lo"), ("load", "--iface", "lo"), ("status",), ("-i", "0"), ("purge",)],
    ids=" ".join,
)
def test_who_is_not_root_is_told_so(arguments):
    # In a user namespace without a mapping even root is nobody, and can still read this Python.
    command = [] if os.geteuid() else ["unshare", "--user"]
    command += [sys.executable, "-m", "flowmon", *arguments]
    assert_refused(subprocess.run(command, capture_output=True, text=True, check=False), 1, "root")


@pytest.mark.kernel
def test_no_such_interface(pair):
    done = pair.left.flowmon("--iface", "nosuch0", "-i", "0")
    assert_refused(done, 2, "nosuch0", "veth0")
    done = pair.left.flowmon("load", "--iface", "veth0", "--iface", "nosuch0")
    assert_refused(done, 2, "nosuch0")
    assert "clsact" not in pair.left.tc()


@pytest.mark.kernel
def test_no_pinned_map(pair):
    assert_refused(pair.left.flowmon("-i", "0"), 1, "nothing is pinned", "flowmon load")
    assert_refused(
        pair.left.flowmon("-f", "/sys/fs/bpf/nosuch/flows", "-i", "0"), 1, "/sys/fs/bpf/nosuch/flows"
    )
    assert_refused(pair.left.flowmon("status"), 1, "nothing is pinned")


@pytest.mark.kernel
def test_a_pinned_map_of_another_layout(kernel):
    path = BPFFS / f"other-{os.getpid()}"
    subprocess.run(
        ["bpftool", "map", "create", path, "type", "lru_hash", "key", "16", "value", "64", "entries", "10", "name", "x"],
        check=True,
    )  # fmt: skip
    try:
        assert_refused(flowmon("-f", str(path), "-i", "0"), 1, str(path), "layout", "purge")
    finally:
        path.unlink()


@pytest.mark.kernel
def test_a_pinned_program_is_no_map(pair, pin_set):
    assert pair.left.flowmon("load", "-f", str(pin_set.table_path), "--iface", "veth0").returncode == 0
    done = flowmon("-f", str(pin_set.directory / "program_take"), "-i", "0")
    assert_refused(done, 1, "program_take", "no map")


@pytest.mark.kernel
@pytest.mark.parametrize("directory", ["/proc/nosuch", "/dev/null/x"])
def test_a_directory_that_cannot_be_written(pair, directory):
    before = pair.left.tc()
    done = pair.left.flowmon("--iface", "veth0", "-i", "0", "-d", directory)
    assert_refused(done, 1, directory, "-d")
    assert pair.left.tc() == before


@pytest.mark.kernel
def test_a_table_of_another_size_is_not_replaced(pair):
    assert pair.left.flowmon("load", "--iface", "veth0", "--max-flows", "2048").returncode == 0
    done = pair.left.flowmon("load", "--iface", "lo", "--max-flows", "4096")
    assert_refused(done, 2, "2048", "4096", "purge")
    assert pair.left.flowmon("load", "--iface", "lo").returncode == 0
    assert pair.left.flowmon("purge").returncode == 0


@pytest.mark.kernel
def test_a_table_beyond_memory(pair):
    before = pair.left.tc()
    done = pair.left.flowmon("load", "--iface", "veth0", "--max-flows", str(1 << 28))
    assert_refused(done, 1, "268435456", "--max-flows")
    assert pair.left.tc() == before
    assert_refused(pair.left.flowmon("status"), 1, "nothing is pinned")


@pytest.mark.kernel
def test_no_object_and_what_is_none(pair, tmp_path):
    assert_refused(
        pair.left.flowmon("load", "--iface", "veth0", "--object", "/nosuch.o"), 2, "/nosuch.o", "--loader bcc"
    )
    junk = tmp_path / "junk.o"
    junk.write_bytes(b"junk")
    assert_refused(pair.left.flowmon("load", "--iface", "veth0", "--object", str(junk)), 2, "junk.o")
    assert_refused(pair.left.flowmon("load", "--iface", "veth0", "--section", "xdp"), 2, "section", "xdp")


@pytest.mark.kernel
def test_two_collectors_do_not_share_a_table(pair):
    assert pair.left.flowmon("load", "--iface", "veth0").returncode == 0
    with collector(pair.left, "-i", "1", "-j"):
        assert_refused(pair.left.flowmon("-i", "0"), 1, "another collector", "flowmon stop")
    assert pair.left.flowmon("purge").returncode == 0


@pytest.mark.kernel
def test_a_kernel_without_bpf(kernel):
    assert_refused(without_bpf("-f", "/sys/fs/bpf/flows", "-i", "0"), 1, "no bpf system call")
    assert_refused(without_bpf("--iface", "lo", "-i", "0"), 1, "no bpf system call")


def without_bpf(*arguments: str) -> subprocess.CompletedProcess[str]:
    """flowmon where bpf(2) does not exist: a seccomp filter answers ENOSYS."""
    program = f"""
import ctypes, os, platform, struct, sys
number = {{"x86_64": 321, "aarch64": 280}}[platform.machine()]
code = b"".join(struct.pack("HBBI", *line) for line in [
    (0x20, 0, 0, 0),                # the system call's number
    (0x15, 0, 1, number),           # bpf?
    (0x06, 0, 0, 0x00050000 | 38),  # ENOSYS
    (0x06, 0, 0, 0x7FFF0000),       # anything else is allowed
])
buffer = ctypes.create_string_buffer(code)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.byref(Program(4, ctypes.addressof(buffer))), 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-m", "flowmon", *{arguments!r}])
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.kernel
def test_start_stop_status(pair, tmp_path):
    """The collector in the background, and programs that count when it has gone."""
    log = tmp_path / "log"
    options = ("-i", "0.2", "--idle-timeout", "0.3", "-d", str(tmp_path / "flows"), "-l", str(log))
    done = pair.left.flowmon("start", "--iface", "veth0", *options)
    assert done.returncode == 0, done.stderr
    again = pair.left.flowmon("start", "--iface", "veth0", *options)
    assert again.returncode == 1
    assert "runs already" in again.stderr
    status = json.loads(pair.left.flowmon("status", "--json").stdout)
    assert Path(f"/proc/{status['collector_pid']}").exists()
    pair.left.run("ping", "-q", "-c", "2", "-i", "0.05", pair.right.ipv4)
    wait_for(lambda: list(tmp_path.glob("flows/date=*/hour=*/*.parquet")), "a record")
    assert "stopped" in pair.left.flowmon("stop").stdout
    assert "no collector" in pair.left.flowmon("stop").stdout
    pair.left.run("ping", "-q", "-c", "2", "-i", "0.05", pair.right.ipv4)
    assert "resident_flows" in pair.left.flowmon("status", "--json").stdout
    books = json.loads(pair.left.flowmon("status", "--json").stdout)["books"]
    assert books["resident_packets"] >= 4
    text = pair.left.flowmon("status").stdout
    assert "veth0 (ingress+egress)" in text
    assert "none in the background" in text
    assert pair.left.flowmon("purge").returncode == 0


@pytest.mark.kernel
def test_output_that_cannot_be_written(pair):
    with Path("/dev/full").open("w") as full:
        for arguments in (("--help",), ("--version",), ("doctor",)):
            command = [sys.executable, "-m", "flowmon", *arguments]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert done.returncode == 1
            assert done.stderr == "flowmon: standard output: No space left on device\n"
    command = pair.left.command(sys.executable, "-m", "flowmon", "--iface", "veth0", "-j")
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("flowmon: standard output is closed")


@pytest.mark.kernel
def test_a_start_that_cannot_be_loads_nothing(pair, tmp_path):
    before = pair.left.tc()
    (tmp_path / "file").write_text("")
    for options in (("-d", str(tmp_path / "file")), ("-d", str(tmp_path), "-l", str(tmp_path))):
        done = pair.left.flowmon("start", "--iface", "veth0", *options)
        assert_refused(done, 1, "cannot be written")
        assert pair.left.tc() == before
    assert_refused(pair.left.flowmon("status"), 1, "nothing is pinned")


@pytest.mark.kernel
def test_another_loader_than_the_one_that_loaded(pair):
    assert pair.left.flowmon("load", "--iface", "veth0").returncode == 0
    assert_refused(pair.left.flowmon("load", "--iface", "lo", "--loader", "bcc"), 2, "libbpf", "--loader")
    assert pair.left.flowmon("purge").returncode == 0
    assert pair.left.flowmon("purge").stdout == "nothing was loaded\n"
