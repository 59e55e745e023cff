"""The programs' accounting against the oracle: every capture, every column, under both loaders."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowmon.elements import RECORD_SCHEMA
from flowmon.kernel import pins
from flowmon.kernel.flow_table import FlowTable
from flowmon.kernel.pins import PinSet
from kernel.replay import loaded_for_replay, run_capture, run_packet, take_everything
from oracle import flows_of

pytestmark = pytest.mark.kernel

CASES = Path(__file__).parent.parent / "pcaps"
CAPTURES = sorted(CASES.glob("*/*.pcap"))

# What the capture does not say: where and by whom it was observed.
NOT_IN_A_CAPTURE = {
    "flowEndReason",
    "flowDirection",
    "ingressInterface",
    "egressInterface",
    "interfaceName",
    "flowId",
    "observationDomainId",
    "reverseFlowStartNanoseconds",
    "reverseFlowEndNanoseconds",
}


@pytest.fixture(scope="module", params=["libbpf", "bcc"])
def loaded(kernel, request) -> Iterator[PinSet]:
    with loaded_for_replay(PinSet(pins.BPFFS / f"flowmon-test-{request.param}"), request.param) as pin_set:
        yield pin_set


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_every_column_is_the_oracles(loaded, capture):
    table = FlowTable(loaded)
    before = table.books()
    sent = run_capture(loaded, capture)
    after = table.books()
    records = take_everything(loaded)
    table.close()
    expected = flows_of(capture)
    assert len(records) == len(expected)
    for record, flow in zip(map(_comparable, records), map(_comparable, expected), strict=True):
        assert {name: (record[name], flow[name]) for name in flow if record[name] != flow[name]} == {}
    counted = after.counted_packets - before.counted_packets
    ignored = sum(after.ignored_packets.values()) - sum(before.ignored_packets.values())
    assert after.seen_packets - before.seen_packets == sent == counted + ignored
    assert counted == sum(flow["packetDeltaCount"] + flow["reversePacketDeltaCount"] for flow in expected)


# (segments, segment size) as the buffer says them; (packets, shortest, longest, histogram) as they are on the wire.
SUPER_PACKETS = {
    "both given": ((3, 1448), (3, 156, 1500, [0, 1, 0, 0, 2, 0])),
    "segments missing": ((0, 1448), (3, 156, 1500, [0, 1, 0, 0, 2, 0])),
    "size missing": ((3, 0), (3, 1052, 1052, [0, 0, 0, 0, 3, 0])),
    "uneven": ((4, 1448), (4, 802, 802, [0, 0, 0, 4, 0, 0])),
    "neither": ((0, 0), (1, 3052, 3052, [0, 0, 0, 0, 0, 1])),
}


@pytest.mark.parametrize("kind", SUPER_PACKETS)
def test_a_super_packet_counts_as_its_segments(loaded, kind):
    """3000 octets of payload behind 14 + 20 + 32 octets of headers."""
    (gso_segs, gso_size), (packets, shortest, longest, histogram) = SUPER_PACKETS[kind]
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 3052, 0, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    tcp = struct.pack("!HHIIHHHH", 1000, 80, 1, 1, 0x8010, 500, 0, 0) + bytes(12)
    program = loaded.open_program("ingress_ethernet")
    run_packet(program, bytes(12) + b"\x08\x00" + ip + tcp + bytes(3000), 1, gso_segs, gso_size)
    os.close(program)
    (record,) = take_everything(loaded)
    assert record["packetDeltaCount"] == packets
    assert record["octetDeltaCount"] == 3000 + 52 * packets
    assert record["layer2OctetDeltaCount"] == 3000 + 66 * packets
    assert (record["minimumIpTotalLength"], record["maximumIpTotalLength"]) == (shortest, longest)
    assert record["packetSizeHistogram"] == histogram
    assert sum(record["ttlHistogram"]) == packets


def _comparable(record: dict) -> dict:
    """Plain integers; the oracle's absent columns and those no capture has left out."""
    plain = {}
    for name in RECORD_SCHEMA.names:
        if name in NOT_IN_A_CAPTURE:
            continue
        value = record[name]
        if "SquareSum" in name:
            value = None if value is None else float(f"{value:.9e}")
        elif hasattr(value, "value"):
            value = value.value
        plain[name] = value
    return plain
