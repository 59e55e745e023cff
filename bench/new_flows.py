"""New flows: the packet rate that is kept, and the share of the packets that is accounted for.

Of smallest packets over veth a share begins a new flow each, so that so many a second begin; the other packets
are of 2,000 biflows. flowmon is on both hooks of the receiver (nothing comes back: ingress is what works), its
collector writes Parquet every second. The rate is held against that with an empty program on both hooks, in the
same round. How many flows a second the sender comes to is measured as well: it may not reach what is asked for.

Accounted for is what the records hold of the packets that came in at the interface; the rest is in the books,
evicted or ignored for a reason, and is shown as that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import frames
import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
from hosts import EMPTY, Flowmon, Programs, attach, flowmons, missing, pair, programs, replay
from measure import BEFORE, FLOWMON, Bench, Row, Target, alternate, at_least, column
from programs import OwnPrograms

from netns import Host, Pair

PART = "new flows"
ROUNDS = 3
RATES = (10_000, 100_000, 1_000_000)  # new flows a second
BIFLOWS = 2_000
SECONDS = 1.5  # of sending
MAX_FLOWS = 1 << 19
TRIAL_PACKETS = 400_000
PACKETS = ["packetDeltaCount", "reversePacketDeltaCount"]
# By rate; the others have none.
TARGETS: dict[int, dict[str, tuple[Target, ...]]] = {
    100_000: {"rate": (at_least(0.85, EMPTY),), "accounted": (at_least(100),)},
}


@dataclass(frozen=True)
class Traffic:
    """A capture: its packets, and how many of them begin a flow."""

    capture: Path
    packets: int
    new_flows: int


def measure(bench: Bench) -> Iterator[Row]:
    """Rows for each rate."""
    if absent := missing("tcpreplay", "taskset"):
        bench.note(f"new flows: not measured, {' and '.join(absent)} not installed")
        return
    with ExitStack() as stack:
        own = OwnPrograms()
        stack.callback(own.close)
        hosts = stack.enter_context(pair())
        loaded = flowmons(stack, hosts.right, bench, MAX_FLOWS)
        on_hooks = programs(stack, loaded, own)
        capture = bench.scratch / "new-flows.pcap"
        most = _trial(hosts, capture, on_hooks[EMPTY])
        for rate in RATES:
            traffic = _traffic(capture, rate, most)
            runs: dict[str, Callable[[], dict[str, float]]] = {
                name: partial(_monitored, traffic, hosts, on_hooks[name], flowmon)
                for name, flowmon in loaded.items()
            }
            runs[EMPTY] = partial(_unmonitored, traffic, hosts, on_hooks[EMPTY])
            yield from _rows(rate, traffic, alternate(runs, bench.rounds_or(ROUNDS)))


def _trial(hosts: Pair, capture: Path, empty: Programs) -> float:
    """Packets a second that the sender comes to with an empty program."""
    frames.write(capture, frames.beginning(TRIAL_PACKETS, 0, BIFLOWS))
    attach(hosts.right, empty)
    return replay(hosts.left, capture)


def _traffic(capture: Path, rate: int, most: float) -> Traffic:
    flows = frames.beginning(int(most * SECONDS), min(1.0, rate / most), BIFLOWS)
    frames.write(capture, flows)
    return Traffic(capture, len(flows), int(np.count_nonzero(flows >= 2 * BIFLOWS)))


def _unmonitored(traffic: Traffic, hosts: Pair, empty: Programs) -> dict[str, float]:
    attach(hosts.right, empty)
    return {"rate": replay(hosts.left, traffic.capture)}


def _monitored(traffic: Traffic, hosts: Pair, on_hooks: Programs, flowmon: Flowmon) -> dict[str, float]:
    """The rate, and in percent of what came in: in records, evicted, ignored. The table is empty before and after."""
    attach(hosts.right, on_hooks)
    books, received = _lost(flowmon), _received(hosts.right)
    shutil.rmtree(flowmon.directory, ignore_errors=True)
    with flowmon.collecting():
        rate = replay(hosts.left, traffic.capture)
    flowmon.collect_the_rest()
    received = _received(hosts.right) - received
    found = {name: 100 * (lost - books[name]) / received for name, lost in _lost(flowmon).items()}
    return found | {
        "rate": rate,
        "new": rate * traffic.new_flows / traffic.packets,
        "accounted": 100 * _recorded(flowmon.directory) / received,
        "arrived": 100 * received / traffic.packets,
    }


def _lost(flowmon: Flowmon) -> dict[str, int]:
    """Packets, as `flowmon status` has them."""
    books = flowmon.books()
    return {"evicted": books["evicted_packets"], "ignored": sum(books["ignored_packets"].values())}


def _received(host: Host) -> int:
    return host.link_counters()["rx_packets"]


def _recorded(directory: Path) -> int:
    """Packets in all records."""
    records = ds.dataset(directory, partitioning="hive").to_table(columns=PACKETS)
    return sum(pc.sum(records[name]).as_py() or 0 for name in PACKETS)


def _rows(rate: int, traffic: Traffic, found: dict[str, list[dict[str, float]]]) -> Iterator[Row]:
    size = f"{rate:,}/s" if traffic.new_flows < traffic.packets else "all are new"
    targets = TARGETS.get(rate, {})
    yield Row(PART, "packet rate", size, "packets/s", column(found, "rate"), targets=targets.get("rate", ()))
    monitored = {name: found[name] for name in (FLOWMON, BEFORE) if name in found}
    for name, unit, key in (
        ("new flows reached", "flows/s", "new"),
        ("arrived, of those sent", "%", "arrived"),
        ("in records, of those that arrived", "%", "accounted"),
        ("evicted, as the books say", "%", "evicted"),
        ("ignored, as the books say", "%", "ignored"),
    ):
        yield Row(PART, name, size, unit, column(monitored, key), targets=targets.get(key, ()))
