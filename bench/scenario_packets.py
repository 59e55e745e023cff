"""Packets of conversations as arrays, and as a capture: no Python step per packet.

A row says what a packet is; `write_pcap` makes frames of rows. Checksums are 0; lengths, flags, sequence and
acknowledgement numbers are right. Frames are cut at SNAP_OCTETS, as a capture with a snap length has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

NS = 1_000_000_000
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
STEP_NS = 20_000  # between two packets of one side
SNAP_OCTETS = 128
LINKTYPE_ETHERNET = 1
UNREACHABLE = {4: (3, 3), 6: (1, 4)}  # ICMP type and code: port unreachable (RFC 792, RFC 4443)
ECHO = {4: (8, 0), 6: (128, 129)}  # request and reply

# Addresses are 16 octets, IPv4 as IPv4-mapped. Of an ICMP echo, source_port is the identifier and seq the
# sequence number; of an unreachable, ports are those of the UDP packet in it, and payload is that packet's.
PACKET = np.dtype(
    [
        ("time_ns", "i8"),
        ("source", "u1", 16),
        ("destination", "u1", 16),
        ("source_port", "u2"),
        ("destination_port", "u2"),
        ("protocol", "u1"),
        ("flags", "u1"),
        ("seq", "u4"),
        ("ack", "u4"),
        ("payload", "u2"),
        ("icmp_type", "u1"),
        ("icmp_code", "u1"),
    ]
)

_MAPPED = np.frombuffer(bytes(10) + b"\xff\xff", "u1")

_RECORD = [("seconds", "<u4"), ("nanoseconds", "<u4"), ("captured", "<u4"), ("wire", "<u4")]
_ETHERNET = [("destination_mac", "u1", 6), ("source_mac", "u1", 6), ("ethertype", ">u2")]
_IP: dict[int, list[Any]] = {
    4: [("version_ihl", "u1"), ("tos", "u1"), ("octets", ">u2"), ("id", ">u2"), ("fragment", ">u2"),
        ("ttl", "u1"), ("protocol", "u1"), ("checksum", ">u2"), ("source", "u1", 4), ("destination", "u1", 4)],
    6: [("version_class_label", ">u4"), ("octets", ">u2"), ("protocol", "u1"), ("ttl", "u1"),
        ("source", "u1", 16), ("destination", "u1", 16)],
}  # fmt: skip
_IP_OCTETS = {4: 20, 6: 40}
_TCP = [("source_port", ">u2"), ("destination_port", ">u2"), ("seq", ">u4"), ("ack", ">u4"), ("offset", "u1"),
        ("flags", "u1"), ("window", ">u2"), ("checksum_and_urgent", ">u4")]  # fmt: skip
_UDP = [("source_port", ">u2"), ("destination_port", ">u2"), ("length", ">u2"), ("udp_checksum", ">u2")]
_ECHO = [("type", "u1"), ("code", "u1"), ("icmp_checksum", ">u2"), ("identifier", ">u2"), ("sequence", ">u2")]


@dataclass(frozen=True)
class Ends:
    """Who talks with whom, a conversation a row: addresses u1[n, 16], ports u2[n], ns i8[n]."""

    client: Array
    server: Array
    client_port: Array
    server_port: Array
    start_ns: Array
    trip_ns: Array  # round trip

    def __len__(self) -> int:
        return len(self.client)

    def chosen(self, which: Array) -> Ends:
        """Some of them."""
        return Ends(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Step:
    """One packet of a conversation: half a round trip after the one before where the side changes.

    after_s: longer by so much; jitter_s: and by up to so much, at random. again: sent a second time.
    """

    forward: bool
    flags: int = 0
    payload: int = 0
    after_s: float = 0.0
    jitter_s: float = 0.0
    again: bool = False


def mapped(texts: Sequence[str]) -> Array:
    """u1[n, 16] of addresses as text."""
    raw = [ip_address(text).packed for text in texts]
    joined = b"".join(one if len(one) == 16 else bytes(_MAPPED) + one for one in raw)
    return np.frombuffer(joined, "u1").reshape(-1, 16).copy()


def address_texts(addresses: Array) -> list[str]:
    """Texts of u1[n, 16]."""
    prefix = bytes(_MAPPED)
    return [str(ip_address(raw[12:] if raw.startswith(prefix) else raw)) for raw in map(bytes, addresses)]


def is_ipv4(addresses: Array) -> Array:
    """bool[n]."""
    return (addresses[..., :12] == _MAPPED).all(axis=-1)


def tcp(random: np.random.Generator, ends: Ends, steps: Sequence[Step]) -> Array:
    """PACKET[n * steps] of TCP conversations that all go the same way."""
    rows = _conversations(random, ends, steps)
    rows["protocol"] = TCP
    forward = np.array([step.forward for step in steps])
    flags = np.array([step.flags for step in steps])
    seq, ack = _sequence_numbers(steps)
    initial = random.integers(0, 1 << 32, (2, len(ends), 1))
    own, other = np.where(forward, initial[0], initial[1]), np.where(forward, initial[1], initial[0])
    # RFC 9293 section 3.10.7.1: a reset by who knows nothing of the connection begins at 0.
    ignorant = (flags & RST != 0) & (seq < 0)
    rows["flags"] = flags
    rows["seq"] = np.where(ignorant, 0, own + np.maximum(seq, 0)) & 0xFFFF_FFFF
    rows["ack"] = np.where(flags & ACK, other + ack, 0) & 0xFFFF_FFFF
    return rows.ravel()


def udp(random: np.random.Generator, ends: Ends, steps: Sequence[Step]) -> Array:
    """PACKET[n * steps] of UDP conversations."""
    rows = _conversations(random, ends, steps)
    rows["protocol"] = UDP
    return rows.ravel()


def ping(random: np.random.Generator, ends: Ends, steps: Sequence[Step]) -> Array:
    """PACKET[n * steps] of echo requests (forward) and replies; client_port is the identifier."""
    rows = _conversations(random, ends, steps)
    forward = np.array([step.forward for step in steps])
    ipv4 = is_ipv4(ends.client)[:, None]
    rows["protocol"] = np.where(ipv4, ICMP, ICMP6)
    request, reply = (np.where(ipv4, ECHO[4][at], ECHO[6][at]) for at in (0, 1))
    rows["icmp_type"] = np.where(forward, request, reply)
    rows["source_port"], rows["destination_port"] = ends.client_port[:, None], 0
    rows["seq"] = np.maximum(np.cumsum(forward), 1)
    return rows.ravel()


def port_unreachable(probes: Array, delays_ns: Array) -> Array:
    """PACKET[n]: what each UDP packet's destination says of it."""
    rows = probes.copy()
    rows["time_ns"] += delays_ns
    rows["source"], rows["destination"] = probes["destination"], probes["source"]
    ipv4 = is_ipv4(probes["source"])
    rows["protocol"] = np.where(ipv4, ICMP, ICMP6)
    rows["icmp_type"] = np.where(ipv4, UNREACHABLE[4][0], UNREACHABLE[6][0])
    rows["icmp_code"] = np.where(ipv4, UNREACHABLE[4][1], UNREACHABLE[6][1])
    return rows


def _conversations(random: np.random.Generator, ends: Ends, steps: Sequence[Step]) -> Array:
    """PACKET[n, steps] with times, addresses, ports and payload."""
    rows = np.zeros((len(ends), len(steps)), PACKET)
    forward = np.array([step.forward for step in steps])
    half_trips = np.cumsum([0] + [int(one.forward != two.forward) for one, two in pairwise(steps)])
    fixed = np.cumsum([int(step.after_s * NS) + STEP_NS for step in steps]) - STEP_NS
    jitter = np.array([step.jitter_s * NS for step in steps]) * random.random((len(ends), len(steps)))
    rows["time_ns"] = (
        ends.start_ns[:, None]
        + half_trips * (ends.trip_ns[:, None] // 2)
        + fixed
        + np.cumsum(jitter, axis=1).astype("i8")
    )
    for name, is_sender in (("source", forward), ("destination", ~forward)):
        rows[name] = np.where(is_sender[:, None], ends.client[:, None, :], ends.server[:, None, :])
        rows[f"{name}_port"] = np.where(is_sender, ends.client_port[:, None], ends.server_port[:, None])
    rows["payload"] = [step.payload for step in steps]
    return rows


def _sequence_numbers(steps: Sequence[Step]) -> tuple[Array, Array]:
    """(seq, ack) of each step, from the initial ones; seq is -1 of a side that has sent nothing."""
    sent = {True: 0, False: 0}
    begun = {True: False, False: False}
    last = {True: 0, False: 0}
    seq, ack = [], []
    for step in steps:
        side = step.forward
        at = last[side] if step.again else sent[side]
        seq.append(at if begun[side] or not step.flags & RST else -1)
        ack.append(sent[not side])
        last[side], begun[side] = at, True
        if not step.again:
            sent[side] += step.payload + bool(step.flags & SYN) + bool(step.flags & FIN)
    return np.array(seq, "i8"), np.array(ack, "i8")


def write_pcap(packets: Array, path: Path) -> None:
    """A little-endian pcap file with times in ns of PACKET[n], in order of time."""
    ipv4 = is_ipv4(packets["source"])
    unreachable = np.isin(packets["protocol"], (ICMP, ICMP6)) & (packets["icmp_type"] < 4)
    unreachable &= packets["icmp_type"] > 0
    echo = np.isin(packets["protocol"], (ICMP, ICMP6)) & ~unreachable
    kinds = {
        _tcp_frames: packets["protocol"] == TCP,
        _udp_frames: packets["protocol"] == UDP,
        _echo_frames: echo,
        _unreachable_frames: unreachable,
    }
    groups = []
    for make, of_kind in kinds.items():
        for version, of_version in ((4, ipv4), (6, ~ipv4)):
            members = np.flatnonzero(of_kind & of_version)
            if len(members):
                frames = make(version, packets[members])
                groups.append((members, frames.view("u1").reshape(len(members), -1), frames["captured"]))
    captured = np.zeros(len(packets), "i8")
    for members, _, octets in groups:
        captured[members] = octets
    places = np.cumsum(captured + 16) - captured - 16
    content = np.zeros(int(captured.sum()) + 16 * len(packets), "u1")
    for members, frames, _ in groups:
        content[places[members][:, None] + np.arange(frames.shape[1])] = frames
    header = np.array((0xA1B23C4D, 2, 4, 0, 0, SNAP_OCTETS, LINKTYPE_ETHERNET), "<u4,<u2,<u2,<i4,<u4,<u4,<u4")
    path.write_bytes(header.tobytes() + content.tobytes())


def _framed(version: int, packets: Array, transport: list[Any], octets: Array) -> Array:
    """Records with all headers below the transport's. octets: of the IP packet."""
    frames = np.zeros(len(packets), _RECORD + _ETHERNET + _IP[version] + transport)
    frames["seconds"], frames["nanoseconds"] = packets["time_ns"] // NS, packets["time_ns"] % NS
    frames["wire"] = 14 + octets
    frames["captured"] = np.minimum(14 + octets, SNAP_OCTETS)
    frames["ethertype"] = {4: 0x0800, 6: 0x86DD}[version]
    # A host's address is of no interest; that of a group follows from the group's (RFC 1112, RFC 2464).
    frames["source_mac"] = (2, 0, 0, 0, 0, 1)
    frames["destination_mac"] = (2, 0, 0, 0, 0, 2)
    to = packets["destination"]
    group4 = (version == 4) & (to[:, 12] >> 4 == 14)
    group6 = (version == 6) & (to[:, 0] == 0xFF)
    frames["destination_mac"][group4, :3], frames["destination_mac"][group4, 3:] = (
        (1, 0, 0x5E),
        to[group4, 13:],
    )
    frames["destination_mac"][group6, :2], frames["destination_mac"][group6, 2:] = 0x33, to[group6, 12:]
    _fill_ip(frames, version, packets["source"], to, packets["protocol"], octets)
    return frames


def _fill_ip(frames: Array, version: int, source: Array, to: Array, protocol: Any, octets: Any) -> None:
    width = {4: 4, 6: 16}[version]
    frames["source"], frames["destination"] = source[:, -width:], to[:, -width:]
    frames["protocol"], frames["ttl"] = protocol, 60
    if version == 4:
        frames["version_ihl"], frames["octets"] = 0x45, octets
    else:
        frames["version_class_label"], frames["octets"] = 6 << 28, octets - 40


def _tcp_frames(version: int, packets: Array) -> Array:
    frames = _framed(version, packets, _TCP, _IP_OCTETS[version] + 20 + packets["payload"].astype("i8"))
    for name in ("source_port", "destination_port", "seq", "ack", "flags"):
        frames[name] = packets[name]
    frames["offset"], frames["window"] = 5 << 4, 64240
    return frames


def _udp_frames(version: int, packets: Array) -> Array:
    frames = _framed(version, packets, _UDP, _IP_OCTETS[version] + 8 + packets["payload"].astype("i8"))
    for name in ("source_port", "destination_port"):
        frames[name] = packets[name]
    frames["length"] = 8 + packets["payload"]
    return frames


def _echo_frames(version: int, packets: Array) -> Array:
    frames = _framed(version, packets, _ECHO, _IP_OCTETS[version] + 8 + packets["payload"].astype("i8"))
    frames["type"], frames["code"] = packets["icmp_type"], packets["icmp_code"]
    frames["identifier"], frames["sequence"] = packets["source_port"], packets["seq"]
    return frames


def _unreachable_frames(version: int, packets: Array) -> Array:
    inner = np.dtype(_IP[version] + _UDP)
    octets = np.full(len(packets), _IP_OCTETS[version] + 8 + inner.itemsize)
    frames = _framed(version, packets, [*_ECHO, ("inner", inner)], octets)
    frames["type"], frames["code"] = packets["icmp_type"], packets["icmp_code"]
    inside = frames["inner"]
    length = 8 + packets["payload"].astype("i8")
    _fill_ip(inside, version, packets["destination"], packets["source"], UDP, _IP_OCTETS[version] + length)
    for name in ("source_port", "destination_port"):
        inside[name] = packets[name]
    inside["length"] = length
    return frames
