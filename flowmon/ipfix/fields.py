"""The fields of a data record: which columns go out, under which numbers, how wide.

IANA's elements come from flowmon.elements as they are. What differs on the wire
from the column stands in the tables here.

Rules:
- A field is in a record if the record has all of the field's traits: there is no
  0 that means "none", but for the two VLAN ids, the two interfaces, what one
  direction of a biflow did not have, and what a packet may leave unsaid (ICMP and
  tunnel identifiers, options of a SYN, times between arrivals).
- Counters keep their 64 bits. Lengths, times of day and histograms are as wide as
  nProbe's or the packet make them (reduced-size encoding, RFC 7011 section 6.2),
  and stop at their largest value.
- What IANA has is reversed under PEN 29305 (RFC 5103). nProbe's elements come in
  pairs instead; our own are reversed by bit 14 (RFC 5103 section 6.2).
- A record without reverse packets has no reverse fields: it is no biflow.
- Lists are basicLists (RFC 6313) of IANA's elements for one packet, behind all other fields. Their times are in
  nanoseconds whatever the unit of the flow's: what is between packets is less than a millisecond.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntFlag, auto
from typing import Any

import numpy as np
import pyarrow as pa

from flowmon.elements import ELEMENTS, LISTS, Element, When
from flowmon.ipfix.columns import Columns

Array = np.ndarray[Any, np.dtype[Any]]

IANA, REVERSE_PEN, NTOP_PEN = 0, 29305, 35632
OWN_REVERSE_BIT = 0x4000
REVERSED = "reverse"
INITIATOR = 1  # biflowDirection: forward is who sent the first packet seen
BASIC_LIST = 291
ORDERED = 4  # semantics of a list (RFC 6313 section 4.4)
VARIABLE = 65535  # the width that a template gives of what has a length of its own
SHORT = 255  # octets from which a length takes three octets (RFC 7011 section 7)


class Trait(IntFlag):
    """What a record has, and so which fields."""

    IPV4 = auto()
    IPV6 = auto()
    TCP = auto()
    ICMP = auto()
    IPSEC = auto()
    REVERSE = auto()
    TAGGED = auto()
    LABELLED = auto()
    OPTIONS = auto()
    OBSERVED = auto()
    TUNNEL = auto()
    TUNNEL_IPV4 = auto()  # the addresses outside
    TUNNEL_IPV6 = auto()
    DROPPED = auto()  # packets, in either direction
    ANY = 0


@dataclass(frozen=True)
class Field:
    """One field of a template. value: from the columns to an array as `dtype` will take it.

    of_each: of a list, the element that it has one of for each packet, with `dtype` and a value of
    all records' packets one after the other.
    """

    name: str
    number: int
    dtype: str
    value: Callable[[Columns], Array]
    enterprise: int = IANA
    traits: Trait = Trait.ANY
    column: str = ""  # that chooses it (--ipfix-elements)
    is_key: bool = False
    of_each: int = 0

    @property
    def octets(self) -> int:
        """Its width in the template."""
        return VARIABLE if self.of_each else np.dtype(self.dtype).itemsize

    def layout(self, packets: int) -> np.dtype[Any]:
        """Of the field in a record that lists so many."""
        if not self.of_each:
            return np.dtype(self.dtype)
        return np.dtype([("head", f"V{len(self.head(packets))}"), ("values", self.dtype, (packets,))])

    def head(self, packets: int) -> bytes:
        """What is before the values of a list: its length, and what it is a list of (RFC 6313 section 4.5.1)."""
        width = np.dtype(self.dtype).itemsize
        said = struct.pack(">BHH", ORDERED, self.of_each, width)
        octets = len(said) + packets * width
        return (bytes((octets,)) if octets < SHORT else struct.pack(">BH", SHORT, octets)) + said


KEYS = frozenset(
    "sourceAddress destinationAddress sourceTransportPort destinationTransportPort protocolIdentifier vlanId"
    " dot1qCustomerVlanId icmpIdentifier IPSecSPI tunnelType tunnelIdentifier tunnelSourceAddress"
    " tunnelDestinationAddress".split()
)
ALWAYS = frozenset(
    "flowStartNanoseconds flowEndNanoseconds reverseFlowStartNanoseconds reverseFlowEndNanoseconds sourceAddress"
    " destinationAddress sourceTransportPort destinationTransportPort protocolIdentifier octetDeltaCount"
    " packetDeltaCount".split()
)
# With these a template has more than 60 fields, and Wireshark takes no more than that unless it is told to.
NOT_BY_DEFAULT = frozenset(
    "ttlHistogram tcpRetransmittedOctetDeltaCount minimumTcpWindowSize maximumTcpWindowSize tcpMaximumSegmentSize".split()
)
# The session, and an options record, say these.
NOT_SENT = frozenset({"observationDomainId", "interfaceName"})
CHOICES = tuple(
    element.name
    for element in (*ELEMENTS, *LISTS)
    if element.name not in NOT_SENT and not element.name.startswith(REVERSED)
)
# Column → the element that it is a list of, and how that goes out. Lengths have all 8 octets: of shorter ones in a list,
# libfixbuf makes wrong numbers.
_LISTS = {
    "packetLengths": (224, ">u8"),
    "packetDirections": (239, "u1"),
    "packetTimes": (325, ">u8"),
}

_TRAITS = {
    When.IPV6: Trait.IPV6,
    When.ICMP: Trait.ICMP,
    When.ICMP_IDENTIFIER: Trait.ICMP,
    When.TCP: Trait.TCP,
    When.TCP_WINDOW: Trait.TCP,
    When.TCP_MSS: Trait.TCP,
    When.TCP_WINDOW_SCALE: Trait.TCP,
    When.TCP_SYN: Trait.TCP,
    When.TCP_FIRST_ACK: Trait.TCP,
    When.TAGGED: Trait.TAGGED,
    When.TAGGED_TWICE: Trait.TAGGED,
    When.MPLS: Trait.LABELLED,
    When.IPSEC: Trait.IPSEC,
    When.IN_TUNNEL: Trait.TUNNEL,
    When.IN_IDENTIFIED_TUNNEL: Trait.TUNNEL,
    When.OBSERVED: Trait.OBSERVED,
    When.INGRESS: Trait.OBSERVED,
    When.EGRESS: Trait.OBSERVED,
    When.DROPPED: Trait.DROPPED,
}
_TRAITS_OF_NAME = {
    "ipv4Options": Trait.IPV4 | Trait.OPTIONS,
    "ipv6ExtensionHeaders": Trait.IPV6 | Trait.OPTIONS,
} | dict.fromkeys(("droppedPacketDeltaCount", "droppedOctetDeltaCount"), Trait.DROPPED)
_REDUCED = {
    "minimumIpTotalLength": ">u4",
    "maximumIpTotalLength": ">u4",
    "forwardingStatus": "u1",
} | dict.fromkeys(("tcpSynTotalCount", "tcpFinTotalCount", "tcpRstTotalCount"), ">u4")
START_NANOSECONDS = 156
# Unit → end of the names, width, and the numbers of start and end. "uptime" is NetFlow v9's.
_TIMES = {
    "ms": ("Milliseconds", ">u8", (152, 153)),
    "us": ("Microseconds", ">u8", (154, 155)),
    "ns": ("Nanoseconds", ">u8", (156, 157)),
    "uptime": ("SysUpTime", ">u4", (22, 21)),
}
# IANA has two elements where the column is one.
_BY_VERSION = {
    "sourceAddress": ("sourceIPv4Address", 8, "sourceIPv6Address", 27),
    "destinationAddress": ("destinationIPv4Address", 12, "destinationIPv6Address", 28),
    "icmpTypeCode": ("icmpTypeCodeIPv4", 32, "icmpTypeCodeIPv6", 139),
}
_ADDRESSES = ("sourceAddress", "destinationAddress")
_TUNNEL_ADDRESSES = {"tunnelSourceAddress": 6, "tunnelDestinationAddress": 7}  # IPv6's own numbers
# What goes out under IANA's numbers alone: some collectors drop a template for one field that they do not know.
IANA_ONLY = frozenset(
    element.name
    for element in ELEMENTS
    if element.name in CHOICES and (element.number is not None or element.name in _BY_VERSION)
)
# nProbe's, by direction: RETRANSMITTED_IN_PKTS is forward, …_OUT_… reverse.
_NTOP_PAIRS = {
    "tcpRetransmittedPacketDeltaCount": ("RETRANSMITTED_{}_PKTS", 109, 110, ">u4"),
    "tcpRetransmittedOctetDeltaCount": ("RETRANSMITTED_{}_BYTES", 127, 128, ">u4"),
    "tcpOutOfOrderPacketDeltaCount": ("OOORDER_{}_PKTS", 111, 112, ">u4"),
    "minimumTcpWindowSize": ("TCP_WIN_MIN_{}", 415, 419, ">u4"),
    "maximumTcpWindowSize": ("TCP_WIN_MAX_{}", 416, 420, ">u4"),
    "tcpMaximumSegmentSize": ("TCP_WIN_MSS_{}", 417, 421, ">u2"),
}
# nProbe's, of both directions together.
_NTOP_BINS = {
    "packetSizeHistogram": (
        ("NUM_PKTS_UP_TO_128_BYTES", 88),
        ("NUM_PKTS_128_TO_256_BYTES", 89),
        ("NUM_PKTS_256_TO_512_BYTES", 90),
        ("NUM_PKTS_512_TO_1024_BYTES", 91),
        ("NUM_PKTS_1024_TO_1514_BYTES", 92),
        ("NUM_PKTS_OVER_1514_BYTES", 93),
    ),
    "ttlHistogram": (
        ("NUM_PKTS_TTL_EQ_1", 347),
        ("NUM_PKTS_TTL_2_5", 346),
        ("NUM_PKTS_TTL_5_32", 334),
        ("NUM_PKTS_TTL_32_64", 335),
        ("NUM_PKTS_TTL_64_96", 336),
        ("NUM_PKTS_TTL_96_128", 337),
        ("NUM_PKTS_TTL_128_160", 338),
        ("NUM_PKTS_TTL_160_192", 339),
        ("NUM_PKTS_TTL_192_224", 340),
        ("NUM_PKTS_TTL_224_255", 341),
    ),
}


def fields(chosen: frozenset[str], time_unit: str, pen: int | None, *, lists: bool = False) -> list[Field]:
    """All fields that a record of the chosen columns may have, in their order.

    chosen: of CHOICES. time_unit: "ms", "us", "ns" or "uptime". pen: for our own elements,
    which are left out where it is None. lists: whether records have elements.LISTS.
    """
    wanted = chosen | ALWAYS
    forward: list[Field] = []
    for element in ELEMENTS:
        if element.name in wanted:
            forward += _fields_of(element, time_unit, pen)
    if {"tcpSynNanoseconds", "tcpFirstAckNanoseconds"} <= wanted:
        forward += _latencies()
    forward.append(_biflow_direction())
    reverse = [_reversed(field) for field in forward if _is_reversible(field)]
    # Some take a reverse element for the forward one (nfdump): the last one of a record counts.
    ordered = sorted(forward + reverse, key=lambda one: one.enterprise != REVERSE_PEN)
    return ordered + [_list(name) for name in _LISTS if lists and name in wanted]


def _list(name: str) -> Field:
    number, dtype = _LISTS[name]
    return Field(
        name, BASIC_LIST, dtype, lambda columns: columns.of_packets(name), column=name, of_each=number
    )


def _fields_of(element: Element, time_unit: str, pen: int | None) -> Iterator[Field]:
    """The forward fields of one column; those of nProbe for both directions."""
    name = element.name
    if name in _BY_VERSION:
        yield from _by_version(name)
    elif name in _NTOP_PAIRS:
        yield from _ntop_pair(name)
    elif name in _NTOP_BINS:
        yield from _ntop_bins(name)
    elif element.number is not None:
        is_time = pa.types.is_timestamp(element.type)
        yield _time(name, element.number, time_unit) if is_time else _plain(element, element.number)
    elif element.own_number is not None and pen is not None:
        yield from _own(element, element.own_number, pen)


def _column(name: str) -> Callable[[Columns], Array]:
    return lambda columns: columns.numbers(name)


def _traits(element: Element) -> Trait:
    traits = _TRAITS_OF_NAME.get(element.name) or _TRAITS.get(element.when, Trait.ANY)
    is_of_tcp = element.name.startswith("tcp")  # counters too, which are 0 elsewhere
    return traits | (Trait.TCP if is_of_tcp else Trait.ANY)


def _plain(element: Element, number: int) -> Field:
    name = element.name
    dtype = _REDUCED.get(name) or np.dtype(element.type.to_pandas_dtype()).newbyteorder(">").str
    value = _column(name)
    if name == "mplsTopLabelStackSection":
        dtype, value = "V3", lambda columns: columns.last_octets(name, 3)
    return Field(name, number, dtype, value, traits=_traits(element), column=name, is_key=name in KEYS)


def _time(name: str, number: int, unit: str) -> Field:
    """When the flow, or its reverse direction, started or ended; `number` is that of nanoseconds."""
    long_unit, dtype, numbers = _TIMES[unit]
    is_reverse = name.startswith(REVERSED)
    return Field(
        name.replace("Nanoseconds", long_unit),
        numbers[number - START_NANOSECONDS],
        dtype,
        lambda columns: columns.times(name, unit),
        REVERSE_PEN if is_reverse else IANA,
        Trait.REVERSE if is_reverse else Trait.ANY,
        column=name,
    )


def _by_version(name: str) -> Iterator[Field]:
    name4, number4, name6, number6 = _BY_VERSION[name]
    for wire_name, number, trait, width in (
        (name4, number4, Trait.IPV4, 4),
        (name6, number6, Trait.IPV6, 16),
    ):
        if name in _ADDRESSES:
            yield Field(
                wire_name, number, f"V{width}", _address(name, width), traits=trait, column=name, is_key=True
            )
        else:
            yield Field(wire_name, number, ">u2", _column(name), traits=trait | Trait.ICMP, column=name)


def _address(name: str, width: int) -> Callable[[Columns], Array]:
    return lambda columns: columns.addresses(name, width)


def _ntop_pair(name: str) -> Iterator[Field]:
    text, forward, reverse, dtype = _NTOP_PAIRS[name]
    yield Field(text.format("IN"), forward, dtype, _column(name), NTOP_PEN, Trait.TCP, name)
    other = REVERSED + name[0].upper() + name[1:]
    yield Field(text.format("OUT"), reverse, dtype, _column(other), NTOP_PEN, Trait.TCP | Trait.REVERSE, name)


def _ntop_bins(name: str) -> Iterator[Field]:
    for position, (wire_name, number) in enumerate(_NTOP_BINS[name]):
        yield Field(wire_name, number, ">u4", _bin(name, position), NTOP_PEN, column=name)


def _bin(name: str, position: int) -> Callable[[Columns], Array]:
    return lambda columns: columns.bin_of_both(name, position)


def _latencies() -> list[Field]:
    """Half a round trip, by the handshake: to the client, and to the server. In a biflow only."""
    traits = Trait.TCP | Trait.REVERSE
    syn, answer, ack = "tcpSynNanoseconds", "reverseTcpSynNanoseconds", "tcpFirstAckNanoseconds"
    client, server = _half_milliseconds(answer, ack), _half_milliseconds(syn, answer)
    return [
        Field("CLIENT_NW_LATENCY_MS", 123, ">u4", client, NTOP_PEN, traits, ack),
        Field("SERVER_NW_LATENCY_MS", 124, ">u4", server, NTOP_PEN, traits, syn),
    ]


def _half_milliseconds(start: str, end: str) -> Callable[[Columns], Array]:
    return lambda columns: columns.between(start, end) // 2_000_000


def _biflow_direction() -> Field:
    return Field(
        "biflowDirection",
        239,
        "u1",
        lambda columns: np.full(len(columns), INITIATOR, "u1"),
        traits=Trait.REVERSE,
    )


def _own(element: Element, number: int, pen: int) -> Iterator[Field]:
    name, traits = element.name, _traits(element)
    is_key = name in KEYS
    if name in _TUNNEL_ADDRESSES:
        for suffix, one, trait, width in (
            ("IPv4Address", number, Trait.TUNNEL_IPV4, 4),
            ("IPv6Address", _TUNNEL_ADDRESSES[name], Trait.TUNNEL_IPV6, 16),
        ):
            wire_name = name.replace("Address", suffix)
            yield Field(wire_name, one, f"V{width}", _address(name, width), pen, traits | trait, name, is_key)
    elif name == "tunnelType":
        yield Field(name, number, "u1", lambda columns: columns.tunnel_types(), pen, traits, name, is_key)
    elif pa.types.is_timestamp(element.type):
        yield Field(name, number, ">u8", lambda columns: columns.times(name, "ns"), pen, traits, name)
    else:
        dtype = np.dtype(element.type.to_pandas_dtype()).newbyteorder(">").str
        yield Field(name, number, dtype, _column(name), pen, traits, name, is_key)


_REVERSIBLE = frozenset(element.name for element in ELEMENTS if element.reversible)


def _is_reversible(field: Field) -> bool:
    return field.column in _REVERSIBLE and field.enterprise != NTOP_PEN


def _reversed(field: Field) -> Field:
    """The same of the other direction: read from its column."""
    is_iana = field.enterprise == IANA
    return replace(
        field,
        name=REVERSED + field.name[0].upper() + field.name[1:],
        number=field.number if is_iana else field.number | OWN_REVERSE_BIT,
        enterprise=REVERSE_PEN if is_iana else field.enterprise,
        traits=field.traits | Trait.REVERSE,
        value=lambda columns: field.value(columns.reversed()),
        is_key=False,
    )
