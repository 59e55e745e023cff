"""A capture as tshark reads it: a second opinion on what the parser makes of every frame.

``packets(capture)`` runs tshark and gives one item a frame; ``flows`` and ``expected`` sum them. tshark only says
what stands in the header fields. Which frames count is decided here, from these fields and the frame's two lengths.
Rules it keeps:

* Only the outermost IP packet counts. tshark may dissect one inside it; the first occurrence of a field is the outer's,
  and ``frame.protocols`` says of which version the outer is.
* Lengths decide: a header that does not fit in the packet, or a packet that does not fit in the frame, is ignored with
  the reason that the program would give (``Verdict``). tshark alone would count such a packet, with the ports that it
  could read: a TCP data offset of 4, a UDP datagram of 3 octets, an IP total length beyond the frame, a fifth VLAN tag.
* Ports are those of TCP, UDP, UDP-Lite, SCTP and DCCP. A later fragment has the ports of the first one with its
  addresses, protocol and identification that came within ``FRAGMENT_LIFETIME_NS`` before it. All others have 0.
* A field that must be there by the lengths but is not makes the frame ``UNDECIDED``: tshark gave up before it got there.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

FRAGMENT_LIFETIME_NS = 30 * 10**9
MAXIMUM_TAGS, MAXIMUM_LABELS, MAXIMUM_EXTENSIONS, MAXIMUM_HEADERS_OCTETS = 4, 8, 16, 2048

PROTOCOLS = frozenset(
    "frame eth ethertype vlan llc mpls pppoes ppp sll null raw chdlc ip ipv6 ipv6.hopopts ipv6.routing"
    " ipv6.fraghdr ipv6.dstopts ah mipv6 tcp udp udplite sctp dccp".split()
)
"""What tshark dissects; without tunnels and applications it is fast, and gives few fields that are not the outer's."""

TRANSPORTS = frozenset("tcp udp udplite sctp dccp".split())

PREFERENCES = (
    "ip.defragment:FALSE",
    "ipv6.defragment:FALSE",
    "tcp.analyze_sequence_numbers:FALSE",
    "tcp.desegment_tcp_streams:FALSE",
    "sctp.reassembly:FALSE",
    "sctp.tsn_analysis:FALSE",
)

FIELDS = (
    "frame.time_epoch frame.len frame.cap_len frame.protocols _ws.malformed"
    " eth.type eth.len eth.invalid_lentype vlan.id vlan.etype vlan.len"
    " llc.dsap llc.ssap llc.control llc.oui llc.type mpls.label mpls.bottom"
    " pppoe.payload_length ppp.address ppp.protocol sll.ifindex"
    " ip.version ip.hdr_len ip.id ip.flags.mf ip.frag_offset ip.proto ip.src ip.dst ip.cur_rt"
    " ipv6.version ipv6.nxt ipv6.src ipv6.dst ipv6.opt.jumbo ipv6.opt.invalid_len"
    " ipv6.hopopts.nxt ipv6.hopopts.len ipv6.routing.nxt ipv6.routing.len ipv6.dstopts.nxt ipv6.dstopts.len"
    " ipv6.fraghdr.nxt ipv6.fraghdr.offset ipv6.fraghdr.more ipv6.fraghdr.ident"
    " ah.next_header ah.length mip6.proto mip6.hlen"
    " tcp.srcport tcp.dstport tcp.hdr_len udp.srcport udp.dstport udp.length"
    " sctp.srcport sctp.dstport dccp.srcport dccp.dstport"
).split()

TCP, ESP, AH, FRAGMENT_HEADER, NO_NEXT_HEADER = 6, 50, 51, 44, 59

LINK_OCTETS = {
    "eth": 14,
    "sll": 16,
    "null": 4,
    "raw": 0,
    "chdlc": 4,
    "ppp": 2,
    "ppp:chdlc": 4,
    "pppoes:ppp": 8,
}
"""Octets of the header that a captured frame begins with, by its names in ``frame.protocols``."""
WAY_TO_IP = re.compile(
    r"(eth|sll|null|raw|chdlc|ppp:chdlc|ppp|pppoes:ppp)(:ethertype|:vlan)*"
    r"((?P<snap>:llc)?(?P<mpls>(:ethertype)?:mpls)?|(?P<pppoe>:pppoes:ppp)):(?P<ip>ip|ipv6)(?=:|$)"
)
"""``frame.protocols`` down to the outermost IP header, where the spec would have got there too."""
SNAP_ETHERTYPES = (0x0800, 0x86DD, 0x8847, 0x8848)
PPP_PROTOCOLS = {0x0021: 4, 0x0057: 6}
GENERIC_ASSOCIATED_CHANNEL = 13  # RFC 5586: tshark looks for no IP behind this label
INVALID_ETHERTYPES = range(1501, 1536)  # to IEEE 802.3 neither a length nor a type

EXTENSIONS = {
    0: ("ipv6.hopopts.nxt", "ipv6.hopopts.len"),
    43: ("ipv6.routing.nxt", "ipv6.routing.len"),
    44: ("ipv6.fraghdr.nxt", "ipv6.fraghdr.offset"),
    51: ("ah.next_header", "ah.length"),
    60: ("ipv6.dstopts.nxt", "ipv6.dstopts.len"),
    135: ("mip6.proto", "mip6.hlen"),
}
"""IPv6 extension header → the fields of its next header and of its length (there is none for fragments)."""

LEAST_OCTETS = {1: 4, 6: 20, 17: 8, 33: 12, 50: 8, 58: 4, 132: 12, 136: 8}
"""Protocol → octets of its header that must fit in the packet."""
PORT_FIELDS = {
    6: ("tcp.srcport", "tcp.dstport"),
    17: ("udp.srcport", "udp.dstport"),
    33: ("dccp.srcport", "dccp.dstport"),
    132: ("sctp.srcport", "sctp.dstport"),
    136: ("udp.srcport", "udp.dstport"),
}

LENGTH_FIELDS = ["ip.len", "ipv6.plen"]

Facts = dict[str, str]
"""tshark's text of every field in ``FIELDS`` and ``LENGTH_FIELDS``; several occurrences are joined by commas, none is an empty text."""
FiveTuple = tuple[str, str, int, int, int]
"""Source, destination, source port, destination port, protocol."""


class RefusedError(ValueError):
    """What tshark does not take for a capture."""


class Verdict(StrEnum):
    """What becomes of a frame; all but the first and the last are reasons to ignore it."""

    COUNTED = "counted"
    NOT_IP = "not_ip"
    BAD_IP_HEADER = "bad_ip_header"
    BAD_TRANSPORT_HEADER = "bad_transport_header"
    TOO_MANY_HEADERS = "too_many_headers"
    TRUNCATED = "truncated"
    UNDECIDED = "undecided"


class Fragment(StrEnum):
    """``FIRST`` has more after it, ``LATER`` has some before it."""

    NONE = "none"
    FIRST = "first"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class Network:
    """The IP headers. ``headers`` and ``octets`` (headers and payload) in octets."""

    version: int
    source: str
    destination: str
    protocol: int
    headers: int
    octets: int
    fragment: Fragment = Fragment.NONE
    identification: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """One frame with an IP packet, or with something that could be one. ``frame`` counts from 0.

    ``network`` is None where the IP headers are not to be trusted.
    """

    frame: int
    time_ns: int
    facts: Facts
    verdict: Verdict
    network: Network | None = None
    ports: tuple[int, int] = (0, 0)

    @property
    def five_tuple(self) -> FiveTuple:
        """The directed flow that a counted packet belongs to."""
        assert self.network is not None
        return (self.network.source, self.network.destination, *self.ports, self.network.protocol)


class Expected(NamedTuple):
    """What a flow monitor should have counted. ``undecided`` are indices of frames that are in no other number."""

    packets: Counter[FiveTuple]
    octets: Counter[FiveTuple]
    ignored: Counter[Verdict]
    undecided: list[int]


def flows(capture: Path) -> dict[FiveTuple, tuple[int, int]]:
    """Packets and IP octets of every directed flow of a capture."""
    read = expected(capture)
    return {flow: (packets, read.octets[flow]) for flow, packets in read.packets.items()}


def expected(capture: Path) -> Expected:
    """The sums of a capture, with what was ignored by reason."""
    sums = Expected(Counter(), Counter(), Counter(), [])
    for frame, seen in enumerate(packets(capture)):
        if seen is None:
            sums.ignored[Verdict.NOT_IP] += 1
        elif seen.verdict is Verdict.UNDECIDED:
            sums.undecided.append(frame)
        elif seen.verdict is Verdict.COUNTED and seen.network:
            sums.packets[seen.five_tuple] += 1
            sums.octets[seen.five_tuple] += seen.network.octets
        else:
            sums.ignored[seen.verdict] += 1
    return sums


def packets(capture: Path) -> list[Seen | None]:
    """One item a frame, in order; None where there is no IP."""
    remember = _Fragments()
    return [
        seen and remember.with_ports(seen)
        for seen in (_read(frame, facts) for frame, facts in enumerate(facts_of(capture)))
    ]


# tshark


def facts_of(capture: Path) -> Iterator[Facts]:
    """The fields of every frame, in order; RefusedError where tshark takes the file for no capture.

    Two runs side by side: with support for segmentation offload, tshark dissects a packet whose length is 0, but writes
    another length in its place; without it, the other way round.
    """
    both = (
        _rows(capture, FIELDS, "TRUE", PROTOCOLS),
        _rows(capture, LENGTH_FIELDS, "FALSE", PROTOCOLS - TRANSPORTS),
    )
    for fields, lengths in zip(*both, strict=True):
        yield dict(zip(FIELDS, fields, strict=True)) | dict(zip(LENGTH_FIELDS, lengths, strict=True))


def _rows(capture: Path, fields: list[str], offload: str, protocols: frozenset[str]) -> Iterator[list[str]]:
    """What one run of tshark prints of every frame."""
    frames = 0
    with subprocess.Popen(
        _command(capture, fields, offload, protocols),
        env=os.environ | {"WIRESHARK_CONFIG_DIR": "/nonexistent"},  # no preferences of the user's
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tshark:
        assert tshark.stdout is not None
        assert tshark.stderr is not None
        for line in tshark.stdout:
            frames += 1
            yield line.rstrip("\n").split("\t")
        complaint = tshark.stderr.read().strip()
    if tshark.returncode and not frames:  # a capture whose last frame was cut short ends with an error, too
        raise RefusedError(complaint.splitlines()[-1])


def _command(capture: Path, fields: list[str], offload: str, protocols: frozenset[str]) -> list[str]:
    command = ["tshark", "-n", "-r", str(capture), "-T", "fields", "-E", "separator=/t", "-E", "occurrence=a"]
    command += "-d", "ethertype==0x88a8,vlan"  # its own dissector knows no length behind the tag
    for protocol in sorted(_known_protocols() - protocols):
        command += "--disable-protocol", protocol
    for preference in (*PREFERENCES, f"ip.tso_support:{offload}", f"ipv6.tso_support:{offload}"):
        command += "-o", preference
    for field in fields:
        command += "-e", field
    return command


@cache
def _known_protocols() -> frozenset[str]:
    """Every protocol; tshark 4.0 has no option that names only those that are to be dissected."""
    listed = subprocess.run(["tshark", "-G", "protocols"], capture_output=True, text=True, check=True)
    return frozenset(line.split("\t")[2] for line in listed.stdout.splitlines())


# One frame


class _IgnoredError(Exception):
    """Ends the reading of a frame."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


def _may_be_compressed(facts: Facts, available: int) -> bool:
    """Whether the packet is too long by the one octet that PPP saves with a short protocol field (RFC 1661, 6.5)."""
    field, header = ("ip.len", 0) if facts["ip.len"] else ("ipv6.plen", 40)
    return bool(facts["ppp.protocol"]) and _occurrence(facts, field) + header == available + 1


def _read(frame: int, facts: Facts) -> Seen | None:
    """The frame without what other frames say about it."""
    if not facts["frame.time_epoch"]:
        raise RefusedError("frames without time: text or another format that tshark takes for a capture")
    time_ns = int(facts["frame.time_epoch"].replace(".", ""))
    network = None
    try:
        at, version = _skip_link_layer(facts)
        available, captured = int(facts["frame.len"]) - at, int(facts["frame.cap_len"]) - at
        network = (_ipv4 if version == 4 else _ipv6)(facts, available, captured)
        ports = _transport(facts, network, captured - network.headers)
    except _IgnoredError as ignored:
        if ignored.verdict is Verdict.NOT_IP:
            return None
        return Seen(frame, time_ns, facts, ignored.verdict, network)
    return Seen(frame, time_ns, facts, Verdict.COUNTED, network, ports)


def _occurrence(facts: Facts, field: str, number: int = 0) -> int:
    """A number in a field that must be there."""
    values = facts[field].split(",")
    if number >= len(values) or not values[number]:
        raise _IgnoredError(Verdict.UNDECIDED)
    text = values[number]
    if text in ("True", "False"):  # since tshark 4.2
        return text == "True"
    return int(text.replace(":", ""), 16) if ":" in text else int(text, 0)


def _count(facts: Facts, field: str) -> int:
    return facts[field].count(",") + 1 if facts[field] else 0


def _skip_link_layer(facts: Facts) -> tuple[int, int]:
    """Where the IP header begins, and the version that the link layer says it has."""
    if _count(facts, "vlan.id") > MAXIMUM_TAGS:
        raise _IgnoredError(Verdict.TOO_MANY_HEADERS)
    way = _way_to_ip(facts["frame.protocols"])
    if way is None:
        raise _IgnoredError(_why_no_ip(facts))
    at = _tags_end(facts) + (8 if way["snap"] else 0) + (8 if way["pppoe"] else 0)
    if way["mpls"]:
        at += 4 * _labels(facts)
    version = 4 if way["ip"] == "ip" else 6
    if way["snap"] and not _may_be_snap(facts):
        raise _IgnoredError(Verdict.NOT_IP)
    if way["pppoe"] and PPP_PROTOCOLS.get(_occurrence(facts, "ppp.protocol")) != version:
        raise _IgnoredError(Verdict.NOT_IP)
    return at, version


@lru_cache(maxsize=10_000)
def _way_to_ip(layers: str) -> re.Match[str] | None:
    return WAY_TO_IP.match(layers)


def _tags_end(facts: Facts) -> int:
    """Octets of the link-layer header and its tags."""
    layers = facts["frame.protocols"].split(":")
    link = LINK_OCTETS.get(":".join(layers[:2])) or LINK_OCTETS.get(layers[0], 0)
    more = 4 if facts["sll.ifindex"] else 2 if facts["ppp.address"] else 0
    return link + more + 4 * _count(facts, "vlan.id")


def _labels(facts: Facts) -> int:
    """How many MPLS labels there are down to the bottom of the stack."""
    bottoms = [text in ("1", "True") for text in facts["mpls.bottom"].split(",")]
    if not any(bottoms[:MAXIMUM_LABELS]):
        if len(bottoms) >= MAXIMUM_LABELS:
            raise _IgnoredError(Verdict.TOO_MANY_HEADERS)
        whole = _link_limit(facts) == int(facts["frame.len"])
        raise _IgnoredError(Verdict.TRUNCATED if whole else Verdict.UNDECIDED)
    return bottoms.index(True) + 1


def _link_limit(facts: Facts) -> int:
    """Where the frame ends by a length in the link layer; tshark dissects nothing beyond it, but the spec does."""
    length = int(facts["frame.len"])
    for field, header in (("eth.len", 0), ("vlan.len", 0), ("pppoe.payload_length", 6)):
        if facts[field]:
            length = min(length, _tags_end(facts) + header + _occurrence(facts, field))
    return length


def _may_be_snap(facts: Facts) -> bool:
    """Whether nothing that was read of an LLC header says that it is none with an EtherType of ours."""
    wanted = {
        "llc.dsap": (0xAA,),
        "llc.ssap": (0xAA,),
        "llc.control": (3,),
        "llc.oui": (0,),
        "llc.type": SNAP_ETHERTYPES,
    }
    return all(not facts[field] or _occurrence(facts, field) in values for field, values in wanted.items())


def _why_no_ip(facts: Facts) -> Verdict:
    """NOT_IP where that is sure, UNDECIDED where tshark would not look for an IP header that the spec finds."""
    if facts["ipv6.version"] and not facts["ip.src"] and _occurrence(facts, "ipv6.version") != 6:
        return Verdict.BAD_IP_HEADER
    if facts["mpls.bottom"]:
        _labels(facts)
    if int(facts["frame.cap_len"]) < _tags_end(facts) + 8:  # neither LLC with an EtherType nor PPPoE
        return Verdict.NOT_IP
    if _is_misread_type(facts):
        return Verdict.UNDECIDED
    other_ppp = facts["ppp.protocol"] and _occurrence(facts, "ppp.protocol") not in PPP_PROTOCOLS
    whole = _link_limit(facts) == int(facts["frame.len"])
    return Verdict.NOT_IP if whole or other_ppp or not _may_be_snap(facts) else Verdict.UNDECIDED


def _is_misread_type(facts: Facts) -> bool:
    """Whether tshark takes an EtherType or a label for something that it is not to the spec."""
    types, labels = facts["vlan.etype"].split(","), facts["mpls.label"].split(",")
    return bool(
        facts["eth.type"] == "0x0000"  # a length
        or facts["eth.invalid_lentype"]
        or (types[-1] and int(types[-1], 0) in INVALID_ETHERTYPES)
        or (labels[-1] and int(labels[-1]) == GENERIC_ASSOCIATED_CHANNEL)
    )


def _ipv4(facts: Facts, available: int, captured: int) -> Network:
    if captured < 20:
        raise _IgnoredError(Verdict.TRUNCATED)
    if _occurrence(facts, "ip.version") != 4 or _occurrence(facts, "ip.hdr_len") < 20:
        raise _IgnoredError(Verdict.BAD_IP_HEADER)
    headers = _occurrence(facts, "ip.hdr_len")
    octets = _occurrence(facts, "ip.len") or available
    if _may_be_compressed(facts, available):
        raise _IgnoredError(Verdict.UNDECIDED)
    if not headers <= octets <= available:
        raise _IgnoredError(Verdict.BAD_IP_HEADER)
    if captured < headers:
        raise _IgnoredError(Verdict.TRUNCATED)
    later, more = _occurrence(facts, "ip.frag_offset"), _occurrence(facts, "ip.flags.mf")
    protocol = _occurrence(facts, "ip.proto")
    return Network(
        4,
        canonical(facts["ip.src"]),
        canonical(facts["ip.cur_rt"] or facts["ip.dst"]),  # with a source route, ip.dst is its last hop
        protocol,
        headers,
        octets,
        Fragment.LATER if later else Fragment.FIRST if more else Fragment.NONE,
        _occurrence(facts, "ip.id"),
    )


def _ipv6(facts: Facts, available: int, captured: int) -> Network:
    if captured < 40:
        raise _IgnoredError(Verdict.TRUNCATED)
    if _occurrence(facts, "ipv6.version") != 6:
        raise _IgnoredError(Verdict.BAD_IP_HEADER)
    octets = _ipv6_octets(facts, available)
    if _may_be_compressed(facts, available):
        raise _IgnoredError(Verdict.UNDECIDED)
    if octets > available:
        raise _IgnoredError(Verdict.BAD_IP_HEADER)
    fixed = Network(
        6,
        canonical(facts["ipv6.src"]),
        canonical(facts["ipv6.dst"]),
        _occurrence(facts, "ipv6.nxt"),
        40,
        octets,
    )
    return _walk_extensions(facts, fixed, captured) if fixed.protocol in EXTENSIONS else fixed


def _ipv6_octets(facts: Facts, available: int) -> int:
    payload, following = _occurrence(facts, "ipv6.plen"), _occurrence(facts, "ipv6.nxt")
    if payload:
        return 40 + payload
    if following == 0:  # tshark takes no jumbo length that fits in a frame, and goes no further
        if facts["ipv6.opt.invalid_len"]:  # it takes four octets for the length, whatever the option says
            raise _IgnoredError(Verdict.UNDECIDED)
        return 40 + _occurrence(facts, "ipv6.opt.jumbo")
    return 40 if following == NO_NEXT_HEADER else available


def _walk_extensions(facts: Facts, network: Network, captured: int) -> Network:
    """The packet with its protocol behind the extension headers; the walk ends at a later fragment."""
    protocol, at = network.protocol, network.headers
    fragment, identification = Fragment.NONE, 0
    walked: Counter[int] = Counter()
    while protocol in EXTENSIONS and fragment is not Fragment.LATER:
        if walked.total() == MAXIMUM_EXTENSIONS:
            raise _IgnoredError(Verdict.TOO_MANY_HEADERS)
        if at + 8 > min(captured, network.octets):
            raise _IgnoredError(Verdict.TRUNCATED)
        extension, number = protocol, walked[protocol]
        walked[extension] += 1
        following, length = (_occurrence(facts, field, number) for field in EXTENSIONS[extension])
        if extension == FRAGMENT_HEADER:
            identification = _occurrence(facts, "ipv6.fraghdr.ident", number)
            more = _occurrence(facts, "ipv6.fraghdr.more", number)
            fragment = Fragment.LATER if length else Fragment.FIRST if more else Fragment.NONE
        at += _extension_octets(extension, length)
        protocol = following
        if at > network.octets:
            raise _IgnoredError(Verdict.BAD_IP_HEADER)
        if at > MAXIMUM_HEADERS_OCTETS:
            raise _IgnoredError(Verdict.TOO_MANY_HEADERS)
        if at > captured:
            raise _IgnoredError(Verdict.TRUNCATED)
    return replace(
        network,
        protocol=protocol,
        headers=at,
        fragment=fragment,
        identification=identification,
    )


def _extension_octets(extension: int, length: int) -> int:
    if extension == FRAGMENT_HEADER:
        return 8
    return (length + 2) * 4 if extension == AH else (length + 1) * 8


def _transport(facts: Facts, network: Network, captured: int) -> tuple[int, int]:
    """The ports; ``captured`` octets lie behind the IP headers."""
    if network.fragment is Fragment.LATER:
        return 0, 0
    room, protocol = network.octets - network.headers, network.protocol
    if room < (12 if protocol == AH and network.version == 4 else LEAST_OCTETS.get(protocol, 0)):
        if network.fragment is Fragment.FIRST:  # its transport header goes on in the next one
            return 0, 0
        raise _IgnoredError(Verdict.TRUNCATED)
    if protocol not in PORT_FIELDS or captured < 4:
        return 0, 0
    source, destination = (_occurrence(facts, field) for field in PORT_FIELDS[protocol])
    most = 60 if network.fragment is Fragment.FIRST else room
    if protocol == TCP and captured >= 20 and not 20 <= _occurrence(facts, "tcp.hdr_len") <= most:
        raise _IgnoredError(Verdict.BAD_TRANSPORT_HEADER)
    return source, destination


@lru_cache(maxsize=100_000)
def canonical(occurrences: str) -> str:
    """The first address of a field, in Python's spelling."""
    if not occurrences:
        raise _IgnoredError(Verdict.UNDECIDED)
    return str(ip_address(occurrences.partition(",")[0]))


def _vlans(facts: Facts) -> tuple[str, ...]:
    """The two outer ones; 0 is none."""
    tags = [*facts["vlan.id"].split(","), "", ""]
    return tuple("" if tag == "0" else tag for tag in tags[:2])


# Fragments


class _Fragments:
    """The protocols and ports of first fragments, for later ones."""

    def __init__(self) -> None:
        self._firsts: dict[
            tuple[str, str, int | None, int, tuple[str, ...]], tuple[int, int, tuple[int, int]]
        ] = {}

    def with_ports(self, seen: Seen) -> Seen:
        """``seen``, with protocol and ports of its first fragment if it is a later one."""
        network = seen.network
        if seen.verdict is not Verdict.COUNTED or network is None or network.fragment is Fragment.NONE:
            return seen
        ends = network.source, network.destination
        protocol = network.protocol if network.version == 4 else None
        key = *ends, protocol, network.identification, _vlans(seen.facts)
        if network.fragment is Fragment.FIRST:
            if network.octets - network.headers < LEAST_OCTETS.get(network.protocol, 0):
                return seen  # its ports are in the next one
            self._firsts[key] = seen.time_ns, network.protocol, seen.ports
            return seen
        if key not in self._firsts:
            return seen
        time_ns, protocol, ports = self._firsts[key]
        if seen.time_ns - time_ns > FRAGMENT_LIFETIME_NS:
            return seen
        return replace(seen, network=replace(network, protocol=protocol), ports=ports)
