"""What the capture scripts share: packets built by hand, at fixed times, written the same to the byte on every run.

A case's ``make.py`` defines ``frames()``; ``make_all.py`` writes what it returns. All times in a case are milliseconds
after 2026-01-01T00:00:00Z; all TCP sequence numbers count from the sender's initial one, so 0 is the SYN.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

START_NS = 1_767_225_600 * 10**9
"""2026-01-01T00:00:00Z, ns since 1970 UTC."""

CLIENT, SERVER = "192.0.2.1", "198.51.100.2"
CLIENT6, SERVER6 = "2001:db8::1", "2001:db8::2"
CLIENT_MAC, SERVER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"

FLAGS = {letter: 1 << bit for bit, letter in enumerate("FSRPAUECN")}
NANOSECOND_MAGIC = 0xA1B23C4D
LINKTYPE_ETHERNET = 1
SNAPLEN = 262_144


@dataclass(frozen=True)
class Frame:
    """One Ethernet frame. ``time_ns`` since 1970 UTC; ``wire_octets`` where more went by than was captured."""

    time_ns: int
    octets: bytes
    wire_octets: int | None = None


def write_pcap(path: Path, frames: Iterable[Frame]) -> None:
    """Write a little-endian pcap file with times in ns."""
    path.write_bytes(pcap(frames))


def pcap(frames: Iterable[Frame]) -> bytes:
    """The content of a little-endian pcap file with times in ns."""
    parts = [struct.pack("<IHHiIII", NANOSECOND_MAGIC, 2, 4, 0, 0, SNAPLEN, LINKTYPE_ETHERNET)]
    for frame in frames:
        seconds, nanoseconds = divmod(frame.time_ns, 10**9)
        captured = len(frame.octets)
        parts.append(struct.pack("<IIII", seconds, nanoseconds, captured, frame.wire_octets or captured))
        parts.append(frame.octets)
    return b"".join(parts)


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
    return Frame(time_ns(milliseconds), bytes(link / packet).ljust(pad_to, b"\0"), wire_octets)


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
