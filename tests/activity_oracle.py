"""The rules of activity.py written out, a biflow at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from activity_scenes import (
    ECHO,
    ECHO_V6,
    ICMP,
    ICMPV6,
    NOTHING,
    TALKS,
    TCP,
    UDP,
    WalkScene,
    answer,
    flow_id_of,
)
from flowmon.analysers.activity import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    URG,
    Outcome,
    Probe,
)
from flowmon.expiry import EndReason
from samples import NS


@dataclass
class Side:
    """One direction of a record, as somebody who reads its entry sees it."""

    packets: int = 0
    flags: int = 0
    syns: int = 0
    first_ns: int = 0

    @classmethod
    def of(cls, entry: np.ndarray | None) -> Side:
        if entry is None:
            return cls()
        names = ("packets", "tcp_control_bits", "syn_packets", "first_seen_mono_ns")
        return cls(*(int(entry[name][0]) for name in names))


@dataclass
class Known:
    forward: int = 0
    reverse: int = 0
    syns: int = 0
    outcome: int = 0
    probe: int = 0
    is_frozen: bool = False


def says(flags: int, bit: int) -> bool:
    return flags & bit != 0


def probe_of(one: np.ndarray, forward: Side, reverse: Side) -> Probe:
    """What the first direction tries, by the rules in the module's head."""
    (key_,) = one
    address, version = key_["destination_address"].tolist(), int(key_["ip_version"])
    source_port, port, protocol = (
        int(key_[name]) for name in ("source_port", "destination_port", "protocol")
    )
    to_many = address[12] >= 224 if version == 4 else address[0] == 0xFF
    if version == 4 and protocol != TCP and address[15] == 255:
        to_many = True
    if to_many or forward.packets == 0 or (source_port, port) == (0, 0):
        return Probe.NONE
    if (protocol, version) == (ICMP, 4) or (protocol, version) == (ICMPV6, 6):
        return Probe.PING if port in (ECHO, ECHO_V6) else Probe.NONE
    if protocol == UDP:
        is_answer = source_port in (67, 137, 1900, 3702, 5353, 5355)
        may_be_silent = is_answer or port == 443 or 33434 <= port < 33434 + 3 * 30
        return Probe.NONE if may_be_silent and reverse.packets == 0 else Probe.UDP
    return tcp_probe(forward, reverse) if protocol == TCP else Probe.NONE


def tcp_probe(forward: Side, reverse: Side) -> Probe:
    flags = {bit for bit in (FIN, SYN, RST, PSH, ACK, URG) if says(forward.flags, bit)}
    if SYN in flags:
        return Probe.SYN if ACK not in flags or says(reverse.flags, SYN) else Probe.NONE
    if flags == {ACK}:
        is_refused = {bit for bit in (FIN, SYN, RST, PSH, ACK, URG) if says(reverse.flags, bit)} == {RST}
        may_be = is_refused or reverse.packets == 0
        return Probe.ACK if may_be and forward.packets <= 2 else Probe.NONE
    known = {frozenset(): Probe.NULL, frozenset({FIN}): Probe.FIN, frozenset({FIN, PSH, URG}): Probe.XMAS}
    return known.get(frozenset(flags), Probe.NONE)


def verdict(
    one: np.ndarray, forward: Side, reverse: Side, age_s: float, reason: int, is_unreachable: bool
) -> tuple[Outcome, Probe]:
    probe = probe_of(one, forward, reverse)
    outcome = silence(age_s, reason)
    if outcome > Outcome.WAITING and is_unreachable:
        outcome = Outcome.REFUSED
    if reverse.packets:
        outcome = (
            answered(forward, reverse, age_s, reason) if one["protocol"][0] == TCP else Outcome.SUCCEEDED
        )
    if outcome == Outcome.WAITING and reason == EndReason.LACK_OF_RESOURCES:
        outcome = Outcome.CUT
    return NOTHING if Outcome.NONE in (outcome, probe) else (outcome, probe)


def silence(age_s: float, reason: int) -> Outcome:
    if age_s >= 3 or reason in (EndReason.IDLE, EndReason.ENDED):
        return Outcome.SILENT
    return Outcome.UNANSWERED if age_s >= 0.5 or is_over(reason) else Outcome.WAITING


def is_over(reason: int) -> bool:
    return reason in (EndReason.IDLE, EndReason.ACTIVE, EndReason.ENDED, EndReason.FORCED)


def answered(forward: Side, reverse: Side, age_s: float, reason: int) -> Outcome:
    if says(forward.flags, SYN) and says(reverse.flags, SYN) and says(reverse.flags, ACK):
        if says(forward.flags, ACK):
            return Outcome.SUCCEEDED
        is_given_up = says(forward.flags, RST) or is_over(reason) or age_s >= 0.5
        return Outcome.HALF_OPEN if is_given_up else Outcome.WAITING
    is_refused = says(reverse.flags, RST) and not says(reverse.flags, SYN)
    return Outcome.REFUSED if is_refused else Outcome.NONE


def since(now: int, before: int) -> int:
    return now - before if now >= before else now


class Oracle:
    """Remembers each biflow by the name of its talk, and says what a pass must tell."""

    def __init__(self) -> None:
        self.known: dict[str, Known] = {}
        self.cut: tuple[set[str], set[str]] = (
            set(),
            set(),
        )  # without an answer: of these 3 s, and of those before
        self.cut_since = 0
        self.last_ns: int | None = None
        self.begun: list[int] = []  # when each record of the pass began

    def told(self, scene: WalkScene) -> dict[str, dict[str, Any]]:
        """By name, the rows of the pass that the scene has just made."""
        before, now_known, rows = scene.entries_at_snapshot, {}, {}
        present = {name: one for name, one in TALKS.items() if sides_in(before, one)}
        unreachable = [self._error(before, one) for one in present.values()]
        for name, one in present.items():
            forward_key, reverse_key = sides_in(before, one)
            flow_id = flow_id_of(one)
            reason = scene.ends.reasons.get(flow_id, 0)
            entries = scene.entries_at_take if reason else before
            forward, reverse = (Side.of(entries.get(k.tobytes())) for k in (forward_key, reverse_key))
            if reverse_key.tobytes() not in before:
                reverse = Side()
            known = self.known.get(name) or Known(is_frozen=name in self.cut[0] | self.cut[1])
            firsts = [side.first_ns for side in (forward, reverse) if side.packets]
            self.begun += firsts
            age_s = max(0, scene.now_mono_ns() - min(firsts)) / NS if firsts else 0
            (address,) = forward_key[["source_address", "destination_address"]].tolist()
            says_so = [bytes(part) for part in address] in unreachable
            outcome, probe = verdict(forward_key, forward, reverse, age_s, reason, says_so)
            if known.is_frozen:
                outcome, probe = Outcome(known.outcome), Probe(known.probe)
            row = {
                "source_address": bytes(address[0]),
                "destination_address": bytes(address[1]),
                "source_port": int(forward_key["source_port"][0]),
                "destination_port": int(forward_key["destination_port"][0]),
                "protocol": int(one["protocol"][0]),
                "ip_version": int(one["ip_version"][0]),
                "outcome": outcome,
                "outcome_before": known.outcome,
                "probe": probe,
                "is_new": name not in self.known,
                "end_reason": reason,
                "forward_flags": forward.flags,
                "reverse_flags": reverse.flags,
                "forward_packets": forward.packets,
                "reverse_packets": reverse.packets,
                "new_forward_packets": since(forward.packets, known.forward),
                "new_reverse_packets": since(reverse.packets, known.reverse),
                "new_syn_packets": since(forward.syns, known.syns),
                "flow_id": flow_id,
            }
            if one["protocol"][0] in (ICMP, ICMPV6):
                row["destination_port"] = 0
            if row["new_forward_packets"] or row["new_reverse_packets"] or reason or outcome != known.outcome:
                rows[name] = row
            if reason == EndReason.ACTIVE:
                now_known[name] = Known(outcome=outcome, probe=probe, is_frozen=True)
            elif not reason:
                now_known[name] = Known(
                    forward.packets, reverse.packets, forward.syns, outcome, probe, known.is_frozen
                )
        self.known = now_known
        self._remember_cut(rows, scene.now_mono_ns())
        return rows

    def _remember_cut(self, rows: dict[str, dict[str, Any]], now_ns: int) -> None:
        if now_ns >= self.cut_since + 3 * NS:
            self.cut, self.cut_since = (set(), self.cut[0]), now_ns
        for name, row in rows.items():
            if row["protocol"] == TCP:
                may_go_on = row["outcome"] in (Outcome.NONE, Outcome.SUCCEEDED)
            else:
                may_go_on = row["reverse_packets"] == 0
            if row["end_reason"] == EndReason.LACK_OF_RESOURCES and may_go_on:
                self.cut[0].add(name)

    @staticmethod
    def _error(entries: dict[bytes, np.ndarray], one: np.ndarray) -> list[bytes]:
        """[attempt's source, destination] that an ICMP error speaks of, or nothing."""
        kind = (int(one["protocol"][0]), int(one["destination_port"][0]) >> 8)
        if kind not in ((ICMP, 3), (ICMPV6, 1)):
            return []
        forward, _ = sides_in(entries, one)
        return [bytes(forward[name][0].tolist()) for name in ("destination_address", "source_address")]

    def seconds(self, now_ns: int) -> float:
        """Since the last pass; of the first, since the earliest record began. To be asked after told()."""
        last_ns = min([*self.begun, now_ns]) if self.last_ns is None else self.last_ns
        self.last_ns = now_ns
        return (now_ns - last_ns) / NS


def sides_in(entries: dict[bytes, np.ndarray], one: np.ndarray) -> tuple[np.ndarray, np.ndarray] | tuple[()]:
    """The keys (forward, reverse): whichever was born first is forward."""
    there = [k for k in (one, answer(one)) if k.tobytes() in entries]
    if not there:
        return ()
    forward = min(there, key=lambda k: int(entries[k.tobytes()]["born_mono_ns"][0]))
    return forward, answer(forward)
