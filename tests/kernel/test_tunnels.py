"""What tells flows in different tunnels apart, in the kernel's hash."""

from itertools import combinations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

import craft
from kernel.replay import loaded_for_replay, run_capture

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
