"""The deny-list and the guard, at an interface: what is dropped, what is not, and what is said of it."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from netns import Host, Monitor, Pair, monitor, wait_for

pytestmark = pytest.mark.kernel

LOADERS = ["libbpf", "bcc"]
OTHER = "10.77.0.3"  # a second address of the left host

ECHO = """
import socket, threading
def serve(one):
    while data := one.recv(100):
        one.sendall(data)
with socket.create_server(("", 7)) as server:
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
CLIENT = """
import socket, sys
one = socket.create_connection(("10.77.0.2", 7), 5, (sys.argv[1], 0))
one.settimeout(2)
for line in sys.stdin:
    one.sendall(b"x")
    print(one.recv(1).decode(), flush=True)
"""


def answers(host: Host, to: str, *arguments: str, count: int = 3) -> int:
    """How many of `count` pings are answered."""
    done = subprocess.run(
        host.command("ping", "-q", "-c", str(count), "-i", "0.05", "-W", "0.5", *arguments, to),
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout.split(" received")[0].split()[-1])


def said(host: Host, *arguments: str) -> str:
    done = host.flowmon(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def refused(host: Host, *arguments: str) -> str:
    """The one line of a refusal."""
    done = host.flowmon(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


def deny_entries(host: Host, state: str = "blocked") -> dict[str, dict]:
    found = json.loads(said(host, "blocked", "--json"))["deny"]
    return {one["prefix"]: one for one in found if one["state"] == state}


def guarded(host: Host) -> dict[str, dict]:
    return {one["address"]: one for one in json.loads(said(host, "blocked", "--json"))["guard"]["blocked"]}


def program(host: Host) -> str:
    """The tag of the program on ingress: a hash of its instructions."""
    words = host.run("tc", "filter", "show", "dev", host.interface, "ingress").split()
    return words[words.index("tag") + 1]


@pytest.mark.parametrize("loader", LOADERS)
def test_blocked_source_is_dropped_counted_and_recorded(pair: Pair, loader: str) -> None:
    left, right = pair.left, pair.right
    with monitor(right, "--iface", right.interface, "--loader", loader, "-j") as running:
        before = program(right)
        assert answers(left, right.ipv4) == 3
        line = said(right, "block", left.ipv4, "--ttl", "1m", "--reason", "it scans")
        assert line.startswith(f"{left.ipv4} is blocked until ")
        assert answers(left, right.ipv4) == 0
        assert answers(left, right.ipv6) == 3  # the same host by another address
        entry = deny_entries(right)[left.ipv4]
        assert (entry["packets"], entry["reason"]) == (3, "it scans")
        assert entry["octets"] == 3 * 98
        assert said(right, "unblock", left.ipv4) == f"{left.ipv4} is unblocked"
        assert answers(left, right.ipv4) == 3
        assert program(right) == before  # nothing is blocked: nothing is looked up
        records = running.stop()
    dropped = [record for record in records if record["droppedPacketDeltaCount"]]
    (denied,) = dropped
    assert (denied["sourceAddress"], denied["packetDeltaCount"]) == (left.ipv4, 3)
    assert (denied["droppedPacketDeltaCount"], denied["droppedOctetDeltaCount"]) == (3, 3 * 84)
    assert (denied["forwardingStatus"], denied["firewallEvent"]) == (129, 3)
    assert {record["firewallEvent"] for record in records if record not in dropped} == {None}


def test_kernels_clock_ends_an_entry_and_the_shorter_prefix_goes_on(pair: Pair) -> None:
    left, right = pair.left, pair.right
    said(right, "load", "--iface", right.interface)  # no collector runs
    said(right, "block", "10.77.0.0/31", "--ttl", "1m")
    said(right, "block", left.ipv4, "--ttl", "3s")
    said(right, "block", left.ipv6, "--ttl", "3s")
    assert (answers(left, right.ipv6), answers(left, right.ipv4)) == (0, 0)
    wait_for(lambda: answers(left, right.ipv6) == 3, "the entry's end")
    assert answers(left, right.ipv4) == 0  # the shorter prefix holds
    assert set(deny_entries(right)) == {"10.77.0.0/31"}
    said(right, "purge")


def test_entries_outlive_the_collector_and_not_the_purge(pair: Pair) -> None:
    left, right = pair.left, pair.right
    said(right, "load", "--iface", right.interface)
    said(right, "block", left.ipv4)
    for _ in range(2):
        with monitor(right, "-j") as running:
            assert answers(left, right.ipv4) == 0
            running.stop()
    said(right, "unload")
    assert answers(left, right.ipv4) == 3
    said(right, "load", "--iface", right.interface)  # by other programs, which know the list
    assert answers(left, right.ipv4) == 0
    said(right, "purge")
    said(right, "load", "--iface", right.interface)
    assert answers(left, right.ipv4) == 3
    assert deny_entries(right) == {}
    said(right, "purge")


def test_what_may_not_be_blocked_is_refused_by_its_rule(pair: Pair) -> None:
    right = pair.right
    right.run("ip", "route", "add", "default", "via", "10.77.0.9")
    said(right, "load", "--iface", right.interface, "--never-block", "192.0.2.0/24")
    try:
        for prefix, rule in {
            right.ipv4: f"{right.ipv4}/32 is this host's own address (veth0)",
            "10.0.0.0/8": "is ",
            right.ipv6: f"{right.ipv6}/128 is this host's own address (veth0)",
            "10.77.0.9": "10.77.0.9/32 is a gateway of this host (veth0)",
            "127.1.2.3": "127.0.0.0/8 is loopback",
            "192.0.2.7": "192.0.2.0/24 is --never-block 192.0.2.0/24",
        }.items():
            line = refused(right, "block", prefix)
            assert "may not be blocked: " in line
            assert rule in line
        line = refused(right, "block", "198.51.100.7", "--never-block", "198.51.100.0/24")
        assert line.endswith("198.51.100.0/24 is --never-block 198.51.100.0/24")
        assert deny_entries(right) == {}
    finally:
        said(right, "purge")


def test_block_that_becomes_forbidden_is_taken_off(pair: Pair) -> None:
    left, right = pair.left, pair.right
    said(right, "load", "--iface", right.interface)
    said(right, "block", left.ipv4)
    right.run("ip", "route", "add", "default", "via", left.ipv4)
    said(right, "block", "198.51.100.7")
    assert set(deny_entries(right)) == {"198.51.100.7"}
    assert answers(left, right.ipv4) == 3
    said(right, "purge")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("block", "nobody"), "'nobody' is no address: expected IPv4 or IPv6, or a prefix as 192.0.2.0/24"),
        (("block", "10.0.0.1/33"), "is no address"),
        (("block", "10.0.0.1/24"), "has bits behind its prefix: is 10.0.0.0/24 meant?"),
        (("block", "::/0"), "holds all of IPv4"),
        (("block", "192.0.2.1", "--ttl=-1h"), "'-1h' is no time to live: expected more than 0"),
        (("block", "192.0.2.1", "--ttl=0"), "is no time to live"),
        (("block", "192.0.2.1", "--ttl=nan"), "is no time to live"),
        (("block", "192.0.2.1", "--never-block", "x"), "'x' is no address"),
        (("unblock", "192.0.2.1"), "192.0.2.1 is not blocked: `flowmon blocked` says what is"),
        (("unblock", "127.0.0.0/8"), "is not blocked"),
    ],
)
def test_what_cannot_be_is_one_line(loaded: Host, arguments: tuple[str, ...], expected: str) -> None:
    assert expected in refused(loaded, *arguments)


@pytest.fixture(scope="module")
def loaded(kernel: None) -> Iterator[Host]:
    from netns import make_pair

    with make_pair("flowmon-blocking") as made:
        said(made.right, "load", "--iface", made.right.interface)
        yield made.right
        said(made.right, "purge")


SEND = """
import sys
from scapy.layers.inet import TCP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.sendrecv import sendp
source, destination, mac, what = sys.argv[1:]
outer = Ether(dst=mac) / IPv6(src=source, dst=destination)
if what == "syns":
    sendp([outer / TCP(sport=4000, dport=port, flags="S") for port in range(100, 120)], iface="veth0", verbose=0)
else:
    for _ in range(17):
        outer /= IPv6ExtHdrDestOpt()
    sendp(outer / ICMPv6EchoRequest(), iface="veth0", verbose=0)
"""


def send(pair: Pair, source: str, what: str) -> None:
    """Packets that no stack sends, to the right host."""
    links = json.loads(pair.right.run("ip", "-j", "link", "show", "dev", pair.right.interface))
    pair.left.run(sys.executable, "-c", SEND, source, pair.right.ipv6, links[0]["address"], what)


def test_packet_with_more_headers_than_are_read_is_dropped_all_the_same(pair: Pair) -> None:
    left, right = pair.left, pair.right
    said(right, "load", "--iface", right.interface)
    said(right, "block", left.ipv6)
    send(pair, left.ipv6, "headers")
    books = json.loads(said(right, "status", "--json"))["books"]
    assert books["ignored_packets"]["too_many_headers"] == 1
    assert books["dropped_packets"] == 1
    said(right, "purge")


# --- the guard ---


class Conversation:
    """An open connection to the echo server."""

    def __init__(self, host: Host, source: str) -> None:
        command = host.command(sys.executable, "-c", CLIENT, source)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def works(self) -> bool:
        """Whether an octet comes back."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self._process.stdout.readline() == "x\n"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def guard(pair: Pair, *arguments: str) -> Iterator[tuple[Monitor, Conversation]]:
    """A guarded host, to which somebody else has a connection open."""
    left, right = pair.left, pair.right
    left.run("ip", "address", "add", f"{OTHER}/24", "dev", left.interface)
    with (
        monitor(right, "--iface", right.interface, "-j", *arguments) as running,
        right.server(7, sys.executable, "-c", ECHO),
    ):
        other = Conversation(left, OTHER)
        try:
            assert other.works()
            yield running, other
        finally:
            other.close()


def probe(host: Host, to: Host, ports: range) -> None:
    """A SYN to each port, in order, 1 ms between."""
    how = ("-q", "-S", "-c", str(len(ports)), "-i", "u1000", "-p", f"++{ports.start}")
    done = subprocess.run(
        host.command("hping3", *how, to.ipv4), capture_output=True, text=True, check=False, timeout=30
    )
    assert f"{len(ports)} packets transmitted" in done.stderr


def dropped_ports(records: list[dict], source: str) -> dict[int, int]:
    """Packets dropped by destination port."""
    return {
        record["destinationTransportPort"]: record["droppedPacketDeltaCount"]
        for record in records
        if record["sourceAddress"] == source and record["protocolIdentifier"] == 6
    }


@pytest.mark.parametrize(("loader", "ports"), [("libbpf", 10), ("libbpf", 64), ("bcc", 64)])
def test_guard_drops_the_port_too_many_itself_and_nothing_before(pair: Pair, loader: str, ports: int) -> None:
    left, right = pair.left, pair.right
    last = 1000 + ports
    with guard(pair, "--loader", loader, "--guard-ports", str(ports)) as (running, other):
        probe(left, right, range(1000, last))
        probe(left, right, range(1000, last))  # no port more
        assert guarded(right) == {}
        probe(left, right, range(last, last + 3))
        assert answers(left, right.ipv4) == 0
        assert other.works()
        assert answers(left, right.ipv4, "-I", OTHER) == 3
        found = guarded(right)[left.ipv4]
        assert (found["trigger_port"], found["packets"], found["blocks"]) == (last, 3 + 3, 1)
        assert said(right, "unblock", left.ipv4) == f"the guard lets go of 1 address in {left.ipv4}"
        assert answers(left, right.ipv4) == 3
        records = running.stop()
    expected = dict.fromkeys(range(1000, last), 0) | dict.fromkeys(range(last, last + 3), 1)
    assert dropped_ports(records, left.ipv4) == expected


def test_guards_window_and_block_end_by_the_clock(pair: Pair) -> None:
    left, right = pair.left, pair.right
    options = ("--guard-ports", "5", "--guard-window", "1", "--guard-block", "4")
    with guard(pair, *options) as (running, other):
        for start in (1000, 1005, 1010):  # five a window
            probe(left, right, range(start, start + 5))
            time.sleep(1.1)
        assert guarded(right) == {}
        probe(left, right, range(2000, 2006))
        assert set(guarded(right)) == {left.ipv4}
        assert answers(left, right.ipv4) == 0
        wait_for(lambda: answers(left, right.ipv4) == 3, "the block's end")
        assert guarded(right) == {}
        assert other.works()
        running.stop()


def test_guard_spares_whom_it_may_not_block(pair: Pair) -> None:
    left, right = pair.left, pair.right
    with guard(pair, "--guard-ports", "5", "--never-block", left.ipv4) as (running, _):
        probe(left, right, range(1000, 1020))
        assert answers(left, right.ipv4) == 3
        assert guarded(right) == {}
        records = running.stop()
    assert set(dropped_ports(records, left.ipv4).values()) == {0}


def test_ipv4_in_the_form_of_ipv6_is_nobodys(pair: Pair) -> None:
    left, right = pair.left, pair.right
    with guard(pair, "--guard-ports", "5") as (running, other):
        send(pair, f"::ffff:{OTHER}", "syns")
        assert guarded(right) == {}
        assert other.works()
        assert answers(left, right.ipv4, "-I", OTHER) == 3
        running.stop()


def test_guard_is_switched_on_where_the_programs_are_attached(pair: Pair) -> None:
    left, right = pair.left, pair.right
    said(right, "load", "--iface", right.interface)
    probe(left, right, range(1000, 1020))
    said(right, "load", "--iface", right.interface, "--guard-ports", "5")
    probe(left, right, range(1000, 1020))
    found = guarded(right)[left.ipv4]
    assert (found["trigger_port"], found["packets"]) == (1005, 15)
    said(right, "purge")


# --- the answer to alerts ---


@pytest.mark.parametrize("enforce", [(), ("--enforce",)], ids=["dry run", "enforced"])
def test_alert_blocks_only_where_that_is_enforced(pair: Pair, tmp_path, enforce: tuple[str, ...]) -> None:
    left, right = pair.left, pair.right
    alerts = tmp_path / "alerts.json"
    options = ("-i", "0.2", "--block", "scan", "--alerts", f"json:{alerts}", *enforce)
    with monitor(right, "--iface", right.interface, "-j", *options) as running:
        probe(left, right, range(1000, 1060))
        state = "blocked" if enforce else "dry run"
        wait_for(lambda: left.ipv4 in deny_entries(right, state), "the entry")
        assert answers(left, right.ipv4) == (0 if enforce else 3)
        entry = deny_entries(right, state)[left.ipv4]
        assert entry["packets"] >= 3
        assert entry["reason"].startswith("alert: ")
        assert entry["until"] is not None
        running.stop()
    started = [
        one for one in map(json.loads, alerts.read_text().splitlines()) if one["alertState"] == "started"
    ]
    verb = "blocked" if enforce else "would block"
    assert {one["action"] for one in started} == {f"{verb} {left.ipv4} for 3600 s"}
    assert verb in running.said  # logged


def test_alert_blocks_nobody_that_may_not_be(pair: Pair, tmp_path) -> None:
    left, right = pair.left, pair.right
    alerts = tmp_path / "alerts.json"
    options = ("-i", "0.2", "--block", "scan", "--enforce", "--never-block", left.ipv4)
    with monitor(right, "--iface", right.interface, "-j", *options, "--alerts", f"json:{alerts}") as running:
        probe(left, right, range(1000, 1060))
        wait_for(lambda: alerts.exists() and "started" in alerts.read_text(), "the alert")
        assert answers(left, right.ipv4) == 3
        assert deny_entries(right) == {}
        running.stop()
    first = json.loads(alerts.read_text().splitlines()[0])
    assert first["action"] == f"{left.ipv4} not blocked: {left.ipv4}/32 is --never-block {left.ipv4}"


def test_automatic_entries_have_a_most(pair: Pair, tmp_path) -> None:
    left, right = pair.left, pair.right
    left.run("ip", "address", "add", f"{OTHER}/24", "dev", left.interface)
    options = ("-i", "0.2", "--block", "scan", "--block-most", "1", "--alerts", f"json:{tmp_path / 'alerts'}")
    with monitor(right, "--iface", right.interface, "-j", *options) as running:
        probe(left, right, range(1000, 1060))
        wait_for(lambda: deny_entries(right, "dry run"), "the first entry")
        left.run("nmap", "-n", "-Pn", "-sS", "-p", "1000-1060", "-S", OTHER, "-e", left.interface, right.ipv4)
        wait_for(lambda: OTHER in (tmp_path / "alerts").read_text(), "the second alert")
        assert set(deny_entries(right, "dry run")) == {left.ipv4}
        running.stop()
    assert (
        f"{OTHER} not blocked: 1 automatic entries are the most (--block-most)"
        in (tmp_path / "alerts").read_text()
    )
