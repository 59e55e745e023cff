"""The slow, obvious flow monitor that tests compare the program with.

``flows_of(capture)`` has every frame parsed by hand (``oracle_link``, ``oracle_parser``), puts the packets of one biflow in one list, and
only then works out each column from that list, one column at a time. Nothing is incremental, nothing is shared with the
program.

Rules it keeps:

* A biflow is two addresses, two ports, protocol, IP version, VLAN id and customer VLAN id; for ICMP also the message class
  (a query and its reply are one class) and the identifier; for ESP and AH the SPI, its halves in place of ports; inside
  a tunnel also what tells the tunnel from others. No timeout ever ends one. Forward is the direction of the first
  packet (RFC 5103).
* IP octets are the IP total length, never link padding; where the length field is 0 (a super-packet), what the frame
  holds behind its link header. Inside a tunnel they are those of the inner packet.
* Retransmitted and out-of-order segments are told apart as Wireshark's TCP sequence analysis does: see ``_disorder``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from operator import or_
from pathlib import Path
from typing import Any

from oracle_link import REASONS, frames_of
from oracle_parser import (
    ACK,
    FIN,
    PROTOCOLS_WITH_SPI,
    RST,
    SYN,
    TCP,
    UDP,
    Endpoint,
    Packet,
    Segment,
    packets_of,
    packets_or_reasons_of,
)

__all__ = ["TCP", "UDP", "flows_of", "frames_of", "ignored_of", "orphan_fragments_of", "packets_of"]

SIZE_BOUNDS = (127, 255, 511, 1023, 1513)
"""Largest IP total length, in octets, of each bin of the packet-size histogram but the last."""
TTL_BOUNDS = (1, 5, 32, 64, 96, 128, 160, 192, 224)
"""Largest TTL of each bin of the TTL histogram but the last."""

FAST_RETRANSMISSION_NS = 20_000_000
DEFAULT_ROUND_TRIP_NS = 3_000_000


def flows_of(capture: Path | str, decap: bool = False) -> list[dict[str, Any]]:
    """The biflow records of a pcap or pcapng file, in order of first packet; with ``decap``, of what is in tunnels."""
    biflows: dict[tuple[object, ...], list[Packet]] = {}
    for packet in packets_of(capture, decap=decap):
        biflows.setdefault(packet.biflow, []).append(packet)
    return [_record(packets) for packets in biflows.values()]


def ignored_of(capture: Path | str, decap: bool = False) -> dict[str, int]:
    """How many packets belong to no record, by reason; every reason is there."""
    found = Counter(
        packet for packet in packets_or_reasons_of(capture, decap=decap) if isinstance(packet, str)
    )
    return {reason: found[reason] for reason in REASONS}


def orphan_fragments_of(capture: Path | str, decap: bool = False) -> int:
    """How many later fragments came without their first."""
    return sum(packet.is_orphan for packet in packets_of(capture, decap=decap))


# The record


def _record(packets: list[Packet]) -> dict[str, Any]:
    """The record of one biflow from all of its packets, in file order."""
    first = packets[0]
    network, link, tunnel = first.network, first.link, first.tunnel
    forward = [packet for packet in packets if packet.source == first.source]
    reverse = [packet for packet in packets if packet.source != first.source]
    disorder = _disorder(packets)
    has_spi = network.protocol in PROTOCOLS_WITH_SPI
    high, low = first.transport.ports
    record: dict[str, Any] = {
        "flowStartNanoseconds": min(packet.time for packet in packets),
        "flowEndNanoseconds": max(packet.time for packet in packets),
        "sourceAddress": network.source,
        "destinationAddress": network.destination,
        "ipVersion": network.version,
        "sourceTransportPort": 0 if has_spi else high,
        "destinationTransportPort": 0 if has_spi else low,
        "protocolIdentifier": network.protocol,
        "vlanId": link.vlan,
        "dot1qCustomerVlanId": link.customer_vlan,
        "icmpIdentifier": first.transport.icmp_identifier,
        "IPSecSPI": high << 16 | low if has_spi else None,
        "tunnelType": tunnel.kind if tunnel else None,
        "tunnelSourceAddress": tunnel.source if tunnel else None,
        "tunnelDestinationAddress": tunnel.destination if tunnel else None,
        "firewallEvent": None,
    }
    record |= _direction(forward, reverse, disorder.get(first.source, Disorder()))
    backward = _direction(
        reverse, forward, disorder.get(first.destination, Disorder()) if reverse else Disorder()
    )
    record |= {f"reverse{name[0].upper()}{name[1:]}": value for name, value in backward.items()}
    return record


NOTHING_DROPPED = {"droppedPacketDeltaCount": 0, "droppedOctetDeltaCount": 0, "forwardingStatus": None}


def _direction(own: list[Packet], other: list[Packet], disorder: Disorder) -> dict[str, Any]:
    """The columns of one direction, which may have no packet; ``other`` are the packets that went the other way."""
    first = own[0] if own else None
    sizes = [packet.octets for packet in own]
    ttls = [packet.network.ttl for packet in own]
    type_codes = [packet.transport.icmp_type_code for packet in own]
    return {
        "packetDeltaCount": len(own),
        "octetDeltaCount": sum(sizes),
        "layer2OctetDeltaCount": sum(packet.frame_octets for packet in own),
        **NOTHING_DROPPED,
        "mplsTopLabelStackSection": first.link.mpls_label if first else None,
        "tunnelIdentifier": first.tunnel.identifier if first and first.tunnel else None,
        "ipClassOfService": first.network.class_of_service if first else None,
        "flowLabelIPv6": first.network.flow_label if first else None,
        "ipv4Options": _union([packet.network.ipv4_options for packet in own]),
        "ipv6ExtensionHeaders": _union([packet.network.ipv6_extension_headers for packet in own]),
        "icmpTypeCode": next((both for both in type_codes if both is not None), None),
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


def _union(bits: list[int | None]) -> int | None:
    """The bits that are set in any packet; None without any packet that could have had them."""
    known = [some for some in bits if some is not None]
    return reduce(or_, known) if known else None


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
    control_bits = 0 if own and own[0].network.protocol == TCP else None
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
    is_tcp = bool(own) and own[0].network.protocol == TCP
    first_window = (own[0].segment.window if own[0].segment else 0) if is_tcp else None
    windows = [
        packet.segment.window << (0 if packet.segment.flags & SYN else scale)
        for packet in own
        if packet.segment and not packet.segment.flags & RST
    ]
    return {
        "tcpWindowSize": first_window,
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
