"""What it costs to hand out the first packets of each session one by one (--features).

Throughput: iperf3 over veth, with flowmon on both hooks of the receiver, once with features and once without; they
take turns as in throughput.py. The ring: smallest packets at a steady rate, every one of which is handed out, while
the collector writes them as Parquet; how much CPU that takes, and what was lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import frames
import numpy as np
import pyarrow.dataset as ds
from hosts import HOOKS, Flowmon, clsact, missing, pair, replay
from measure import PROJECT, Bench, Row, at_least, at_most
from throughput import ONE_CPU, Slices, tcp

from netns import Host

PART = "features"
ROUNDS = 5
WITH, WITHOUT = "with features", "without"
MAX_FLOWS = 65536
STREAMS = {1: "1 stream", 10: "10 streams"}
PACKETS_PER_SESSION = 100
RATES = (10_000, 100_000, 200_000)  # packets/s
SECONDS = 3
RING_TARGETS = {100_000: (at_most(0),)}  # percent lost


def measure(bench: Bench) -> Iterator[Row]:
    """Gbit/s by number of streams; of the ring, by rate."""
    if absent := missing("iperf3", "tcpreplay", "taskset"):
        bench.note(f"{PART}: not measured, {' and '.join(absent)} not installed")
        return
    with ExitStack() as stack:
        hosts = stack.enter_context(pair())
        stack.enter_context(clsact(hosts.right))
        programs = {}
        for name, options in {WITH: ("--features",), WITHOUT: ()}.items():
            flowmon = Flowmon(hosts.right, PROJECT, name.split()[-1], bench.scratch / name)
            stack.enter_context(flowmon.loaded(MAX_FLOWS, *options))
            stack.enter_context(flowmon.collecting())
            programs[name] = {hook: flowmon.program(hook) for hook in HOOKS}
        for hook in HOOKS:
            hosts.right.run("tc", "filter", "delete", "dev", hosts.right.interface, hook)
        slices = Slices(hosts.right, programs, bench.rounds_or(ROUNDS))
        for streams, size in STREAMS.items():
            yield tcp(slices, hosts, streams, size, (at_least(0.95, WITHOUT),), *ONE_CPU, part=PART)
        for streams, size in STREAMS.items():
            yield tcp(slices, hosts, streams, f"{size}, all CPUs", (), part=PART)
    for rate in RATES:
        with pair() as hosts:
            yield from _ring(bench, hosts.left, hosts.right, rate)


def _ring(bench: Bench, left: Host, right: Host, rate: int) -> Iterator[Row]:
    """Each session sends as many packets as are captured of it."""
    sessions = rate * SECONDS // PACKETS_PER_SESSION
    capture = bench.scratch / "ring.pcap"
    frames.write(capture, np.arange(rate * SECONDS) // PACKETS_PER_SESSION * 2)
    found: dict[str, list[float]] = {"cpu": [], "lost": [], "written": [], "rate": []}
    for number in range(bench.rounds_or(ROUNDS)):
        flowmon = Flowmon(right, PROJECT, "ring", bench.scratch / f"ring-{number}")
        with flowmon.loaded(MAX_FLOWS, "--features", "--sessions", str(sessions)):
            with flowmon.collecting() as collector:
                before = _cpu_seconds(collector.pid)
                found["rate"].append(replay(left, capture, f"--pps={rate}"))
                time.sleep(1.5)  # until all is written
                found["cpu"].append(1e8 * (_cpu_seconds(collector.pid) - before) / (rate * SECONDS))
            books = flowmon.status()["features"]
            handed = sum(books.values())
            found["lost"].append(100 * books["lost_packets"] / handed)
            found["written"].append(100 * _rows(flowmon.directory) / handed)
    size = f"{rate:,} packets/s"
    of_flowmon = {name: {WITH: values} for name, values in found.items()}
    yield Row(PART, "sent", size, "packets/s", of_flowmon["rate"])
    yield Row(PART, "lost in the ring", size, "%", of_flowmon["lost"], targets=RING_TARGETS.get(rate, ()))
    yield Row(PART, "rows in Parquet", size, "%", of_flowmon["written"])
    yield Row(PART, "CPU for 100,000 packets", size, "ms", of_flowmon["cpu"])


def _rows(directory: Path) -> int:
    return int(ds.dataset(directory / "_features", partitioning="hive").count_rows())


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
