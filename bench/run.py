"""Measures how fast flowmon is, and prints a table: each comparison is a ratio within this run.

    bench/run.py [PART …] [--rounds N] [--json FILE] [--against COMMIT]

Parts: per-packet, throughput, new-flows, collector, encode, offline, startup; all of them by default.
With --against the programs and the collector of that commit run in turn with these ("before").
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from measure import BEFORE, BUILD, PROJECT, Bench, Row, as_json, machine, table, verdicts

PARTS = {
    "per-packet": "per_packet",
    "throughput": "throughput",
    "new-flows": "new_flows",
    "features": "features",
    "collector": "live_flows",
    "encode": "encode",
    "offline": "offline",
    "startup": "startup",
}


def tree_of(commit: str) -> Path:
    """The files of another commit, its programs built."""
    name = subprocess.run(
        ["git", "-C", PROJECT, "rev-parse", "--short=12", f"{commit}^{{commit}}"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    tree = BUILD / f"tree-{name}"
    tree.mkdir(parents=True, exist_ok=True)
    archive = subprocess.run(
        ["git", "-C", PROJECT, "archive", name, "flowmon", "kern"], capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)
    subprocess.run(["make", "-s", "-C", tree / "kern"], check=True)
    return tree


def run_part(name: str, bench: Bench, rows: list[Row]) -> bool:
    """Adds its rows, as they come; whether it came to its end. What goes wrong in one part leaves the others."""
    start = time.monotonic()
    try:
        for row in importlib.import_module(PARTS[name]).measure(bench):
            rows.append(row)
            if sys.stderr.isatty():
                print(f"\r{name}: {row.name} {row.size}".ljust(100), end="", file=sys.stderr, flush=True)
    except Exception as error:  # noqa: BLE001 - of every kind that programs and kernels know
        traceback.print_exc()
        bench.note(f"{name} broke off: {type(error).__name__}: {error}")
        return False
    print(f"\r{name}: {time.monotonic() - start:.0f} s".ljust(100).rstrip(), file=sys.stderr)
    return True


def main() -> None:
    """Measures, prints, and writes JSON. What misses a target is said, and is no failure; a part that breaks off is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path, default=PROJECT / "build" / "bench.json")
    parser.add_argument("--against", metavar="COMMIT")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    if os.geteuid() != 0:
        sys.exit("bench/run.py loads BPF programs: run it as root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # namespaces and pins go, as they do at Ctrl-C
    BUILD.mkdir(parents=True, exist_ok=True)
    started = datetime.now(UTC)
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        bench = Bench(Path(scratch), options.rounds)
        if options.against:
            bench.trees[BEFORE] = tree_of(options.against)
        rows: list[Row] = []
        are_whole = [run_part(name, bench, rows) for name in options.parts or PARTS]
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print("\n".join(table(rows)))
    print("\nratio: the first of the row over this one, in the same round")
    print("\n".join(bench.notes))
    print("\nTargets:")
    print("\n".join(verdicts(rows)))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(as_json(rows, bench, started))
    sys.exit(not all(are_whole))


if __name__ == "__main__":
    main()
