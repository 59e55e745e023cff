"""The same packets over a wire and from a file: the same flows, with the same counts."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import craft
import oracle_link
from flowmon.captures.link_types import ETHERNET, to_ethernet
from flowmon.kernel.loader import PrivateSet
from kernel.replay import loaded_for_replay, run_capture, take_everything
from kernel.test_live import SAME_AT_ANY_SPEED, disordered_packets

pytestmark = pytest.mark.kernel

CASES = Path(__file__).parent.parent / "pcaps"
CAPTURES = sorted(path for path in CASES.glob("*/*") if path.suffix in {".pcap", ".pcapng"})
ETHERNET_HEADER = 14

# Only of a capture does a length of 0 mean all there is: offloading hosts capture such packets, no wire has them.
LENGTH_ZERO = {"tso_length_zero", "ipv6_payload_length_zero"}
TOO_LONG = {"ipv6_jumbogram"}  # 100,000 octets: no link here has such an MTU
MILLISECOND = 1_000_000

FIELDS = [
    *SAME_AT_ANY_SPEED,
    *("IPSecSPI", "dot1qCustomerVlanId", "mplsTopLabelStackSection", "reverseMplsTopLabelStackSection"),
    *("ipv4Options", "reverseIpv4Options", "ipv6ExtensionHeaders", "reverseIpv6ExtensionHeaders"),
]


def on_the_wire(capture: Path, wire: Path) -> None:
    """The capture's packets as Ethernet frames in full length; the octets that it did not keep are zeros.

    One a millisecond: a replay does not wait for what is forgotten after 30 s.
    """
    frames: list[craft.Frame] = []
    for frame in oracle_link.captured_frames_of(capture):
        octets, length = frame.octets, frame.wire_octets
        if frame.link_type != ETHERNET:
            found = to_ethernet(frame.link_type, octets)
            if found is None:
                continue
            ether_type, header = found
            octets = bytes(ETHERNET_HEADER - 2) + ether_type.to_bytes(2, "big") + octets[header:]
            length += ETHERNET_HEADER - header
        if length >= ETHERNET_HEADER:  # nobody can send less
            time = craft.START_NS + len(frames) * MILLISECOND
            frames.append(craft.Frame(time, octets.ljust(length, b"\0")))
    craft.write_pcap(wire, frames)


@pytest.fixture(scope="module", params=["libbpf", "bcc"])
def loader(kernel, request) -> str:
    return request.param


@pytest.fixture(scope="module")
def offline(loader) -> Iterator[PrivateSet]:
    with loaded_for_replay(loader) as source:
        yield source


def comparable(records: list[dict]) -> Counter:
    """What does not hang on the speed. As the two directions race, first may be either: so by the flow, not in order."""
    return Counter(
        (
            *(str(record[name]) for name in FIELDS),
            disordered_packets(record, "tcp"),
            disordered_packets(record, "reverseTcp"),
        )
        for record in records
    )


def test_every_capture(pair, pin_set, loader, offline, tmp_path):
    options = ("-f", str(pin_set.table_path), "--direction", "ingress", "--loader", loader)
    for host in (pair.left, pair.right):
        host.run("ip", "link", "set", "veth0", "mtu", "9000")  # a capture holds packets of 1514 octets
    assert pair.right.flowmon("load", "--iface", "veth0", *options).returncode == 0
    compared = 0
    for capture in CAPTURES:
        case = capture.parent.name
        if case in LENGTH_ZERO | TOO_LONG or "fragment" in case:
            continue
        wire = tmp_path / "wire.pcap"
        on_the_wire(capture, wire)
        take_everything(pin_set)
        pair.left.run("tcpreplay", "--topspeed", "-q", "-i", "veth0", str(wire))
        live, read = take_everything(pin_set), run_capture(offline, wire)[0]
        assert comparable(live) == comparable(read), case
        compared += bool(read)
    assert compared > 80


@pytest.mark.parametrize(
    "capture", [path for path in CAPTURES if "fragment" in path.parent.name], ids=lambda path: path.stem
)
def test_fragments(kernel, pair, pin_set, capture, tmp_path):
    live, read = both_ways(capture, pair, pin_set, tmp_path)
    assert comparable(live) == comparable(read)


@pytest.mark.parametrize("case", sorted(LENGTH_ZERO))
def test_a_length_of_zero_is_not_taken_from_a_wire(kernel, pair, pin_set, case, tmp_path):
    """But nothing is counted wrong: a packet has the flow that it has offline, or is ignored."""
    (capture,) = (CASES / case).glob("*.pcap")
    live, read = both_ways(capture, pair, pin_set, tmp_path)
    assert set(map(conversation, live)) <= set(map(conversation, read))
    assert packets(live) < packets(read)


def both_ways(capture: Path, pair, pin_set, tmp_path: Path) -> tuple[list[dict], list[dict]]:
    """The records from the wire and from the file; loaded anew, since programs remember the fragments of another capture."""
    wire = tmp_path / "wire.pcap"
    on_the_wire(capture, wire)
    options = ("-f", str(pin_set.table_path), "--direction", "ingress")
    assert pair.right.flowmon("load", "--iface", "veth0", *options).returncode == 0
    pair.left.run("tcpreplay", "--topspeed", "-q", "-i", "veth0", str(wire))
    with loaded_for_replay("libbpf") as offline:
        read, _ = run_capture(offline, wire)
    return take_everything(pin_set), read


def packets(records: list[dict]) -> int:
    return sum(record["packetDeltaCount"] + record["reversePacketDeltaCount"] for record in records)


def conversation(record: dict) -> tuple:
    """Whichever way it began."""
    ends = ((record[f"{side}Address"], record[f"{side}TransportPort"]) for side in ("source", "destination"))
    return frozenset(ends), record["protocolIdentifier"], record["icmpIdentifier"]
