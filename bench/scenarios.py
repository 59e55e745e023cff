"""Seeded scenarios for detectors: ordinary traffic that looks suspicious, attacks, and the truth about both.

Rules:
- A seed gives the same scenario always; every address that says something is of one talker only.
- Attacks are over some seconds before the capture ends, so that silence can be told from delay.
- When a detector's default threshold is crossed is found from the attack's own failed probes, by a slow, obvious
  count; a detector is expected to find an attack only where it is crossed.
- A talker of the ordinary traffic must never be named. Some are marked as hard, as what they do is what scans and
  floods do too: most or nearly half of what they try comes to nothing.

    bench/scenarios.py SEED OUT.pcap
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scenario_attacks import (
    flood_among_clients,
    mass_scan,
    ping_sweep,
    rotating_scan,
    scan,
    slow_scan,
    udp_scan,
)
from scenario_packets import NS, Array, Ends, Step, udp
from scenario_packets import write_pcap as write_packets
from scenario_stage import IN, MS, OUT, START_NS, Stage, joined, many
from scenario_talkers import BENIGN, HARD
from scenario_truth import Attack

ATTACKS: tuple[tuple[Callable[[Stage], tuple[Array, Attack]], float], ...] = (
    (scan, 0.40),
    (mass_scan, 0.08),
    (slow_scan, 0.12),
    (rotating_scan, 0.08),
    (udp_scan, 0.06),
    (ping_sweep, 0.06),
)
FLOOD_SHARE = 1.0 - sum(share for _, share in ATTACKS)


@dataclass(frozen=True)
class Scenario:
    """packets: PACKET[n] in order of time. benign: addresses that must never be named; hard: some of them."""

    seed: int
    packets: Array
    attacks: tuple[Attack, ...]
    benign: frozenset[str]
    hard: frozenset[str]
    families: tuple[str, ...]


def scenario(seed: int) -> Scenario:
    """The scenario of a seed: 2 to 5 ordinary families, 0 to 2 attacks."""
    random = np.random.default_rng(seed)
    attacks = int(random.choice(3, p=[0.15, 0.55, 0.30]))
    kinds = random.choice(len(ATTACKS) + 1, attacks, p=[*(share for _, share in ATTACKS), FLOOD_SHARE])
    is_slow = any(kind < len(ATTACKS) and ATTACKS[kind][0] is slow_scan for kind in kinds)
    stage = Stage(random, random.uniform(60, 90) if is_slow else random.uniform(25, 60))
    families = tuple(sorted(map(str, random.choice(list(BENIGN), random.integers(2, 6), replace=False))))
    talks = {family: BENIGN[family](stage) for family in families}
    parts = [talk.packets for talk in talks.values()]
    benign = frozenset[str]().union(*(talk.talkers for talk in talks.values()))
    found = []
    for kind in kinds:
        if kind < len(ATTACKS):
            packets, attack = ATTACKS[kind][0](stage)
        else:
            packets, attack, clients = flood_among_clients(stage)
            benign |= clients
        parts.append(packets)
        found.append(attack)
    packets = joined([*parts, quiet_rest(stage)])
    packets = packets[packets["time_ns"] < stage.end_ns]
    hard = frozenset[str]().union(*(talks[family].talkers for family in families if family in HARD))
    order = np.argsort(packets["time_ns"], kind="stable")
    return Scenario(seed, packets[order], tuple(found), benign, hard, families)


def quiet_rest(stage: Stage) -> Array:
    """PACKET[n]: a host that keeps asking for the time, so that the capture's clock goes on to its end."""
    count = int(stage.seconds)
    ends = Ends(
        many(stage.inside(4), count),
        many(stage.outside(4), count),
        np.full(count, 123),
        np.full(count, 123),
        stage.start_ns + np.arange(count) * NS,
        np.full(count, 10 * MS),
    )
    return udp(stage.random, ends, [Step(OUT, payload=48), Step(IN, payload=48)])


def write_pcap(one: Scenario, path: Path) -> None:
    """Its packets as an Ethernet capture with times in ns."""
    write_packets(one.packets, path)


def main() -> None:
    """Writes the capture of a seed and says what is in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seed", type=int)
    parser.add_argument("capture", type=Path)
    options = parser.parse_args()
    one = scenario(options.seed)
    write_pcap(one, options.capture)
    print(f"{len(one.packets)} packets; {', '.join(one.families)}")
    for attack in one.attacks:
        seconds = {name: round((at - START_NS) / NS, 2) for name, at in attack.crossings.items()}
        print(f"{attack.kind}: {attack.source or 'many'} -> {attack.victim or 'many'}, crossed at {seconds}")


if __name__ == "__main__":
    main()
