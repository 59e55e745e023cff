"""nfacctd accounts every flow that flowmon sends."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from referees import pmacct
from referees.expected import MS, assert_same, without_times

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("kernel")]

OPTIONS = {"biflow": (), "uniflow": ("--ipfix-uniflow",), "netflow9": ("--ipfix-version", "9")}
OF_ITS_CONFIGURATION = (
    "nfacctd_account_options is enabled but pre_tag_map does not contain a sample_type rule."
)


@dataclass(frozen=True)
class Collected:
    """What nfacctd wrote of one run."""

    kind: str
    directory: Path


@pytest.fixture(scope="module", params=OPTIONS)
def collected(request, hosts, captured, tmp_path_factory) -> Collected:
    directory = tmp_path_factory.mktemp("nfacctd")
    with pmacct.collecting(hosts.right, directory, biflows=request.param == "biflow"):
        url = f"udp://{hosts.right.ipv4}:{pmacct.PORT}"
        captured.export(hosts.left, "--ipfix", url, *OPTIONS[request.param])
    return Collected(request.param, directory)


def test_every_flow_is_accounted(collected, captured):
    found = pmacct.flows(collected.directory)
    if collected.kind == "biflow":
        assert_same(found, captured.biflows(MS))
    else:
        assert_same(without_times(found), captured.uniflows())


def test_options_records_are_accounted_as_no_packets(collected):
    assert set(pmacct.packets_of_options_records(collected.directory)) == {0}


def test_nothing_is_complained_of_but_its_configuration(collected):
    assert set(pmacct.complaints(collected.directory)) <= {OF_ITS_CONFIGURATION}
