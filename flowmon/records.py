"""From counters to records: the only crossing from NumPy to Arrow, and from monotonic time to UTC.

Rules:
- One row a biflow, in the columns of elements.RECORD_SCHEMA, no more, no fewer; where first packets
  are listed, in those of LISTING_SCHEMA.
- A biflow's start and end span both directions: start ≤ end.
- A direction that was not seen counts 0, and what describes it is null.

What keeps it quick:
- Rows become columns in blocks that fit the CPU's cache: a row has some fifty fields in eight cache lines.
- What a column is first written to is the memory of its Arrow array. Nothing is copied again.
- Which rows are valid is found once for each direction, and that bitmap is shared by all columns that go by it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa

from flowmon.abi import FLOW_COUNTERS, FLOW_KEY, NO_WINDOW_SCALE, Direction, Tunnel
from flowmon.arrow import strings, to_numpy
from flowmon.elements import ELEMENTS, LISTING_SCHEMA, LISTS, RECORD_SCHEMA, Element, When, columns
from flowmon.first_packets import FirstPackets, merged
from flowmon.text import address_column, are_mapped

Array = np.ndarray[Any, np.dtype[Any]]

TCP = 6
ICMP = (1, 58)
IPSEC = (50, 51)
TUNNEL_NAMES = {
    Tunnel.NONE: "",
    Tunnel.GRE: "gre",
    Tunnel.IPIP: "ipip",
    Tunnel.SIX_IN_4: "6in4",
    Tunnel.FOUR_IN_6: "4in6",
    Tunnel.SIX_IN_6: "6in6",
    Tunnel.VXLAN: "vxlan",
    Tunnel.GENEVE: "geneve",
    Tunnel.GTP_U: "gtp-u",
}
DROPPED_BY_ACL = 129  # IANA "Forwarding Status": dropped, ACL deny
FLOW_DENIED = 3  # IANA "firewallEvent"
IDENTIFIED_CLASSES = (8, 13, 15, 17)  # ICMP queries
IDENTIFIED_CLASSES_IPV6 = (128,)
BLOCK = 4096  # rows that become columns at a time


@dataclass(frozen=True)
class EndedFlows:
    """Biflows taken out of the table, all arrays in step.

    keys: FLOW_KEY of the forward direction. forward, reverse: FLOW_COUNTERS, all
    zero where the direction was not there. flow_id: uint64. reasons: uint8. first_packets:
    None where they are not listed.
    """

    keys: Array
    forward: Array
    reverse: Array
    flow_id: Array
    reasons: Array
    first_packets: FirstPackets | None = None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Context:
    """What a record says that the table does not know."""

    utc_offset_ns: int  # UTC less CLOCK_MONOTONIC
    interface_names: dict[int, str]
    observation_domain_id: int


class _Columns:
    """Some fields of a structured array, copied: each by itself, and of the dtype that was asked for."""

    def __init__(self, rows: Array, dtypes: dict[str, np.dtype[Any]]) -> None:
        fields = {name: rows[name] for name in dtypes}
        self._columns = {name: _empty(field.shape, dtypes[name]) for name, field in fields.items()}
        for start in range(0, len(rows), BLOCK):
            block = slice(start, start + BLOCK)
            for name, column in self._columns.items():
                column[block] = fields[name][block]

    def __getitem__(self, name: str) -> Array:
        return self._columns[name]


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """From Arrow's pool, which has pages of earlier batches; those of NumPy's would be new ones each time."""
    octets = prod(shape) * dtype.itemsize
    return np.frombuffer(pa.allocate_buffer(octets), dtype).reshape(shape)


@dataclass(frozen=True)
class _Side:
    """One direction of the ended flows. rows: its FLOW_COUNTERS. bitmaps: of _validity."""

    keys: _Columns
    rows: Array
    bitmaps: dict[When, pa.Buffer | None] = field(default_factory=dict)

    @cached_property
    def counters(self) -> _Columns:
        return _Columns(self.rows, _COUNTERS)

    @cached_property
    def seen(self) -> Array:
        return self.counters["packets"] > 0

    @cached_property
    def tcp(self) -> Array:
        return self.seen & (self.keys["protocol"] == TCP)

    @cached_property
    def syn_seen(self) -> Array:
        return self.tcp & (self.counters["syn_mono_ns"] != 0)

    @cached_property
    def observed(self) -> Array:
        """At an interface: packets of a capture have none."""
        return self.keys["ifindex"] != 0

    @cached_property
    def first_seen(self) -> Array:
        """Late packets alone do not begin a record: it begins where the entry left off."""
        begun = self.counters["first_seen_mono_ns"]
        return np.where(begun == 0, self.counters["last_seen_mono_ns"], begun)

    @cached_property
    def last_seen(self) -> Array:
        """Of this record: 0 where it has no packet (the entry may remember an older one)."""
        return np.where(self.seen, self.counters["last_seen_mono_ns"], 0)


_TCP_TIMES = {"tcpSynNanoseconds": "syn_mono_ns", "tcpFirstAckNanoseconds": "first_ack_mono_ns"}

_VALID: dict[When, Callable[[_Side], Array]] = {
    When.SEEN: lambda side: side.seen,
    When.TWO_ARRIVALS: lambda side: side.seen & (~side.counters["minimum_interval_ns"] != 0),
    When.IPV4: lambda side: side.seen & (side.keys["ip_version"] == 4),
    When.IPV6: lambda side: side.seen & (side.keys["ip_version"] == 6),
    When.ICMP: lambda side: side.seen & _is_any(side.keys["protocol"], ICMP),
    When.ICMP_IDENTIFIER: lambda side: _has_identifier(side.keys),
    When.TCP: lambda side: side.tcp,
    When.TCP_WINDOW: lambda side: side.tcp & (side.counters["windows_seen"] != 0),
    When.TCP_MSS: lambda side: side.tcp & (side.counters["maximum_segment_size"] != 0),
    When.TCP_WINDOW_SCALE: lambda side: side.syn_seen & (side.counters["window_scale"] != NO_WINDOW_SCALE),
    When.TCP_SYN: lambda side: side.syn_seen,
    When.TCP_FIRST_ACK: lambda side: side.tcp & (side.counters["first_ack_mono_ns"] != 0),
    When.MPLS: lambda side: side.counters["mpls_top_label"] != 0,
    When.IPSEC: lambda side: _is_any(side.keys["protocol"], IPSEC),
    When.IN_TUNNEL: lambda side: side.keys["in_tunnel"] != 0,
    When.IN_IDENTIFIED_TUNNEL: lambda side: side.seen & (side.counters["tunnel_identified"] != 0),
    When.OBSERVED: lambda side: side.observed,
    When.DROPPED: lambda side: side.counters["dropped_packets"] > 0,
    When.INGRESS: lambda side: side.observed & (side.keys["direction"] == Direction.INGRESS),
    When.EGRESS: lambda side: side.observed & (side.keys["direction"] == Direction.EGRESS),
}


def record_batch(flows: EndedFlows, context: Context) -> pa.RecordBatch:
    """The records of `flows`, one row each; `flow_id` and `reasons` go on being used."""
    keys = _Columns(flows.keys, _KEYS)
    sides = {False: _Side(keys, flows.forward), True: _Side(keys, flows.reverse)}
    shared = _shared_columns(flows, keys, sides, context)
    arrays = []
    for name, element, _ in columns():
        side = sides[name.startswith("reverse")]
        values = shared[name] if name in shared else _values(element, side, context)
        if not isinstance(values, pa.Array):
            values = _arrow(values, _validity(element.when, side), element.type)
        arrays.append(values)
    if flows.first_packets is None:
        return pa.RecordBatch.from_arrays(arrays, schema=RECORD_SCHEMA)
    return pa.RecordBatch.from_arrays([*arrays, *_lists(flows.first_packets, context)], schema=LISTING_SCHEMA)


def _shared_columns(
    flows: EndedFlows, keys: _Columns, sides: dict[bool, _Side], context: Context
) -> dict[str, Any]:
    """What a record has once, by column: values, or a column that knows by itself where it is null."""
    forward, reverse = sides[False], sides[True]
    is_ipv4 = keys["ip_version"] == 4
    has_ports = ~_is_any(keys["protocol"], (*ICMP, *IPSEC))
    in_tunnel = keys["in_tunnel"] != 0
    outer_source, outer_destination = _outer_addresses(in_tunnel, forward, reverse)
    never = np.iinfo("u8").max
    start = np.minimum(
        np.where(forward.seen, forward.first_seen, never),
        np.where(reverse.seen, reverse.first_seen, never),
    )
    return {
        "flowStartNanoseconds": _utc(start, context),
        "flowEndNanoseconds": _utc(np.maximum(forward.last_seen, reverse.last_seen), context),
        "reverseFlowStartNanoseconds": _utc(reverse.first_seen, context),
        "reverseFlowEndNanoseconds": _utc(reverse.last_seen, context),
        "flowEndReason": flows.reasons,
        "sourceAddress": address_column(flows.keys["source_address"], is_ipv4),
        "destinationAddress": address_column(flows.keys["destination_address"], is_ipv4),
        "ipVersion": keys["ip_version"],
        "sourceTransportPort": keys["source_port"] * has_ports,
        "destinationTransportPort": keys["destination_port"] * has_ports,
        "protocolIdentifier": keys["protocol"],
        "icmpIdentifier": keys["source_port"],
        "IPSecSPI": keys["source_port"].astype("u4") << 16 | keys["destination_port"],
        "vlanId": _vlan_ids("vlan_id", keys, forward, reverse),
        "dot1qCustomerVlanId": _vlan_ids("customer_vlan_id", keys, forward, reverse),
        "tunnelType": _tunnel_types(in_tunnel, forward, reverse),
        "tunnelSourceAddress": outer_source,
        "tunnelDestinationAddress": outer_destination,
        "flowDirection": keys["direction"],
        "ingressInterface": keys["ifindex"],
        "egressInterface": keys["ifindex"],
        "interfaceName": _interface_names(keys["ifindex"], context.interface_names),
        "flowId": flows.flow_id,
        "firewallEvent": _firewall_events(forward, reverse),
        "observationDomainId": np.full(len(flows), context.observation_domain_id, "u4"),
    }


def _values(element: Element, side: _Side, context: Context) -> Array:
    """One direction's values of a reversible element."""
    counters = side.counters
    if element.counter is not None:
        return counters[element.counter]
    match element.name:
        case "forwardingStatus":
            return np.full(len(side.rows), DROPPED_BY_ACL, "u4")
        case "icmpTypeCode":
            return counters["icmp_type"].astype("u2") << 8 | counters["icmp_code"]
        case "interArrivalSumNanoseconds":
            # Consecutive intervals add up to the whole.
            return side.last_seen - np.where(side.seen, side.first_seen, 0)
        case "interArrivalSquareSum":
            return counters["interval_squares_high"] * 2.0**64 + counters["interval_squares_low"]
        case "tcpSynNanoseconds" | "tcpFirstAckNanoseconds":
            return _utc(counters[_TCP_TIMES[element.name]], context)
    raise AssertionError(f"no source for {element.name}")


def _validity(when: When, side: _Side) -> pa.Buffer | None:
    """The bitmap of an element; made once a side."""
    if when not in _VALID:
        return None
    if when not in side.bitmaps:
        side.bitmaps[when] = _bitmap(_VALID[when](side))
    return side.bitmaps[when]


def _bitmap(valid: Array) -> pa.Buffer | None:
    """Of bool[n], as Arrow has it: None where all are valid."""
    return None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def _arrow(values: Array, validity: pa.Buffer | None, type_: pa.DataType) -> pa.Array:
    """The one crossing: in the memory of `values`, unless that is strided or of another type."""
    if pa.types.is_fixed_size_list(type_):
        flat = _arrow(values.reshape(-1), None, type_.value_type)
        return pa.Array.from_buffers(type_, len(values), [validity], children=[flat])
    plain = np.ascontiguousarray(values, _dtype(type_))
    return pa.Array.from_buffers(type_, len(plain), [validity, pa.py_buffer(plain)])


def _dtype(type_: pa.DataType) -> np.dtype[Any]:
    """NumPy's type of a number, of those in a list, or of a time."""
    if pa.types.is_fixed_size_list(type_):
        type_ = type_.value_type
    return np.dtype(np.int64 if pa.types.is_timestamp(type_) else type_.to_pandas_dtype())


_KEYS = {
    name: FLOW_KEY[name]
    for name in (
        "source_port",
        "destination_port",
        "ifindex",
        "vlan_id",
        "customer_vlan_id",
        "protocol",
        "ip_version",
        "direction",
        "in_tunnel",
    )
}
# Those that are a column as they stand, of its type; and those that others are worked out from.
_COUNTERS = {element.counter: _dtype(element.type) for element in ELEMENTS if element.counter is not None} | {
    name: FLOW_COUNTERS[name]
    for name in (
        "first_seen_mono_ns",
        "last_seen_mono_ns",
        "syn_mono_ns",
        "first_ack_mono_ns",
        "interval_squares_low",
        "interval_squares_high",
        "icmp_type",
        "icmp_code",
        "windows_seen",
        "tunnel_type",
        "tunnel_identified",
        "tunnel_vlan_id",
        "tunnel_customer_vlan_id",
    )
}


def _utc(mono_ns: Array, context: Context) -> Array:
    """int64 nanoseconds since the epoch."""
    return mono_ns.view(np.int64) + context.utc_offset_ns


def _is_any(values: Array, of: Iterable[int]) -> Array:
    """bool[n]. For a few small numbers faster than np.isin."""
    return np.logical_or.reduce([values == one for one in of])


def _has_identifier(keys: _Columns) -> Array:
    query = (keys["destination_port"] >> 8).astype("u1")
    ipv4 = (keys["protocol"] == ICMP[0]) & _is_any(query, IDENTIFIED_CLASSES)
    ipv6 = (keys["protocol"] == ICMP[1]) & _is_any(query, IDENTIFIED_CLASSES_IPV6)
    return ipv4 | ipv6


def _vlan_ids(name: str, keys: _Columns, forward: _Side, reverse: _Side) -> pa.Array:
    """Of the frame; of a flow in a tunnel, of the outer one, in the direction that was seen."""
    outside = f"tunnel_{name}"
    around = np.where(forward.seen, forward.counters[outside], reverse.counters[outside])
    ids = np.where(keys["in_tunnel"] != 0, around, keys[name])
    return _arrow(ids, _bitmap(ids != 0), pa.uint16())


def _outer_addresses(in_tunnel: Array, forward: _Side, reverse: _Side) -> tuple[pa.Array, pa.Array]:
    """Both columns, of the forward direction; where that was not seen, the other's turned round."""
    rows = np.flatnonzero(in_tunnel)
    seen = forward.seen[rows, np.newaxis]
    columns = []
    for own, other in (("tunnel_source", "tunnel_destination"), ("tunnel_destination", "tunnel_source")):
        addresses = np.where(seen, forward.rows[own][rows], reverse.rows[other][rows])
        texts = address_column(addresses, are_mapped(addresses))
        codes = np.zeros(len(in_tunnel), np.int32)
        codes[rows] = to_numpy(texts.indices)
        columns.append(_texts(codes, in_tunnel, texts.dictionary))
    return columns[0], columns[1]


def _tunnel_types(in_tunnel: Array, forward: _Side, reverse: _Side) -> pa.DictionaryArray:
    types = np.maximum(forward.counters["tunnel_type"], reverse.counters["tunnel_type"])
    texts = strings([TUNNEL_NAMES[Tunnel(number)] for number in range(len(Tunnel))])
    return _texts(types, in_tunnel & (types != Tunnel.NONE), texts)


def _firewall_events(forward: _Side, reverse: _Side) -> pa.Array:
    denied = (forward.counters["dropped_packets"] > 0) | (reverse.counters["dropped_packets"] > 0)
    return _arrow(np.full(len(denied), FLOW_DENIED, "u1"), _bitmap(denied), pa.uint8())


def _interface_names(ifindex: Array, names: dict[int, str]) -> pa.DictionaryArray:
    encoded = _arrow(ifindex, None, pa.uint32()).dictionary_encode()
    distinct, codes = encoded.dictionary.to_pylist(), to_numpy(encoded.indices)
    known = np.array([index in names for index in distinct], bool)
    texts = strings([names.get(index, "") for index in distinct])
    return _texts(codes, known[codes], texts)


def _lists(first_packets: FirstPackets, context: Context) -> Iterator[pa.Array]:
    """The columns of elements.LISTS."""
    first = merged(first_packets)
    buffers = [_bitmap(first.is_known), pa.py_buffer(first.offsets)]
    times = _utc(first.times_mono_ns, context)
    for element, values in zip(LISTS, (first.lengths, first.directions, times), strict=True):
        flat = _arrow(values, None, element.type.value_type)
        yield pa.Array.from_buffers(element.type, len(first_packets), buffers, children=[flat])


def _texts(codes: Array, valid: Array, texts: pa.StringArray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(_arrow(codes, _bitmap(valid), pa.int32()), texts)
