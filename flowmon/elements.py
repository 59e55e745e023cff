"""The information elements: each column of a record declared once, for every output.

Names are IANA's (registry "IPFIX Information Elements") verbatim where IANA has
the element, and follow its patterns where it has none (`number` is None). The
Parquet schema, the JSON lines and docs/information-elements.md come from here.

A reversible element stands twice in a record: under its name for the forward
direction, and as reverse… (RFC 5103) for the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, unique

import pyarrow as pa

from flowmon.abi import SIZE_BINS, TTL_BINS

SCHEMA_VERSION = 4


@unique
class When(Enum):
    """When an element has a value; null otherwise."""

    ALWAYS = "always"
    SEEN = "the direction has packets"
    TWO_ARRIVALS = "two packets or more arrived"
    IPV4 = "IPv4"
    IPV6 = "IPv6"
    ICMP = "ICMP and ICMPv6"
    ICMP_IDENTIFIER = "ICMP messages with an identifier"
    TCP = "TCP"
    TCP_WINDOW = "TCP, a segment without RST was seen"
    TCP_MSS = "TCP, the direction's SYN had the option"
    TCP_WINDOW_SCALE = "TCP, the direction's SYN offered scaling"
    TCP_SYN = "TCP, the direction's SYN was seen"
    TCP_FIRST_ACK = "TCP, the direction sent a bare ACK"
    TAGGED = "tagged frames"
    TAGGED_TWICE = "frames with two tags"
    MPLS = "the direction's first packet had a label"
    IPSEC = "ESP and AH"
    IN_TUNNEL = "taken out of a tunnel (--decap)"
    IN_IDENTIFIED_TUNNEL = "the tunnel has an identifier (--decap)"
    OBSERVED = "seen at an interface, not in a capture"
    INGRESS = "seen on ingress"
    EGRESS = "seen on egress"
    NAMED = "the interface's name is known"
    DROPPED = "packets were dropped (deny-list, guard)"
    LISTED = "the kernel has the lists of both directions"


@dataclass(frozen=True)
class Element:
    """One information element.

    number: IANA's, or None for our own. counter: the field of the kernel's
    flow_counters that it is read from, where it is that simple. own_number: what
    IPFIX calls it under an enterprise number (--ipfix-pen), where neither IANA nor
    nProbe has it.
    """

    name: str
    number: int | None
    type: pa.DataType
    meaning: str
    when: When = When.ALWAYS
    reversible: bool = False
    counter: str | None = None
    own_number: int | None = None

    @property
    def reverse_name(self) -> str:
        """The name of the other direction's column (RFC 5103 section 6.1)."""
        return "reverse" + self.name[0].upper() + self.name[1:]


_U1, _U2, _U4, _U8 = pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()
_TIME = pa.timestamp("ns", tz="UTC")
_TEXT = pa.dictionary(pa.int32(), pa.string())


def _count(
    name: str, number: int | None, counter: str, meaning: str, own_number: int | None = None
) -> Element:
    return Element(name, number, _U8, meaning, reversible=True, counter=counter, own_number=own_number)


ELEMENTS: tuple[Element, ...] = (
    Element("flowStartNanoseconds", 156, _TIME, "first packet, of either direction"),
    Element("flowEndNanoseconds", 157, _TIME, "last packet, of either direction"),
    Element(
        "flowEndReason", 136, _U1, "1 idle, 2 active timeout, 3 end of flow, 4 forced, 5 lack of resources"
    ),
    Element("sourceAddress", None, _TEXT, "address that sent the first packet (elements 8 and 27 as text)"),
    Element("destinationAddress", None, _TEXT, "address that it was sent to (elements 12 and 28 as text)"),
    Element("ipVersion", 60, _U1, "4 or 6"),
    Element(
        "sourceTransportPort",
        7,
        _U2,
        "port of TCP, UDP, UDP-Lite, SCTP, DCCP; 0 for others and for fragments whose first was not seen",
    ),
    Element("destinationTransportPort", 11, _U2, "likewise"),
    Element("protocolIdentifier", 4, _U1, "IP protocol number"),
    Element(
        "icmpTypeCode",
        None,
        _U2,
        "type * 256 + code of the first packet (elements 32 and 139)",
        When.ICMP,
        reversible=True,
    ),
    Element(
        "icmpIdentifier", None, _U2, "identifier of a query and its reply", When.ICMP_IDENTIFIER, own_number=1
    ),
    Element("IPSecSPI", 295, _U4, "security parameters index", When.IPSEC),
    Element("vlanId", 58, _U2, "VLAN identifier of the outermost tag", When.TAGGED),
    Element("dot1qCustomerVlanId", 245, _U2, "VLAN identifier of the second tag", When.TAGGED_TWICE),
    Element(
        "tunnelType",
        None,
        _TEXT,
        "gre, ipip, 6in4, 4in6, 6in6, vxlan, geneve, gtp-u",
        When.IN_TUNNEL,
        own_number=2,
    ),
    Element(
        "tunnelIdentifier",
        None,
        _U4,
        "GRE key, VXLAN or Geneve network, GTP-U tunnel endpoint",
        When.IN_IDENTIFIED_TUNNEL,
        reversible=True,
        counter="tunnel_identifier",
        own_number=3,
    ),
    Element(
        "tunnelSourceAddress",
        None,
        _TEXT,
        "outer address of the forward direction",
        When.IN_TUNNEL,
        own_number=4,
    ),
    Element("tunnelDestinationAddress", None, _TEXT, "likewise", When.IN_TUNNEL, own_number=5),
    Element(
        "flowDirection", 61, _U1, "hook that saw the forward direction: 0 ingress, 1 egress", When.OBSERVED
    ),
    Element("ingressInterface", 10, _U4, "interface index of an ingress hook", When.INGRESS),
    Element("egressInterface", 14, _U4, "interface index of an egress hook", When.EGRESS),
    Element("interfaceName", 82, _TEXT, "name of that interface", When.NAMED),
    Element("flowId", 148, _U8, "hash of the conversation: both directions', at any point and time"),
    Element("observationDomainId", 149, _U4, "this flowmon"),
    _count("packetDeltaCount", 2, "packets", "packets on the wire: each segment of a super-packet"),
    _count("octetDeltaCount", 1, "octets", "IP octets: headers and payload, no link layer, no padding"),
    _count("layer2OctetDeltaCount", 352, "layer2_octets", "link-layer octets: frames without checksum"),
    _count("droppedPacketDeltaCount", 133, "dropped_packets", "of the packets, those that were dropped"),
    _count("droppedOctetDeltaCount", 132, "dropped_octets", "IP octets of those"),
    Element(
        "forwardingStatus",
        89,
        _U4,
        "129: some or all of it was dropped by the deny-list or the guard",
        When.DROPPED,
        reversible=True,
    ),
    Element("firewallEvent", 233, _U1, "3: denied, in either direction", When.DROPPED),
    Element("reverseFlowStartNanoseconds", 156, _TIME, "first packet of the reverse direction", When.SEEN),
    Element("reverseFlowEndNanoseconds", 157, _TIME, "last packet of the reverse direction", When.SEEN),
    Element(
        "ipClassOfService",
        5,
        _U1,
        "ToS or traffic class of the first packet",
        When.SEEN,
        reversible=True,
        counter="class_of_service",
    ),
    Element(
        "flowLabelIPv6",
        31,
        _U4,
        "flow label of the first packet",
        When.IPV6,
        reversible=True,
        counter="flow_label",
    ),
    Element(
        "ipv4Options",
        208,
        _U4,
        "options seen: bit n is option number n",
        When.IPV4,
        reversible=True,
        counter="ipv4_options",
    ),
    Element(
        "ipv6ExtensionHeaders",
        64,
        _U4,
        "extension headers seen: bit 0 destination options, 1 hop-by-hop, 4 first or only fragment,"
        " 5 routing, 6 later fragment, 12 mobility, 13 ESP, 14 AH, 15 payload compression",
        When.IPV6,
        reversible=True,
        counter="ipv6_extension_headers",
    ),
    Element(
        "mplsTopLabelStackSection",
        70,
        _U4,
        "top label, its traffic class and bottom flag as one number of 24 bits",
        When.MPLS,
        reversible=True,
        counter="mpls_top_label",
    ),
    Element(
        "minimumIpTotalLength",
        25,
        _U8,
        "shortest IP packet",
        When.SEEN,
        reversible=True,
        counter="minimum_ip_length",
    ),
    Element(
        "maximumIpTotalLength",
        26,
        _U8,
        "longest IP packet",
        When.SEEN,
        reversible=True,
        counter="maximum_ip_length",
    ),
    Element(
        "minimumTTL", 52, _U1, "lowest TTL or hop limit", When.SEEN, reversible=True, counter="minimum_ttl"
    ),
    Element(
        "maximumTTL", 53, _U1, "highest TTL or hop limit", When.SEEN, reversible=True, counter="maximum_ttl"
    ),
    Element(
        "packetSizeHistogram",
        None,
        pa.list_(_U8, SIZE_BINS),
        "packets by IP length: <128, <256, <512, <1024, <1514, more",
        reversible=True,
        counter="size_histogram",
    ),
    Element(
        "ttlHistogram",
        None,
        pa.list_(_U8, TTL_BINS),
        "packets by TTL or hop limit: ≤1, ≤5, ≤32, ≤64, ≤96, ≤128, ≤160, ≤192, ≤224, ≤255",
        reversible=True,
        counter="ttl_histogram",
    ),
    Element(
        "minimumInterArrivalNanoseconds",
        None,
        _U8,
        "shortest time between two arrivals (a super-packet is one)",
        When.TWO_ARRIVALS,
        reversible=True,
        counter="minimum_interval_ns",
        own_number=8,
    ),
    Element(
        "maximumInterArrivalNanoseconds",
        None,
        _U8,
        "longest time between two arrivals",
        When.TWO_ARRIVALS,
        reversible=True,
        counter="maximum_interval_ns",
        own_number=9,
    ),
    Element(
        "interArrivalSumNanoseconds",
        None,
        _U8,
        "sum of the times between arrivals; over (packets - 1) it is the mean",
        reversible=True,
        own_number=10,
    ),
    Element(
        "interArrivalSquareSum",
        None,
        pa.float64(),
        "sum of their squares, ns²; with the mean it gives the jitter",
        reversible=True,
        own_number=11,
    ),
    Element(
        "tcpControlBits",
        6,
        _U2,
        "union of the flags, with the reserved bits",
        When.TCP,
        reversible=True,
        counter="tcp_control_bits",
    ),
    _count("tcpSynTotalCount", 218, "syn_packets", "packets with SYN, in this record"),
    _count("tcpFinTotalCount", 219, "fin_packets", "packets with FIN, in this record"),
    _count("tcpRstTotalCount", 220, "rst_packets", "packets with RST, in this record"),
    _count("tcpRetransmittedPacketDeltaCount", None, "retransmitted_packets", "packets sent again"),
    _count("tcpRetransmittedOctetDeltaCount", None, "retransmitted_octets", "their TCP payload"),
    _count("tcpOutOfOrderPacketDeltaCount", None, "out_of_order_packets", "packets that came late"),
    _count("tcpOutOfOrderOctetDeltaCount", None, "out_of_order_octets", "their TCP payload", own_number=12),
    Element(
        "tcpWindowSize",
        186,
        _U2,
        "window of the first packet, not scaled",
        When.TCP,
        reversible=True,
        counter="first_window",
    ),
    Element(
        "minimumTcpWindowSize",
        None,
        _U4,
        "smallest window, scaled",
        When.TCP_WINDOW,
        reversible=True,
        counter="minimum_window",
    ),
    Element(
        "maximumTcpWindowSize",
        None,
        _U4,
        "largest window, scaled",
        When.TCP_WINDOW,
        reversible=True,
        counter="maximum_window",
    ),
    Element(
        "tcpMaximumSegmentSize",
        None,
        _U2,
        "MSS option of the SYN",
        When.TCP_MSS,
        reversible=True,
        counter="maximum_segment_size",
    ),
    Element(
        "tcpWindowScale",
        238,
        _U2,
        "window scale option of the SYN",
        When.TCP_WINDOW_SCALE,
        reversible=True,
        counter="window_scale",
    ),
    Element(
        "tcpSynNanoseconds",
        None,
        _TIME,
        "latest SYN; reverse less forward is the server's round trip",
        When.TCP_SYN,
        reversible=True,
        own_number=13,
    ),
    Element(
        "tcpFirstAckNanoseconds",
        None,
        _TIME,
        "first segment that is nothing but an ACK; less reverseTcpSyn it is the client's round trip",
        When.TCP_FIRST_ACK,
        reversible=True,
        own_number=14,
    ),
)


# Of a record's first packets (--splt), each list in order of time. IANA's elements are those of one packet.
LISTS: tuple[Element, ...] = (
    Element(
        "packetLengths",
        None,
        pa.list_(_U2),
        "IP octets of each packet (element 224); 65535 stands for all that is longer",
        When.LISTED,
    ),
    Element("packetDirections", None, pa.list_(_U1), "1 forward, 2 reverse (as in element 239)", When.LISTED),
    Element("packetTimes", None, pa.list_(_TIME), "when it passed (element 325)", When.LISTED),
)


def columns() -> Iterator[tuple[str, Element, bool]]:
    """(column, element, whether of the reverse direction), in the order of a record."""
    for element in ELEMENTS:
        yield element.name, element, False
    for element in ELEMENTS:
        if element.reversible:
            yield element.reverse_name, element, True


RECORD_SCHEMA = pa.schema(
    [pa.field(name, element.type) for name, element, _ in columns()],
    metadata={"flowmon.schema_version": str(SCHEMA_VERSION)},
)
# Who does not ask for lists has no columns of them.
LISTING_SCHEMA = pa.schema(
    [*RECORD_SCHEMA, *(pa.field(element.name, element.type) for element in LISTS)],
    metadata=RECORD_SCHEMA.metadata,
)


def markdown() -> str:
    """The table of docs/information-elements.md."""
    lines = [
        "# Information elements",
        "",
        "Generated from `flowmon/elements.py` (`make docs`). A column marked ⇄ stands twice in a",
        "record: so named for the forward direction, and as `reverse…` for the other.",
        "IANA: the element's number in the IPFIX registry; — where IANA has none.",
        "Times are UTC. A count is 0, and a description null, where the direction was not seen.",
        "",
        "| column | ⇄ | IANA | type | what it is | null unless |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(element) for element in ELEMENTS]
    lines += [
        "",
        "With `--splt N` a record has three columns more: of its first N packets (on the wire, both directions together,",
        "in order of time; of equal times, forward first), one value a packet each.",
        "",
        "| column | ⇄ | IANA | type | what it is | null unless |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(element) for element in LISTS]
    return "\n".join(lines) + "\n"


def _row(element: Element) -> str:
    number = "—" if element.number is None else str(element.number)
    both = "⇄" if element.reversible else ""
    condition = "" if element.when is When.ALWAYS else element.when.value
    return (
        f"| `{element.name}` | {both} | {number} | {_type_name(element.type)} |"
        f" {element.meaning} | {condition} |"
    )


def _type_name(type_: pa.DataType) -> str:
    if pa.types.is_dictionary(type_):
        return "text"
    if pa.types.is_fixed_size_list(type_):
        return f"{type_.value_type}[{type_.list_size}]"
    if pa.types.is_list(type_):
        return f"list of {type_.value_type}"
    return str(type_)


if __name__ == "__main__":
    print(markdown(), end="")
