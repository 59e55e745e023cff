"""What families of traffic share: chance, time, addresses that nobody else has, and conversations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scenario_packets import (
    ACK,
    FIN,
    NS,
    PACKET,
    PSH,
    RST,
    SYN,
    Array,
    Ends,
    Step,
    address_texts,
    mapped,
    tcp,
)

START_NS = 1_767_225_600 * NS  # 2026-01-01T00:00:00Z
MS = NS // 1000

OUT, IN = True, False  # of a step


class Stage:
    """What the families share: chance, the time there is, and addresses that nobody else has."""

    def __init__(self, random: np.random.Generator, seconds: float) -> None:
        self.random = random
        self.start_ns = START_NS
        self.end_ns = START_NS + int(seconds * NS)
        self._hosts = {True: random.permutation(1 << 15), False: random.permutation(1 << 16)}
        self._subnets = {True: random.permutation(128), False: random.permutation(256)}
        self._used = {True: 0, False: 0}
        self._used_subnets = {True: 0, False: 0}

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.end_ns - self.start_ns) / NS

    def version(self) -> int:
        """4 or 6."""
        return 6 if self.random.random() < 0.3 else 4

    def inside(self, version: int, count: int = 1) -> Array:
        """u1[count, 16]: new addresses of our own network."""
        return self._addresses(version, count, inside=True)

    def outside(self, version: int, count: int = 1) -> Array:
        """u1[count, 16]: new addresses elsewhere."""
        return self._addresses(version, count, inside=False)

    def subnet(self, version: int, *, inside: bool) -> Array:
        """u1[254, 16]: the hosts of a new /24, or the first ones of a /64."""
        number = int(self._subnets[inside][self._used_subnets[inside]])
        self._used_subnets[inside] += 1
        if version == 4:
            first = f"10.20.{128 + number}.0" if inside else f"198.19.{number}.0"
        else:
            first = f"2001:db8:{'20' if inside else '8000'}:{0x100 + number:x}::"
        return add(mapped([first])[0], np.arange(1, 255))

    def times(self, count: int) -> Array:
        """i8[count]: sorted, over the whole time but the last second."""
        return np.sort(self.random.integers(self.start_ns, self.end_ns - NS, count))

    def trips(self, count: int, least_ms: float = 5, most_ms: float = 150) -> Array:
        """i8[count]: round trips in ns, short ones more often."""
        spread = math.log(most_ms / least_ms)
        return (least_ms * MS * np.exp(spread * self.random.random(count))).astype("i8")

    def size(self, least: int, most: int) -> int:
        """A number between these, small ones more often."""
        return round(least * (most / least) ** self.random.random())

    def ports(self, count: int) -> Array:
        """u2[count]: ephemeral ports."""
        return self.random.integers(32768, 61000, count)

    def _addresses(self, version: int, count: int, *, inside: bool) -> Array:
        used = self._used[inside]
        self._used[inside] += count
        numbers = self._hosts[inside][used : used + count]
        if version == 4:
            return add(mapped(["10.20.0.0" if inside else "198.18.0.0"])[0], numbers)
        found = np.empty((count, 16), "u1")
        found[:] = mapped(["2001:db8:20::" if inside else "2001:db8:8000::"])[0]
        if not inside:
            found[:, 6:8] = (0x8000 | numbers[:, None] >> np.array([8, 0])) & 0xFF
        found[:, 8:] = self.random.integers(0, 256, (count, 8))
        return found


def add(address: Array, numbers: Array) -> Array:
    """u1[n, 16]: the address and the numbers, in its last four octets."""
    found = np.empty((len(numbers), 16), "u1")
    found[:] = address
    low = int.from_bytes(bytes(address[12:]), "big") + np.asarray(numbers)
    found[:, 12:] = (low[:, None] >> np.array([24, 16, 8, 0])) & 0xFF
    return found


def many(address: Array, count: int) -> Array:
    """u1[count, 16]: one address over and over."""
    return np.broadcast_to(address[0], (count, 16))


def names(*addresses: Array) -> frozenset[str]:
    """Texts of addresses."""
    return frozenset(text for array in addresses for text in address_texts(np.unique(array, axis=0)))


def session(request: int, replies: Sequence[int], think_s: float = 0.02) -> list[Step]:
    """A TCP connection from SYN to the last ACK, with one request and some replies."""
    return [
        *handshake(),
        Step(OUT, PSH | ACK, request),
        *(Step(IN, PSH | ACK, octets, jitter_s=think_s) for octets in replies),
        Step(OUT, ACK),
        *farewell(),
    ]


def handshake() -> list[Step]:
    """SYN, SYN and ACK, ACK."""
    return [Step(OUT, SYN), Step(IN, SYN | ACK), Step(OUT, ACK)]


def farewell() -> list[Step]:
    """FIN of each side, and the last ACK."""
    return [Step(OUT, FIN | ACK), Step(IN, FIN | ACK), Step(OUT, ACK)]


REFUSED = [Step(OUT, SYN), Step(IN, RST | ACK)]
# RFC 6298: the first retransmission after a second, then doubled.
UNANSWERED = [Step(OUT, SYN), *(Step(OUT, SYN, after_s=s, again=True) for s in (1.0, 2.0, 4.0))]
ASKED = [Step(OUT, payload=40), Step(IN, payload=180)]
LOST = [Step(OUT, payload=40)]


def mixed(
    stage: Stage,
    ends: Ends,
    fates: Array,
    scripts: Mapping[int, Sequence[Step]],
    play: Callable[..., Array] = tcp,
) -> list[Array]:
    """PACKET[n] of conversations whose fates are the scripts' keys, one array a fate."""
    found = []
    for fate, steps in scripts.items():
        chosen = np.flatnonzero(fates == fate)
        if len(chosen):
            found.append(play(stage.random, ends.chosen(chosen), steps))
    return found


def joined(parts: Sequence[Array]) -> Array:
    """PACKET[n], in no order."""
    return np.concatenate([np.zeros(0, PACKET), *parts])
