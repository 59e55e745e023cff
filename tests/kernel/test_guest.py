"""A good guest: what others put on an interface stays and works, and nothing of ours stays behind."""

import json
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowmon.kernel.pins import BPFFS
from netns import Host, monitor, wait_for

pytestmark = pytest.mark.kernel

# What tc prints of a filter that changes by itself.
VOLATILE = re.compile(r" (id|bytes|pkt|used|expires) \S+")


def hooks(host: Host) -> str:
    """Qdiscs and filters of the interface, as tc prints them."""
    return VOLATILE.sub("", host.tc())


def ping(host: Host, to: Host, count: int) -> None:
    host.run("ping", "-q", "-c", str(count), "-i", "0.05", to.ipv4)


class Stranger:
    """Somebody else's clsact qdisc with a counting program on both hooks, which ends the chain (TC_ACT_OK)."""

    SOURCE = """
        #include <linux/bpf.h>
        #include <bpf/bpf_helpers.h>
        struct {
            __uint(type, BPF_MAP_TYPE_ARRAY);
            __uint(max_entries, 1);
            __type(key, __u32);
            __type(value, __u64);
            __uint(pinning, LIBBPF_PIN_BY_NAME);
        } stranger_seen SEC(".maps");
        SEC("tc") int count(struct __sk_buff *skb)
        {
            __u32 key = 0;
            __u64 *seen = bpf_map_lookup_elem(&stranger_seen, &key);
            if (seen)
                __sync_fetch_and_add(seen, 1);
            return 0;
        }
        char _license[] SEC("license") = "GPL";
    """

    def __init__(self, host: Host, directory: Path, priority: int) -> None:
        self._host = host
        built = directory / "stranger.o"
        include = f"-I/usr/include/{platform.machine()}-linux-gnu"
        compiler = ["clang", "-O2", "-g", "-target", "bpf", include, "-x", "c", "-c", "-", "-o", str(built)]
        subprocess.run(compiler, input=self.SOURCE, text=True, check=True)
        self.pins = BPFFS / f"stranger-{host.namespace}"
        load = ["bpftool", "prog", "load", str(built), str(self.pins), "type", "tc"]
        subprocess.run(load, check=True, capture_output=True)
        host.run("tc", "qdisc", "add", "dev", "veth0", "clsact")
        for hook in ("ingress", "egress"):
            filter_ = ("prio", str(priority), "handle", "7", "bpf", "da", "pinned", str(self.pins))
            host.run("tc", "filter", "add", "dev", "veth0", hook, *filter_)

    def seen(self) -> int:
        """Packets so far."""
        shown = subprocess.run(
            ["bpftool", "-j", "map", "dump", "pinned", str(BPFFS / "stranger_seen")],
            capture_output=True,
            check=True,
        )
        (element,) = json.loads(shown.stdout)
        return int(element["formatted"]["value"])

    def unseen(self) -> int:
        """Packets of the link that were not seen, from its beginning."""
        counters = self._host.link_counters()
        return counters["tx_packets"] + counters["rx_packets"] - self.seen()

    def leave(self) -> None:
        self.pins.unlink()
        (BPFFS / "stranger_seen").unlink()


@pytest.mark.parametrize("priority", [1, 100])
def test_a_strangers_filters_work_before_during_and_after(pair, tmp_path, priority):
    stranger = Stranger(pair.left, tmp_path, priority)
    try:
        before = hooks(pair.left)
        passed = stranger.unseen()
        ping(pair.left, pair.right, 3)
        assert stranger.seen() >= 6
        with monitor(pair.left, "--iface", "veth0", "-j") as running:
            assert "stranger" in hooks(pair.left)
            ping(pair.left, pair.right, 4)
            (record,) = running.stop()
        assert stranger.seen() >= 6 + 8
        assert (record["packetDeltaCount"], record["reversePacketDeltaCount"]) == (4, 4)
        assert hooks(pair.left) == before
        ping(pair.left, pair.right, 2)
        assert stranger.seen() >= 6 + 8 + 4
        wait_for(lambda: stranger.unseen() == passed, "the stranger to have seen all that passed")
    finally:
        stranger.leave()


def test_filters_of_another_kind_stay_at_their_priority(pair):
    """Two kinds cannot share a priority: flowmon takes the next one."""
    pair.left.run("tc", "qdisc", "add", "dev", "veth0", "clsact")
    rule = "protocol ip u32 match u8 0 0xf0 at 0 classid 1:1"  # IP version 0: matches nothing
    for priority in ("1", "3"):
        pair.left.run("tc", "filter", "add", "dev", "veth0", "ingress", "prio", priority, *rule.split())
    before = hooks(pair.left)
    with monitor(pair.left, "--iface", "veth0", "-j") as running:
        assert "pref 2 bpf" in hooks(pair.left)
        ping(pair.left, pair.right, 2)
        (record,) = running.stop()
    assert (record["packetDeltaCount"], record["reversePacketDeltaCount"]) == (2, 2)
    assert hooks(pair.left) == before


def test_an_ingress_qdisc_of_a_stranger_is_left_alone(pair):
    pair.left.run("tc", "qdisc", "add", "dev", "veth0", "ingress")
    before = hooks(pair.left)
    done = pair.left.flowmon("--iface", "veth0", "-i", "0")
    assert done.returncode == 1
    assert "ingress qdisc" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert hooks(pair.left) == before


def test_an_empty_clsact_of_a_stranger_stays(pair):
    pair.left.run("tc", "qdisc", "add", "dev", "veth0", "clsact")
    before = hooks(pair.left)
    assert pair.left.flowmon("--iface", "veth0", "-i", "0").returncode == 0
    assert hooks(pair.left) == before


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_when_the_monitor_ends(pair, end):
    before = hooks(pair.left), bpf_objects()
    with monitor(pair.left, "--iface", "veth0", "-j") as running:
        assert hooks(pair.left) != before[0]
        running.stop(end)
    assert hooks(pair.left) == before[0]
    wait_for(lambda: bpf_objects() == before[1], "programs and maps to go")


def test_a_killed_monitor_is_found_and_cleared(pair):
    """By name, from the kernel: also where its pins are gone."""
    before = hooks(pair.left)
    with monitor(pair.left, "--iface", "veth0", "-j") as running:
        ping(pair.left, pair.right, 3)
        running.kill()
    found = json.loads(pair.left.flowmon("status", "--json").stdout)
    assert [interface["name"] for interface in found["interfaces"]] == ["veth0"]
    shutil.rmtree(Path(found["table"]).parent)
    done = pair.left.flowmon("-i", "0", "--idle-timeout", "0", "-j")
    (record,) = map(json.loads, done.stdout.splitlines())
    assert record["packetDeltaCount"] == 3
    assert pair.left.flowmon("purge").returncode == 0
    assert hooks(pair.left) == before


def test_after_a_kill_the_next_run_takes_over_and_clears(pair):
    before = hooks(pair.left)
    with monitor(pair.left, "--iface", "veth0", "-j") as running:
        ping(pair.left, pair.right, 3)
        running.kill()
    assert hooks(pair.left) != before
    with monitor(pair.left, "--iface", "veth0", "-j") as running:
        ping(pair.left, pair.right, 2)
        records = running.stop()
    assert sorted(record["packetDeltaCount"] for record in records) == [2, 3]
    assert hooks(pair.left) == before
    assert pair.left.flowmon("status").returncode == 1


def test_of_several_runs_at_once_one_collects_and_nothing_stays(pair):
    before = hooks(pair.left)
    command = pair.left.command(sys.executable, "-m", "flowmon", "--iface", "veth0", "-i", "0.2", "-j")
    runs = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    time.sleep(5)
    said = []
    for run in runs:
        run.terminate()
        said.append(run.communicate(timeout=30)[1])
    assert sorted(run.returncode for run in runs) == [0, 1, 1], said
    assert sum("another collector" in text for text in said) == 2
    assert not any("Traceback" in text for text in said)
    assert hooks(pair.left) == before
    assert pair.left.flowmon("status").returncode == 1


def test_a_table_that_another_has_replaced_is_not_ours_to_remove(pair):
    with monitor(pair.left, "--iface", "veth0", "-i", "0.2", "-j") as running:
        assert pair.left.flowmon("purge").returncode == 0
        assert pair.left.flowmon("load", "--iface", "veth0").returncode == 0
        assert "removed by somebody else" in running.fail()
    ping(pair.left, pair.right, 2)
    done = pair.left.flowmon("-i", "0", "--idle-timeout", "0", "-j")
    (record,) = map(json.loads, done.stdout.splitlines())
    assert record["packetDeltaCount"] == 2
    assert pair.left.flowmon("purge").returncode == 0


def test_an_interface_that_goes_and_comes_back_is_watched_again(pair):
    host = pair.left
    add = ("ip", "link", "add", "later0", "type", "veth", "peer", "name", "later1")
    host.run(*add)
    host.run("ip", "link", "set", "later0", "up")
    with monitor(host, "--iface", "later0", "-i", "0.2", "-j") as running:
        host.run("ip", "link", "del", "later0")
        time.sleep(0.5)
        host.run(*add)
        wait_for(
            lambda: "flowmon:" in host.run("tc", "filter", "show", "dev", "later0", "egress"), "it again"
        )
        running.stop()
    assert "later0 is gone" in running.said
    assert "attached to later0" in running.said
    assert "clsact" not in host.run("tc", "qdisc", "show", "dev", "later0")


def test_in_the_foreground_all_is_undone_and_an_earlier_load_stays(pair):
    assert pair.left.flowmon("load", "--iface", "lo").returncode == 0
    loaded = pair.left.flowmon("status", "--json").stdout
    before = hooks(pair.left)
    with monitor(pair.left, "--all", "-j") as running:
        pair.left.run("ip", "link", "add", "later0", "type", "veth", "peer", "name", "later1")
        pair.left.run("ip", "link", "set", "later0", "up")
        wait_for(lambda: "flowmon:" in pair.left.run("tc", "filter", "show", "dev", "later0", "egress"), "it")
        running.stop()
    assert hooks(pair.left) == before
    assert "flowmon:" not in pair.left.run("tc", "filter", "show", "dev", "later0", "egress")
    after = json.loads(pair.left.flowmon("status", "--json").stdout)
    assert after["interfaces"] == json.loads(loaded)["interfaces"]
    assert not after["follows_new_interfaces"]
    assert pair.left.flowmon("purge").returncode == 0


def test_two_tables_in_one_directory_do_not_touch_each_other(pair):
    before = hooks(pair.left)
    assert pair.left.flowmon("load", "--iface", "veth0").returncode == 0
    assert pair.left.flowmon("load", "-p", "other", "--iface", "veth0").returncode == 0
    ping(pair.left, pair.right, 3)
    assert pair.left.flowmon("purge").returncode == 0
    ping(pair.left, pair.right, 2)
    done = pair.left.flowmon("-p", "other", "-i", "0", "--idle-timeout", "0", "-j")
    counts = [json.loads(line)["packetDeltaCount"] for line in done.stdout.splitlines()]
    assert sorted(counts) == [2, 3]
    assert pair.left.flowmon("purge", "-p", "other").returncode == 0
    assert hooks(pair.left) == before


def test_ip_netns_exec_finds_what_an_earlier_one_loaded(pair):
    """Each has a /sys and a bpffs of its own: pins do not last from one command to the next."""

    def flowmon(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["ip", "netns", "exec", pair.left.namespace, sys.executable, "-m", "flowmon", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    before = hooks(pair.left)
    assert flowmon("load", "--iface", "veth0").returncode == 0
    ping(pair.left, pair.right, 3)
    done = flowmon("-i", "0", "--idle-timeout", "0", "-j")
    (record,) = map(json.loads, done.stdout.splitlines())
    assert record["packetDeltaCount"] == 3
    books = json.loads(flowmon("status", "--json").stdout)["books"]
    assert (books["taken_flows"], books["evicted_flows"], books["resident_flows"]) == (2, 0, 0)
    assert flowmon("purge").returncode == 0
    assert hooks(pair.left) == before


def test_all_follows_interfaces_that_come_and_go(pair):
    with monitor(pair.left, "--all", "-i", "0.2", "--idle-timeout", "0.5", "-j") as running:
        pair.left.run("ip", "link", "add", "later0", "type", "veth", "peer", "name", "later1")
        for end in (0, 1):
            pair.left.run("ip", "link", "set", f"later{end}", "up")
        wait_for(lambda: "flowmon:" in pair.left.run("tc", "filter", "show", "dev", "later1", "egress"), "it")
        pair.left.run("ip", "address", "add", "10.79.0.1/24", "dev", "later0")
        pair.left.run("ip", "neighbour", "add", "10.79.0.2", "lladdr", "02:00:00:00:00:01", "dev", "later0")
        pair.left.run("sh", "-c", "ping -q -c 2 -i 0.05 -W 0.1 10.79.0.2 || true")
        pair.left.run("ip", "link", "del", "later0")
        time.sleep(1)
        records = running.stop()
    echoes = [record for record in records if record["destinationAddress"] == "10.79.0.2"]
    # It left later0 and entered later1: one flow, reported where it was seen first.
    assert [(echo["interfaceName"], echo["packetDeltaCount"]) for echo in echoes] == [("later0", 2)]


def test_every_interface_reports_what_each_saw(pair):
    pair.left.run("ip", "link", "add", "x0", "type", "veth", "peer", "name", "x1")
    for end in (0, 1):
        pair.left.run("ip", "link", "set", f"x{end}", "up")
    pair.left.run("ip", "address", "add", "10.79.0.1/24", "dev", "x0")
    pair.left.run("ip", "neighbour", "add", "10.79.0.2", "lladdr", "02:00:00:00:00:01", "dev", "x0")
    with monitor(pair.left, "--iface", "x0", "--iface", "x1", "--every-interface", "-j") as running:
        pair.left.run("sh", "-c", "ping -q -c 2 -i 0.05 -W 0.1 10.79.0.2 || true")
        records = running.stop()
    echoes = [record for record in records if record["icmpTypeCode"] == 0x0800]
    assert sorted((echo["interfaceName"], echo["flowDirection"]) for echo in echoes) == [("x0", 1), ("x1", 0)]
    assert len({echo["flowId"] for echo in echoes}) == 1


def test_unload_keeps_the_table_and_load_goes_on_with_it(pair):
    table = pair.left.flowmon("load", "--iface", "veth0")
    assert table.returncode == 0
    ping(pair.left, pair.right, 3)
    assert pair.left.flowmon("unload").returncode == 0
    ping(pair.left, pair.right, 5)
    assert pair.left.flowmon("load", "--iface", "veth0").returncode == 0
    ping(pair.left, pair.right, 7)
    done = pair.left.flowmon("-i", "0", "--idle-timeout", "0", "-j")
    counts = sorted(json.loads(line)["packetDeltaCount"] for line in done.stdout.splitlines())
    assert counts == [3, 7]
    assert pair.left.flowmon("purge").returncode == 0


def bpf_objects() -> tuple[int, int]:
    """How many programs and maps of flowmon's names are loaded."""
    programs = json.loads(subprocess.run(["bpftool", "-j", "prog"], capture_output=True, check=True).stdout)
    maps = json.loads(subprocess.run(["bpftool", "-j", "map"], capture_output=True, check=True).stdout)
    names = (
        "ingress_ethernet"[:15],
        "egress_ethernet",
        "ingress_ip",
        "egress_ip",
        "take",
        "flows",
        "take_results",
    )
    return tuple(sum(found.get("name") in names for found in kind) for kind in (programs, maps))
