"""Packets a second of `flowmon -r`, beside others that make flows of a capture.

Each is a whole process, from its start to the end of its output, on captures of about a million packets with few,
some and many flows:

* flowmon: to durable Parquet;
* nfpcapd (of nfdump): to its own files;
* softflowd: IPFIX biflows over UDP on the loopback, to a socket that drops them; its table is as large as it needs;
* nfstream: one meter, no dissection, no statistics; the flows are counted by Python, and written nowhere.

Those that are not installed are left out. nfstream is installed into build/nfstream-venv, where pip can.
"""

from __future__ import annotations

import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from measure import PROJECT, Bench, Row, alternate, at_least, column, environment

PART = "offline"
ROUNDS = 3
BIFLOWS = (2_000, 20_000, 100_000)
PACKETS = 1_000_000
NFSTREAM = "nfstream"
NFSTREAM_VENV = PROJECT / "build" / "nfstream-venv"
COUNT_FLOWS = """
import sys
from nfstream import NFStreamer
flows = NFStreamer(source=sys.argv[1], n_meters=1, n_dissections=0, statistical_analysis=False)
print(sum(flow.bidirectional_packets for flow in flows))
"""
SOFTFLOWD_FLOWS = 1 << 20


def measure(bench: Bench) -> Iterator[Row]:
    """Rows for each number of flows."""
    others = _others(bench)
    for biflows in BIFLOWS:
        capture = bench.scratch / f"{biflows}.pcap"
        packets = write_capture(capture, biflows)
        runs = {
            name: partial(
                _whole, [sys.executable, "-m", "flowmon", "-q", "-r", str(capture), "-d"], tree, packets
            )
            for name, tree in bench.trees.items()
        }
        for name in others:
            runs[name] = partial(_OTHERS[name], capture, packets)
        found = alternate(runs, bench.rounds_or(ROUNDS))
        capture.unlink()
        size = f"{biflows:,} biflows"
        targets = (at_least(250_000), *([at_least(1.6, NFSTREAM)] if NFSTREAM in others else []))
        yield Row(PART, "a capture", size, "packets/s", column(found, "rate"), targets=targets)
        yield Row(PART, "a packet of a capture", size, "us of CPU", column(found, "cpu_us"))


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


def _others(bench: Bench) -> list[str]:
    """Those that there are; a note of those that there are not."""
    found = [name for name in ("nfpcapd", "softflowd") if shutil.which(name)]
    if _has_nfstream():
        found.append(NFSTREAM)
    for name in sorted(set(_OTHERS) - set(found)):
        bench.note(f"offline: {name} is not installed, and left out")
    return found


def _has_nfstream() -> bool:
    python = NFSTREAM_VENV / "bin" / "python"
    if not python.exists():
        venv.create(NFSTREAM_VENV, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", NFSTREAM])
    return subprocess.run([python, "-c", "import nfstream"], capture_output=True).returncode == 0


def _whole(command: list[str], tree: Path | None, packets: int) -> dict[str, float]:
    """Runs a command with an empty directory behind it, and looks at the clocks."""
    with tempfile.TemporaryDirectory(dir=PROJECT / "build") as directory:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [*command, directory],
            cwd=tree,
            env=environment(tree) if tree else None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"rate": packets / took, "cpu_us": cpu / packets * 1e6}


def _nfpcapd(capture: Path, packets: int) -> dict[str, float]:
    return _whole(["nfpcapd", "-r", str(capture), "-w"], None, packets)


def _softflowd(capture: Path, packets: int) -> dict[str, float]:
    with socket.socket(type=socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        command = ["softflowd", "-r", str(capture), "-n", f"127.0.0.1:{nobody.getsockname()[1]}"]
        command += ["-v", "10", "-b", "-m", str(SOFTFLOWD_FLOWS), "-c", "none", "-p"]
        # The process id goes into a file of the directory.
        return _whole(["sh", "-c", '"$@"/pid', "sh", *command], None, packets)


def _nfstream(capture: Path, packets: int) -> dict[str, float]:
    command = [str(NFSTREAM_VENV / "bin" / "python"), "-c", COUNT_FLOWS, str(capture)]
    return _whole(command, None, packets)


_OTHERS = {"nfpcapd": _nfpcapd, "softflowd": _softflowd, NFSTREAM: _nfstream}
