"""From counters to records: the only crossing from NumPy to Arrow, and from monotonic time to UTC.

Rules:
- One row a biflow, in the columns of elements.RECORD_SCHEMA, no more, no fewer.
- A biflow's start and end span both directions: start ≤ end.
- A direction that was not seen counts 0, and what describes it is null.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from flowmon.abi import NO_WINDOW_SCALE, Direction, Tunnel
from flowmon.elements import RECORD_SCHEMA, Element, When, columns
from flowmon.text import address_column

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


@dataclass(frozen=True)
class EndedFlows:
    """Biflows taken out of the table, all arrays in step.

    keys: FLOW_KEY of the forward direction. forward, reverse: FLOW_COUNTERS, all
    zero where the direction was not there. flow_id: uint64. reasons: uint8.
    """

    keys: Array
    forward: Array
    reverse: Array
    flow_id: Array
    reasons: Array

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Context:
    """What a record says that the table does not know."""

    utc_offset_ns: int  # UTC less CLOCK_MONOTONIC
    interface_names: dict[int, str]
    observation_domain_id: int


@dataclass(frozen=True)
class _Side:
    """One direction of the ended flows."""

    keys: Array
    counters: Array

    @cached_property
    def seen(self) -> Array:
        return self.counters["packets"] > 0

    @cached_property
    def tcp(self) -> Array:
        return self.seen & (self.keys["protocol"] == TCP)

    @cached_property
    def icmp(self) -> Array:
        return self.seen & np.isin(self.keys["protocol"], ICMP)

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
    When.ICMP: lambda side: side.icmp,
    When.ICMP_IDENTIFIER: lambda side: _has_identifier(side.keys),
    When.TCP: lambda side: side.tcp,
    When.TCP_WINDOW: lambda side: side.tcp & (side.counters["windows_seen"] != 0),
    When.TCP_MSS: lambda side: side.tcp & (side.counters["maximum_segment_size"] != 0),
    When.TCP_WINDOW_SCALE: lambda side: (
        side.tcp & (side.counters["syn_mono_ns"] != 0) & (side.counters["window_scale"] != NO_WINDOW_SCALE)
    ),
    When.TCP_SYN: lambda side: side.tcp & (side.counters["syn_mono_ns"] != 0),
    When.TCP_FIRST_ACK: lambda side: side.tcp & (side.counters["first_ack_mono_ns"] != 0),
    When.MPLS: lambda side: side.counters["mpls_top_label"] != 0,
    When.IPSEC: lambda side: np.isin(side.keys["protocol"], IPSEC),
    When.IN_TUNNEL: lambda side: side.keys["in_tunnel"] != 0,
    When.IN_IDENTIFIED_TUNNEL: lambda side: side.seen & (side.counters["tunnel_identified"] != 0),
    When.OBSERVED: lambda side: side.observed,
    When.DROPPED: lambda side: side.counters["dropped_packets"] > 0,
    When.INGRESS: lambda side: side.observed & (side.keys["direction"] == Direction.INGRESS),
    When.EGRESS: lambda side: side.observed & (side.keys["direction"] == Direction.EGRESS),
}


def record_batch(flows: EndedFlows, context: Context) -> pa.RecordBatch:
    """The records of `flows`, one row each."""
    sides = {False: _Side(flows.keys, flows.forward), True: _Side(flows.keys, flows.reverse)}
    shared = _shared_columns(flows, sides, context)
    arrays = []
    for name, element, is_reverse in columns():
        if name in shared:
            arrays.append(_arrow(shared[name], _valid(element, sides[name.startswith("reverse")]), element))
        else:
            side = sides[is_reverse]
            arrays.append(_arrow(_values(element, side, context), _valid(element, side), element))
    return pa.RecordBatch.from_arrays(arrays, schema=RECORD_SCHEMA)


def _shared_columns(flows: EndedFlows, sides: dict[bool, _Side], context: Context) -> dict[str, Any]:
    """What a record has once, by column."""
    keys, forward, reverse = flows.keys, sides[False], sides[True]
    is_ipv4 = keys["ip_version"] == 4
    has_no_ports = np.isin(keys["protocol"], (*ICMP, *IPSEC))
    outer_source, outer_destination = _outer_addresses(keys["in_tunnel"] != 0, forward, reverse)
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
        "sourceAddress": address_column(keys["source_address"], is_ipv4),
        "destinationAddress": address_column(keys["destination_address"], is_ipv4),
        "ipVersion": keys["ip_version"],
        "sourceTransportPort": np.where(has_no_ports, 0, keys["source_port"]),
        "destinationTransportPort": np.where(has_no_ports, 0, keys["destination_port"]),
        "protocolIdentifier": keys["protocol"],
        "icmpIdentifier": keys["source_port"],
        "IPSecSPI": keys["source_port"].astype("u4") << 16 | keys["destination_port"],
        "vlanId": _vlan_ids("vlan_id", keys, forward, reverse),
        "dot1qCustomerVlanId": _vlan_ids("customer_vlan_id", keys, forward, reverse),
        "tunnelType": _tunnel_types(keys["in_tunnel"] != 0, forward, reverse),
        "tunnelSourceAddress": outer_source,
        "tunnelDestinationAddress": outer_destination,
        "flowDirection": keys["direction"],
        "ingressInterface": keys["ifindex"],
        "egressInterface": keys["ifindex"],
        "interfaceName": _interface_names(keys["ifindex"], context.interface_names),
        "flowId": flows.flow_id,
        "firewallEvent": _firewall_events(forward, reverse),
        "observationDomainId": np.full(len(flows), context.observation_domain_id),
    }


def _values(element: Element, side: _Side, context: Context) -> Array:
    """One direction's values of a reversible element."""
    counters = side.counters
    if element.counter is not None:
        return np.ascontiguousarray(counters[element.counter])
    match element.name:
        case "forwardingStatus":
            return np.full(len(counters), DROPPED_BY_ACL, "u4")
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


def _valid(element: Element, side: _Side) -> Array | None:
    """bool[n], or None where the element always has a value."""
    return None if element.when not in _VALID else _VALID[element.when](side)


def _arrow(values: Any, valid: Array | None, element: Element) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if pa.types.is_fixed_size_list(element.type):
        flat = pa.array(values.reshape(-1), element.type.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=element.type)
    target = np.int64 if pa.types.is_timestamp(element.type) else element.type.to_pandas_dtype()
    plain = np.ascontiguousarray(values, dtype=target)
    return pa.array(plain, element.type, mask=None if valid is None else ~valid)


def _utc(mono_ns: Array, context: Context) -> Array:
    """int64 nanoseconds since the epoch."""
    return mono_ns.astype(np.int64) + context.utc_offset_ns


def _has_identifier(keys: Array) -> Array:
    query = keys["destination_port"] >> 8
    ipv4 = (keys["protocol"] == ICMP[0]) & np.isin(query, IDENTIFIED_CLASSES)
    ipv6 = (keys["protocol"] == ICMP[1]) & np.isin(query, IDENTIFIED_CLASSES_IPV6)
    return ipv4 | ipv6


def _vlan_ids(name: str, keys: Array, forward: _Side, reverse: _Side) -> pa.Array:
    """Of the frame; of a flow in a tunnel, of the outer one, in the direction that was seen."""
    outside = f"tunnel_{name}"
    around = np.where(forward.seen, forward.counters[outside], reverse.counters[outside])
    ids = np.where(keys["in_tunnel"] != 0, around, keys[name])
    return pa.array(ids, mask=ids == 0)


def _outer_addresses(in_tunnel: Array, forward: _Side, reverse: _Side) -> tuple[pa.Array, pa.Array]:
    """Both columns, of the forward direction; where that was not seen, the other's turned round."""
    rows = np.flatnonzero(in_tunnel)
    ours, others = forward.counters[rows], reverse.counters[rows]
    seen = forward.seen[rows, np.newaxis]
    columns = []
    for own, other in (("tunnel_source", "tunnel_destination"), ("tunnel_destination", "tunnel_source")):
        addresses = np.where(seen, ours[own], others[other])
        texts = address_column(addresses, _is_mapped(addresses))
        codes = np.zeros(len(in_tunnel), np.int32)
        codes[rows] = texts.indices.to_numpy()
        columns.append(pa.DictionaryArray.from_arrays(pa.array(codes, mask=~in_tunnel), texts.dictionary))
    return columns[0], columns[1]


def _is_mapped(addresses: Array) -> Array:
    """bool[n]: whether they are IPv4 addresses as the table holds them."""
    return (addresses[:, :10] == 0).all(axis=1) & (addresses[:, 10:12] == 0xFF).all(axis=1)


def _tunnel_types(in_tunnel: Array, forward: _Side, reverse: _Side) -> pa.DictionaryArray:
    types = np.maximum(forward.counters["tunnel_type"], reverse.counters["tunnel_type"])
    texts = pa.array([TUNNEL_NAMES[Tunnel(number)] for number in range(len(Tunnel))], pa.string())
    codes = pa.array(types.astype(np.int32), mask=~in_tunnel | (types == Tunnel.NONE))
    return pa.DictionaryArray.from_arrays(codes, texts)


def _firewall_events(forward: _Side, reverse: _Side) -> pa.Array:
    dropped = (forward.counters["dropped_packets"] > 0) | (reverse.counters["dropped_packets"] > 0)
    return pa.array(np.full(len(dropped), FLOW_DENIED, "u1"), mask=~dropped)


def _interface_names(ifindex: Array, names: dict[int, str]) -> pa.DictionaryArray:
    distinct, indices = np.unique(ifindex, return_inverse=True)
    known = np.array([int(index) in names for index in distinct], bool)
    texts = pa.array([names.get(int(index), "") for index in distinct], pa.string())
    codes = pa.array(indices.astype(np.int32), mask=~known[indices])
    return pa.DictionaryArray.from_arrays(codes, texts)
