"""The packets of a capture, parsed by hand from the standards: what ``oracle`` makes records of. See ``oracle_link`` too.

Rules it keeps:

* A frame that is not IP, is malformed, or was cut before the end of its IP headers belongs to no record; each has a
  reason, named as in the program's books (``REASONS``).
* Lengths are those on the wire. What the snap length left of a transport header is used as far as it reaches: its first
  4 octets (8 of AH) name the flow; TCP's other columns need the whole header.
* A later fragment has the transport identity (ports, ICMP class and identifier, SPI) of the first fragment with the same
  addresses, IP version, protocol and identification, for 30 s; without one it has ports 0.
* With ``decap``, a packet inside a tunnel takes the place of the packet around it, up to 4 tunnels deep; where what is
  inside cannot be counted, the packet around it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

from oracle_link import (
    BAD_IP_HEADER,
    BAD_TRANSPORT_HEADER,
    BRIDGED_ETHERTYPE,
    IPV4_ETHERTYPE,
    IPV6_ETHERTYPE,
    NOT_IP,
    TOO_MANY_HEADERS,
    TRUNCATED,
    VERSION_ETHERTYPES,
    CapturedFrame,
    Link,
    MalformedError,
    Octets,
    captured_frames_of,
    ethernet,
    ethertype_by,
    parse_ethertype,
    parse_link,
)

ICMP, IPV4_INSIDE, TCP, UDP, DCCP, IPV6_INSIDE, GRE, ESP, AH = 1, 4, 6, 17, 33, 41, 47, 50, 51
ICMPV6, IP_COMPRESSION, SCTP, UDP_LITE = 58, 108, 132, 136
HOP_BY_HOP, ROUTING, FRAGMENT, NO_NEXT_HEADER, DESTINATION_OPTIONS, MOBILITY = 0, 43, 44, 59, 60, 135

ROOM_NEEDED = {TCP: 20, UDP: 8, UDP_LITE: 8, SCTP: 12, DCCP: 12, ICMP: 4, ICMPV6: 4, ESP: 8, AH: 12}
"""Least octets behind the IP headers, by protocol."""
PROTOCOLS_WITH_PORTS = (TCP, UDP, UDP_LITE, SCTP, DCCP)
PROTOCOLS_WITH_SPI = (ESP, AH)

MAXIMUM_EXTENSION_HEADERS, MAXIMUM_TUNNELS = 16, 4
MAXIMUM_IPV6_HEADERS_OCTETS = 2048
FRAGMENT_MEMORY_NS = 30 * 10**9

EXTENSION_HEADER_BITS = {DESTINATION_OPTIONS: 0, HOP_BY_HOP: 1, ROUTING: 5, MOBILITY: 12, AH: 14}
FIRST_FRAGMENT_BIT, LATER_FRAGMENT_BIT = 4, 6
LAST_HEADER_BITS = {ESP: 13, IP_COMPRESSION: 15}
"""Bits of ipv6ExtensionHeaders (IANA 64), 0 the least significant."""

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
MAXIMUM_WINDOW_SCALE = 14  # RFC 7323, 2.3: a larger shift counts as 14

ICMP_REPLIES = {0: 8, 14: 13, 16: 15, 18: 17}
"""Reply type → query type (ICMP); all of them carry an identifier."""
ICMPV6_REPLIES = {129: 128, 134: 133, 136: 135}
"""Reply type → query type (ICMPv6); only 128 and 129 carry an identifier."""

Endpoint = tuple[str, int]
IcmpClass = tuple[int, int | None]


class Fragment(NamedTuple):
    """What a fragment says of the packet that was cut."""

    identification: int
    offset: int
    more: bool


@dataclass(frozen=True)
class Network:
    """An IP header with all that belongs to it. Option and extension header bits are None for the other version."""

    version: int
    source: str
    destination: str
    protocol: int
    octets: int
    class_of_service: int
    flow_label: int | None
    ttl: int
    ipv4_options: int | None
    ipv6_extension_headers: int | None
    fragment: Fragment | None

    @property
    def is_first_fragment(self) -> bool:
        return self.fragment is not None and self.fragment.offset == 0 and self.fragment.more

    @property
    def is_later_fragment(self) -> bool:
        return self.fragment is not None and self.fragment.offset != 0


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
class Transport:
    """A transport header. ``ports`` are the halves of the SPI for ESP and AH; not ``readable``: nothing was captured."""

    ports: tuple[int, int] = (0, 0)
    readable: bool = True
    segment: Segment | None = None
    icmp_type_code: int | None = None
    icmp_class: IcmpClass | None = None
    icmp_identifier: int | None = None


@dataclass(frozen=True)
class Tunnel:
    """The tunnel around a packet."""

    kind: str
    identifier: int | None
    source: str
    destination: str
    around: Tunnel | None  # the tunnel that it is in itself

    @property
    def identity(self) -> tuple[object, ...]:
        """What tells the flows in one tunnel from those in another: the same for both directions."""
        ends = None if self.kind in ("vxlan", "geneve") else frozenset((self.source, self.destination))
        around = self.around and self.around.identity
        return self.kind, ends, None if self.kind == "gtp-u" else self.identifier, around


@dataclass(frozen=True)
class Packet:
    """One IP packet as it was seen. ``time`` in ns since 1970 UTC."""

    time: int
    frame_octets: int
    link: Link
    network: Network
    transport: Transport
    is_orphan: bool
    tunnel: Tunnel | None = None

    @property
    def source(self) -> Endpoint:
        return self.network.source, self.transport.ports[0]

    @property
    def destination(self) -> Endpoint:
        return self.network.destination, self.transport.ports[1]

    @property
    def octets(self) -> int:
        return self.network.octets

    @property
    def segment(self) -> Segment | None:
        return self.transport.segment

    @property
    def biflow(self) -> tuple[object, ...]:
        """The identity of the biflow: the same for both directions."""
        low, high = sorted((self.source, self.destination))
        network, transport = self.network, self.transport
        link = self.link.vlan, self.link.customer_vlan
        icmp = transport.icmp_class, transport.icmp_identifier
        tunnel = self.tunnel.identity if self.tunnel else None
        return low, high, network.protocol, network.version, link, icmp, tunnel


@dataclass
class FirstFragments:
    """The first fragments that were seen: time, protocol and transport header of each."""

    seen: dict[tuple[object, ...], tuple[int, int, Transport]] = field(default_factory=dict)

    def remember(self, time: int, where: object, network: Network, transport: Transport) -> None:
        """Takes note of a packet if later fragments may refer to it. ``where``: in which VLANs or tunnel."""
        if network.is_first_fragment and transport.readable:
            self.seen[where, self._key(network)] = time, network.protocol, transport

    def of_later(self, time: int, where: object, network: Network) -> tuple[int, Transport] | None:
        """Protocol and transport identity of the datagram of a later fragment."""
        seen_at, protocol, transport = self.seen.get((where, self._key(network)), (None, 0, Transport()))
        if seen_at is None or time - seen_at > FRAGMENT_MEMORY_NS:
            return None
        return protocol, replace(transport, segment=None, icmp_type_code=None)

    @staticmethod
    def _key(network: Network) -> tuple[object, ...]:
        fragment = network.fragment
        assert fragment
        # RFC 8200, 4.5: what the fragments of an IPv6 packet name as next header may differ.
        protocol = network.protocol if network.version == 4 else None
        return network.source, network.destination, protocol, fragment.identification


def packets_of(capture: Path | str, *, decap: bool = False) -> Iterator[Packet]:
    """The IP packets of a capture that can be counted, in file order."""
    for found in packets_or_reasons_of(capture, decap=decap):
        if isinstance(found, Packet):
            yield found


def packets_or_reasons_of(capture: Path | str, *, decap: bool = False) -> Iterator[Packet | str]:
    """For every frame of a capture, in file order: its packet, or the reason why it belongs to no record."""
    first_fragments = FirstFragments()
    for frame in captured_frames_of(Path(capture)):
        try:
            yield _parse_frame(frame, first_fragments, decap=decap)
        except MalformedError as malformed:
            yield malformed.reason


# The frame


def _parse_frame(frame: CapturedFrame, first_fragments: FirstFragments, *, decap: bool) -> Packet:
    link, ethertype, packet_octets = parse_link(frame)

    def parsed_ip(ethertype: int, octets: Octets, tunnel: Tunnel | None) -> tuple[Packet, Octets]:
        """An IP packet of this frame, and what is behind its IP headers."""
        network, payload = (_parse_ipv4 if ethertype == IPV4_ETHERTYPE else _parse_ipv6)(octets)
        is_orphan = False
        where = link.vlan, link.customer_vlan, tunnel and tunnel.identity
        if network.is_later_fragment:
            remembered = first_fragments.of_later(frame.time, where, network)
            protocol, transport = remembered or (network.protocol, Transport())
            network, is_orphan = replace(network, protocol=protocol), remembered is None
        elif network.is_first_fragment and payload.wire < ROOM_NEEDED.get(network.protocol, 0):
            transport, is_orphan = Transport(), True  # RFC 1858: its transport header goes on in the next
        else:
            transport = _parse_transport(
                network.protocol, payload, is_first_fragment=network.is_first_fragment
            )
            first_fragments.remember(frame.time, where, network, transport)
        return Packet(frame.time, frame.wire_octets, link, network, transport, is_orphan, tunnel), payload

    packet, payload = parsed_ip(ethertype, packet_octets, None)
    try:
        for _ in range(MAXIMUM_TUNNELS if decap else 0):
            tunnel, ethertype, inside = _parse_tunnel(packet, payload)
            packet, payload = parsed_ip(ethertype, inside, tunnel)
    except MalformedError:
        pass  # no tunnel, or nothing in it that can be counted: what is around it is
    return packet


# IP


def _parse_ipv4(packet: Octets) -> tuple[Network, Octets]:
    """An IPv4 header, and what is behind it. ``packet``: all that is available, padding included."""
    first, tos, total, identification, fragment = packet.unpack("!BBHHH")
    ttl, protocol, source, destination = packet.unpack("!8xBB2x4s4s")
    header = (first & 0x0F) * 4
    total = total or packet.wire
    if first >> 4 != 4 or not 20 <= header <= total <= packet.wire:
        raise MalformedError(BAD_IP_HEADER)
    (options,) = packet.unpack(f"!{header - 20}s", 20)
    offset, more = fragment & 0x1FFF, bool(fragment & 0x2000)
    network = Network(
        4,
        str(IPv4Address(source)),
        str(IPv4Address(destination)),
        protocol,
        total,
        tos,
        None,
        ttl,
        ipv4_options=_ipv4_options(options),
        ipv6_extension_headers=None,
        fragment=Fragment(identification, offset, more) if offset or more else None,
    )
    return network, packet.first(total).behind(header)


def _ipv4_options(options: bytes) -> int:
    """The bit of each option's number (RFC 791, 3.1), the one whose length is wrong included."""
    bits = at = 0
    while at < len(options):
        number = options[at] & 0x1F
        bits |= 1 << number
        if options[at] == 0:  # end of option list
            break
        if options[at] == 1:  # no-operation
            at += 1
            continue
        if at + 1 >= len(options) or options[at + 1] < 2 or at + options[at + 1] > len(options):
            break
        at += options[at + 1]
    return bits


def _parse_ipv6(packet: Octets) -> tuple[Network, Octets]:
    """An IPv6 header with its extension headers, and what is behind. ``packet``: all that is available."""
    first, payload_octets, next_header, ttl, source, destination = packet.unpack("!IHBB16s16s")
    if first >> 28 != 6:
        raise MalformedError(BAD_IP_HEADER)
    total = (
        40 + payload_octets if payload_octets else _ipv6_length_without_payload_length(packet, next_header)
    )
    if total > packet.wire:
        raise MalformedError(BAD_IP_HEADER)
    chain = _extension_headers(packet.first(total), next_header)
    network = Network(
        6,
        str(IPv6Address(source)),
        str(IPv6Address(destination)),
        chain.protocol,
        total,
        first >> 20 & 0xFF,
        first & 0xFFFFF,
        ttl,
        ipv4_options=None,
        ipv6_extension_headers=chain.bits,
        fragment=chain.fragment,
    )
    return network, packet.first(total).behind(chain.end)


def _ipv6_length_without_payload_length(packet: Octets, next_header: int) -> int:
    """The IP length where the payload length is 0: of a jumbogram (RFC 2675, 2), of a bare header, or all there is."""
    if next_header == NO_NEXT_HEADER:
        return 40
    jumbo = _jumbo_payload_length(packet) if next_header == HOP_BY_HOP else None
    return packet.wire if jumbo is None else 40 + jumbo


def _jumbo_payload_length(packet: Octets) -> int | None:
    _, units = packet.unpack("!BB", 40)
    end = 40 + (units + 1) * 8
    if end > packet.wire:
        return None
    (header,) = packet.unpack(f"!{end - 40}s", 40)
    at = 2
    while at < len(header):
        if header[at] == 0:  # Pad1
            at += 1
            continue
        if at + 1 >= len(header) or at + 2 + header[at + 1] > len(header):
            break
        if header[at : at + 2] == b"\xc2\x04":
            return int.from_bytes(header[at + 2 : at + 6], "big")
        at += 2 + header[at + 1]
    return None


class Chain(NamedTuple):
    """The extension headers of a packet: what follows them and where, which there were, and the last fragment header."""

    protocol: int
    end: int
    bits: int
    fragment: Fragment | None


def _extension_headers(packet: Octets, next_header: int) -> Chain:
    """Walks the headers of RFC 8200, 4. ``packet`` ends where the IP length says."""
    at, count, bits, fragment = 40, 0, 0, None
    while next_header in EXTENSION_HEADER_BITS or next_header == FRAGMENT:
        if count == MAXIMUM_EXTENSION_HEADERS:
            raise MalformedError(TOO_MANY_HEADERS)
        count += 1
        this, (next_header, length, fragment_field, identification) = next_header, packet.unpack("!BBHI", at)
        at = _end_of_extension_header(packet, at, this, length)
        if this != FRAGMENT:
            bits |= 1 << EXTENSION_HEADER_BITS[this]
            continue
        fragment = Fragment(identification, fragment_field >> 3, bool(fragment_field & 1))
        if fragment.offset:
            return Chain(next_header, at, bits | 1 << LATER_FRAGMENT_BIT, fragment)
        bits |= 1 << FIRST_FRAGMENT_BIT
    if next_header in LAST_HEADER_BITS:
        bits |= 1 << LAST_HEADER_BITS[next_header]
    return Chain(next_header, at, bits, fragment)


def _end_of_extension_header(packet: Octets, at: int, header: int, length: int) -> int:
    octets = {FRAGMENT: 8, AH: (length + 2) * 4}.get(header, (length + 1) * 8)
    if at + octets > packet.wire:
        raise MalformedError(BAD_IP_HEADER)
    if at + octets > MAXIMUM_IPV6_HEADERS_OCTETS:
        raise MalformedError(TOO_MANY_HEADERS)
    if at + octets > len(packet.captured):
        raise MalformedError(TRUNCATED)
    return at + octets


# Transport


def _parse_transport(protocol: int, payload: Octets, *, is_first_fragment: bool = False) -> Transport:
    """The transport header at the beginning of what is behind the IP headers."""
    if payload.wire < ROOM_NEEDED.get(protocol, 0):
        raise MalformedError(TRUNCATED)
    identified_by = 0 if protocol not in ROOM_NEEDED else 8 if protocol == AH else 4
    if len(payload.captured) < identified_by:
        return Transport(readable=False)
    if protocol in PROTOCOLS_WITH_PORTS:
        segment = _parse_tcp(payload, is_first_fragment) if protocol == TCP else None
        source_port, destination_port = payload.unpack("!HH")
        return Transport((source_port, destination_port), segment=segment)
    if protocol in PROTOCOLS_WITH_SPI:
        high, low = payload.unpack("!HH", identified_by - 4)
        return Transport((high, low))
    if protocol == ICMP:
        return _parse_icmp(payload, ICMP_REPLIES, with_identifier=(8, 13, 15, 17))
    if protocol == ICMPV6:
        return _parse_icmp(payload, ICMPV6_REPLIES, with_identifier=(128,))
    return Transport()


def _parse_icmp(payload: Octets, replies: dict[int, int], with_identifier: tuple[int, ...]) -> Transport:
    kind, code = payload.unpack("!BB")
    query = replies.get(kind, kind)
    is_identified, was_captured = query in with_identifier, len(payload.captured) >= 6
    return Transport(
        icmp_type_code=kind << 8 | code,
        icmp_class=(query, None) if query in replies.values() else (kind, code),
        icmp_identifier=(payload.unpack("!H", 4)[0] if was_captured else 0) if is_identified else None,
    )


def _parse_tcp(payload: Octets, is_first_fragment: bool) -> Segment | None:
    """None where not all of the header was captured."""
    if len(payload.captured) < 20:
        return None
    seq, ack, offset_and_flags, window = payload.unpack("!4xIIHH")
    header = (offset_and_flags >> 12) * 4
    if is_first_fragment and header > payload.wire:
        header = payload.wire  # the options go on in the next fragment
    if not 20 <= header <= payload.wire:
        raise MalformedError(BAD_TRANSPORT_HEADER)
    options = payload.captured[20:header] if len(payload.captured) >= header else b""
    maximum_segment_size, window_scale = _tcp_options(options)
    flags, data_octets = offset_and_flags & 0x0FFF, payload.wire - header
    return Segment(seq, ack, flags, window, data_octets, maximum_segment_size, window_scale)


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


# Tunnels: each gives the identifier, the EtherType of what is inside, and what is inside


def _parse_tunnel(outer: Packet, payload: Octets) -> tuple[Tunnel, int, Octets]:
    """The tunnel that a packet carries, and the IP packet inside; MalformedError where there is none."""
    kind, (identifier, ethertype, inside) = _tunnel_header(outer, payload)
    if ethertype == BRIDGED_ETHERTYPE:
        _, ethertype, inside = parse_ethertype(*ethernet(inside))
    if ethertype not in (IPV4_ETHERTYPE, IPV6_ETHERTYPE):
        raise MalformedError(NOT_IP)
    return (
        Tunnel(kind, identifier, outer.network.source, outer.network.destination, outer.tunnel),
        ethertype,
        inside,
    )


def _tunnel_header(outer: Packet, payload: Octets) -> tuple[str, tuple[int | None, int, Octets]]:
    network, port = outer.network, outer.transport.ports[1]
    if network.is_later_fragment:
        raise MalformedError(NOT_IP)
    if network.protocol == GRE:
        return "gre", _gre(payload)
    if network.protocol == IPV4_INSIDE:
        return "ipip" if network.version == 4 else "4in6", (None, IPV4_ETHERTYPE, payload)
    if network.protocol == IPV6_INSIDE:
        return f"6in{network.version}", (None, IPV6_ETHERTYPE, payload)
    if network.protocol == UDP and port in UDP_TUNNELS:
        kind, header = UDP_TUNNELS[port]
        return kind, header(payload.behind(8))
    raise MalformedError(NOT_IP)


def _gre(payload: Octets) -> tuple[int | None, int, Octets]:
    """RFC 2784 and 2890: checksum, key and sequence number may be there; every other bit must be 0."""
    flags, ethertype = payload.unpack("!HH")
    if flags & ~0xB000:
        raise MalformedError(NOT_IP)
    at, key = 4, None
    if flags & 0x8000:  # checksum
        at += 4
    if flags & 0x2000:
        (key,) = payload.unpack("!I", at)
        at += 4
    if flags & 0x1000:  # sequence number
        at += 4
    return key, ethertype, payload.behind(at)


def _vxlan(payload: Octets) -> tuple[int | None, int, Octets]:
    """RFC 7348, 5."""
    flags, identifier = payload.unpack("!B3xI")
    if not flags & 0x08:
        raise MalformedError(NOT_IP)
    return identifier >> 8, BRIDGED_ETHERTYPE, payload.behind(8)


def _geneve(payload: Octets) -> tuple[int | None, int, Octets]:
    """RFC 8926, 3.4."""
    version_and_length, _, ethertype, identifier = payload.unpack("!BBHI")
    if version_and_length >> 6 != 0:
        raise MalformedError(NOT_IP)
    return identifier >> 8, ethertype, payload.behind(8 + (version_and_length & 0x3F) * 4)


def _gtp_u(payload: Octets) -> tuple[int | None, int, Octets]:
    """3GPP TS 29.281, 5: a G-PDU of version 1, with up to four extension headers."""
    flags, message, _, identifier = payload.unpack("!BBHI")
    if flags >> 4 != 0x3 or message != 255:  # version 1, protocol type 1
        raise MalformedError(NOT_IP)
    at = 8
    if flags & 0x07:  # extension headers, sequence number, N-PDU number: all three fields, or none
        at, (extension,) = 12, payload.unpack("!B", 11)
        count = 0
        while flags & 0x04 and extension:
            (units,) = payload.unpack("!B", at)
            if units == 0 or count == 4:
                raise MalformedError(NOT_IP)
            at, count = at + units * 4, count + 1
            (extension,) = payload.unpack("!B", at - 1)
    return identifier, ethertype_by(VERSION_ETHERTYPES, payload.unpack("!B", at)[0] >> 4), payload.behind(at)


UDP_TUNNELS: dict[int, tuple[str, Callable[[Octets], tuple[int | None, int, Octets]]]] = {
    2152: ("gtp-u", _gtp_u),
    4789: ("vxlan", _vxlan),
    6081: ("geneve", _geneve),
    8472: ("vxlan", _vxlan),
}
"""By UDP destination port."""
