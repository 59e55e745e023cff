"""ipfixDump reads every record that flowmon writes, and calls our own elements by their names."""

from pathlib import Path

import pytest

from flowmon.elements import ELEMENTS
from referees import fixbuf
from referees.expected import MS, assert_same

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("kernel")]

PEN = 32473  # for documentation (RFC 5612)
NTOP_PEN = 35632
REVERSE_BIT = 0x4000
TRANSPORTS = ["udp", "tcp", "file"]


@pytest.fixture(scope="module")
def own_elements(hosts, captured, tmp_path_factory) -> Path:
    """A file with elements of our own."""
    path = tmp_path_factory.mktemp("fixbuf") / "own.ipfix"
    captured.export(hosts.left, "--ipfix", f"file:{path}", "--ipfix-pen", str(PEN))
    return path


def own_names() -> dict[tuple[int, int], str]:
    """What our own elements should be called, those of tunnels and ICMP left out."""
    own = {
        element.own_number: element
        for element in ELEMENTS
        if element.own_number
        and element.when.name not in ("ICMP_IDENTIFIER", "IN_TUNNEL", "IN_IDENTIFIED_TUNNEL")
    }
    forward = {(PEN, number): element.name for number, element in own.items()}
    return forward | {(PEN, number | REVERSE_BIT): element.reverse_name for number, element in own.items()}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_biflow_is_read(transport, sent, captured):
    assert_same(fixbuf.flows(getattr(sent, transport)), captured.biflows(MS))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_sequence_numbers_count_data_records(transport, sent):
    assert fixbuf.sequence_errors(getattr(sent, transport)) == []


def test_options_records_are_read(sent):
    """At the start and at the end: metering, its reliability, exporting; and the keys of six templates."""
    kinds = fixbuf.kinds(sent.file)
    assert (kinds["observationDomainId"], kinds["exportingProcessId"], kinds["templateId"]) == (4, 2, 6)


def test_by_default_every_element_but_nprobes_is_named(sent):
    unnamed = {key for key, name in fixbuf.names(sent.file).items() if name == fixbuf.UNNAMED}
    assert {enterprise for enterprise, _ in unnamed} == {NTOP_PEN}


def test_own_elements_are_named_by_options_records(own_elements):
    names = fixbuf.names(own_elements, "--rfc5610")
    assert {key: name for key, name in names.items() if key[0] == PEN} == own_names()
    without = fixbuf.names(own_elements)
    assert {name for key, name in without.items() if key[0] == PEN} == {fixbuf.UNNAMED}


def test_values_of_own_elements_have_their_type(own_elements, captured):
    """The sum of the times between a direction's arrivals: of two packets, the time between them."""
    records = (
        {field.name: field.value for field in fields}
        for fields in fixbuf.records_of(own_elements, "--rfc5610")
    )
    found = sorted(
        int(record["interArrivalSumNanoseconds"])
        for record in records
        if record.get("protocolIdentifier") == "17" and "biflowDirection" not in record
    )
    unanswered = captured.truth[captured.truth["reversePacketDeltaCount"] == 0]
    assert found == sorted((unanswered["flowEndNanoseconds"] - unanswered["flowStartNanoseconds"]).tolist())
