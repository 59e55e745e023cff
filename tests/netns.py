"""Hosts to test with: network namespaces joined by veth, and the programs run in them."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Host:
    """A network namespace with one end of a veth pair."""

    namespace: str
    interface: str
    ipv4: str
    ipv6: str

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs in this namespace, and sees the host's mounts."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *arguments]

    def run(self, *arguments: str, timeout: float = 60) -> str:
        """What the command printed; it must succeed."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def flowmon(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """`flowmon ARGUMENTS`, to its end."""
        return subprocess.run(
            self.command(sys.executable, "-m", "flowmon", *arguments),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @contextlib.contextmanager
    def background(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A program that runs meanwhile."""
        process = subprocess.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=30)

    @contextlib.contextmanager
    def server(self, port: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A TCP server that listens when the block begins."""
        with self.background(*arguments) as process:
            wait_for(lambda: f":{port} " in self.run("ss", "-Hltn"), f"{arguments[0]} on port {port}")
            yield process

    def link_counters(self) -> dict[str, int]:
        """rx_packets, rx_bytes, tx_packets, tx_bytes, … of the interface (`ip -s link`)."""
        found = json.loads(self.run("ip", "-j", "-s", "link", "show", "dev", self.interface))
        stats = found[0]["stats64"]
        return {
            f"{way}_{what}": stats[way][what]
            for way in ("rx", "tx")
            for what in ("packets", "bytes", "dropped")
        }

    def tcp_segments_sent(self) -> int:
        """OutSegs and RetransSegs of /proc/net/snmp: all segments that TCP put on the wire.

        (RFC 2012: tcpOutSegs leaves out the segments that hold only retransmitted octets.)
        """
        header, values = [
            line.split()[1:]
            for line in self.run("cat", "/proc/net/snmp").splitlines()
            if line.startswith("Tcp:")
        ]
        counters = dict(zip(header, map(int, values), strict=True))
        return counters["OutSegs"] + counters["RetransSegs"]

    def tc(self) -> str:
        """Qdiscs and filters of the interface, as text to compare; the filters' counters left out."""
        return "".join(
            self.run("tc", *what, "dev", self.interface, *hook)
            for what, hook in (
                (("qdisc", "show"), ()),
                (("filter", "show"), ("ingress",)),
                (("filter", "show"), ("egress",)),
            )
        )


@dataclass(frozen=True)
class Pair:
    """Two hosts that reach each other."""

    left: Host
    right: Host


# No link-local addresses, no router solicitations, multicast listener reports at once and not later.
QUIET = (
    "addr_gen_mode=1",
    "router_solicitations=0",
    "mldv1_unsolicited_report_interval=10",
    "mldv2_unsolicited_report_interval=10",
)


def still(host: Host) -> bool:
    """Whether nothing passes the link for a moment."""
    before = host.link_counters()
    time.sleep(0.2)
    return before == host.link_counters()


@contextlib.contextmanager
def make_pair(prefix: str) -> Iterator[Pair]:
    """Two namespaces, named by `prefix`, joined by a veth pair, quiet but for what the test sends."""
    left = Host(f"{prefix}-a", "veth0", "10.77.0.1", "fd77::1")
    right = Host(f"{prefix}-b", "veth0", "10.77.0.2", "fd77::2")
    made = []
    try:
        for host in (left, right):
            _ip("netns", "add", host.namespace)
            made.append(host)
            for setting in QUIET:
                host.run("sysctl", "-qw", f"net.ipv6.conf.default.{setting}")
        _ip("link", "add", "veth0", "netns", left.namespace, "type", "veth", "peer", "name", "veth0",
            "netns", right.namespace)  # fmt: skip
        for host in (left, right):
            host.run("ip", "address", "add", f"{host.ipv4}/24", "dev", host.interface)
            host.run("ip", "address", "add", f"{host.ipv6}/64", "dev", host.interface, "nodad")
            host.run("ip", "link", "set", "lo", "up")
            host.run("ip", "link", "set", host.interface, "up")
        # Neighbours that are known are not asked for: nothing passes but what the test sends.
        for host, other in ((left, right), (right, left)):
            mac = json.loads(other.run("ip", "-j", "link", "show", "dev", other.interface))[0]["address"]
            for address in (other.ipv4, other.ipv6):
                host.run("ip", "neighbour", "replace", address, "lladdr", mac, "dev", host.interface)
        wait_for(
            lambda: "state UP" in left.run("ip", "link", "show", "veth0"),
            "the link to come up",
        )
        wait_for(lambda: still(left), "the link to fall silent")
        yield Pair(left, right)
    finally:
        for host in made:
            _ip("netns", "delete", host.namespace)


@contextlib.contextmanager
def collector(host: Host, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A collector on a loaded table, reading it when the block begins."""
    with tempfile.TemporaryDirectory() as directory:
        pid_file = Path(directory) / "pid"
        command = (sys.executable, "-m", "flowmon", *arguments, "--pid-file", str(pid_file))
        with host.background(*command) as process:
            wait_for(lambda: pid_file.exists() or process.poll() is not None, "the collector to start")
            yield process


class Monitor:
    """A flowmon that runs in a host; `stop` ends it and gives what it recorded and said.

    Its records go into a file: a pipe that nobody reads would stop it after some twenty of them.
    """

    def __init__(self, host: Host, *arguments: str) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it is written until the process ends
        self._process = subprocess.Popen(
            host.command(sys.executable, "-m", "flowmon", *arguments),
            stdout=self._output,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = ""
        self.pid = self._process.pid
        self._first = ""
        while "collecting from" not in (line := self._process.stderr.readline()):
            assert line, "flowmon ended before it began"
            self._first += line

    def stop(self, number: int = signal.SIGINT) -> list[dict[str, Any]]:
        """The records that it printed as JSON lines."""
        self._process.send_signal(number)
        _, rest = self._process.communicate(timeout=60)
        self.said = self._first + rest
        assert self._process.returncode == 0, self.said
        self._output.seek(0)
        return [json.loads(line) for line in self._output]

    def fail(self) -> str:
        """What it said when it ended, by itself or when it was told to, and did not succeed."""
        try:
            _, self.said = self._process.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGTERM)
            _, self.said = self._process.communicate(timeout=60)
        assert self._process.returncode == 1, self.said
        return self.said

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()
        self._output.close()


@contextlib.contextmanager
def monitor(host: Host, *arguments: str) -> Iterator[Monitor]:
    """A running monitor: it counts when the block begins. The block must stop it."""
    started = Monitor(host, *arguments)
    try:
        yield started
    finally:
        started.kill()


def wait_for(condition, what: str, seconds: float = 20) -> None:
    """Until the condition holds; fails after a while."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
