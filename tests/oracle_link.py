"""The frames of a capture, and the way through their link layers to the IP packet: the first half of ``oracle_parser``.

Rules it keeps:

* pcap in both byte orders and both resolutions, and pcapng; every link type leads to an EtherType, and from there on all
  are alike.
* Up to 4 tags and 8 labels; the ids of the outer two tags and the top label are kept.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scapy.utils import RawPcapNgReader

NOT_IP, TRUNCATED, TOO_MANY_HEADERS = "not_ip", "truncated", "too_many_headers"
BAD_IP_HEADER, BAD_TRANSPORT_HEADER = "bad_ip_header", "bad_transport_header"
REASONS = (NOT_IP, TRUNCATED, BAD_IP_HEADER, BAD_TRANSPORT_HEADER, TOO_MANY_HEADERS)
"""Why a packet belongs to no record."""

IPV4_ETHERTYPE, IPV6_ETHERTYPE, PPPOE_ETHERTYPE, BRIDGED_ETHERTYPE = 0x0800, 0x86DD, 0x8864, 0x6558
VLAN_ETHERTYPES = (0x8100, 0x88A8, 0x9100)
MPLS_ETHERTYPES = (0x8847, 0x8848)
LEAST_ETHERTYPE = 0x0600  # below, the field is the length of an IEEE 802.3 frame
PPP_ETHERTYPES = {0x0021: IPV4_ETHERTYPE, 0x0057: IPV6_ETHERTYPE}
VERSION_ETHERTYPES = {4: IPV4_ETHERTYPE, 6: IPV6_ETHERTYPE}
FAMILY_ETHERTYPES = {2: IPV4_ETHERTYPE} | dict.fromkeys((10, 24, 28, 30), IPV6_ETHERTYPE)
"""AF_INET, and AF_INET6 of Linux, NetBSD/OpenBSD, FreeBSD and macOS."""

MAXIMUM_TAGS, MAXIMUM_LABELS = 4, 8


class MalformedError(ValueError):
    """A frame that belongs to no record, for one of ``REASONS``."""

    @property
    def reason(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Octets:
    """A stretch of a frame: what was captured of it, and how long it is on the wire."""

    captured: bytes
    wire: int

    def unpack(self, layout: str, at: int = 0) -> tuple[Any, ...]:
        """``struct.unpack_from``; truncated where the captured octets end too early."""
        if at + struct.calcsize(layout) > len(self.captured):
            raise MalformedError(TRUNCATED)
        return struct.unpack_from(layout, self.captured, at)

    def behind(self, octets: int) -> Octets:
        return Octets(self.captured[octets:], self.wire - octets)

    def first(self, octets: int) -> Octets:
        return Octets(self.captured[:octets], octets)


@dataclass(frozen=True)
class Link:
    """What is said outside of the IP packet. ``mpls_label``: label, class and bottom bit of the top entry, 24 bits."""

    vlan: int | None
    customer_vlan: int | None
    mpls_label: int | None


# The file


class CapturedFrame(NamedTuple):
    """A frame of a capture file. ``time`` in ns since 1970 UTC; ``octets`` may be fewer than went by."""

    time: int
    link_type: int
    wire_octets: int
    octets: bytes


def frames_of(capture: Path | str) -> Iterator[tuple[int, int, bytes]]:
    """Time in ns since 1970 UTC, octets on the wire, and octets captured of each frame, of whatever link type."""
    for frame in captured_frames_of(Path(capture)):
        yield frame.time, frame.wire_octets, frame.octets


def captured_frames_of(capture: Path) -> Iterator[CapturedFrame]:
    """The frames of a pcap or pcapng file."""
    magic = capture.read_bytes()[:4]
    return _pcapng_frames(capture) if magic == b"\x0a\x0d\x0d\x0a" else _pcap_frames(capture)


def _pcap_frames(capture: Path) -> Iterator[CapturedFrame]:
    data = capture.read_bytes()
    order = ">" if data[:1] == b"\xa1" else "<"
    magic, link_type = struct.unpack(order + "I16xI", data[:24])
    if magic not in (0xA1B2C3D4, 0xA1B23C4D):
        raise ValueError(f"{capture}: not a pcap file (magic {magic:#x})")
    fraction_ns = 1 if magic == 0xA1B23C4D else 1000
    at = 24
    while at + 16 <= len(data):
        seconds, fraction, captured, wire_octets = struct.unpack(order + "IIII", data[at : at + 16])
        at += 16
        time = seconds * 10**9 + fraction * fraction_ns
        yield CapturedFrame(time, link_type & 0xFFFF, wire_octets, data[at : at + captured])
        at += captured


def _pcapng_frames(capture: Path) -> Iterator[CapturedFrame]:
    with RawPcapNgReader(str(capture)) as reader:
        about: Any  # scapy declares one type for both formats
        for frame, about in reader:
            ticks = (about.tshigh << 32) + about.tslow
            yield CapturedFrame(ticks * 10**9 // about.tsresol, about.linktype, about.wirelen, frame)


# The link layer


def parse_link(frame: CapturedFrame) -> tuple[Link, int, Octets]:
    """What is in front of the IP packet, the EtherType of IPv4 or IPv6, and the packet with all that is behind it."""
    if frame.link_type not in LINK_LAYERS:
        raise ValueError(f"link type {frame.link_type} is not known")
    octets = Octets(frame.octets[: frame.wire_octets], frame.wire_octets)
    return parse_ethertype(*LINK_LAYERS[frame.link_type](octets))


# Each link type gives an EtherType and what is behind it


def ethernet(frame: Octets) -> tuple[int, Octets]:
    return frame.unpack("!12xH")[0], frame.behind(14)


def _raw_ip(frame: Octets) -> tuple[int, Octets]:
    return ethertype_by(VERSION_ETHERTYPES, frame.unpack("!B")[0] >> 4), frame


def _linux_cooked_1(frame: Octets) -> tuple[int, Octets]:
    return frame.unpack("!14xH")[0], frame.behind(16)


def _linux_cooked_2(frame: Octets) -> tuple[int, Octets]:
    return frame.unpack("!H18x")[0], frame.behind(20)


def _null(frame: Octets) -> tuple[int, Octets]:
    """The family in the byte order of the host that captured, which the file does not tell."""
    families = frame.unpack("<I") + frame.unpack(">I")
    return ethertype_by(FAMILY_ETHERTYPES, min(families)), frame.behind(4)


def _loop(frame: Octets) -> tuple[int, Octets]:
    return ethertype_by(FAMILY_ETHERTYPES, frame.unpack("!I")[0]), frame.behind(4)


def _ppp(frame: Octets) -> tuple[int, Octets]:
    """RFC 1661, 2 and 1662, 3.1; address and control may be left out, and so may the first octet of the protocol."""
    if frame.captured[:2] == b"\xff\x03":
        frame = frame.behind(2)
    (protocol,) = frame.unpack("!B")
    octets = 1 if protocol % 2 else 2
    if octets == 2:
        (protocol,) = frame.unpack("!H")
    return ethertype_by(PPP_ETHERTYPES, protocol), frame.behind(octets)


def _ppp_or_cisco_hdlc(frame: Octets) -> tuple[int, Octets]:
    """RFC 1547, 4.3.1: 0F and 8F are Cisco's addresses."""
    is_cisco = frame.captured[:2] in (b"\x0f\x00", b"\x8f\x00")
    return _cisco_hdlc(frame) if is_cisco else _ppp(frame)


def _cisco_hdlc(frame: Octets) -> tuple[int, Octets]:
    return frame.unpack("!2xH")[0], frame.behind(4)


LINK_LAYERS: dict[int, Callable[[Octets], tuple[int, Octets]]] = {
    0: _null,
    1: ethernet,
    9: _ppp,
    12: _raw_ip,
    14: _raw_ip,
    50: _ppp_or_cisco_hdlc,
    51: lambda frame: (PPPOE_ETHERTYPE, frame),
    101: _raw_ip,
    104: _cisco_hdlc,
    108: _loop,
    113: _linux_cooked_1,
    228: lambda frame: (IPV4_ETHERTYPE, frame),
    229: lambda frame: (IPV6_ETHERTYPE, frame),
    276: _linux_cooked_2,
}
"""By link type (tcpdump.org, linktypes)."""


def ethertype_by(table: dict[int, int], protocol: int) -> int:
    if protocol not in table:
        raise MalformedError(NOT_IP)
    return table[protocol]


def parse_ethertype(ethertype: int, rest: Octets) -> tuple[Link, int, Octets]:
    """The way from an EtherType to the IP packet: what was on it, the EtherType of IPv4 or IPv6, and the packet."""
    tags: list[int] = []
    while ethertype in VLAN_ETHERTYPES:
        if len(tags) == MAXIMUM_TAGS:
            raise MalformedError(TOO_MANY_HEADERS)
        tag, ethertype = rest.unpack("!HH")
        rest = rest.behind(4)
        tags.append(tag & 0x0FFF)
    label = None
    if ethertype < LEAST_ETHERTYPE:
        ethertype, rest = _snap(rest)
    if ethertype in MPLS_ETHERTYPES:
        label, ethertype, rest = _mpls(rest)
    elif ethertype == PPPOE_ETHERTYPE:
        ethertype, rest = ethertype_by(PPP_ETHERTYPES, rest.unpack("!6xH")[0]), rest.behind(8)
    if ethertype not in (IPV4_ETHERTYPE, IPV6_ETHERTYPE):
        raise MalformedError(NOT_IP)
    vlan, customer_vlan = [*tags, 0, 0][:2]  # 0: a priority, no VLAN
    return Link(vlan or None, customer_vlan or None, label), ethertype, rest


def _snap(rest: Octets) -> tuple[int, Octets]:
    """LLC with SNAP (RFC 1042): the EtherType, which may be that of IP or MPLS only."""
    header, ethertype = rest.unpack("!6sH")
    if header != b"\xaa\xaa\x03\x00\x00\x00":
        raise MalformedError(NOT_IP)
    if ethertype not in (IPV4_ETHERTYPE, IPV6_ETHERTYPE, *MPLS_ETHERTYPES):
        raise MalformedError(NOT_IP)
    return ethertype, rest.behind(8)


def _mpls(rest: Octets) -> tuple[int, int, Octets]:
    """The top entry without its TTL (RFC 3032, 2.1), the EtherType by the first nibble, and what is behind the stack."""
    entries: list[int] = []
    while not entries or not entries[-1] & 1:  # the lowest bit: bottom of stack
        if len(entries) == MAXIMUM_LABELS:
            raise MalformedError(TOO_MANY_HEADERS)
        entries.append(rest.unpack("!I")[0] >> 8)
        rest = rest.behind(4)
    return entries[0], ethertype_by(VERSION_ETHERTYPES, rest.unpack("!B")[0] >> 4), rest
