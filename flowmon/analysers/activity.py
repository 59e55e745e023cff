"""What moved since the last pass, one row a biflow: what analysers are fed.

Rules:
- A row is there where a biflow has new packets, has ended, or where the verdict on it
  has changed. The same biflow may come again, so analysers count distinct things.
- The verdict is on the attempt: did whoever sent the first packet get an answer? It is
  made from both directions, and only in the biflow's first record; later ones keep it.
- Silence is a verdict too, after GRACE and again after PATIENCE.
- What cannot be judged is no attempt: the middle of a connection, an answer to somebody
  else's packets (backscatter), multicast and broadcast and what is answered to them,
  UDP traceroute, fragments without their first.
- ACK alone, once or twice, is a probe where a bare RST comes back (RFC 9293, 3.10.7.1) or
  nothing. It may be a keepalive to a peer that has gone: who counts few failures leaves
  its silence out.
- Only the last pass is remembered, and what was cut just before; losing that costs no flow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from flowmon.biflow import ICMP, NEVER, NONE, Biflows, hash_rows
from flowmon.expiry import EndReason

Array = np.ndarray[Any, np.dtype[Any]]

NS = 1_000_000_000
TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
ALL_FLAGS = 63
ECHO_REQUEST = {1: 8, 58: 128}
UNREACHABLE = {1: 3, 58: 1}
TRACEROUTE = (33434, 33523)  # 30 hops, 3 probes each, a port more with each probe
ASKED_OF_MANY = (67, 137, 1900, 3702, 5353, 5355)  # DHCP, NetBIOS names, SSDP, WS-Discovery, mDNS, LLMNR
GRACE_NS = NS // 2
PATIENCE_NS = 3 * NS
CUT_MOST = 1 << 20
QUIC = 443


class Outcome(IntEnum):
    """What came of an attempt."""

    NONE = 0  # no attempt, or none that can be judged
    WAITING = 1  # no answer yet, for less than GRACE
    SUCCEEDED = 2  # answered; TCP: the handshake was completed
    HALF_OPEN = 3  # TCP: SYN and ACK came back, but the handshake was not completed
    REFUSED = 4  # RST, or ICMP unreachable from the destination
    UNANSWERED = 5  # nothing for GRACE
    SILENT = 6  # nothing for PATIENCE, or until it ended
    CUT = 7  # ended for lack of room before it could be judged


class Probe(IntEnum):
    """What the attempt was made with."""

    NONE = 0
    SYN = 1
    FIN = 2
    NULL = 3  # TCP without any flag
    XMAS = 4  # FIN, PSH, URG
    ACK = 5
    UDP = 6
    PING = 7


# Of one biflow. Addresses and ports as in FLOW_KEY, of the forward direction; of ICMP the port is 0.
ACTIVITY = np.dtype(
    [
        ("source_address", "u1", 16),
        ("destination_address", "u1", 16),
        ("source_port", "u2"),
        ("destination_port", "u2"),
        ("protocol", "u1"),
        ("ip_version", "u1"),
        ("outcome", "u1"),  # Outcome
        ("outcome_before", "u1"),  # at the last pass; NONE where it is new
        ("probe", "u1"),  # Probe
        ("is_new", "?"),
        ("end_reason", "u1"),  # flowEndReason; 0: it goes on
        ("forward_flags", "u2"),  # tcpControlBits of the record so far
        ("reverse_flags", "u2"),
        ("forward_packets", "u8"),  # of the record so far
        ("reverse_packets", "u8"),
        ("new_forward_packets", "u8"),  # since the last pass
        ("new_reverse_packets", "u8"),
        ("new_syn_packets", "u8"),  # of the forward direction
        ("flow_id", "u8"),
    ],
    align=True,  # several times faster to reckon with
)


@dataclass(frozen=True)
class Activity:
    """rows: ACTIVITY[n]; at_ns: UTC of the reading; seconds: since the last one."""

    rows: Array
    at_ns: int
    seconds: float

    def __len__(self) -> int:
        return len(self.rows)


def identity(rows: Array, *names: str) -> Array:
    """uint64[n]: a hash of the named fields of each row; equal fields, equal hash."""
    columns = []
    for name in names:
        values = rows[name]
        if values.ndim == 2:
            words = np.ascontiguousarray(values).view("u8")
            columns += [words[:, 0], words[:, 1]]
        else:
            columns.append(values.astype("u8"))
    return hash_rows(np.column_stack(columns), seed=0)


def failed(rows: Array) -> Array:
    """bool[n]: attempts that came to nothing, as far as is known."""
    return (rows["outcome"] >= Outcome.HALF_OPEN) & (rows["outcome"] != Outcome.CUT)


def new_connections(rows: Array) -> int:
    """How many TCP connections were attempted that were not known before."""
    return int(np.count_nonzero(rows["is_new"] & (rows["probe"] == Probe.SYN)))


@dataclass(frozen=True)
class Seen:
    """All biflows of one pass, in step, by ascending flow_id, each once.

    keys: FLOW_KEY of the forward direction. reasons: uint8, EndReason.
    first_seen_mono_ns: uint64, of the record. counts: by the names of ACTIVITY, and
    syn_packets of the forward direction; of what has ended the final ones.
    """

    keys: Array
    flow_id: Array
    reasons: Array
    first_seen_mono_ns: Array
    counts: Mapping[str, Array]


def seen(keys: Array, states: Array, biflows: Biflows, reasons: Array) -> Seen:
    """What a pass found: keys and states (WATCHED_STATE, final of what was taken) of its snapshot.

    reasons: uint8[biflows], of those that were recorded.
    """
    counts = {"syn_packets": _of_rows(states["syn_packets"], biflows.forward)}
    begun = []
    for side, rows in (("forward", biflows.forward), ("reverse", biflows.reverse)):
        counts[f"{side}_flags"] = _of_rows(states["tcp_control_bits"], rows)
        counts[f"{side}_packets"] = packets = _of_rows(states["packets"], rows)
        first_seen = _of_rows(states["first_seen_mono_ns"], rows)
        begun.append(np.where((first_seen == 0) | (packets == 0), NEVER, first_seen))
    order = np.argsort(biflows.flow_id, kind="stable")
    return Seen(
        keys=keys.take(biflows.forward[order]),
        flow_id=biflows.flow_id[order],
        reasons=reasons[order],
        first_seen_mono_ns=np.minimum(*begun)[order],
        counts={name: values[order] for name, values in counts.items()},
    )


def _of_rows(values: Array, rows: Array) -> Array:
    """Of one direction, 0 where that was not seen."""
    return np.where(rows == NONE, values.dtype.type(0), values[rows])


# What is remembered of a biflow from pass to pass.
_KNOWN = np.dtype(
    [
        ("flow_id", "u8"),
        ("forward_packets", "u8"),
        ("reverse_packets", "u8"),
        ("syn_packets", "u8"),
        ("outcome", "u1"),
        ("probe", "u1"),
        ("is_judged", "?"),  # an active timeout began another record
    ],
    align=True,
)


class Tracker:
    """Makes Activity of snapshots."""

    def __init__(self) -> None:
        self._known = np.zeros(1, _KNOWN)  # by ascending flow_id; the last row stands for none
        self._cut = _Cut()
        self._last_ns = 0

    def follow(self, found: Seen, read_at_mono_ns: int, utc_offset_ns: int) -> Activity:
        """What moved since the last call."""
        rows = _rows(found)
        known, was_known = self._before(rows["flow_id"])
        for new, now in _COUNTED.items():
            # A new record counts from 0, and so does what was evicted and came back.
            rows[new] = _since(found.counts[now], known[now])
        rows["is_new"] = ~was_known
        rows["outcome_before"] = known["outcome"]
        age = _age(read_at_mono_ns, found.first_seen_mono_ns)
        outcome, probe = _judge(rows, found.keys, age)
        keeps = (was_known & known["is_judged"]) | (~was_known & self._cut.holds(rows["flow_id"]))
        rows["outcome"] = np.where(keeps, known["outcome"], outcome)
        rows["probe"] = np.where(keeps, known["probe"], probe)
        self._remember(rows, found.counts["syn_packets"], keeps)
        self._cut.add(rows["flow_id"][_may_go_on_from_the_other_side(rows)], read_at_mono_ns)
        if not self._last_ns:
            self._last_ns = int(found.first_seen_mono_ns.min(initial=read_at_mono_ns))
        seconds = (read_at_mono_ns - self._last_ns) / NS
        self._last_ns = read_at_mono_ns
        moved = (rows["new_forward_packets"] > 0) | (rows["new_reverse_packets"] > 0)
        told = moved | (rows["end_reason"] != 0) | (rows["outcome"] != rows["outcome_before"])
        return Activity(rows.take(np.flatnonzero(told)), read_at_mono_ns + utc_offset_ns, seconds)

    def _before(self, flow_id: Array) -> tuple[Array, Array]:
        """(_KNOWN[n], zero where there is none; bool[n]: was it known)."""
        ids = self._known["flow_id"]
        none = len(ids) - 1
        place = np.searchsorted(ids[:none], flow_id)
        was_known = (ids[place] == flow_id) & (place < none)
        return self._known.take(np.where(was_known, place, none)), was_known

    def _remember(self, rows: Array, syn_packets: Array, keeps: Array) -> None:
        known = np.zeros(len(rows) + 1, _KNOWN)
        goes_on = rows["end_reason"] == EndReason.GOES_ON
        for name in ("flow_id", "outcome", "probe"):
            known[name][:-1] = rows[name]
        for name in ("forward_packets", "reverse_packets"):
            known[name][:-1] = np.where(goes_on, rows[name], 0)
        known["syn_packets"][:-1] = np.where(goes_on, syn_packets, 0)
        known["is_judged"][:-1] = keeps | ~goes_on
        stays = np.flatnonzero(goes_on | (rows["end_reason"] == EndReason.ACTIVE))
        self._known = known.take(np.append(stays, len(rows)))


class _Cut:
    """Biflows that were ended for lack of room, for PATIENCE at least, and CUT_MOST of them at most."""

    def __init__(self) -> None:
        self._flow_ids = [
            np.zeros(0, "u8"),
            np.zeros(0, "u8"),
        ]  # ascending; of this time, and of the one before
        self._since_ns = 0

    def add(self, flow_id: Array, read_at_mono_ns: int) -> None:
        """Takes them in."""
        if read_at_mono_ns - self._since_ns >= PATIENCE_NS:
            self._since_ns = read_at_mono_ns
            self._flow_ids = [np.zeros(0, "u8"), self._flow_ids[0]]
        if len(flow_id):
            self._flow_ids[0] = np.union1d(self._flow_ids[0], flow_id)[:CUT_MOST]

    def holds(self, flow_id: Array) -> Array:
        """bool[n]."""
        found = np.zeros(len(flow_id), bool)
        for known in self._flow_ids:
            if len(known):
                place = np.minimum(np.searchsorted(known, flow_id), len(known) - 1)
                found |= known[place] == flow_id
        return found


def _may_go_on_from_the_other_side(rows: Array) -> Array:
    """bool[n]: cut before an answer came, or in a connection: what follows will look like a first packet."""
    is_cut = rows["end_reason"] == EndReason.LACK_OF_RESOURCES
    # A SYN that comes again is an attempt again: floods have the same ports, some of them.
    is_connection = np.isin(rows["outcome"], (Outcome.NONE, Outcome.SUCCEEDED))
    return is_cut & np.where(rows["protocol"] == TCP, is_connection, rows["reverse_packets"] == 0)


_COUNTED = {
    "new_forward_packets": "forward_packets",
    "new_reverse_packets": "reverse_packets",
    "new_syn_packets": "syn_packets",
}


def _rows(found: Seen) -> Array:
    """ACTIVITY[n] as far as one pass knows it."""
    rows = np.zeros(len(found.keys), ACTIVITY)
    for name in ("source_address", "destination_address", "source_port", "protocol", "ip_version"):
        rows[name] = found.keys[name]
    is_icmp = np.isin(found.keys["protocol"], ICMP)
    rows["destination_port"] = np.where(is_icmp, 0, found.keys["destination_port"])
    rows["end_reason"] = found.reasons
    rows["flow_id"] = found.flow_id
    for name in ("forward_packets", "reverse_packets", "forward_flags", "reverse_flags"):
        rows[name] = found.counts[name]
    return rows


def _since(now: Array, before: Array) -> Array:
    """What came since; all of it where the count began anew."""
    return np.where(now >= before, now - before, now)


def _age(read_at_mono_ns: int, first_seen: Array) -> Array:
    """Nanoseconds since the first packet, 0 for one that came after the reading."""
    now = np.uint64(read_at_mono_ns)
    return np.where(first_seen < now, now - first_seen, np.uint64(0))


def _judge(rows: Array, keys: Array, age: Array) -> tuple[Array, Array]:
    """(Outcome[n], Probe[n]) of records that are their biflow's first."""
    probe = _probes(rows, keys)
    answered = rows["reverse_packets"] > 0
    outcome = _silence(age, rows["end_reason"])
    unreachable = _said_unreachable(rows, keys)
    outcome[unreachable & (outcome >= Outcome.UNANSWERED)] = Outcome.REFUSED
    outcome[answered] = Outcome.SUCCEEDED
    is_tcp = rows["protocol"] == TCP
    outcome = np.where(is_tcp & answered, _tcp_outcomes(rows, age), outcome)
    is_cut = (outcome == Outcome.WAITING) & (rows["end_reason"] == EndReason.LACK_OF_RESOURCES)
    outcome[is_cut] = Outcome.CUT
    is_no_attempt = (probe == Probe.NONE) | (outcome == Outcome.NONE)
    return np.where(is_no_attempt, Outcome.NONE, outcome), np.where(is_no_attempt, Probe.NONE, probe)


def _is_over(end_reason: Array) -> Array:
    """bool[n]: whether it ended, and not because the table was full."""
    return (end_reason != EndReason.GOES_ON) & (end_reason != EndReason.LACK_OF_RESOURCES)


def _silence(age: Array, end_reason: Array) -> Array:
    """Outcome[n] of what got no answer."""
    outcome = np.full(len(age), Outcome.WAITING, "u1")
    outcome[(age >= GRACE_NS) | _is_over(end_reason)] = Outcome.UNANSWERED
    outcome[(age >= PATIENCE_NS) | np.isin(end_reason, (EndReason.IDLE, EndReason.ENDED))] = Outcome.SILENT
    return outcome


def _tcp_outcomes(rows: Array, age: Array) -> Array:
    """Outcome[n] of TCP where packets came back."""
    forward, reverse = rows["forward_flags"], rows["reverse_flags"]
    accepted = (reverse & (SYN | ACK)) == SYN | ACK
    given_up = (forward & RST != 0) | _is_over(rows["end_reason"]) | (age >= GRACE_NS)
    half = np.where(given_up, Outcome.HALF_OPEN, Outcome.WAITING)
    opened = np.where(forward & ACK != 0, Outcome.SUCCEEDED, half)
    refused = np.where(reverse & (RST | SYN) == RST, Outcome.REFUSED, Outcome.NONE)
    return np.where((forward & SYN != 0) & accepted, opened, refused)


def _probes(rows: Array, keys: Array) -> Array:
    """Probe[n] by the first direction's flags; NONE for what is no attempt."""
    flags = rows["forward_flags"] & ALL_FLAGS
    answered = rows["reverse_packets"] > 0
    protocol = rows["protocol"]
    probe = np.full(len(rows), Probe.NONE, "u1")
    # SYN and ACK to who sent no SYN: an answer to somebody else, or one way of an asymmetric route.
    probe[(flags & SYN != 0) & ((rows["reverse_flags"] & SYN != 0) | (flags & ACK == 0))] = Probe.SYN
    for combination, kind in ((0, Probe.NULL), (FIN, Probe.FIN), (FIN | PSH | URG, Probe.XMAS)):
        probe[flags == combination] = kind
    # More than two are a connection under way.
    is_bare_rst = rows["reverse_flags"] & ALL_FLAGS == RST
    probe[(flags == ACK) & (rows["forward_packets"] <= 2) & (is_bare_rst | ~answered)] = Probe.ACK
    probe[protocol != TCP] = Probe.NONE
    # What many were asked is answered to one: that is no attempt of the one who answers.
    answers_many = ~answered & np.isin(rows["source_port"], ASKED_OF_MANY)
    # A firewall that drops QUIC is common: clients go on by TCP.
    is_quic = ~answered & (rows["destination_port"] == QUIC)
    probe[(protocol == UDP) & ~(answers_many | is_quic | _is_traceroute(rows))] = Probe.UDP
    for icmp, echo_request in ECHO_REQUEST.items():
        probe[(protocol == icmp) & (keys["destination_port"] >> 8 == echo_request)] = Probe.PING
    # A reader of another's table may find a record in which only the answers have come yet.
    has_no_ports = (keys["source_port"] == 0) & (keys["destination_port"] == 0)
    probe[_is_to_many(rows) | has_no_ports | (rows["forward_packets"] == 0)] = Probe.NONE
    return probe


def _is_to_many(rows: Array) -> Array:
    """bool[n]: whether it is to a multicast address, or to all of an IPv4 network's hosts.

    These have 255 in the end where the network is a /24 or larger; TCP is to one host.
    """
    address = rows["destination_address"]
    broadcast = (address[:, 15] == 255) & (rows["protocol"] != TCP)
    ipv4 = ((address[:, 12] >= 224) | broadcast) & (rows["ip_version"] == 4)
    return ipv4 | ((address[:, 0] == 0xFF) & (rows["ip_version"] == 6))


def _is_traceroute(rows: Array) -> Array:
    """bool[n]: to the UDP ports of traceroute, which is to get no answer on its way."""
    port = rows["destination_port"]
    return (port >= TRACEROUTE[0]) & (port <= TRACEROUTE[1]) & (rows["reverse_packets"] == 0)


def _said_unreachable(rows: Array, keys: Array) -> Array:
    """bool[n]: whether the destination sent the source an ICMP error of that kind."""
    said = np.zeros(len(rows), bool)
    for icmp, unreachable in UNREACHABLE.items():
        said |= (rows["protocol"] == icmp) & (keys["destination_port"] >> 8 == unreachable)
    if not said.any():
        return said
    who_to_whom = identity(rows[said], "destination_address", "source_address")
    return np.isin(identity(rows, "source_address", "destination_address"), who_to_whom)
