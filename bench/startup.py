"""How long the start takes: of `flowmon --help`, and of a collector until its programs count and its first pass is done.

The collector starts in a namespace through which packets pass all the time, and ends a flow at each pass. Its
programs are attached when it says that it collects; its first pass is done when the first file of records is
there. The interval, which it waits for before that, is subtracted.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from hosts import Flowmon, pair, wait_for_line
from measure import Bench, Row, alternate, at_most, column, environment

from netns import Host, wait_for

PART = "startup"
ROUNDS = 9
LIVE_ROUNDS = 5
BARE = "bare Python"
INTERVAL_S = 0.5


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of --help and of a collector."""
    runs = {name: partial(_seconds, tree, "-m", "flowmon", "--help") for name, tree in bench.trees.items()}
    runs[BARE] = partial(_seconds, bench.scratch, "-c", "pass")
    helped = alternate(runs, bench.rounds_or(ROUNDS))
    yield Row(PART, "flowmon --help", "", "s", helped, targets=(at_most(0.15),))
    with pair() as hosts, hosts.left.background("ping", "-q", "-i", "0.01", hosts.right.ipv4):
        live = {
            name: partial(
                _first_pass, hosts.right, Flowmon(hosts.right, tree, name, bench.scratch / "records")
            )
            for name, tree in bench.trees.items()
        }
        found = alternate(live, bench.rounds_or(LIVE_ROUNDS))
    yield Row(PART, "to attached programs", "", "s", column(found, "attached"))
    first = column(found, "first pass")
    yield Row(PART, "to the first pass, less the interval", "", "s", first, targets=(at_most(1),))


def _seconds(tree: Path, *arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment(tree), stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - start


def _first_pass(host: Host, flowmon: Flowmon) -> dict[str, float]:
    """Seconds from the start of the process."""
    how = ("-i", str(INTERVAL_S), "--idle-timeout", "0", "--listen", "off", "-d", str(flowmon.directory))
    start = time.perf_counter()
    process = flowmon.start(*flowmon.table, "--iface", host.interface, *how)
    try:
        wait_for_line(process, "collecting from")
        attached = time.perf_counter()
        wait_for(lambda: any(flowmon.directory.rglob("*.parquet")), "records")
        first_pass = time.perf_counter()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        shutil.rmtree(flowmon.directory, ignore_errors=True)
    return {"attached": attached - start, "first pass": first_pass - start - INTERVAL_S}
