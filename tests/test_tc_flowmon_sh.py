"""The script against a stub of flowmon that records its arguments. Nothing here runs the real one."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SCRIPT = SCRIPTS / "tc_flowmon.sh"
SAMPLE = SCRIPTS / "flowmon.default"
VERBS = ("start", "load", "stop", "unload", "purge", "status")

STUB = """#!/bin/sh
printf '%s\\0' "$@" >> "$STUB_CALLS"
printf '\\n' >> "$STUB_CALLS"
exit "${STUB_STATUS:-0}"
"""

START_DEFAULTS = ["-i", "10", "-d", "/var/lib/flowmon", "-l", "/var/log/flowmon.log"]


@dataclass(frozen=True)
class Stub:
    """A place with a stub of flowmon and a defaults file of its own."""

    directory: Path

    @property
    def program(self) -> Path:
        return self.directory / "flowmon"

    @property
    def defaults(self) -> Path:
        return self.directory / "defaults"

    def calls(self) -> list[list[str]]:
        """The arguments of each call."""
        path = self.directory / "calls"
        text = path.read_text() if path.exists() else ""
        return [line.split("\0")[:-1] for line in text.splitlines()]

    def run_plainly(
        self, *arguments: str, script: Path = SCRIPT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs the script with no path but the system's, so that it finds no flowmon of this host."""
        return subprocess.run(
            [script, *arguments],
            env={
                "PATH": "/usr/bin:/bin",
                "FLOWMON_DEFAULTS": str(self.defaults),
                "STUB_CALLS": str(self.directory / "calls"),
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs the script with the stub as its flowmon."""
        return self.run_plainly("-u", str(self.program), *arguments, **environment)

    def call(self, *arguments: str) -> list[str]:
        """The one call that the script makes of flowmon."""
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        (call,) = self.calls()
        return call


def write_stub(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STUB)
    path.chmod(0o755)


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    made = Stub(tmp_path)
    write_stub(made.program)
    return made


# --- each verb is one call ---


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("load", ["load", "--iface", "lo", "--direction", "both"]),
        ("start", ["start", "--iface", "lo", "--direction", "both", *START_DEFAULTS]),
        ("stop", ["stop"]),
        ("unload", ["unload"]),
        ("purge", ["purge"]),
        ("status", ["status"]),
    ],
)
def test_without_options(stub: Stub, verb: str, call: list[str]) -> None:
    assert stub.call(verb) == call


def test_load_with_every_option(stub: Stub) -> None:
    options = "-i eth0 -i eth1,eth2 -d egress -p build/a.o -s classifier -m table"
    assert stub.call(*options.split(), "load") == [
        "load",
        *("--iface", "eth0", "--iface", "eth1", "--iface", "eth2"),
        *("--direction", "egress", "--object", "build/a.o", "--section", "classifier"),
        *("-p", "table"),
    ]


def test_start_with_every_long_option(stub: Stub) -> None:
    options = (
        "--interface=eth0 --int 2.5 --program a.o --section tc --map t --dir ingress --write /data --json"
    )
    assert stub.call(*options.split(), "start") == [
        *("start", "--iface", "eth0", "--direction", "ingress", "--object", "a.o", "--section", "tc"),
        *("-p", "t", "-i", "2.5", "-d", "/data", "-j", "-l", "/var/log/flowmon.log"),
    ]


def test_all_interfaces(stub: Stub) -> None:
    assert stub.call("--all", "load") == ["load", "--all", "--direction", "both"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("table", "option"), [("flows2", "-p"), ("/sys/fs/bpf/mine/flows", "-f")])
def test_every_verb_passes_on_the_table_by_name_or_path(
    stub: Stub, verb: str, table: str, option: str
) -> None:
    call = stub.call("-m", table, verb)
    assert call[0] == verb
    assert call[call.index(option) :][:2] == [option, table]


def test_options_may_follow_the_verb(stub: Stub) -> None:
    assert stub.call("load", "-i", "eth0") == ["load", "--iface", "eth0", "--direction", "both"]


@pytest.mark.parametrize(
    ("options", "rest"),
    [
        (["-i", "eth0,eth1"], ["--iface", "eth0", "--iface", "eth1"]),
        (["-a"], []),
        ([], []),
    ],
)
def test_unload_is_of_everything_unless_the_command_line_names_interfaces(
    stub: Stub, options: list[str], rest: list[str]
) -> None:
    stub.defaults.write_text("INTERFACE=wlan0\n")
    assert stub.call(*options, "unload") == ["unload", *rest]


def test_status_as_json(stub: Stub) -> None:
    assert stub.call("-j", "status") == ["status", "--json"]


def test_arguments_with_spaces_and_patterns_arrive_whole(stub: Stub) -> None:
    call = stub.call("-w", "/data/my flows *", "-i", "eth*", "start")
    assert call[call.index("-d") + 1] == "/data/my flows *"
    assert call[call.index("--iface") + 1] == "eth*"


def test_the_exit_status_is_that_of_flowmon(stub: Stub) -> None:
    assert stub.run("load", STUB_STATUS="7").returncode == 7


# --- the defaults file ---


def test_the_defaults_file_is_taken_and_the_command_line_wins(stub: Stub) -> None:
    stub.defaults.write_text(
        "INTERFACE=eth0,eth1\nINTERVAL=30\nDIRECTION=ingress\nWRITE_DIR=/data\nLOG_FILE=/data/log\n"
        f"MAP=mine\nPROGRAM=/a.o\nSECTION=tc\nJSON=yes\nUSERLAND={stub.program}\n"
    )
    done = stub.run_plainly("--int", "5", "-d", "both", "-m", "/sys/fs/bpf/x/y", "start")
    assert (done.returncode, done.stderr) == (0, "")
    assert stub.calls() == [
        [
            *("start", "--iface", "eth0", "--iface", "eth1", "--direction", "both"),
            *("--object", "/a.o", "--section", "tc", "-f", "/sys/fs/bpf/x/y"),
            *("-i", "5", "-d", "/data", "-j", "-l", "/data/log"),
        ]
    ]


@pytest.mark.parametrize(
    ("defaults", "options", "where"),
    [
        ("ALL=yes", [], ["--all"]),
        ("ALL=yes", ["-i", "eth0"], ["--iface", "eth0"]),
        ("INTERFACE=eth0", ["-a"], ["--all"]),
        ("INTERFACE='eth0, eth1'", [], ["--iface", "eth0", "--iface", "eth1"]),
        ("INTERFACE=eth0", ["-i", "eth1"], ["--iface", "eth1"]),
    ],
)
def test_the_command_line_says_where_if_it_says_so(
    stub: Stub, defaults: str, options: list[str], where: list[str]
) -> None:
    stub.defaults.write_text(defaults + "\n")
    assert stub.call(*options, "load") == ["load", *where, "--direction", "both"]


def test_the_environment_is_no_defaults_file(stub: Stub) -> None:
    done = stub.run("load", INTERFACE="eth9", ALL="yes", DIRECTION="egress", MAP="other")
    assert (done.returncode, stub.calls()) == (0, [["load", "--iface", "lo", "--direction", "both"]])


def test_the_sample_says_the_defaults_as_they_are(stub: Stub) -> None:
    """With every assignment of the sample made, nothing is other than without it."""
    built_in = stub.run_plainly("--show-defaults").stdout
    stub.defaults.write_text(re.sub(r"^#([A-Z_]+=)", r"\1", SAMPLE.read_text(), flags=re.MULTILINE))
    assert stub.run_plainly("--show-defaults").stdout == built_in
    in_sample = set(re.findall(r"^#([A-Z_]+)=", SAMPLE.read_text(), flags=re.MULTILINE))
    assert in_sample == {line.split("=")[0] for line in built_in.splitlines()}


# --- what only prints ---


def test_show_defaults_prints_them_without_the_command_line(stub: Stub) -> None:
    stub.defaults.write_text("INTERVAL=30\n")
    done = stub.run("-i", "eth0", "--show-defaults")
    assert (done.returncode, done.stderr, stub.calls()) == (0, "", [])
    assert {"INTERFACE=lo", "INTERVAL=30"} <= set(done.stdout.splitlines())


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_verb_and_option(stub: Stub, option: str) -> None:
    done = stub.run(option)
    assert (done.returncode, done.stderr, stub.calls()) == (0, "", [])
    long_options = (
        "interface all int program section map direction dir write userland json show-defaults help"
    )
    for word in (*VERBS, *(f"--{name}" for name in long_options.split())):
        assert word in done.stdout


# --- what cannot be ---


@pytest.mark.parametrize(
    ("arguments", "named", "advised"),
    [
        ([], "no verb", "start load stop unload purge status"),
        (["begin"], "'begin'", "start load stop unload purge status"),
        (["start", "stop"], "'stop'", "one verb"),
        (["--colour", "start"], "'--colour'", "--help"),
        (["-x", "-y", "start"], "'x'", "--help"),
        (["start", "-i"], "'i'", "--help"),
        (["--in", "eth0", "start"], "'--in'", "--help"),
        (["-d", "sideways", "start"], "'sideways'", "ingress, egress or both"),
        (["--dir", "", "load"], "''", "ingress, egress or both"),
        (["--int", "-5", "start"], "'-5'", "0 or more"),
        (["--int", "soon", "start"], "'soon'", "0 or more"),
        (["--int", ".", "start"], "'.'", "0 or more"),
        (["-i", "lo", "-a", "start"], "-i and -a", "name interfaces, or take all"),
        (["-a", "--interface", "lo", "load"], "-i and -a", "name interfaces, or take all"),
        (["-i", "", "load"], "''", "give the name"),
        (["-i", "eth0,,eth1", "load"], "'eth0,,eth1'", "give the name"),
        (["-w", "", "start"], "--write", "give a directory"),
        (["-u", "/dev/null", "start"], "'/dev/null'", "give the path of flowmon"),
        (["-u", "/nowhere/flowmon", "status"], "'/nowhere/flowmon'", "give the path of flowmon"),
        (["-u", "/usr", "status"], "'/usr'", "give the path of flowmon"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    stub: Stub, arguments: list[str], named: str, advised: str
) -> None:
    done = stub.run(*arguments)
    assert (done.returncode, done.stdout, stub.calls()) == (2, "", [])
    (line,) = done.stderr.splitlines()
    assert line.startswith("tc_flowmon.sh: ")
    assert named in line
    assert advised in line


@pytest.mark.parametrize("content", ["if then\n", "INTERVAL=soon\n", "DIRECTION=up\n", "false\n"])
def test_a_wrong_defaults_file_is_one_line_and_status_2(stub: Stub, content: str) -> None:
    stub.defaults.write_text(content)
    done = stub.run("start")
    assert (done.returncode, done.stdout, stub.calls()) == (2, "", [])
    assert len(done.stderr.splitlines()) == 1


# --- where flowmon is ---


def copied_script(directory: Path) -> Path:
    """The script in a repository of its own, where no other flowmon is beside it."""
    script = directory / "repository" / "scripts" / "tc_flowmon.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    return script


def test_flowmon_beside_the_script_goes_before_the_path(stub: Stub) -> None:
    script = copied_script(stub.directory)
    write_stub(script.parent.parent / ".venv" / "bin" / "flowmon")
    link = stub.directory / "link.sh"
    link.symlink_to(script)
    done = stub.run_plainly("stop", script=link)  # no flowmon on the path: it must be that beside it
    assert (done.returncode, done.stderr, stub.calls()) == (0, "", [["stop"]])


def test_else_flowmon_is_taken_from_the_path(stub: Stub) -> None:
    script = copied_script(stub.directory)
    done = stub.run_plainly("stop", script=script, PATH=f"{stub.directory}:/usr/bin:/bin")
    assert (done.returncode, done.stderr, stub.calls()) == (0, "", [["stop"]])


def test_without_flowmon_it_says_so(stub: Stub) -> None:
    script = copied_script(stub.directory)
    if shutil.which("flowmon", path="/usr/bin:/bin"):
        pytest.skip("flowmon is installed in the system")
    done = stub.run_plainly("stop", script=script)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "flowmon is neither at" in line
    assert "install it" in line


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        if os.environ.get("FLOWMON_REQUIRE_KERNEL") == "1":
            pytest.fail("FLOWMON_REQUIRE_KERNEL=1, but shellcheck is not installed")
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ["shellcheck", "--external-sources", SCRIPT, SAMPLE],
        cwd=SCRIPTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
