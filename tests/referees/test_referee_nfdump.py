"""nfcapd collects every flow that flowmon sends, and nfdump's counts are those of the capture."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from referees import nfdump
from referees.expected import MS, assert_same, sums, without_times

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("kernel")]

OPTIONS = {"biflow": (), "uniflow": ("--ipfix-uniflow",), "netflow9": ("--ipfix-version", "9")}


@dataclass(frozen=True)
class Collected:
    """What nfcapd wrote of one run."""

    kind: str
    directory: Path


@pytest.fixture(scope="module", params=OPTIONS)
def collected(request, hosts, captured, tmp_path_factory) -> Collected:
    directory = tmp_path_factory.mktemp("nfcapd")
    with nfdump.collecting(hosts.right, directory):
        url = f"udp://{hosts.right.ipv4}:{nfdump.PORT}"
        captured.export(hosts.left, "--ipfix", url, *OPTIONS[request.param])
    return Collected(request.param, directory)


def test_every_flow_is_collected(collected, captured):
    expected = captured.biflows() if collected.kind == "biflow" else captured.uniflows()
    assert_same(without_times(nfdump.flows(collected.directory)), without_times(expected))


def test_times_are_those_of_the_flow(collected, captured):
    """Of uniflows, where there is no reverse direction: the capture's truth has no times of its own for it."""
    expected = captured.biflows(MS)
    if collected.kind != "biflow":
        expected = [flow for flow in expected if not flow.reverse_packets]
    keys = {flow[:5] for flow in expected}
    assert_same([flow for flow in nfdump.flows(collected.directory) if flow[:5] in keys], expected)


def test_its_own_sums_are_those_of_the_capture(collected, captured):
    of_capture = sums(captured.biflows() if collected.kind == "biflow" else captured.uniflows())
    found = nfdump.statistics(collected.directory)
    assert found["Flows"] == of_capture.flows
    assert found["Packets"] == of_capture.packets + of_capture.reverse_packets
    assert found["Bytes"] == of_capture.octets + of_capture.reverse_octets
    if collected.kind == "netflow9":
        assert found["Sequence failures"] == 0
