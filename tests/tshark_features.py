"""Packet features as tshark has them: every packet of a capture as a row of the same columns.

``sessions_of(capture)`` runs tshark once. Rules it keeps:

* tshark says what stands in each header, and both relative numbers of TCP. Reassembly is off: each fragment is a row.
* A session is decided here: two addresses with their ports in either order, protocol, IP version and VLAN ids. For ICMP
  the identifier and the query that a message asks or answers are in place of the ports; what is no query goes by type
  and code, whatever packet it quotes. A later fragment belongs with the first one of its identification that came before
  it, else to a session with ports 0.
* Of a packet inside a packet nothing counts: a field's first occurrence is the outermost one, and fields of another
  protocol than the IP header's belong to what is quoted.
* Of a segment that comes in fragments tshark shows no relative numbers: they count from where those of its session do.
* Payload is what the IP length leaves behind IP headers and transport header. That of ICMP has 4 octets: type, code and
  checksum, which all of its messages have.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
ACK = 0x10
FORWARD, REVERSE = 1, 2  # biflowDirection

PREFERENCES = (
    "ip.defragment:FALSE",
    "ipv6.defragment:FALSE",
    "tcp.desegment_tcp_streams:FALSE",
    "tcp.analyze_sequence_numbers:TRUE",
    "tcp.relative_sequence_numbers:TRUE",
    "ip.tso_support:FALSE",
    "ip.decode_tos_as_diffserv:TRUE",
)
FIELDS = (
    "frame.time_epoch vlan.id"
    " ip.src ip.dst ip.proto ip.hdr_len ip.len ip.id ip.flags.rb ip.flags.df ip.flags.mf ip.frag_offset ip.ttl ip.dsfield"
    " ipv6.src ipv6.dst ipv6.nxt ipv6.plen ipv6.hlim ipv6.tclass ipv6.hopopts.nxt ipv6.hopopts.len ipv6.dstopts.nxt"
    " ipv6.dstopts.len ipv6.fraghdr.nxt ipv6.fraghdr.offset ipv6.fraghdr.more ipv6.fraghdr.ident"
    " tcp.srcport tcp.dstport tcp.hdr_len tcp.len tcp.flags tcp.window_size_value"
    " tcp.seq tcp.seq_raw tcp.ack tcp.ack_raw"
    " udp.srcport udp.dstport udp.length"
    " icmp.type icmp.code icmp.ident icmpv6.type icmpv6.code icmpv6.echo.identifier"
).split()
EXTENSIONS = {0: "ipv6.hopopts", 44: "ipv6.fraghdr", 60: "ipv6.dstopts"}
LEAST_OCTETS = {ICMP: 4, UDP: 8, ICMPV6: 4}
"""Protocol → octets of its header, where they are always the same."""
QUERIES = {
    ICMP: {0: 8, 8: 8, 13: 13, 14: 13},
    ICMPV6: {128: 128, 129: 128, 133: 133, 134: 133, 135: 135, 136: 135},
}
"""ICMP type → type of the query that it asks or answers."""

Row = dict[str, Any]
"""Column of a packet feature → value; times are integer ns since 1970 UTC. The columns are ``COLUMNS``."""
Session = tuple[Any, ...]
End = tuple[str, int]
"""Address and port; 0 where there are no ports."""
Facts = dict[str, str]

COLUMNS = (
    "sourceAddress destinationAddress sourceTransportPort destinationTransportPort protocolIdentifier"
    " captureStartNanoseconds captureRound packetIndex observationTimeNanoseconds biflowDirection"
    " interArrivalNanoseconds ipTotalLength fragmentFlags fragmentOffset ipTTL ipClassOfService transportPayloadLength"
    " tcpControlBits tcpWindowSize tcpRelativeSequenceNumber tcpRelativeAcknowledgementNumber udpMessageLength"
    " icmpType icmpCode"
).split()
"""All columns of packet features but flowId, of which tshark knows nothing."""


@dataclass(frozen=True)
class Network:
    """The outermost IP header, lengths in octets.

    ``fragment_offset`` is in units of 8 octets, as ``-T fields`` has it; tshark's other outputs have octets.
    """

    source: str
    destination: str
    protocol: int
    headers: int
    length: int
    identification: int
    fragment_flags: int
    fragment_offset: int
    time_to_live: int
    class_of_service: int


@dataclass(frozen=True)
class Packet:
    """One packet: the session that it is of, who sent it, and its own columns."""

    session: Session
    sender: End
    receiver: End
    columns: Row


def sessions_of(capture: Path) -> list[list[Row]]:
    """The packets of each session, in order of time; sessions in order of their first packet."""
    sessions: dict[Session, list[Packet]] = {}
    for packet in _packets(capture):
        sessions.setdefault(packet.session, []).append(packet)
    return [_rows(packets) for packets in sessions.values()]


def _rows(packets: list[Packet]) -> list[Row]:
    """What depends on the other packets of the session, and in the order of the columns."""
    first, rows = packets[0], []
    before_ns = started_ns = first.columns["observationTimeNanoseconds"]
    for index, packet in enumerate(packets):
        time_ns = packet.columns["observationTimeNanoseconds"]
        forward = (packet.sender, packet.receiver) == (first.sender, first.receiver)
        row = packet.columns | {
            "sourceAddress": first.sender[0],
            "destinationAddress": first.receiver[0],
            "sourceTransportPort": first.sender[1],
            "destinationTransportPort": first.receiver[1],
            "captureStartNanoseconds": started_ns,
            "captureRound": 0,
            "packetIndex": index,
            "biflowDirection": FORWARD if forward else REVERSE,
            "interArrivalNanoseconds": time_ns - before_ns,
        }
        rows.append({column: row[column] for column in COLUMNS})
        before_ns = time_ns
    return rows


# tshark


def _facts_of(capture: Path) -> Iterator[Facts]:
    command = ["tshark", "-n", "-r", str(capture), "-T", "fields", "-E", "separator=/t", "-E", "occurrence=a"]
    for preference in PREFERENCES:
        command += "-o", preference
    for field in FIELDS:
        command += "-e", field
    environment = os.environ | {"WIRESHARK_CONFIG_DIR": "/nonexistent"}  # no preferences of the user's
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        yield dict(zip(FIELDS, line.split("\t"), strict=True))


def _number(facts: Facts, field: str, occurrence: int = 0) -> int:
    text = facts[field].split(",")[occurrence]
    return text == "True" if text in ("True", "False") else int(text, 0)  # since tshark 4.2


# One packet


def _packets(capture: Path) -> Iterator[Packet]:
    """Those of the four protocols.

    ``owners`` has what the first fragment of each datagram said, ``origins`` what numbers of each TCP direction count from.
    """
    owners: dict[tuple[Any, ...], tuple[int, tuple[int, int]]] = {}
    origins: dict[tuple[End, End], int] = {}
    for facts in _facts_of(capture):
        if not (facts["ip.src"] or facts["ipv6.src"]):
            continue
        assert not (facts["ip.src"] and facts["ipv6.src"]), (
            "one version in the other: which is the outer one?"
        )
        network = _ipv4(facts) if facts["ip.src"] else _ipv6(facts)
        protocol, numbers = network.protocol, (0, 0)
        datagram = (network.source, network.destination, network.identification, facts["vlan.id"])
        read = not network.fragment_offset
        if read:
            if protocol not in (ICMP, TCP, UDP, ICMPV6):
                continue
            numbers = _key_numbers(facts, protocol)
            if network.fragment_flags & 0x20:
                owners[datagram] = protocol, numbers
        else:
            protocol, numbers = owners.get(datagram, (protocol, numbers))
        packet = _packet(facts, network, protocol, numbers, read=read)
        if read and protocol == TCP:
            packet.columns.update(_relative_numbers(facts, packet, origins))
        yield packet


def _packet(facts: Facts, network: Network, protocol: int, numbers: tuple[int, int], *, read: bool) -> Packet:
    has_ports = protocol in (TCP, UDP)
    source_port, destination_port = numbers if has_ports else (0, 0)
    sender, receiver = (network.source, source_port), (network.destination, destination_port)
    about = () if has_ports else numbers
    columns = {
        "observationTimeNanoseconds": int(facts["frame.time_epoch"].replace(".", "")),
        "protocolIdentifier": protocol,
        "ipTotalLength": network.length,
        "fragmentFlags": network.fragment_flags,
        "fragmentOffset": network.fragment_offset,
        "ipTTL": network.time_to_live,
        "ipClassOfService": network.class_of_service,
        "transportPayloadLength": network.length - network.headers,
        "tcpControlBits": None,
        "tcpWindowSize": None,
        "tcpRelativeSequenceNumber": None,
        "tcpRelativeAcknowledgementNumber": None,
        "udpMessageLength": None,
        "icmpType": None,
        "icmpCode": None,
    }
    if read:
        columns |= _transport(facts, network, protocol)
    session = (frozenset((sender, receiver)), about, protocol, facts["vlan.id"])
    return Packet(session, sender, receiver, columns)


def _transport(facts: Facts, network: Network, protocol: int) -> Row:
    behind_ip = network.length - network.headers
    if protocol == TCP:
        payload = behind_ip - _number(facts, "tcp.hdr_len")
        assert facts["tcp.len"] in (str(payload), ""), "tshark reads the lengths in another way"
        return {
            "transportPayloadLength": payload,
            "tcpControlBits": _number(facts, "tcp.flags"),
            "tcpWindowSize": _number(facts, "tcp.window_size_value"),
        }
    columns = {"transportPayloadLength": behind_ip - LEAST_OCTETS[protocol]}
    if protocol == UDP:
        return columns | {"udpMessageLength": _number(facts, "udp.length")}
    name = "icmp" if protocol == ICMP else "icmpv6"
    return columns | {
        "icmpType": _number(facts, f"{name}.type"),
        "icmpCode": _number(facts, f"{name}.code"),
    }


def _relative_numbers(facts: Facts, packet: Packet, origins: dict[tuple[End, End], int]) -> Row:
    own, other = (packet.sender, packet.receiver), (packet.receiver, packet.sender)
    sequence, acknowledgement = _number(facts, "tcp.seq_raw"), _number(facts, "tcp.ack_raw")
    acknowledges = packet.columns["tcpControlBits"] & ACK
    is_analysed = facts["tcp.len"] != ""
    if is_analysed:
        origins[own] = sequence - _number(facts, "tcp.seq")
    # Without the ACK flag tshark shows the field as it is; it acknowledges nothing.
    if is_analysed and acknowledges:
        origins[other] = acknowledgement - _number(facts, "tcp.ack")
    return {
        "tcpRelativeSequenceNumber": (sequence - origins[own]) % 2**32,
        "tcpRelativeAcknowledgementNumber": (acknowledgement - origins[other]) % 2**32 if acknowledges else 0,
    }


def _key_numbers(facts: Facts, protocol: int) -> tuple[int, int]:
    """Both ports, or of ICMP the identifier and the message class."""
    if protocol == TCP:
        return _number(facts, "tcp.srcport"), _number(facts, "tcp.dstport")
    if protocol == UDP:
        return _number(facts, "udp.srcport"), _number(facts, "udp.dstport")
    name, field = ("icmp", "icmp.ident") if protocol == ICMP else ("icmpv6", "icmpv6.echo.identifier")
    kind, code = _number(facts, f"{name}.type"), _number(facts, f"{name}.code")
    query = QUERIES[protocol].get(kind)
    if query is None:
        return 0, kind << 8 | code
    return _number(facts, field) if facts[field] else 0, query << 8


def _ipv4(facts: Facts) -> Network:
    flags = (
        _number(facts, "ip.flags.rb") << 7
        | _number(facts, "ip.flags.df") << 6
        | _number(facts, "ip.flags.mf") << 5
    )
    return Network(
        facts["ip.src"].split(",")[0],
        facts["ip.dst"].split(",")[0],
        _number(facts, "ip.proto"),
        _number(facts, "ip.hdr_len"),
        _number(facts, "ip.len"),
        _number(facts, "ip.id"),
        flags,
        _number(facts, "ip.frag_offset"),
        _number(facts, "ip.ttl"),
        _number(facts, "ip.dsfield"),
    )


def _ipv6(facts: Facts) -> Network:
    """With its extension headers; each kind comes once, and none behind that of a later fragment."""
    protocol, headers = _number(facts, "ipv6.nxt"), 40
    flags = offset = identification = 0
    while protocol in EXTENSIONS and not offset:
        extension = EXTENSIONS[protocol]
        protocol = _number(facts, f"{extension}.nxt")
        if extension == "ipv6.fraghdr":
            headers += 8
            offset = _number(facts, "ipv6.fraghdr.offset")
            flags = _number(facts, "ipv6.fraghdr.more") << 5
            identification = _number(facts, "ipv6.fraghdr.ident")
        else:
            headers += (_number(facts, f"{extension}.len") + 1) * 8
    return Network(
        facts["ipv6.src"].split(",")[0],
        facts["ipv6.dst"].split(",")[0],
        protocol,
        headers,
        40 + _number(facts, "ipv6.plen"),
        identification,
        flags,
        offset,
        _number(facts, "ipv6.hlim"),
        _number(facts, "ipv6.tclass"),
    )
