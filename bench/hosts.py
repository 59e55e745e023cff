"""Two hosts in network namespaces, what is put on the receiver's hooks, and what is sent to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from measure import PROJECT, Bench, environment
from programs import OwnPrograms

from flowmon.kernel.pins import PinSet

sys.path.insert(1, str(PROJECT / "tests"))
from netns import Host, Pair, make_pair

NAME = f"bench-{os.getpid()}"  # of namespaces, and of what is in bpffs
BPFFS = Path("/sys/fs/bpf")
NO_PROGRAM, EMPTY = "no program", "empty"
HOOKS = ("ingress", "egress")
ONE_CPU = ("taskset", "--cpu-list", "0")
PRIORITY = "7"  # of the filters that the bench attaches itself


def pair() -> AbstractContextManager[Pair]:
    """The sender is on the left, the receiver on the right. Both are gone afterwards."""
    return make_pair(NAME)


def missing(*programs: str) -> list[str]:
    """Which of the programs are not installed."""
    return [name for name in programs if shutil.which(name) is None]


Programs = dict[str, Path]  # in bpffs, by hook


class Flowmon:
    """The command of a tree in a host, with a table of its own."""

    def __init__(self, host: Host, tree: Path, contender: str, directory: Path) -> None:
        """directory: for the records."""
        self.directory = directory
        self._host = host
        self._tree = tree
        self._table = BPFFS / f"{NAME}-{contender}" / "flow_table"

    def run(self, *arguments: str) -> str:
        """`flowmon ARGUMENTS` to its end; what it printed."""
        done = subprocess.run(self._command(*arguments), **self._how(), capture_output=True)
        if done.returncode:
            raise RuntimeError(f"flowmon {' '.join(arguments)}: {done.stderr}")
        return str(done.stdout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`flowmon ARGUMENTS`, which goes on; its standard error is to be read."""
        return subprocess.Popen(self._command(*arguments), **self._how(), stderr=subprocess.PIPE)

    def _how(self) -> dict[str, Any]:
        return {"cwd": self._tree, "env": environment(self._tree), "text": True}

    def _command(self, *arguments: str) -> list[str]:
        return self._host.command(sys.executable, "-m", "flowmon", *arguments)

    @property
    def table(self) -> tuple[str, str]:
        """The option that names it."""
        return "-f", str(self._table)

    def program(self, hook: str) -> Path:
        """Where the program for a hook is in bpffs."""
        return PinSet.of_table(self._table).program_path(f"{hook}_ethernet")

    @contextmanager
    def loaded(self, max_flows: int, *options: str) -> Iterator[None]:
        """On both hooks of the host's interface. At the end all is taken away, and the records too.

        options: others of `load`.
        """
        size = ("--max-flows", str(max_flows))
        self.run("load", *self.table, "--iface", self._host.interface, *size, *options)
        try:
            yield
        finally:
            self.run("purge", *self.table)
            shutil.rmtree(self.directory, ignore_errors=True)

    @contextmanager
    def collecting(self) -> Iterator[subprocess.Popen[str]]:
        """A collector that writes Parquet every second."""
        collector = self.start(*self.table, "-i", "1", "-d", str(self.directory), "--listen", "off")
        try:
            wait_for_line(collector, "collecting from")
            yield collector
        finally:
            collector.send_signal(signal.SIGINT)
            collector.communicate(timeout=60)

    def collect_the_rest(self) -> None:
        """All flows that are in the table still."""
        self.run(*self.table, "-i", "0", "--idle-timeout", "0", "-d", str(self.directory), "--listen", "off")

    def status(self) -> dict[str, Any]:
        """As `flowmon status --json` has it."""
        found: dict[str, Any] = json.loads(self.run("status", *self.table, "--json"))
        return found

    def books(self) -> dict[str, Any]:
        """Those in it."""
        found: dict[str, Any] = self.status()["books"]
        return found


def attach(host: Host, programs: Programs) -> None:
    """Puts programs by hook on the host's interface, in place of those that this put there before."""
    for hook in HOOKS:
        place = ("dev", host.interface, hook, "pref", PRIORITY, "handle", "1", "protocol", "all", "bpf")
        if hook in programs:
            what = ("direct-action", "object-pinned", str(programs[hook]))
            host.run("tc", "filter", "replace", *place, *what)
        elif f"pref {PRIORITY} " in host.run("tc", "filter", "show", "dev", host.interface, hook):
            host.run("tc", "filter", "delete", *place)


@contextmanager
def clsact(host: Host) -> Iterator[None]:
    """The qdisc with the hooks."""
    host.run("tc", "qdisc", "add", "dev", host.interface, "clsact")
    try:
        yield
    finally:
        host.run("tc", "qdisc", "del", "dev", host.interface, "clsact")


def flowmons(stack: ExitStack, host: Host, bench: Bench, max_flows: int) -> dict[str, Flowmon]:
    """Flowmon of each tree, loaded, with a table of its own, until the stack ends.

    Its filters make way for those that the bench puts on the hooks in turn: `attach` with `programs`.
    """
    stack.enter_context(clsact(host))
    found = {}
    for name, tree in bench.trees.items():
        found[name] = Flowmon(host, tree, name, bench.scratch / f"records-{name}")
        stack.enter_context(found[name].loaded(max_flows))
    for hook in HOOKS:
        host.run("tc", "filter", "delete", "dev", host.interface, hook)
    return found


def programs(stack: ExitStack, loaded: dict[str, Flowmon], own: OwnPrograms) -> dict[str, Programs]:
    """What is on the hooks for each contender: flowmon of each tree, the empty program, none."""
    found: dict[str, Programs] = {
        name: {hook: flowmon.program(hook) for hook in HOOKS} for name, flowmon in loaded.items()
    }
    found[EMPTY] = dict.fromkeys(HOOKS, stack.enter_context(own.pinned_empty(NAME)))
    found[NO_PROGRAM] = {}
    return found


def wait_for_line(process: subprocess.Popen[str], words: str) -> None:
    """Until a process has said that on its standard error."""
    assert process.stderr is not None  # noqa: S101 - it is started with a pipe
    said = ""
    while words not in (line := process.stderr.readline()):
        said += line
        if not line:
            raise RuntimeError(f"flowmon ended before it began: {said}")


def sending(host: Host, capture: Path, seconds: int) -> AbstractContextManager[subprocess.Popen[str]]:
    """Sends a capture again and again from one CPU, as fast as it goes, while the block runs."""
    return host.background(
        *ONE_CPU, "tcpreplay", "-q", "--topspeed", "--preload-pcap", "--loop=0", f"--duration={seconds}",
        "-i", host.interface, str(capture),
    )  # fmt: skip


def replay(host: Host, capture: Path, speed: str = "--topspeed") -> float:
    """Sends a capture once, in the same way or at another speed; packets a second."""
    said = host.run(*ONE_CPU, "tcpreplay", speed, "--preload-pcap", "-i", host.interface, str(capture))
    found = re.search(r"Actual: (\d+) packets .* sent in ([\d.]+) seconds", said)
    if found is None:
        raise RuntimeError(f"tcpreplay said nothing of packets: {said}")
    return int(found[1]) / float(found[2])
