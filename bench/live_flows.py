"""The collector: an interval over so many live flows, and what it makes of so many that end.

A process for each size (live_flows_once.py) fills a table of its own with directed flows of TCP over IPv4, looks
at it as the collector does each interval, while each flow gets packets, and then ends them all, to durable Parquet or to a collector of IPFIX
over TCP on the loopback that reads and drops. Ended flows a second are over the whole pass and the sink's finish;
a few flows went the same way before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from measure import PROJECT, Bench, Row, Target, alternate, at_least, at_most, column, environment

PART = "collector"
ROUNDS = {10_000: 3, 100_000: 3, 1_000_000: 2}  # by number of directed flows
ONCE = PROJECT / "bench" / "live_flows_once.py"
SINKS = {"parquet": "Parquet", "ipfix": "IPFIX over TCP"}
BASE_MB = 150
MB_PER_FLOW = 0.001
CPU_S: dict[int, tuple[Target, ...]] = {100_000: (at_most(0.06),), 1_000_000: (at_most(0.8),)}
ENDED: dict[int, tuple[Target, ...]] = {1_000_000: (at_least(400_000),)}


def measure(bench: Bench) -> Iterator[Row]:
    """Rows for each size."""
    for flows, rounds in ROUNDS.items():
        size = f"{flows:,} flows"
        found = {}
        for sink in SINKS:
            runs = {name: partial(_once, tree, flows, sink, bench) for name, tree in bench.trees.items()}
            found[sink] = alternate(runs, bench.rounds_or(rounds))
        quiet = found["parquet"]
        most_mb = (at_most(BASE_MB + MB_PER_FLOW * flows),)
        cpu = column(quiet, "live_cpu_s")
        yield Row(PART, "an interval, nothing ends", size, "CPU s", cpu, targets=CPU_S.get(flows, ()))
        yield Row(PART, "an interval, nothing ends", size, "s", column(quiet, "live_s"))
        yield Row(PART, "peak memory, nothing ends", size, "MB", column(quiet, "live_mb"), targets=most_mb)
        for sink, name in SINKS.items():
            rate = column(found[sink], "ended_per_s")
            yield Row(PART, f"ended, to {name}", size, "flows/s", rate, targets=ENDED.get(flows, ()))
            yield Row(PART, f"ended, to {name}", size, "CPU s", column(found[sink], "ended_cpu_s"))
            peak = column(found[sink], "ended_mb")
            yield Row(PART, f"peak memory, all end, {name}", size, "MB", peak, targets=most_mb)


def _once(tree: Path, flows: int, sink: str, bench: Bench) -> dict[str, float]:
    """What a process measured of itself."""
    command = [sys.executable, ONCE, str(flows), sink, bench.scratch / "ended"]
    done = subprocess.run(command, env=environment(tree), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
