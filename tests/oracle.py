"""The slow, obvious flow monitor that tests compare the program with.

``flows_of(capture)`` parses every frame by hand, puts the packets of one biflow in one list, and only then works out
each column from that list, one column at a time. Nothing is incremental, nothing is shared with the program.

Rules it keeps:

* A biflow is two addresses, two ports, protocol, IP version and VLAN id; for ICMP also the message class (a query and
  its reply are one class) and the identifier. No timeout ever ends one. Forward is the direction of the first packet
  (RFC 5103).
* IP octets are the IP total length, never link padding; where the length field is 0 (a super-packet), what the frame
  holds behind its link header.
* A frame that is not IP, is malformed, or was cut before the end of its fixed headers belongs to no record.
* Retransmitted and out-of-order segments are told apart as Wireshark's TCP sequence analysis does: see ``_disorder``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from pathlib import Path
from typing import Any

from scapy.utils import RawPcapNgReader

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, NO_NEXT_HEADER, DESTINATION_OPTIONS = 0, 43, 44, 51, 59, 60
IPV4_ETHERTYPE, IPV6_ETHERTYPE = 0x0800, 0x86DD
VLAN_ETHERTYPES = (0x8100, 0x88A8, 0x9100)
LINKTYPE_ETHERNET = 1

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

SIZE_BOUNDS = (127, 255, 511, 1023, 1513)
"""Largest IP total length, in octets, of each bin of the packet-size histogram but the last."""
TTL_BOUNDS = (1, 5, 32, 64, 96, 128, 160, 192, 224)
"""Largest TTL of each bin of the TTL histogram but the last."""

ICMP_REPLIES = {0: 8, 14: 13, 16: 15, 18: 17}
"""Reply type → query type (ICMP); all of them carry an identifier."""
ICMPV6_REPLIES = {129: 128, 134: 133, 136: 135}
"""Reply type → query type (ICMPv6); only 128 and 129 carry an identifier."""

FAST_RETRANSMISSION_NS = 20_000_000
DEFAULT_ROUND_TRIP_NS = 3_000_000
MAXIMUM_WINDOW_SCALE = 14  # RFC 7323, 2.3: a larger shift counts as 14

Endpoint = tuple[str, int]
IcmpClass = tuple[int, int | None]


class MalformedError(ValueError):
    """A frame that belongs to no record."""


@dataclass(frozen=True)
class Segment:
    """A TCP header. ``flags`` are the low 12 bits of bytes 12 and 13, ``window`` is not scaled."""

    seq: int
    ack: int
    flags: int
    window: int
    payload: int
    maximum_segment_size: int | None
    window_scale: int | None

    @property
    def length(self) -> int:
        """Sequence numbers that the segment takes up: payload octets, SYN and FIN."""
        return self.payload + bool(self.flags & SYN) + bool(self.flags & FIN)

    @property
    def is_pure_ack(self) -> bool:
        """Whether it acknowledges and does nothing else."""
        return self.flags & (ACK | SYN | RST | FIN) == ACK and not self.payload


@dataclass(frozen=True)
class Packet:
    """One IP packet as it was seen. ``time`` in ns since 1970 UTC."""

    time: int
    frame_octets: int
    vlan: int | None
    version: int
    source: Endpoint
    destination: Endpoint
    protocol: int
    octets: int
    class_of_service: int
    flow_label: int | None
    ttl: int
    segment: Segment | None = None
    icmp_type_code: int | None = None
    icmp_class: IcmpClass | None = None
    icmp_identifier: int | None = None

    @property
    def biflow(self) -> tuple[object, ...]:
        """The identity of the biflow: the same for both directions."""
        low, high = sorted((self.source, self.destination))
        return low, high, self.protocol, self.version, self.vlan, self.icmp_class, self.icmp_identifier


def flows_of(capture: Path | str) -> list[dict[str, Any]]:
    """The biflow records of a pcap or pcapng file, in order of first packet."""
    biflows: dict[tuple[object, ...], list[Packet]] = {}
    for packet in packets_of(capture):
        biflows.setdefault(packet.biflow, []).append(packet)
    return [_record(packets) for packets in biflows.values()]


def packets_of(capture: Path | str) -> Iterator[Packet]:
    """The IP packets of a capture that can be counted, in file order."""
    for time, wire_octets, frame in frames_of(Path(capture)):
        try:
            yield _parse_frame(time, wire_octets, frame)
        except MalformedError:
            continue


# The file


def frames_of(capture: Path) -> Iterator[tuple[int, int, bytes]]:
    """Time in ns since 1970 UTC, octets on the wire, and octets captured of each Ethernet frame."""
    magic = capture.read_bytes()[:4]
    return _pcapng_frames(capture) if magic == b"\x0a\x0d\x0d\x0a" else _pcap_frames(capture)


def _pcap_frames(capture: Path) -> Iterator[tuple[int, int, bytes]]:
    data = capture.read_bytes()
    order = ">" if data[:1] == b"\xa1" else "<"
    magic, linktype = struct.unpack(order + "I16xI", data[:24])
    if magic not in (0xA1B2C3D4, 0xA1B23C4D) or linktype != LINKTYPE_ETHERNET:
        raise ValueError(f"{capture}: not an Ethernet pcap file (magic {magic:#x}, link type {linktype})")
    fraction_ns = 1 if magic == 0xA1B23C4D else 1000
    at = 24
    while at + 16 <= len(data):
        seconds, fraction, captured, wire_octets = struct.unpack(order + "IIII", data[at : at + 16])
        at += 16
        yield seconds * 10**9 + fraction * fraction_ns, wire_octets, data[at : at + captured]
        at += captured


def _pcapng_frames(capture: Path) -> Iterator[tuple[int, int, bytes]]:
    with RawPcapNgReader(str(capture)) as reader:
        about: Any  # scapy declares one type for both formats
        for frame, about in reader:
            if about.linktype != LINKTYPE_ETHERNET:
                raise ValueError(f"{capture}: not an Ethernet capture (link type {about.linktype})")
            ticks = (about.tshigh << 32) + about.tslow
            yield ticks * 10**9 // about.tsresol, about.wirelen, frame


# The headers


def _unpack(layout: str, data: bytes, at: int) -> tuple[Any, ...]:
    """``struct.unpack_from``; MalformedError where the data end too early."""
    if at + struct.calcsize(layout) > len(data):
        raise MalformedError(f"{layout} at {at} of {len(data)} octets")
    return struct.unpack_from(layout, data, at)


def _parse_frame(time: int, wire_octets: int, frame: bytes) -> Packet:
    (ethertype,) = _unpack("!12xH", frame, 0)
    at, vlan = 14, None
    while ethertype in VLAN_ETHERTYPES:
        tag, ethertype = _unpack("!HH", frame, at)
        at += 4
        vlan = tag & 0x0FFF if vlan is None else vlan  # of several tags, the outer one
    parse = {IPV4_ETHERTYPE: _parse_ipv4, IPV6_ETHERTYPE: _parse_ipv6}.get(ethertype)
    if parse is None:
        raise MalformedError(f"EtherType {ethertype:#06x}")
    link = {"time": time, "frame_octets": wire_octets, "vlan": vlan or None}
    return parse(link, frame[at:], wire_octets - at)


def _parse_ipv4(link: dict[str, Any], data: bytes, available: int) -> Packet:
    """``available``: octets behind the link header on the wire, padding included."""
    first, tos, total, fragment, ttl, protocol = _unpack("!BBH2xHBB", data, 0)
    source, destination = _unpack("!12x4s4s", data, 0)
    header = (first & 0x0F) * 4
    total = total or available
    if first >> 4 != 4 or header < 20 or total < header or total > available:
        raise MalformedError("IPv4 header")
    rest = _parse_transport(
        protocol, data[header:total], total - header, first_fragment=fragment & 0x1FFF == 0
    )
    return _packet(
        link,
        4,
        str(IPv4Address(source)),
        str(IPv4Address(destination)),
        protocol,
        total,
        tos,
        None,
        ttl,
        rest,
    )


def _parse_ipv6(link: dict[str, Any], data: bytes, available: int) -> Packet:
    """``available``: octets behind the link header on the wire, padding included."""
    first, payload, protocol, ttl, source, destination = _unpack("!IHBB16s16s", data, 0)
    total = 40 + payload if payload or protocol == NO_NEXT_HEADER else available
    if first >> 28 != 6 or total > available:
        raise MalformedError("IPv6 header")
    at, first_fragment = 40, True
    data = data[:total]
    while first_fragment and protocol in (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS):
        extension = protocol
        protocol, length, fragment = _unpack("!BBH", data, at)
        if extension == FRAGMENT:
            first_fragment = fragment >> 3 == 0
            at += 8
        elif extension == AUTHENTICATION:
            at += (length + 2) * 4
        else:
            at += (length + 1) * 8
    if at > total:
        raise MalformedError("IPv6 extension headers")
    rest = _parse_transport(protocol, data[at:], total - at, first_fragment=first_fragment)
    tos, label = first >> 20 & 0xFF, first & 0xFFFFF
    return _packet(
        link,
        6,
        str(IPv6Address(source)),
        str(IPv6Address(destination)),
        protocol,
        total,
        tos,
        label,
        ttl,
        rest,
    )


def _packet(
    link: dict[str, Any],
    version: int,
    source: str,
    destination: str,
    protocol: int,
    octets: int,
    class_of_service: int,
    flow_label: int | None,
    ttl: int,
    transport: dict[str, Any],
) -> Packet:
    ports = transport.pop("ports", (0, 0))
    return Packet(
        **link,
        version=version,
        source=(source, ports[0]),
        destination=(destination, ports[1]),
        protocol=protocol,
        octets=octets,
        class_of_service=class_of_service,
        flow_label=flow_label,
        ttl=ttl,
        **transport,
    )


def _parse_transport(protocol: int, data: bytes, octets: int, *, first_fragment: bool) -> dict[str, Any]:
    """What the transport header adds to a packet. ``data`` is what was captured of ``octets``."""
    if not first_fragment:
        return {}
    if protocol == TCP:
        return _parse_tcp(data, octets)
    if protocol == UDP:
        source, destination, _, _ = _unpack("!HHHH", data, 0)
        return {"ports": (source, destination)}
    if protocol == ICMP:
        return _parse_icmp(data, ICMP_REPLIES, with_identifier=(8, 13, 15, 17))
    if protocol == ICMPV6:
        return _parse_icmp(data, ICMPV6_REPLIES, with_identifier=(128,))
    return {}


def _parse_icmp(data: bytes, replies: dict[int, int], with_identifier: tuple[int, ...]) -> dict[str, Any]:
    kind, code, identifier = _unpack("!BB2xH2x", data, 0)
    query = replies.get(kind, kind)
    return {
        "icmp_type_code": kind << 8 | code,
        "icmp_class": (query, None) if query in replies.values() else (kind, code),
        "icmp_identifier": identifier if query in with_identifier else None,
    }


def _parse_tcp(data: bytes, octets: int) -> dict[str, Any]:
    source, destination, seq, ack, offset_and_flags, window, _, _ = _unpack("!HHIIHHHH", data, 0)
    header = (offset_and_flags >> 12) * 4
    if not 20 <= header <= octets:
        raise MalformedError("TCP data offset")
    maximum_segment_size, window_scale = _tcp_options(data[20:header])
    segment = Segment(
        seq, ack, offset_and_flags & 0x0FFF, window, octets - header, maximum_segment_size, window_scale
    )
    return {"ports": (source, destination), "segment": segment}


def _tcp_options(options: bytes) -> tuple[int | None, int | None]:
    """Maximum segment size and window scale (RFC 9293, 3.1; RFC 7323, 2.2), None for an option that is absent."""
    maximum_segment_size = window_scale = None
    at = 0
    while at < len(options) and options[at] != 0:  # 0: end of option list
        if options[at] == 1:  # no-operation
            at += 1
            continue
        if at + 1 >= len(options) or options[at + 1] < 2 or at + options[at + 1] > len(options):
            break
        kind, length = options[at], options[at + 1]
        if (kind, length) == (2, 4):
            (maximum_segment_size,) = struct.unpack("!H", options[at + 2 : at + 4])
        if (kind, length) == (3, 3):
            window_scale = min(options[at + 2], MAXIMUM_WINDOW_SCALE)
        at += length
    return maximum_segment_size, window_scale


# The record


def _record(packets: list[Packet]) -> dict[str, Any]:
    """The record of one biflow from all of its packets, in file order."""
    first = packets[0]
    forward = [packet for packet in packets if packet.source == first.source]
    reverse = [packet for packet in packets if packet.source != first.source]
    disorder = _disorder(packets)
    record: dict[str, Any] = {
        "flowStartNanoseconds": min(packet.time for packet in packets),
        "flowEndNanoseconds": max(packet.time for packet in packets),
        "sourceAddress": first.source[0],
        "destinationAddress": first.destination[0],
        "ipVersion": first.version,
        "sourceTransportPort": first.source[1],
        "destinationTransportPort": first.destination[1],
        "protocolIdentifier": first.protocol,
        "vlanId": first.vlan,
        "icmpIdentifier": first.icmp_identifier,
    }
    record |= _direction(forward, reverse, disorder.get(first.source, Disorder()))
    backward = _direction(
        reverse, forward, disorder.get(first.destination, Disorder()) if reverse else Disorder()
    )
    record |= {f"reverse{name[0].upper()}{name[1:]}": value for name, value in backward.items()}
    return record


def _direction(own: list[Packet], other: list[Packet], disorder: Disorder) -> dict[str, Any]:
    """The columns of one direction, which may have no packet; ``other`` are the packets that went the other way."""
    sizes = [packet.octets for packet in own]
    ttls = [packet.ttl for packet in own]
    return {
        "packetDeltaCount": len(own),
        "octetDeltaCount": sum(sizes),
        "layer2OctetDeltaCount": sum(packet.frame_octets for packet in own),
        "ipClassOfService": own[0].class_of_service if own else None,
        "flowLabelIPv6": own[0].flow_label if own else None,
        "icmpTypeCode": own[0].icmp_type_code if own else None,
        "minimumIpTotalLength": min(sizes, default=None),
        "maximumIpTotalLength": max(sizes, default=None),
        "minimumTTL": min(ttls, default=None),
        "maximumTTL": max(ttls, default=None),
        "packetSizeHistogram": _histogram(sizes, SIZE_BOUNDS),
        "ttlHistogram": _histogram(ttls, TTL_BOUNDS),
        **_inter_arrival(own),
        **_tcp_flags(own),
        **_tcp_windows(own, other),
        "tcpRetransmittedPacketDeltaCount": len(disorder.retransmitted),
        "tcpRetransmittedOctetDeltaCount": sum(disorder.retransmitted),
        "tcpOutOfOrderPacketDeltaCount": len(disorder.out_of_order),
        "tcpOutOfOrderOctetDeltaCount": sum(disorder.out_of_order),
    }


def _histogram(values: list[int], bounds: tuple[int, ...]) -> list[int]:
    """How many values fall in each bin; a bin holds its upper bound, and the last bin all that are larger."""
    bins = [0] * (len(bounds) + 1)
    for value in values:
        bins[sum(value > bound for bound in bounds)] += 1
    return bins


def _inter_arrival(own: list[Packet]) -> dict[str, int | None]:
    """Time between neighbouring packets of one direction, in ns (the square sum in ns²)."""
    gaps = [later.time - earlier.time for earlier, later in pairwise(own)]
    return {
        "minimumInterArrivalNanoseconds": min(gaps, default=None),
        "maximumInterArrivalNanoseconds": max(gaps, default=None),
        "interArrivalSumNanoseconds": sum(gaps),
        "interArrivalSquareSum": sum(gap * gap for gap in gaps),
    }


def _tcp_flags(own: list[Packet]) -> dict[str, int | None]:
    segments = [(packet.time, packet.segment) for packet in own if packet.segment]
    control_bits = 0 if own and own[0].protocol == TCP else None
    for _, segment in segments:
        control_bits = (control_bits or 0) | segment.flags
    return {
        "tcpControlBits": control_bits,
        "tcpSynTotalCount": sum(bool(segment.flags & SYN) for _, segment in segments),
        "tcpFinTotalCount": sum(bool(segment.flags & FIN) for _, segment in segments),
        "tcpRstTotalCount": sum(bool(segment.flags & RST) for _, segment in segments),
        "tcpSynNanoseconds": max((time for time, segment in segments if segment.flags & SYN), default=None),
        "tcpFirstAckNanoseconds": min(
            (time for time, segment in segments if segment.is_pure_ack), default=None
        ),
    }


def _latest_syn(packets: list[Packet]) -> Segment | None:
    syns = [packet.segment for packet in packets if packet.segment and packet.segment.flags & SYN]
    return syns[-1] if syns else None


def _tcp_windows(own: list[Packet], other: list[Packet]) -> dict[str, int | None]:
    """Window sizes in octets. The shift holds only if both ends offered one, and never in a SYN (RFC 7323, 2.2)."""
    syn, other_syn = _latest_syn(own), _latest_syn(other)
    scale = (syn.window_scale if syn else None) or 0
    if other_syn and other_syn.window_scale is None:
        scale = 0
    windows = [
        packet.segment.window << (0 if packet.segment.flags & SYN else scale)
        for packet in own
        if packet.segment and not packet.segment.flags & RST
    ]
    return {
        "minimumTcpWindowSize": min(windows, default=None),
        "maximumTcpWindowSize": max(windows, default=None),
        "tcpMaximumSegmentSize": syn.maximum_segment_size if syn else None,
        "tcpWindowScale": syn.window_scale if syn else None,
    }


# Retransmission and disorder


@dataclass
class Disorder:
    """Payload octets of each segment of one direction that was sent again, and that came late."""

    retransmitted: list[int] = field(default_factory=list)
    out_of_order: list[int] = field(default_factory=list)


@dataclass
class Sender:
    """What one direction of a TCP conversation has sent so far. Times in ns, None before there was any."""

    next_seq: int | None = None
    advanced_at: int = 0
    last_ack: int | None = None
    last_ack_at: int = 0
    last_window: int | None = None
    duplicate_acks: int = 0
    syn_at: int | None = None
    initial_seq: int | None = None
    disorder: Disorder = field(default_factory=Disorder)

    def begin_connection(self, initial_seq: int) -> None:
        """Forgets the sequence numbers of the connection before."""
        self.initial_seq = initial_seq
        self.next_seq = None
        self.duplicate_acks = 0


def _after(left: int, right: int) -> bool:
    """Whether sequence number ``left`` is behind ``right``, modulo 2³² (RFC 9293, 3.4)."""
    return 0 < (left - right) % 2**32 < 2**31


def _disorder(packets: list[Packet]) -> dict[Endpoint, Disorder]:
    """The retransmitted and out-of-order segments of each direction, after Wireshark's TCP sequence analysis.

    A segment with payload, SYN or FIN that begins before the highest sequence number its direction has sent is
    a keep-alive (neither), a spurious retransmission, data after a window probe (neither), a fast retransmission, out of order, or a retransmission: the
    first of these that fits. Segments with RST are passed over.
    """
    first = packets[0]
    senders = {first.source: Sender(), first.destination: Sender()}
    round_trip = DEFAULT_ROUND_TRIP_NS
    handshake_over = False
    for packet in packets:
        segment, own, other = packet.segment, senders[packet.source], senders[packet.destination]
        if segment is None or segment.flags & RST:
            continue
        if segment.flags & SYN and not segment.flags & ACK:
            own.syn_at = packet.time
            handshake_over &= segment.seq == own.initial_seq
        if not handshake_over and own.syn_at is not None and segment.is_pure_ack:
            round_trip, handshake_over = packet.time - own.syn_at, True
        if segment.flags & SYN and segment.seq != own.initial_seq:
            own.begin_connection(segment.seq)  # the ports are used again
        verdict = _verdict(packet.time, segment, own, other, round_trip)
        if verdict == "retransmitted":
            own.disorder.retransmitted.append(segment.payload)
        if verdict == "out of order":
            own.disorder.out_of_order.append(segment.payload)
        _remember(packet.time, segment, own)
    return {endpoint: sender.disorder for endpoint, sender in senders.items()}


def _verdict(time: int, segment: Segment, own: Sender, other: Sender, round_trip: int) -> str | None:
    """What is amiss with a segment; ``own`` and ``other`` as they were before it."""
    if not segment.length or own.next_seq is None or not _after(own.next_seq, segment.seq):
        return None
    if segment.length == segment.payload == 1 and (segment.seq + 1) % 2**32 == own.next_seq:
        return None  # keep-alive
    end_of_payload = segment.seq + segment.payload
    after_probe = segment.payload > 1 and (segment.seq + 1) % 2**32 == own.next_seq
    if segment.payload and other.last_ack is not None and not _after(end_of_payload, other.last_ack):
        return "retransmitted"  # spurious: already acknowledged
    if after_probe:
        return None  # new data behind a window probe of one octet
    just_acknowledged = other.last_ack == segment.seq and time - other.last_ack_at < FAST_RETRANSMISSION_NS
    if other.duplicate_acks >= 2 and just_acknowledged:
        return "retransmitted"  # fast
    ends_at_next = (segment.seq + segment.length) % 2**32 == own.next_seq
    if time - own.advanced_at < round_trip and not ends_at_next:
        return "out of order"
    return "retransmitted"


def _remember(time: int, segment: Segment, own: Sender) -> None:
    if segment.flags & ACK:
        if segment.ack != own.last_ack:
            own.duplicate_acks = 0
        elif segment.is_pure_ack and segment.seq == own.next_seq and 0 < segment.window == own.last_window:
            own.duplicate_acks += 1
        own.last_ack, own.last_ack_at = segment.ack, time
    own.last_window = segment.window
    end = (segment.seq + segment.length) % 2**32
    if own.next_seq is None or _after(end, own.next_seq):
        own.next_seq, own.advanced_at = end, time
