"""Tunnels: what tells flows in different ones apart, and a VXLAN between two hosts."""

from itertools import combinations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

import craft
from kernel.replay import loaded_for_replay, run_capture
from kernel.test_live import total
from netns import Host, Pair, monitor, still, wait_for

pytestmark = pytest.mark.kernel

LINK = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


@pytest.mark.parametrize("loader", ["libbpf", "bcc"])
def test_neighbouring_addresses_of_tunnels_do_not_meet(kernel, tmp_path, loader):
    """All pairs of 29 hosts tunnel the same 5-tuple, each in both directions: one record a pair."""
    hosts = [f"10.0.0.{number}" for number in range(1, 30)]
    pairs = list(combinations(hosts, 2))
    there = IP(src="172.16.0.1", dst="172.16.0.2") / UDP(sport=1000, dport=2000) / b"there"
    back = IP(src="172.16.0.2", dst="172.16.0.1") / UDP(sport=2000, dport=1000) / b"back"
    packets = [
        packet
        for one, other in pairs
        for packet in (LINK / IP(src=one, dst=other) / there, LINK / IP(src=other, dst=one) / back)
    ]
    capture = tmp_path / "tunnels.pcap"
    craft.write_pcap(
        capture, (craft.Frame(craft.START_NS + at, bytes(packet)) for at, packet in enumerate(packets))
    )
    with loaded_for_replay(loader, decap=True) as source:
        records, _ = run_capture(source, capture)
    found = {(record["tunnelSourceAddress"], record["tunnelDestinationAddress"]) for record in records}
    assert found == set(pairs)
    assert [record for record in records if record["reversePacketDeltaCount"] != 1] == []


VNI = 77
INSIDE = {"left": "172.31.77.1", "right": "172.31.77.2"}
HARDWARE = {"left": "02:00:00:00:77:01", "right": "02:00:00:00:77:02"}
VXLAN_HEADERS = 20 + 8 + 8 + 14  # IPv4, UDP, VXLAN, Ethernet: what a segment has around it


def join_by_vxlan(pair: Pair) -> None:
    """A VXLAN device on each host, that carries nothing but what is sent on purpose."""
    hosts: dict[str, Host] = {"left": pair.left, "right": pair.right}
    for side, other in (("left", "right"), ("right", "left")):
        host = hosts[side]
        link = ("ip", "link", "add", "vx0", "address", HARDWARE[side], "type", "vxlan", "id", str(VNI))
        host.run(*link, "dstport", "4789", "local", host.ipv4, "remote", hosts[other].ipv4, "dev", "veth0")
        host.run("sysctl", "-qw", "net.ipv6.conf.vx0.disable_ipv6=1")
        host.run("ip", "address", "add", f"{INSIDE[side]}/24", "dev", "vx0")
        host.run("ip", "link", "set", "vx0", "up")
        neighbour = (INSIDE[other], "lladdr", HARDWARE[other], "dev", "vx0", "nud", "permanent")
        host.run("ip", "neighbour", "add", *neighbour)


@pytest.mark.parametrize("decap", [False, True], ids=["outside", "inside"])
def test_iperf3_through_vxlan_counts_the_segments_on_the_wire(pair, decap):
    join_by_vxlan(pair)
    arguments = ("--iface", "veth0", "-i", "1", "-j", *(["--decap"] if decap else []))
    with pair.right.server(5201, "iperf3", "-s", "-1"), monitor(pair.left, *arguments) as running:
        before, buffers = pair.left.tcp_segments_sent(), pair.left.link_counters()["tx_packets"]
        pair.left.run("iperf3", "-c", INSIDE["right"], "-t", "2")
        wait_for(lambda: still(pair.left), "the link to fall silent")
        segments = pair.left.tcp_segments_sent() - before
        buffers = pair.left.link_counters()["tx_packets"] - buffers
        records = running.stop()
    assert segments > 5 * buffers, "super-packets were not on trial"
    flows = [record for record in records if record["protocolIdentifier"] == (6 if decap else 17)]
    assert total(flows, "packetDeltaCount", egress=True) == segments
    longest = max(record["maximumIpTotalLength"] for record in flows)
    assert longest == (1500 - VXLAN_HEADERS if decap else 1500)
    told = {
        tuple(record[name] for name in ("tunnelType", "tunnelIdentifier", "tunnelSourceAddress"))
        for record in flows
        if record["sourceAddress"] == (INSIDE["left"] if decap else pair.left.ipv4)
    }
    assert told == ({("vxlan", VNI, pair.left.ipv4)} if decap else {(None, None, None)})
