"""Records against the counters they are made from: one row at a time, in plain Python."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmon import abi
from flowmon.abi import Direction
from flowmon.elements import ELEMENTS, RECORD_SCHEMA, columns
from flowmon.records import BLOCK, Context, EndedFlows, record_batch
from samples import NS, counters, ended, key, turned

OFFSET = 1_700_000_000 * NS + 123
CONTEXT = Context(OFFSET, {1: "eth0", 2: "wlan0"}, observation_domain_id=4_000_000_000)
TCP, UDP, ICMP, ICMPV6, ESP = 6, 17, 1, 58, 50
INTERVALS_NEVER = 2**64 - 1


def records(flows: EndedFlows, context: Context = CONTEXT) -> list[dict[str, Any]]:
    """Plain values, times as nanoseconds since the epoch."""
    batch = record_batch(flows, context)
    batch.validate(full=True)
    plain = [
        pa.array(column.cast(pa.int64())) if pa.types.is_timestamp(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(plain, names=batch.schema.names).to_pylist()


def record(one: np.ndarray, forward: np.ndarray, reverse: np.ndarray | None = None) -> dict[str, Any]:
    (only,) = records(ended(one, forward, counters(0) if reverse is None else reverse))
    return only


# --- against the slow oracle ---


COUNTERS = {
    "packetDeltaCount": "packets",
    "octetDeltaCount": "octets",
    "layer2OctetDeltaCount": "layer2_octets",
    "ipClassOfService": "class_of_service",
    "flowLabelIPv6": "flow_label",
    "minimumIpTotalLength": "minimum_ip_length",
    "maximumIpTotalLength": "maximum_ip_length",
    "minimumTTL": "minimum_ttl",
    "maximumTTL": "maximum_ttl",
    "packetSizeHistogram": "size_histogram",
    "ttlHistogram": "ttl_histogram",
    "minimumInterArrivalNanoseconds": "minimum_interval_ns",
    "maximumInterArrivalNanoseconds": "maximum_interval_ns",
    "tcpControlBits": "tcp_control_bits",
    "tcpSynTotalCount": "syn_packets",
    "tcpFinTotalCount": "fin_packets",
    "tcpRstTotalCount": "rst_packets",
    "tcpRetransmittedPacketDeltaCount": "retransmitted_packets",
    "tcpRetransmittedOctetDeltaCount": "retransmitted_octets",
    "tcpOutOfOrderPacketDeltaCount": "out_of_order_packets",
    "tcpOutOfOrderOctetDeltaCount": "out_of_order_octets",
    "tcpWindowSize": "first_window",
    "minimumTcpWindowSize": "minimum_window",
    "maximumTcpWindowSize": "maximum_window",
    "tcpMaximumSegmentSize": "maximum_segment_size",
    "tcpWindowScale": "window_scale",
    "ipv4Options": "ipv4_options",
    "ipv6ExtensionHeaders": "ipv6_extension_headers",
    "mplsTopLabelStackSection": "mpls_top_label",
    "tunnelIdentifier": "tunnel_identifier",
    "droppedPacketDeltaCount": "dropped_packets",
    "droppedOctetDeltaCount": "dropped_octets",
}


def described(one: np.void, counted: np.void) -> dict[str, Any]:
    """The reversible columns of one direction."""
    seen = int(counted["packets"]) > 0
    values: dict[str, Any] = {name: counted[field].tolist() for name, field in COUNTERS.items()}
    values |= {
        "icmpTypeCode": int(counted["icmp_type"]) * 256 + int(counted["icmp_code"]),
        "interArrivalSumNanoseconds": int(counted["last_seen_mono_ns"]) - int(counted["first_seen_mono_ns"])
        if seen
        else 0,
        "interArrivalSquareSum": float(
            (int(counted["interval_squares_high"]) << 64) + int(counted["interval_squares_low"])
        ),
        "forwardingStatus": 129,
        "tcpSynNanoseconds": int(counted["syn_mono_ns"]) + OFFSET,
        "tcpFirstAckNanoseconds": int(counted["first_ack_mono_ns"]) + OFFSET,
    }
    tcp = seen and one["protocol"] == TCP
    has_value = dict.fromkeys(
        ("ipClassOfService", "minimumIpTotalLength", "maximumIpTotalLength", "minimumTTL", "maximumTTL"), seen
    )
    has_value |= dict.fromkeys(
        ("minimumInterArrivalNanoseconds", "maximumInterArrivalNanoseconds"),
        seen and counted["minimum_interval_ns"] != INTERVALS_NEVER,
    )
    has_value |= dict.fromkeys(
        ("minimumTcpWindowSize", "maximumTcpWindowSize"), tcp and counted["windows_seen"] > 0
    )
    has_value |= {
        "ipv4Options": seen and one["ip_version"] == 4,
        "ipv6ExtensionHeaders": seen and one["ip_version"] == 6,
        "mplsTopLabelStackSection": counted["mpls_top_label"] > 0,
        "tunnelIdentifier": seen and counted["tunnel_identified"] > 0,
        "forwardingStatus": counted["dropped_packets"] > 0,
        "flowLabelIPv6": seen and one["ip_version"] == 6,
        "icmpTypeCode": seen and one["protocol"] in {ICMP, ICMPV6},
        "tcpControlBits": tcp,
        "tcpWindowSize": tcp,
        "tcpMaximumSegmentSize": tcp and counted["maximum_segment_size"] > 0,
        "tcpWindowScale": tcp
        and counted["syn_mono_ns"] > 0
        and counted["window_scale"] != abi.NO_WINDOW_SCALE,
        "tcpSynNanoseconds": tcp and counted["syn_mono_ns"] > 0,
        "tcpFirstAckNanoseconds": tcp and counted["first_ack_mono_ns"] > 0,
    }
    return {name: value if has_value.get(name, True) else None for name, value in values.items()}


def identified(one: np.void) -> dict[str, Any]:
    """The columns that come from the key alone."""
    raw = {side: one[f"{side}_address"].tobytes() for side in ("source", "destination")}
    address = {
        side: str(ipaddress.IPv4Address(of[12:]) if one["ip_version"] == 4 else ipaddress.IPv6Address(of))
        for side, of in raw.items()
    }
    no_ports = one["protocol"] in {ICMP, ICMPV6, ESP}
    identifies = (one["protocol"], one["destination_port"] >> 8) in {
        (1, 8),
        (1, 13),
        (1, 15),
        (1, 17),
        (58, 128),
    }
    return {
        "sourceAddress": address["source"],
        "destinationAddress": address["destination"],
        "ipVersion": int(one["ip_version"]),
        "sourceTransportPort": 0 if no_ports else int(one["source_port"]),
        "destinationTransportPort": 0 if no_ports else int(one["destination_port"]),
        "protocolIdentifier": int(one["protocol"]),
        "icmpIdentifier": int(one["source_port"]) if identifies else None,
        "IPSecSPI": int(one["source_port"]) * 65536 + int(one["destination_port"])
        if one["protocol"] == ESP
        else None,
        "flowDirection": int(one["direction"]),
        "ingressInterface": int(one["ifindex"]) if one["direction"] == Direction.INGRESS else None,
        "egressInterface": int(one["ifindex"]) if one["direction"] == Direction.EGRESS else None,
        "interfaceName": CONTEXT.interface_names.get(int(one["ifindex"])),
        "observationDomainId": CONTEXT.observation_domain_id,
    }


TUNNEL_TYPES = [None, "gre", "ipip", "6in4", "4in6", "6in6", "vxlan", "geneve", "gtp-u"]


def around(one: np.void, forward: np.void, reverse: np.void) -> dict[str, Any]:
    """The columns of the frame and the tunnel that the flow was in."""
    if not one["in_tunnel"]:
        return dict.fromkeys(("tunnelType", "tunnelSourceAddress", "tunnelDestinationAddress"), None) | {
            "vlanId": int(one["vlan_id"]) or None,
            "dot1qCustomerVlanId": int(one["customer_vlan_id"]) or None,
        }
    here, source, destination = (
        (forward, "tunnel_source", "tunnel_destination")
        if forward["packets"]
        else (reverse, "tunnel_destination", "tunnel_source")
    )
    return {
        "tunnelType": TUNNEL_TYPES[max(int(forward["tunnel_type"]), int(reverse["tunnel_type"]))],
        "tunnelSourceAddress": outer_text(here[source]),
        "tunnelDestinationAddress": outer_text(here[destination]),
        "vlanId": int(here["tunnel_vlan_id"]) or None,
        "dot1qCustomerVlanId": int(here["tunnel_customer_vlan_id"]) or None,
    }


def outer_text(raw: np.ndarray) -> str:
    of = ipaddress.IPv6Address(raw.tobytes())
    return str(of.ipv4_mapped or of)


def spans(forward: np.void, reverse: np.void) -> dict[str, Any]:
    seen = [side for side in (forward, reverse) if side["packets"]]
    there = bool(reverse["packets"])
    return {
        "flowStartNanoseconds": min(int(side["first_seen_mono_ns"]) for side in seen) + OFFSET,
        "flowEndNanoseconds": max(int(side["last_seen_mono_ns"]) for side in seen) + OFFSET,
        "reverseFlowStartNanoseconds": int(reverse["first_seen_mono_ns"]) + OFFSET if there else None,
        "reverseFlowEndNanoseconds": int(reverse["last_seen_mono_ns"]) + OFFSET if there else None,
    }


def slow_record(flows: EndedFlows, row: int) -> dict[str, Any]:
    one, forward, reverse = flows.keys[row], flows.forward[row], flows.reverse[row]
    values = (
        identified(one) | around(one, forward, reverse) | spans(forward, reverse) | described(one, forward)
    )
    values |= {
        f"reverse{name[0].upper()}{name[1:]}": value for name, value in described(one, reverse).items()
    }
    denied = forward["dropped_packets"] or reverse["dropped_packets"]
    values |= {"firewallEvent": 3 if denied else None}
    return values | {"flowId": int(flows.flow_id[row]), "flowEndReason": int(flows.reasons[row])}


@st.composite
def some_flows(draw: st.DrawFn) -> EndedFlows:
    """Random in every field, with the values that decide about nulls common."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(st.integers(0, 12))

    def any_of(dtype: np.dtype) -> np.ndarray:
        return np.frombuffer(random.bytes(dtype.itemsize * rows), dtype).copy()

    keys = any_of(abi.FLOW_KEY)
    keys["ip_version"] = random.choice([4, 6], rows)
    for side in ("source_address", "destination_address"):
        keys[side][keys["ip_version"] == 4, :12] = [0] * 10 + [255] * 2
        keys[side][keys["ip_version"] == 6, 0] = 0x20  # not a mapped address
    keys["protocol"] = random.choice([TCP, UDP, ICMP, ICMPV6, ESP], rows)
    classes = random.choice([0, 3, 8, 13, 15, 17, 128, 129], rows) << 8
    keys["destination_port"] = np.where(
        np.isin(keys["protocol"], (ICMP, ICMPV6)), classes, keys["destination_port"]
    )
    for name in ("vlan_id", "customer_vlan_id"):
        keys[name] = random.choice([0, 100], rows)
    keys["in_tunnel"] = random.choice([0, 1], rows)
    keys["ifindex"] = random.choice([1, 2, 3], rows)
    keys["direction"] = random.choice([0, 1], rows)
    sides = [any_of(abi.FLOW_COUNTERS) for _ in range(2)]
    for side in sides:
        side["tunnel_type"] = random.integers(0, len(TUNNEL_TYPES), rows)
        for name in ("tunnel_source", "tunnel_destination"):
            side[name][::2, :12] = [0] * 10 + [255] * 2
        for name in (
            "mpls_top_label",
            "tunnel_identified",
            "tunnel_vlan_id",
            "tunnel_customer_vlan_id",
            "dropped_packets",
        ):
            side[name] *= random.choice([0, 1], rows).astype(side[name].dtype)
        side["first_seen_mono_ns"] >>= 4
        side["last_seen_mono_ns"] = side["first_seen_mono_ns"] + (side["last_seen_mono_ns"] >> np.uint64(4))
        for name in ("syn_mono_ns", "first_ack_mono_ns"):
            side[name] = random.choice([0, 5 * NS], rows)
        for name in ("windows_seen", "maximum_segment_size"):
            side[name] = random.choice([0, 1], rows)
        side["window_scale"] = random.choice([0, 7, abi.NO_WINDOW_SCALE], rows)
        side["minimum_interval_ns"] = random.choice(np.array([0, INTERVALS_NEVER], "u8"), rows)
    absent = random.choice([0, 1, 2], rows)  # forward, reverse, or neither of them
    for number, side in enumerate(sides):
        side[absent == number] = np.zeros(1, abi.FLOW_COUNTERS)
    return EndedFlows(
        keys, *sides, random.integers(0, 2**64, rows, "u8"), random.integers(1, 6, rows).astype("u1")
    )


@given(some_flows())
def test_every_column_is_the_oracles(flows: EndedFlows) -> None:
    found = records(flows)
    assert len(found) == len(flows)
    for row, of_row in enumerate(found):
        expected = slow_record(flows, row)
        for name in ("interArrivalSquareSum", "reverseInterArrivalSquareSum"):
            assert of_row.pop(name) == pytest.approx(expected.pop(name), rel=1e-15)
        assert of_row == expected
        assert of_row["flowStartNanoseconds"] <= of_row["flowEndNanoseconds"]


@given(some_flows())
def test_counts_are_conserved(flows: EndedFlows) -> None:
    batch = record_batch(flows, CONTEXT)
    for element in ELEMENTS:
        if element.name.endswith("Count"):
            for name, side in ((element.name, flows.forward), (element.reverse_name, flows.reverse)):
                assert sum(batch.column(name).to_pylist()) == sum(side[element.counter].tolist())


# --- where the rows lie in memory ---


def random_flows(rows: int) -> EndedFlows:
    """Any number of them: what they are is for the oracle's test."""
    random = np.random.default_rng(rows)

    def any_of(dtype: np.dtype) -> np.ndarray:
        return np.frombuffer(random.bytes(dtype.itemsize * rows), dtype).copy()

    keys, forward, reverse = any_of(abi.FLOW_KEY), any_of(abi.FLOW_COUNTERS), any_of(abi.FLOW_COUNTERS)
    keys["ip_version"] = random.choice([4, 6], rows)
    keys["protocol"] = random.choice([TCP, UDP, ICMP, ICMPV6, ESP], rows)
    keys["in_tunnel"] = random.choice([0, 1], rows)
    for side in (forward, reverse):
        side["tunnel_type"] = random.integers(0, len(TUNNEL_TYPES), rows)
        side["packets"] = random.choice([0, 1, 2], rows)
    return EndedFlows(keys, forward, reverse, any_of(np.dtype("u8")), any_of(np.dtype("u1")))


def some_rows(flows: EndedFlows, rows: slice) -> EndedFlows:
    return EndedFlows(
        flows.keys[rows], flows.forward[rows], flows.reverse[rows], flows.flow_id[rows], flows.reasons[rows]
    )


def plain(batch: pa.RecordBatch) -> pa.Table:
    """Texts without their dictionaries, which may differ where the texts do not."""
    plain_types = [
        pa.field(of.name, pa.string()) if pa.types.is_dictionary(of.type) else of for of in RECORD_SCHEMA
    ]
    return pa.Table.from_batches([batch]).cast(pa.schema(plain_types))


@pytest.mark.parametrize("rows", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 100])
def test_rows_of_all_blocks_are_recorded(rows: int) -> None:
    flows = random_flows(rows)
    pieces = [some_rows(flows, slice(start, start + 1000)) for start in range(0, rows, 1000)]
    expected = pa.concat_tables([plain(record_batch(piece, CONTEXT)) for piece in pieces])
    assert plain(record_batch(flows, CONTEXT)).equals(expected)


def test_rows_may_lie_anywhere() -> None:
    """As the rows of both directions in turn, or backwards."""
    flows = random_flows(100)
    expected = plain(record_batch(flows, CONTEXT))
    both = np.empty(200, abi.FLOW_COUNTERS)
    both[0::2], both[1::2] = flows.forward, flows.reverse
    keys, flow_id, reasons = (np.repeat(of, 3) for of in (flows.keys, flows.flow_id, flows.reasons))
    spread = EndedFlows(keys[::3], both[0::2], both[1::2], flow_id[::3], reasons[::3])
    assert plain(record_batch(spread, CONTEXT)).equals(expected)
    backwards = record_batch(some_rows(flows, slice(None, None, -1)), CONTEXT)
    assert plain(backwards).equals(expected.take(pa.array(range(99, -1, -1))))


def test_counters_may_be_used_again() -> None:
    """The next flows' are read into the same memory."""
    flows = random_flows(100)
    before = [of.copy() for of in (flows.keys, flows.forward, flows.reverse)]
    batch = record_batch(flows, CONTEXT)
    expected = batch.to_pylist()
    for array, copy in zip((flows.keys, flows.forward, flows.reverse), before, strict=True):
        assert array.tobytes() == copy.tobytes()
        array.view("u1")[:] = 0xA5
    assert batch.to_pylist() == expected


def test_part_of_a_batch_is_that_part() -> None:
    batch = record_batch(random_flows(100), CONTEXT)
    assert batch.slice(13, 50).to_pylist() == batch.to_pylist()[13:63]


# --- examples ---


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_schema_is_exact(rows: int) -> None:
    flows = ended(np.repeat(key(), rows), np.repeat(counters(), rows), np.repeat(counters(0), rows))
    batch = record_batch(flows, CONTEXT)
    assert batch.num_rows == rows
    assert batch.schema.equals(RECORD_SCHEMA, check_metadata=True)


def test_times_are_utc_to_the_nanosecond() -> None:
    batch = record_batch(ended(key(), counters(2, 1, 2), counters(0)), CONTEXT)
    for name, nanoseconds in (("flowStartNanoseconds", OFFSET + 1), ("flowEndNanoseconds", OFFSET + 2)):
        (time,) = batch.column(name)
        assert time.value == nanoseconds
        assert str(time.type.tz) == "UTC"
    assert str(batch.column("flowStartNanoseconds").to_pandas()[0]) == "2023-11-14 22:13:20.000000124+00:00"


def test_start_and_end_span_both_directions() -> None:
    found = record(key(), counters(2, 5 * NS, 6 * NS), counters(2, 4 * NS, 9 * NS))
    assert found["flowStartNanoseconds"] == OFFSET + 4 * NS
    assert found["flowEndNanoseconds"] == OFFSET + 9 * NS
    assert (found["interArrivalSumNanoseconds"], found["reverseInterArrivalSumNanoseconds"]) == (NS, 5 * NS)


def test_direction_not_seen_counts_nothing_and_describes_nothing() -> None:
    # The entry is still there after an active timeout, with what it remembers of the connection.
    remembered = counters(
        0, last_seen_mono_ns=99 * NS, syn_mono_ns=NS, window_scale=7, maximum_segment_size=1460
    )
    found = record(key(), counters(), remembered)
    reverse = {name: found[name] for name, *_ in columns() if name.startswith("reverse")}
    zero = {0, None}
    histograms = [name for name in reverse if name.endswith("Histogram")]
    assert [name for name in histograms if any(reverse.pop(name))] == []
    assert {name: value for name, value in reverse.items() if value not in zero} == {}
    assert {value is None for name, value in reverse.items() if name.endswith("Count")} == {False}
    assert found["flowEndNanoseconds"] == OFFSET + 2 * NS


def test_icmp_has_no_ports_but_an_identifier() -> None:
    echo = key(protocol=ICMP, ports=(77, 8 << 8))
    found = record(echo, counters(icmp_type=8), counters(icmp_type=0))
    assert (found["sourceTransportPort"], found["destinationTransportPort"]) == (0, 0)
    assert found["icmpIdentifier"] == 77
    assert (found["icmpTypeCode"], found["reverseIcmpTypeCode"]) == (0x0800, 0)
    error = record(key(protocol=ICMP, ports=(0, 3 << 8 | 1)), counters(icmp_type=3, icmp_code=1))
    assert (error["icmpIdentifier"], error["icmpTypeCode"]) == (None, 0x0301)


def test_interface_is_named_where_its_name_is_known() -> None:
    keys = np.concatenate([key(ifindex=1), key(ifindex=9), key(ifindex=1), key(ifindex=2, direction=1)])
    found = records(ended(keys, np.repeat(counters(), 4), np.repeat(counters(0), 4)))
    assert [of_row["interfaceName"] for of_row in found] == ["eth0", None, "eth0", "wlan0"]
    assert [of_row["ingressInterface"] for of_row in found] == [1, 9, 1, None]
    assert [of_row["egressInterface"] for of_row in found] == [None, None, None, 2]


def test_packets_of_a_capture_were_at_no_interface() -> None:
    keys = np.concatenate([key(ifindex=0), key(ifindex=1), key(ifindex=0, direction=1)])
    found = records(ended(keys, np.repeat(counters(), 3), np.repeat(counters(0), 3)))
    names = ("flowDirection", "ingressInterface", "egressInterface", "interfaceName")
    of_interface = [tuple(of_row[name] for name in names) for of_row in found]
    assert of_interface == [(None,) * 4, (0, 1, None, "eth0"), (None,) * 4]


def test_record_reads_as_the_forward_direction() -> None:
    found = record(turned(key()), counters())
    assert (found["sourceAddress"], found["destinationAddress"]) == ("198.51.100.2", "192.0.2.1")
    assert (found["sourceTransportPort"], found["destinationTransportPort"]) == (443, 40000)


def test_record_of_late_packets_alone_does_not_begin_at_boot() -> None:
    """Counted without the lock right after an active timeout: the entry has no first time of this record."""
    late = counters(1, 0, 500 * NS, born_mono_ns=400 * NS)
    found = record(key(), late)
    assert found["flowStartNanoseconds"] >= OFFSET + 400 * NS
    assert found["interArrivalSumNanoseconds"] <= 100 * NS
