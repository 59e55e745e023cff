"""The programs' parsing and accounting against the oracle: every capture, every column, under both loaders."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flowmon.elements import RECORD_SCHEMA
from flowmon.kernel.flow_table import FlowTable
from flowmon.kernel.loader import PrivateSet
from kernel.replay import loaded_for_replay, run_capture
from oracle import flows_of, frames_of, ignored_of, orphan_fragments_of

pytestmark = pytest.mark.kernel

CASES = Path(__file__).parent.parent / "pcaps"
CAPTURES = sorted(path for path in CASES.glob("*/*") if path.suffix in {".pcap", ".pcapng"})

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
def loader(kernel, request) -> str:
    return request.param


@pytest.fixture(scope="module", params=["outside", "inside"])
def decap(request) -> bool:
    return request.param == "inside"


@pytest.fixture(scope="module")
def loaded(loader, decap) -> Iterator[PrivateSet]:
    with loaded_for_replay(loader, decap=decap) as source:
        yield source


@pytest.fixture
def loaded_anew(loader, decap) -> Iterator[PrivateSet]:
    with loaded_for_replay(loader, decap=decap) as source:
        yield source


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_every_column_is_the_oracles(loaded, decap, capture, request):
    if "fragment" in capture.stem:  # the programs remember those of the capture before
        loaded = request.getfixturevalue("loaded_anew")
    table = FlowTable(loaded)
    before = table.books()
    table.close()
    records, after = run_capture(loaded, capture)
    expected = flows_of(capture, decap=decap)
    assert len(records) == len(expected)
    for record, flow in zip(map(_comparable, records), map(_comparable, expected), strict=True):
        assert {name: (record[name], flow[name]) for name in flow if record[name] != flow[name]} == {}
    ignored = {
        reason: number - before.ignored_packets[reason] for reason, number in after.ignored_packets.items()
    }
    by_reason = {reason: number for reason, number in ignored_of(capture, decap=decap).items() if number}
    assert {reason: number for reason, number in ignored.items() if number} == by_reason
    counted = after.counted_packets - before.counted_packets
    assert counted == sum(flow["packetDeltaCount"] + flow["reversePacketDeltaCount"] for flow in expected)
    assert after.seen_packets - before.seen_packets == len(list(frames_of(capture)))
    if not decap:
        assert after.orphan_fragments - before.orphan_fragments == orphan_fragments_of(capture)


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
