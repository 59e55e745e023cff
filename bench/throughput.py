"""Throughput that is kept: TCP, and smallest packets, over veth, with flowmon on both hooks of the receiver.

Beside it no program, and an empty one on both hooks. They take turns on the hooks while the traffic goes on,
fractions of a second each: what arrives meanwhile is counted at the interface. Between one second and the next
the same machine gives a tenth more or less; only what is measured close together can be compared to a few percent.

flowmon's programs are loaded by its own command into a table of their own, and its collector runs throughout and
writes Parquet every second. It has the other CPU: iperf3 has both its ends on one, and so does the sender of the
packets, so that what is on the hooks takes its time from that. Over all CPUs the scheduler places the ends anew
all the time, and the same run gives half or twice as much; one such row is there for comparison, without a target.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial

import frames
from hosts import EMPTY, Programs, attach, flowmons, missing, pair, programs, sending
from measure import Bench, Row, Target, alternate, at_least
from programs import OwnPrograms

from netns import Host, Pair, wait_for

PART = "throughput"
ROUNDS = 5
STREAMS = {1: "1 stream", 10: "10 streams", 100: "100 streams"}
# Turns of each contender in a round, which gives their mean.
TURNS_FOR_TARGET = 4
TURNS = 2
TURNS_FOR_SHAPE = 1
BIFLOWS = (200, 2_000, 20_000)
MAX_FLOWS = 65536
ONE_CPU = ("-A", "0,0")
SETTLE_S = 0.05  # after an exchange of the programs
SLICE_S = 0.25
EXCHANGE_S = 0.08  # about what an exchange and two looks at the counters take
START_S = 0.7  # of the traffic, before the first slice
TARGETS = {1: (at_least(0.97, EMPTY),), 10: (at_least(0.97, EMPTY),)}  # by streams
PACKETS, OCTETS = "rx_packets", "rx_bytes"
BEGUN = {PACKETS: 1000, OCTETS: 10_000_000}  # in SETTLE_S


def measure(bench: Bench) -> Iterator[Row]:
    """Gbit/s by number of streams, packets/s by number of biflows."""
    if absent := missing("iperf3", "tcpreplay", "taskset"):
        bench.note(f"throughput: not measured, {' and '.join(absent)} not installed")
        return
    with ExitStack() as stack:
        own = OwnPrograms()
        stack.callback(own.close)
        hosts = stack.enter_context(pair())
        loaded = flowmons(stack, hosts.right, bench, MAX_FLOWS)
        for flowmon in loaded.values():
            stack.enter_context(flowmon.collecting())
        slices = Slices(hosts.right, programs(stack, loaded, own), bench.rounds_or(ROUNDS))
        for streams, size in STREAMS.items():
            yield tcp(slices, hosts, streams, size, TARGETS.get(streams, ()), *ONE_CPU)
        yield tcp(slices, hosts, 10, "10 streams, all CPUs", ())
        for biflows in BIFLOWS:
            capture = bench.scratch / f"{biflows}.pcap"
            frames.write(capture, frames.existing(biflows))
            values = slices.during(sending(hosts.left, capture, slices.seconds(TURNS)), PACKETS, TURNS)
            yield Row(PART, "60-octet frames", f"{biflows:,} biflows", "packets/s", values)


class Slices:
    """Contenders that take turns on a host's hooks, and what arrives at its interface in the meantime."""

    def __init__(self, host: Host, contenders: dict[str, Programs], rounds: int) -> None:
        self._host = host
        self._contenders = contenders
        self._rounds = rounds

    def seconds(self, turns: int) -> int:
        """How long there must be traffic, and rather more."""
        one = SETTLE_S + SLICE_S + EXCHANGE_S
        return int(START_S + 1.5 * turns * len(self._contenders) * self._rounds * one) + 2

    def during(
        self, traffic: AbstractContextManager[object], counter: str, turns: int
    ) -> dict[str, list[float]]:
        """By contender and round, how much of the counter came in a second, while there is traffic."""
        runs = {name: partial(self._slice, programs, counter) for name, programs in self._contenders.items()}
        with traffic:
            wait_for(lambda: self._passes(counter), "the traffic to begin")
            time.sleep(START_S)
            found = alternate(runs, turns * self._rounds)
        return {
            name: [statistics.fmean(values[at : at + turns]) for at in range(0, len(values), turns)]
            for name, values in found.items()
        }

    def _passes(self, counter: str) -> bool:
        """Whether there is more than what opens connections."""
        before = self._host.link_counters()[counter]
        time.sleep(SETTLE_S)
        return self._host.link_counters()[counter] - before > BEGUN[counter]

    def _slice(self, programs: Programs, counter: str) -> float:
        attach(self._host, programs)
        time.sleep(SETTLE_S)
        before, start = self._host.link_counters()[counter], time.perf_counter()
        time.sleep(SLICE_S)
        after, end = self._host.link_counters()[counter], time.perf_counter()
        if after == before:
            raise RuntimeError("the traffic has ended before the measurement")
        return (after - before) / (end - start)


def tcp(
    slices: Slices,
    hosts: Pair,
    streams: int,
    size: str,
    targets: tuple[Target, ...],
    *where: str,
    part: str = PART,
) -> Row:
    """Gbit/s that arrive, headers included. where: the CPUs, as iperf3 takes them."""
    turns = TURNS_FOR_TARGET if targets else TURNS_FOR_SHAPE
    how = ("-t", str(slices.seconds(turns)), "-P", str(streams), *where)
    with hosts.right.server(5201, "iperf3", "--server", "--logfile", "/dev/null"):
        traffic = hosts.left.background("iperf3", "-c", hosts.right.ipv4, *how)
        octets = slices.during(traffic, OCTETS, turns)
    rates = {name: [8e-9 * value for value in values] for name, values in octets.items()}
    return Row(part, "iperf3", size, "Gbit/s", rates, targets=targets)
