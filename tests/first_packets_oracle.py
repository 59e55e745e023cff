"""The slow, obvious list of a biflow's first packets, and a capture that makes it hard.

Rules (flowmon's own, said again): both directions together in order of time, forward first where times are equal; in
a direction no packet is earlier than the one before it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

from craft import Frame, Tcp, frame, udp
from oracle_parser import packets_of

FORWARD, REVERSE = 1, 2
LONGEST = 65535


class Listed(NamedTuple):
    """One packet of a list. time_ns: since 1970 UTC."""

    length: int
    direction: int
    time_ns: int


def lists_of(capture: Path, most: int) -> list[list[Listed]]:
    """The first packets of every biflow of a capture, in order of the biflows' first packets."""
    biflows: dict[tuple[object, ...], list[Listed]] = {}
    forward: dict[tuple[object, ...], object] = {}
    latest: dict[tuple[object, ...], int] = {}
    for packet in packets_of(capture):
        direction = FORWARD if packet.source == forward.setdefault(packet.biflow, packet.source) else REVERSE
        of_side = (packet.biflow, direction)
        latest[of_side] = max(packet.time, latest.get(of_side, 0))
        one = Listed(min(packet.octets, LONGEST), direction, latest[of_side])
        biflows.setdefault(packet.biflow, []).append(one)
    return [
        sorted(packets, key=lambda one: (one.time_ns, one.direction))[:most] for packets in biflows.values()
    ]


def talk(seed: int = 1, conversations: int = 60) -> list[Frame]:
    """Conversations of 1 to 60 packets that interleave, some at the same times, a few out of order."""
    chance = random.Random(seed)
    frames: list[Frame] = []
    for number in range(conversations):
        at = chance.uniform(0, 500)
        for place in range(chance.choice([1, 1, 2, 3, 5, 31, 32, 33, 60])):
            is_reply = place > 0 and chance.random() < chance.choice([0, 0.5, 0.9])
            frames.append(_one(chance, number, is_reply, at))
            at += chance.choice([0, 0, 0.001, 1, 20])
    frames.sort(key=lambda one: one.time_ns)
    for place in chance.sample(range(len(frames) - 1), len(frames) // 50):
        frames[place], frames[place + 1] = frames[place + 1], frames[place]
    return frames


def _one(chance: random.Random, number: int, is_reply: bool, milliseconds: float) -> Frame:
    """A packet of TCP or UDP, over IPv4 or IPv6, by the conversation's number."""
    client, server = ("2001:db8::1", "2001:db8::2") if number % 3 == 0 else ("192.0.2.1", "198.51.100.2")
    octets = chance.randrange(1400)
    if number % 2:
        tcp = Tcp(client, server, client_port=10_000 + number)
        send = tcp.server if is_reply else tcp.client
        return send(milliseconds, "PA", seq=1, ack=1, octets=octets)
    ends = (client, server, 10_000 + number, 53)
    if is_reply:
        ends = (server, client, 53, 10_000 + number)
    return frame(milliseconds, udp(*ends, octets))
