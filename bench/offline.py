"""Packets a second of `flowmon -r`: a whole process from start to durable Parquet.

Captures of a million packets with few, some and many flows, each round in turn.

    bench/offline.py [--rounds N] [--json FILE]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
FLOWMON = [sys.executable, "-m", "flowmon", "-q"]
BIFLOWS = {"2,000 biflows": 2_000, "20,000 biflows": 20_000, "100,000 biflows": 100_000}
PACKETS = 1_000_000


def write_capture(path: Path, biflows: int) -> int:
    """A capture of about PACKETS packets over a minute; how many there are."""
    # A TCP biflow has six packets beside its data, a UDP one none.
    data = max(1, round((PACKETS / biflows - 3) / 2))
    script = PROJECT / "tests" / "pcaps" / "many_flows.py"
    arguments = ["--biflows", str(biflows), "--packets-per-direction", str(data)]
    said = subprocess.run(
        [sys.executable, script, path, *arguments], capture_output=True, text=True, check=True
    )
    return int(said.stdout.split(" biflows, ")[1].split()[0])


def run(capture: Path) -> tuple[float, float]:
    """Seconds of the clock, and of the CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        subprocess.run([*FLOWMON, "-r", capture, "-d", directory], cwd=PROJECT, check=True)
        took = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        captures = {name: Path(directory, f"{biflows}.pcap") for name, biflows in BIFLOWS.items()}
        packets = {name: write_capture(path, BIFLOWS[name]) for name, path in captures.items()}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in captures}
        for _ in range(options.rounds):
            for name, capture in captures.items():
                found[name].append(run(capture))
    print(f"{'flowmon -r, packets a second':<30}{'median':>10}{'least':>10}{'most':>10}{'us of CPU':>11}")
    for name, times in found.items():
        rates = sorted(packets[name] / took for took, _ in times)
        cpu = statistics.median(cpu for _, cpu in times) / packets[name] * 1e6
        print(
            f"{name:<30}{statistics.median(rates):>10,.0f}{rates[0]:>10,.0f}{rates[-1]:>10,.0f}{cpu:>11.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps({"packets": packets, "seconds": found}, indent=1))


if __name__ == "__main__":
    main()
