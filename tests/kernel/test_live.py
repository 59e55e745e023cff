"""Real traffic between two hosts, to the packet, under both loaders."""

import json
import sys
import time
from pathlib import Path

import pytest

from kernel.replay import take_everything
from netns import monitor, still, wait_for

pytestmark = pytest.mark.kernel

LOADERS = ["libbpf", "bcc"]

# As fast as the replay goes, times say nothing; what does not hang on them must be the oracle's.
DESCRIPTIONS = (
    "sourceAddress destinationAddress sourceTransportPort destinationTransportPort protocolIdentifier"
    " vlanId icmpIdentifier ipVersion"
).split()
COUNTS = (
    "icmpTypeCode packetDeltaCount octetDeltaCount layer2OctetDeltaCount ipClassOfService flowLabelIPv6"
    " minimumIpTotalLength maximumIpTotalLength minimumTTL maximumTTL packetSizeHistogram ttlHistogram"
    " tcpControlBits tcpSynTotalCount tcpFinTotalCount tcpRstTotalCount minimumTcpWindowSize"
    " maximumTcpWindowSize tcpMaximumSegmentSize tcpWindowScale"
).split()
SAME_AT_ANY_SPEED = [*DESCRIPTIONS, *COUNTS, *(f"reverse{name[0].upper()}{name[1:]}" for name in COUNTS)]
DISORDER = ("Retransmitted", "OutOfOrder")


@pytest.fixture(params=LOADERS)
def loader_name(request) -> str:
    return str(request.param)


def disordered_packets(record: dict, way: str) -> int:
    """Retransmitted or out of order: which of the two hangs on the times."""
    return sum(record[f"{way}{kind}PacketDeltaCount"] for kind in DISORDER)


@pytest.mark.parametrize("reverse", [False, True], ids=["upload", "download"])
def test_iperf3_with_offload_counts_the_segments_on_the_wire(pair, loader_name, reverse):
    """Seen at the host that sends the data; what the other's link dropped on its way never came there."""
    sender, other = (pair.right, pair.left) if reverse else (pair.left, pair.right)
    arguments = ("--iface", "veth0", "-i", "1", "-j", "--loader", loader_name)
    with pair.right.server(5201, "iperf3", "-s", "-1"), monitor(sender, *arguments) as running:
        before = sender.tcp_segments_sent(), other.tcp_segments_sent() - other.link_counters()["tx_dropped"]
        pair.left.run("iperf3", "-c", pair.right.ipv4, "-t", "3", *(["-R"] if reverse else []))
        wait_for(lambda: still(pair.left), "the link to fall silent")
        after = sender.tcp_segments_sent(), other.tcp_segments_sent() - other.link_counters()["tx_dropped"]
        counters = sender.link_counters()
        flows = [record for record in running.stop() if record["protocolIdentifier"] == 6]
    left = total(flows, "packetDeltaCount", egress=True)
    arrived = total(flows, "packetDeltaCount", egress=False)
    assert (left, arrived) == (after[0] - before[0], after[1] - before[1])
    assert left > 5 * counters["tx_packets"], "super-packets were not on trial"


def test_big_tcp_counts_the_segments_on_the_wire(pair, loader_name):
    """Buffers of more than 64 KiB, with a length field of 0 and a jumbo header that no segment has."""
    for host in (pair.left, pair.right):
        host.run("ip", "link", "set", "veth0", "gso_max_size", "150000", "gro_max_size", "150000")
    arguments = ("--iface", "veth0", "-i", "1", "-j", "--loader", loader_name)
    with pair.right.server(5201, "iperf3", "-s", "-1"), monitor(pair.left, *arguments) as running:
        segments, sent = pair.left.tcp_segments_sent(), pair.left.link_counters()
        pair.left.run("iperf3", "-c", pair.right.ipv6, "-t", "2")
        wait_for(lambda: still(pair.left), "the link to fall silent")
        segments = pair.left.tcp_segments_sent() - segments
        octets, buffers = (
            pair.left.link_counters()[f"tx_{what}"] - sent[f"tx_{what}"] for what in ("bytes", "packets")
        )
        flows = [record for record in running.stop() if record["protocolIdentifier"] == 6]
    assert octets > 65536 * buffers, "BIG TCP was not on trial"
    assert total(flows, "packetDeltaCount", egress=True) == segments
    (data,) = (flow for flow in flows if flow["packetDeltaCount"] > 1000)
    assert data["ipv6ExtensionHeaders"] == 0
    assert data["maximumIpTotalLength"] <= 1500


def test_iperf3_without_offload_counts_what_the_link_counts(pair, pin_set, loader_name):
    for host in (pair.left, pair.right):
        host.run("ethtool", "-K", "veth0", "tso", "off", "gso", "off", "gro", "off")
    table = ("-f", str(pin_set.table_path))
    wait_for(lambda: still(pair.left), "the link to fall silent")
    assert pair.left.flowmon("load", *table, "--iface", "veth0", "--loader", loader_name).returncode == 0
    before = pair.left.link_counters()
    with pair.right.server(5201, "iperf3", "-s", "-1"):
        pair.left.run("iperf3", "-c", pair.right.ipv4, "-t", "3")
        wait_for(lambda: still(pair.left), "the link to fall silent")
    after = pair.left.link_counters()
    linked = {name: after[name] - before[name] for name in after}
    books = json.loads(pair.left.flowmon("status", *table, "--json").stdout)["books"]
    records = take_everything(pin_set)

    # A frame that finds the peer's queue full passed the hook, but the link counts it apart, without its octets.
    dropped = linked["tx_dropped"]
    assert dropped < 0.01 * linked["tx_packets"]
    assert books["seen_packets"] == linked["tx_packets"] + dropped + linked["rx_packets"]
    assert set(books["ignored_packets"].values()) == {0}
    assert total(records, "packetDeltaCount", egress=True) == linked["tx_packets"] + dropped
    assert total(records, "packetDeltaCount", egress=False) == linked["rx_packets"]
    assert total(records, "layer2OctetDeltaCount", egress=False) == linked["rx_bytes"]
    excess = total(records, "layer2OctetDeltaCount", egress=True) - linked["tx_bytes"]
    assert 66 * dropped <= excess <= 1514 * dropped


def total(records: list[dict], what: str, *, egress: bool) -> int:
    """Sum over the direction of each record that left (or entered) the monitored host."""
    reverse = f"reverse{what[0].upper()}{what[1:]}"
    return sum(record[what if (record["flowDirection"] == 1) == egress else reverse] for record in records)


def test_ordinary_programs_one_record_each(pair, loader_name):
    """curl over IPv4 and IPv6, ping, a name that nobody answers."""
    with pair.right.server(8000, sys.executable, "-m", "http.server", "8000", "--bind", "::"):
        with monitor(pair.left, "--iface", "veth0", "-i", "0.5", "-j", "--loader", loader_name) as running:
            for address in (pair.right.ipv4, f"[{pair.right.ipv6}]"):
                pair.left.run("curl", "-sf", "-o", "/dev/null", f"http://{address}:8000/")
            pair.left.run("ping", "-q", "-c", "3", "-i", "0.2", pair.right.ipv4)
            pair.left.run("sh", "-c", f"dig +tries=1 +time=1 @{pair.right.ipv4} example.org || true")
            time.sleep(2)
            records = running.stop()
    web = [record for record in records if record["destinationTransportPort"] == 8000]
    assert sorted(record["ipVersion"] for record in web) == [4, 6]
    for record in web:
        assert record["flowEndReason"] == 3
        assert record["tcpControlBits"] & 0x03 == record["reverseTcpControlBits"] & 0x03 == 0x03
        assert record["tcpSynTotalCount"] == record["reverseTcpSynTotalCount"] == 1
        assert (
            record["tcpSynNanoseconds"]
            < record["reverseTcpSynNanoseconds"]
            < record["tcpFirstAckNanoseconds"]
        )
        assert record["interfaceName"] == "veth0"
    (echo,) = [record for record in records if record["icmpTypeCode"] == 0x0800]
    assert (echo["packetDeltaCount"], echo["reversePacketDeltaCount"]) == (3, 3)
    assert echo["reverseIcmpTypeCode"] == 0
    assert any(record["destinationTransportPort"] == 53 for record in records)


def test_the_other_time_source_is_as_fine_as_a_tick(pair):
    with monitor(pair.left, "--iface", "veth0", "-j", "--timestamps", "coarse") as running:
        pair.left.run("ping", "-q", "-c", "5", "-i", "0.1", pair.right.ipv4)
        records = running.stop()
    (echo,) = [record for record in records if record["icmpTypeCode"] == 0x0800]
    assert 380e6 < echo["interArrivalSumNanoseconds"] < 600e6


def test_a_tun_device_has_no_ethernet_header(pair):
    """Two tun devices joined by a process: what goes into one comes out of the other."""
    joiner = Path(__file__).parent / "join_tun.py"
    with pair.left.background(sys.executable, str(joiner), f"/run/netns/{pair.right.namespace}"):
        wait_for(lambda: "tun0" in pair.left.run("ip", "-br", "link"), "tun0")
        wait_for(lambda: "tun0" in pair.right.run("ip", "-br", "link"), "tun0 of the other host")
        for host, number in ((pair.left, 1), (pair.right, 2)):
            host.run("sh", "-c", f"ip address add 10.78.0.{number}/24 dev tun0")
            host.run("sh", "-c", f"ip -6 address add fd78::{number}/64 dev tun0 nodad")
            host.run("ip", "link", "set", "tun0", "up")
        with monitor(pair.left, "--iface", "tun0", "-j") as running:
            pair.left.run("ping", "-q", "-c", "3", "-i", "0.2", "10.78.0.2")
            pair.left.run("ping", "-6", "-q", "-c", "4", "-i", "0.2", "fd78::2")
            records = running.stop()
    echoes = {r["ipVersion"]: r for r in records if r["icmpTypeCode"] in (0x0800, 0x8000)}
    assert (echoes[4]["packetDeltaCount"], echoes[4]["reversePacketDeltaCount"]) == (3, 3)
    assert (echoes[6]["packetDeltaCount"], echoes[6]["reversePacketDeltaCount"]) == (4, 4)
    assert echoes[4]["layer2OctetDeltaCount"] == echoes[4]["octetDeltaCount"] == 3 * 84


def test_on_the_loopback_four_entries_are_one_biflow(pair):
    """Both hooks see both directions."""
    with pair.left.server(8001, sys.executable, "-m", "http.server", "8001", "--bind", "127.0.0.1"):
        with monitor(pair.left, "--iface", "lo", "-i", "0.5", "-j") as running:
            pair.left.run("curl", "-sf", "-o", "/dev/null", "http://127.0.0.1:8001/")
            time.sleep(2)
            records = running.stop()
    (web,) = [record for record in records if record["destinationTransportPort"] == 8001]
    assert web["flowDirection"] == 1
    assert web["reversePacketDeltaCount"] > 0
    assert (
        f"{web['packetDeltaCount'] + web['reversePacketDeltaCount']} packets were seen at other"
        in running.said
    )
