"""What the capture scripts share: packets built by hand, at fixed times, written the same to the byte on every run.

A case's ``make.py`` defines ``frames()``, or ``capture()`` where the file is not a little-endian Ethernet pcap file in ns;
``make_all.py`` writes what it returns. All times in a case are milliseconds
after 2026-01-01T00:00:00Z; all TCP sequence numbers count from the sender's initial one, so 0 is the SYN.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

START_NS = 1_767_225_600 * 10**9
"""2026-01-01T00:00:00Z, ns since 1970 UTC."""

CLIENT, SERVER = "192.0.2.1", "198.51.100.2"
CLIENT6, SERVER6 = "2001:db8::1", "2001:db8::2"
NEAR, FAR = "203.0.113.1", "203.0.113.2"  # ends of tunnels
NEAR6, FAR6 = "2001:db8:f::1", "2001:db8:f::2"
CLIENT_MAC, SERVER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"

FLAGS = {letter: 1 << bit for bit, letter in enumerate("FSRPAUECN")}
NANOSECOND_MAGIC = 0xA1B23C4D
MICROSECOND_MAGIC = 0xA1B2C3D4
LINKTYPE_ETHERNET = 1
IPV4, IPV6, MPLS = 0x0800, 0x86DD, 0x8847  # EtherTypes
SNAPLEN = 262_144


@dataclass(frozen=True)
class Frame:
    """One frame of a capture. ``time_ns`` since 1970 UTC; ``wire_octets`` where more went by than was captured."""

    time_ns: int
    octets: bytes
    wire_octets: int | None = None


def write_pcap(path: Path, frames: Iterable[Frame]) -> None:
    """Write a little-endian pcap file with times in ns."""
    path.write_bytes(pcap(frames))


def pcap(
    frames: Iterable[Frame],
    link_type: int = LINKTYPE_ETHERNET,
    *,
    magic: int = NANOSECOND_MAGIC,
    order: str = "<",
) -> bytes:
    """The content of a pcap file, by default little-endian with times in ns; ``order`` as for ``struct``."""
    fraction_ns = 1 if magic == NANOSECOND_MAGIC else 1000
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, SNAPLEN, link_type)]
    for frame in frames:
        seconds, nanoseconds = divmod(frame.time_ns, 10**9)
        captured = len(frame.octets)
        lengths = captured, frame.wire_octets or captured
        parts.append(struct.pack(order + "IIII", seconds, nanoseconds // fraction_ns, *lengths))
        parts.append(frame.octets)
    return b"".join(parts)


def pcapng(link_types: Iterable[int], frames: Iterable[tuple[int, Frame]]) -> bytes:
    """The content of a little-endian pcapng file: its interfaces, and frames each with the number of its interface.

    The first interface has times in µs, as where nothing is said; the others in ns.
    """
    parts = [_block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))]
    units_ns = []
    for number, link_type in enumerate(link_types):
        options = struct.pack("<HHB3xHH", 9, 1, 9, 0, 0) if number else b""  # if_tsresol: 10^-9
        units_ns.append(1 if number else 1000)
        parts.append(_block(1, struct.pack("<HHI", link_type, 0, SNAPLEN) + options))
    for interface, frame in frames:
        ticks, captured = frame.time_ns // units_ns[interface], len(frame.octets)
        header = struct.pack(
            "<IIIII", interface, ticks >> 32, ticks % 2**32, captured, frame.wire_octets or captured
        )
        parts.append(_block(6, header + frame.octets + bytes(-captured % 4)))
    return b"".join(parts)


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + length + body + length


def time_ns(milliseconds: float) -> int:
    """The ns since 1970 UTC of a time in a case."""
    return START_NS + round(milliseconds * 1_000_000)


def frame(
    milliseconds: float,
    packet: Packet,
    *,
    vlan: int | None = None,
    pad_to: int = 0,
    wire_octets: int | None = None,
) -> Frame:
    """An Ethernet frame around ``packet``, with an 802.1Q tag if ``vlan`` is given, zeros up to ``pad_to`` octets."""
    link = Ether(src=CLIENT_MAC, dst=SERVER_MAC)
    if vlan is not None:
        link /= Dot1Q(vlan=vlan)
    if isinstance(packet, Raw):  # an IP packet as it is: see raw_ipv4, raw_ipv6
        link.lastlayer().type = IPV6 if bytes(packet)[0] >> 4 == 6 else IPV4
    return Frame(time_ns(milliseconds), bytes(link / packet).ljust(pad_to, b"\0"), wire_octets)


def ethernet(ethertype: int, *tags: tuple[int, int]) -> bytes:
    """An Ethernet header; ``tags`` are pairs of tag protocol identifier and VLAN id, the outermost first."""
    macs = bytes.fromhex(f"{SERVER_MAC}{CLIENT_MAC}".replace(":", ""))
    identifiers = [*(tag[0] for tag in tags), ethertype]
    controls = b"".join(
        struct.pack("!HH", tag[1], behind) for tag, behind in zip(tags, identifiers[1:], strict=True)
    )
    return macs + struct.pack("!H", identifiers[0]) + controls


def framed(milliseconds: float, *parts: Packet | bytes, wire_octets: int | None = None) -> Frame:
    """A frame of whatever link type: its parts as they are."""
    return Frame(time_ns(milliseconds), b"".join(map(bytes, parts)), wire_octets)


def cut(frame: Frame, octets: int) -> Frame:
    """What a snap length of so many octets leaves of a frame."""
    return replace(frame, octets=frame.octets[:octets], wire_octets=frame.wire_octets or len(frame.octets))


def udp(
    source: str, destination: str, source_port: int, destination_port: int, octets: int, **fields: Any
) -> Packet:
    """A datagram with so many octets of payload."""
    header = UDP(sport=source_port, dport=destination_port)
    return ip(source, destination, **fields) / header / data(octets)


def request(octets: int = 30, **fields: Any) -> Packet:
    """A datagram from client to server, over IPv4: 58 octets unless told."""
    return udp(CLIENT, SERVER, 5000, 9, octets, **fields)


def reply(octets: int = 40, **fields: Any) -> Packet:
    """The answer to ``request``: 68 octets unless told."""
    return udp(SERVER, CLIENT, 9, 5000, octets, **fields)


def request6(octets: int = 30, **fields: Any) -> Packet:
    """``request`` over IPv6: 78 octets unless told."""
    return udp(CLIENT6, SERVER6, 5000, 9, octets, **fields)


def reply6(octets: int = 40, **fields: Any) -> Packet:
    """``reply`` over IPv6: 88 octets unless told."""
    return udp(SERVER6, CLIENT6, 9, 5000, octets, **fields)


def ip(source: str, destination: str, **fields: Any) -> Packet:
    """An IPv4 or IPv6 header, by the look of the address."""
    return (IPv6 if ":" in source else IP)(src=source, dst=destination, **fields)


def data(octets: int) -> Raw:
    """A payload of so many octets."""
    return Raw(bytes(at % 251 for at in range(octets)))


# TCP options (RFC 9293, 3.1)

END_OF_OPTIONS = b"\x00"
NO_OPERATION = b"\x01"
SACK_PERMITTED = b"\x04\x02"


def option(kind: int, value: bytes) -> bytes:
    return bytes([kind, 2 + len(value)]) + value


def maximum_segment_size(octets: int) -> bytes:
    return option(2, struct.pack("!H", octets))


def window_scale(shift: int) -> bytes:
    return option(3, bytes([shift]))


def timestamps(value: int, echo: int) -> bytes:
    return NO_OPERATION * 2 + option(8, struct.pack("!II", value, echo))


SYN_OPTIONS = maximum_segment_size(1460) + NO_OPERATION + window_scale(7)


@dataclass(frozen=True)
class Tcp:
    """A TCP conversation; its methods make one segment each, which it does not remember."""

    client_address: str = CLIENT
    server_address: str = SERVER
    client_port: int = 40000
    server_port: int = 443
    client_isn: int = 1_000_000
    server_isn: int = 9_000_000

    def client(
        self,
        milliseconds: float,
        flags: str,
        seq: int,
        ack: int = 0,
        octets: int = 0,
        *,
        window: int = 502,
        options: bytes = b"",
        network: Mapping[str, Any] | None = None,
    ) -> Frame:
        """A segment from the client with ``octets`` of payload; ``network`` are fields of the IP header."""
        header = _tcp_header(
            (self.client_port, self.server_port),
            (self.client_isn + seq, self.server_isn + ack),
            flags,
            window,
            options,
        )
        packet = _network(self.client_address, self.server_address, 64, network)
        return _segment(milliseconds, packet, header, octets)

    def server(
        self,
        milliseconds: float,
        flags: str,
        seq: int,
        ack: int = 0,
        octets: int = 0,
        *,
        window: int = 509,
        options: bytes = b"",
        network: Mapping[str, Any] | None = None,
    ) -> Frame:
        """A segment from the server with ``octets`` of payload; ``network`` are fields of the IP header."""
        header = _tcp_header(
            (self.server_port, self.client_port),
            (self.server_isn + seq, self.client_isn + ack),
            flags,
            window,
            options,
        )
        packet = _network(self.server_address, self.client_address, 57, network)
        return _segment(milliseconds, packet, header, octets)

    def handshake(
        self, *, client_options: bytes = SYN_OPTIONS, server_options: bytes = SYN_OPTIONS
    ) -> list[Frame]:
        """SYN, SYN/ACK and ACK at 0, 10 and 20 ms: a round trip of 20 ms."""
        return [
            self.client(0, "S", seq=0, window=64240, options=client_options),
            self.server(10, "SA", seq=0, ack=1, window=65160, options=server_options),
            self.client(20, "A", seq=1, ack=1),
        ]


def _network(source: str, destination: str, ttl: int, fields: Mapping[str, Any] | None) -> Packet:
    return ip(source, destination, **{"hlim" if ":" in source else "ttl": ttl} | dict(fields or {}))


def _tcp_header(
    ports: tuple[int, int], numbers: tuple[int, int], flags: str, window: int, options: bytes
) -> bytes:
    """A TCP header without its checksum; written by hand, since options must stand exactly as given."""
    if len(options) % 4:
        options = options.ljust(len(options) + -len(options) % 4, END_OF_OPTIONS)
    bits = sum(FLAGS[letter] for letter in flags)
    seq, ack = numbers[0] % 2**32, numbers[1] % 2**32 if "A" in flags else 0
    offset_and_flags = (5 + len(options) // 4) << 12 | bits
    return struct.pack("!HHIIHHHH", *ports, seq, ack, offset_and_flags, window, 0, 0) + options


def _segment(milliseconds: float, network: Packet, header: bytes, octets: int) -> Frame:
    network.setfieldval("nh" if isinstance(network, IPv6) else "proto", 6)
    segment = header + bytes(data(octets))
    built = bytes(network / Raw(segment))
    addresses = built[8:40] if isinstance(network, IPv6) else built[12:20]
    total = checksum(addresses + struct.pack("!II", len(segment), 6) + segment)
    segment = segment[:16] + struct.pack("!H", total) + segment[18:]
    return frame(milliseconds, network / Raw(segment))


# Headers that scapy would put right, or lays out in its own way


def raw_ipv4(source: str, destination: str, protocol: int, payload: bytes, *, options: bytes = b"") -> Packet:
    """An IPv4 packet with options exactly as given; their octets are a multiple of 4, or are padded with zeros."""
    options = options.ljust(len(options) + -len(options) % 4, END_OF_OPTIONS)
    words, total = 5 + len(options) // 4, 20 + len(options) + len(payload)
    addresses = IPv4Address(source).packed + IPv4Address(destination).packed
    header = struct.pack("!BBHHHBBH", 0x40 | words, 0, total, 1, 0, 64, protocol, 0) + addresses + options
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return Raw(header + payload)


def raw_ipv6(
    source: str, destination: str, next_header: int, payload: bytes, *, payload_length: int | None = None
) -> Packet:
    """An IPv6 header in front of extension headers and payload as they are."""
    length = len(payload) if payload_length is None else payload_length
    addresses = IPv6Address(source).packed + IPv6Address(destination).packed
    return Raw(struct.pack("!IHBB", 6 << 28, length, next_header, 64) + addresses + payload)


def chain(headers: list[tuple[int, int]], last: int) -> tuple[int, bytes]:
    """Extension headers, each given by its type and its octets: the first one's type, and all of them.

    Options are padding, routing headers of type 253 without segments left, fragment headers atomic.
    """
    kinds = [kind for kind, _ in headers] + [last]
    octets = b""
    for (kind, length), behind in zip(headers, kinds[1:], strict=True):
        units = {44: 0, 51: length // 4 - 2}.get(kind, length // 8 - 1)
        octets += bytes([behind, units]) + _extension_content(kind, length - 2)
    return kinds[0], octets


def _extension_content(kind: int, octets: int) -> bytes:
    if kind in (0, 60):  # one or more PadN
        padding, left = b"", octets
        while left:
            length = min(left, 200) if left != 201 else 100
            padding += bytes([1, length - 2]) + bytes(length - 2)
            left -= length
        return padding
    if kind == 43:
        return bytes([253]) + bytes(octets - 1)
    return bytes(octets)


def fragments(packet: Packet, sizes: list[int]) -> list[Packet]:
    """An IPv4 packet without options, cut in fragments of so many octets of payload."""
    payload = bytes(packet)[20:]
    assert sum(sizes) == len(payload), "the sizes are not those of the payload"
    header = IP(bytes(packet)[:20])
    cuts, at = [], 0
    for size in sizes:
        more = "MF" if at + size < len(payload) else 0
        own = IP(src=header.src, dst=header.dst, proto=header.proto, id=header.id, frag=at // 8, flags=more)
        cuts.append(own / Raw(payload[at : at + size]))
        at += size
    return cuts


def fragments6(
    source: str, destination: str, next_header: int, payload: bytes, sizes: list[int], *, identification: int
) -> list[Packet]:
    """IPv6 fragments of so many octets each of a fragmentable part."""
    assert sum(sizes) == len(payload), "the sizes are not those of the payload"
    cuts, at = [], 0
    for size in sizes:
        more = at + size < len(payload)
        header = struct.pack("!BBHI", next_header, 0, at | more, identification)
        cuts.append(raw_ipv6(source, destination, 44, header + payload[at : at + size]))
        at += size
    return cuts


def labels(*numbers: int) -> bytes:
    """An MPLS label stack of traffic class 5 and TTL 64."""
    last = len(numbers) - 1
    return b"".join(
        struct.pack("!I", number << 12 | 5 << 9 | (at == last) << 8 | 64) for at, number in enumerate(numbers)
    )


# Tunnel headers


def gre(
    protocol: int, *, key: int | None = None, checksum: bool = False, sequence: int | None = None
) -> Packet:
    """RFC 2784 and 2890. The checksum is 0, which nothing here looks at."""
    flags = checksum << 15 | (key is not None) << 13 | (sequence is not None) << 12
    header = struct.pack("!HH", flags, protocol) + bytes(4 * checksum)
    return Raw(header + b"".join(struct.pack("!I", word) for word in (key, sequence) if word is not None))


def vxlan(identifier: int, *, flags: int = 0x08) -> Packet:
    """RFC 7348, 5."""
    return Raw(struct.pack("!B3xI", flags, identifier << 8))


def geneve(identifier: int, protocol: int, *, option_words: int = 0, version: int = 0) -> Packet:
    """RFC 8926, 3.4; the options are one, of an experimental class and without content that means anything."""
    header = struct.pack("!BBHI", version << 6 | option_words, 0, protocol, identifier << 8)
    if not option_words:
        return Raw(header)
    return Raw(header + struct.pack("!HBB", 0xFF00, 1, option_words - 1) + bytes(4 * option_words - 4))
