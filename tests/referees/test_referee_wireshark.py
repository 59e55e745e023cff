"""tshark finds every flow in what flowmon sends, knows every field, and has nothing to complain of."""

import re
from pathlib import Path

import pytest

from referees import receiver, wireshark
from referees.expected import MS, US, assert_same, with_times_in, without_times
from referees.receiver import PORT
from referees.wireshark import EVERY_FIELD

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("kernel")]

PEN = 32473  # for documentation (RFC 5612)
OWN_ELEMENTS = {8, 9, 10, 11, 12, 13, 14}
"""Of TCP biflows in a capture, without tunnels and ICMP."""
REVERSE_BIT = 0x4000


@pytest.fixture(scope="module")
def send(hosts, captured, tmp_path_factory):
    """Sends by UDP with some options, and gives the capture of it."""

    def sending(*arguments: str) -> Path:
        path = tmp_path_factory.mktemp("wireshark") / "sent.pcapng"
        with receiver.udp(hosts.right, PORT), wireshark.capturing(hosts.right, path, PORT):
            captured.export(hosts.left, "--ipfix", f"udp://{hosts.right.ipv4}:{PORT}", *arguments)
        return path

    return sending


@pytest.fixture(scope="module")
def all_elements(send) -> Path:
    return send("--ipfix-elements", "all")


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_every_biflow_is_found_and_every_field_named(transport, sent, captured):
    reading = wireshark.read(sent.packets, transport)
    assert_same(reading.flows, captured.biflows(MS))
    assert reading.unnamed == {}


def test_nothing_is_malformed_out_of_sequence_or_without_template(sent):
    assert wireshark.complaints(sent.packets) == []


def test_lost_datagram_is_noticed_by_the_sequence(sent, tmp_path):
    """Else a sequence that goes on by itself would please tshark as well."""
    numbers = wireshark.packet_numbers(sent.packets, "udp && cflow.srcport")
    fewer = wireshark.without_packet(sent.packets, numbers[len(numbers) // 2], tmp_path / "fewer.pcapng")
    (complaint,) = wireshark.complaints(fewer)
    assert re.match(
        r"Warns: Unexpected flow sequence for domain ID 7 \(expected \d+, got \d+\) \(1\)$", complaint
    )


def test_all_elements_need_the_preference_for_long_templates(all_elements):
    assert any("More entries" in complaint for complaint in wireshark.complaints(all_elements))
    assert wireshark.complaints(all_elements, *EVERY_FIELD) == []


def test_of_all_elements_every_field_is_named(all_elements, captured):
    reading = wireshark.read(all_elements, "udp", *EVERY_FIELD)
    assert_same(reading.flows, captured.biflows(MS))
    assert reading.unnamed == {}


def test_own_elements_are_shown_by_their_numbers(send, captured):
    path = send("--ipfix-pen", str(PEN))
    assert wireshark.complaints(path, *EVERY_FIELD) == []
    reading = wireshark.read(path, "udp", *EVERY_FIELD)
    assert_same(reading.flows, captured.biflows(MS))
    numbers = {int(name.rpartition(" ")[2]) for name in reading.unnamed if name.startswith("Enterprise")}
    assert numbers == OWN_ELEMENTS | {number | REVERSE_BIT for number in OWN_ELEMENTS}


@pytest.mark.parametrize(("unit", "unit_ns"), [("us", US), ("ns", 1)])
def test_finer_times(unit, unit_ns, send, captured):
    path = send("--ipfix-time", unit)
    assert wireshark.complaints(path) == []
    assert_same(with_times_in(unit_ns, wireshark.read(path, "udp").flows), captured.biflows(unit_ns))


def test_netflow9(send, captured):
    path = send("--ipfix-version", "9")
    assert wireshark.complaints(path) == []
    reading = wireshark.read(path, "udp")
    assert_same(without_times(reading.flows), captured.uniflows())
    assert reading.unnamed == {}
