#!/usr/bin/env python3
"""Compares flowmon with tshark, capture by capture: packets and IP octets of every directed flow.

    scripts/compare_with_tshark.py [--flowmon COMMAND] CAPTURE|DIRECTORY…

One line a capture, a total at the end. Exit status 1 if anything differs. A file that tshark takes for no capture must
be refused by flowmon, too, with exit status 1 or 2 and one line.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tests"))

import tshark  # noqa: E402 # found by the line above

DIFFERENCES_SHOWN = 5
EDITCAP_LIMIT = 500  # frames that one call of editcap can leave out

COUNT_COLUMNS = (
    ("packetDeltaCount", "octetDeltaCount"),
    ("reversePacketDeltaCount", "reverseOctetDeltaCount"),
)

Flows = dict[tshark.FiveTuple, tuple[int, int]]
"""Packets and IP octets of a directed flow."""


@dataclass(frozen=True)
class Outcome:
    """What came of one capture; ``lines`` are what is printed of it."""

    agrees: bool
    lines: list[str]
    flows: int = 0
    packets: int = 0


class FlowmonError(Exception):
    """flowmon did not read a capture that it should have read."""


def main() -> int:
    """Exit status of the whole run."""
    arguments = _arguments()
    command = shlex.split(arguments.flowmon)
    outcomes = []
    for capture in captures_of(arguments.captures):
        outcome = compare(command, capture)
        print(f"{capture.name}: " + "\n    ".join(outcome.lines), flush=True)
        outcomes.append(outcome)
    wrong = sum(not outcome.agrees for outcome in outcomes)
    flows, packets = sum(each.flows for each in outcomes), sum(each.packets for each in outcomes)
    print(f"{len(outcomes)} captures, {wrong} differ; {flows} flows, {packets} packets by tshark")
    return 1 if wrong or not outcomes else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--flowmon",
        metavar="COMMAND",
        default=f"{sys.executable} -m flowmon",
        help="run as `COMMAND -r CAPTURE -j` (default: %(default)s)",
    )
    parser.add_argument("captures", metavar="CAPTURE|DIRECTORY", nargs="+", type=Path)
    return parser.parse_args()


def captures_of(paths: Iterable[Path]) -> Iterator[Path]:
    """The files, and of directories the captures in them, at any depth."""
    for path in paths:
        if path.is_dir():
            yield from sorted(
                found for found in path.rglob("*") if found.suffix in {".pcap", ".pcapng", ".cap"}
            )
        else:
            yield path


def compare(command: list[str], capture: Path) -> Outcome:
    """What flowmon and tshark say of one capture."""
    try:
        read = tshark.expected(capture)
    except tshark.RefusedError:
        return _refusal(command, capture)
    wanted = {flow: (packets, read.octets[flow]) for flow, packets in read.packets.items()}
    try:
        counted = _counted(command, capture, read.undecided)
    except FlowmonError as error:
        return Outcome(False, [f"FAILED {error}"], len(wanted), read.packets.total())
    differing = sorted(
        flow for flow in wanted.keys() | counted.keys() if wanted.get(flow) != counted.get(flow)
    )
    about = f"{len(wanted)} flows {read.packets.total()} packets"
    if read.ignored:
        about += f", {read.ignored.total()} frames ignored"
    if read.undecided:
        about += f", {len(read.undecided)} left out"
    if differing:
        shown = [_line(flow, wanted, counted) for flow in differing[:DIFFERENCES_SHOWN]]
        lines = [f"DIFFERS in {len(differing)} of {about}", *shown]
    else:
        lines = [f"OK {about}"]
    return Outcome(not differing, lines, len(wanted), read.packets.total())


def _line(flow: tshark.FiveTuple, wanted: Flows, counted: Flows) -> str:
    source, destination, source_port, destination_port, protocol = flow
    both = (
        f"{name} {packets} packets {octets} octets"
        for name, (packets, octets) in (
            ("tshark", wanted.get(flow, (0, 0))),
            ("flowmon", counted.get(flow, (0, 0))),
        )
    )
    return f"{protocol} [{source}]:{source_port} > [{destination}]:{destination_port}: " + ", ".join(both)


def _refusal(command: list[str], capture: Path) -> Outcome:
    """What flowmon says of a file that is no capture."""
    done = _run(command, capture)
    complaint = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    if done.returncode in (1, 2) and len(complaint) == 1:
        return Outcome(True, [f"OK no capture: {complaint[0]}"])
    return Outcome(
        False,
        [f"DIFFERS: no capture to tshark; flowmon: exit {done.returncode}, {len(complaint)} lines"],
    )


def _counted(command: list[str], capture: Path, undecided: list[int]) -> Flows:
    """The directed flows that flowmon counts, without the frames ``undecided``."""
    with tempfile.TemporaryDirectory() as directory:
        at = _without(capture, undecided, Path(directory)) if undecided else capture
        done = _run(command, at)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise FlowmonError(f"exit {done.returncode}: {last}")
    return flows_of_records(done.stdout)


def _run(command: list[str], capture: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, "-r", str(capture), "-j"], capture_output=True, text=True, check=False, cwd=PROJECT
    )


def _without(capture: Path, frames: list[int], directory: Path) -> Path:
    """A copy of the capture without ``frames``, the last ones removed first so that the numbers hold."""
    for batch, at in enumerate(range(0, len(frames), EDITCAP_LIMIT)):
        numbers = [str(frame + 1) for frame in sorted(frames, reverse=True)[at : at + EDITCAP_LIMIT]]
        shorter = directory / f"{batch}{capture.suffix}"
        subprocess.run(
            ["editcap", str(capture), str(shorter), *numbers], check=True, stdout=subprocess.DEVNULL
        )
        capture = shorter
    return capture


def flows_of_records(lines: str) -> Flows:
    """The directed flows of biflow records in JSON lines; a direction without packets is none."""
    packets: Counter[tshark.FiveTuple] = Counter()
    octets: Counter[tshark.FiveTuple] = Counter()
    for record in map(json.loads, filter(str.strip, lines.splitlines())):
        source, destination = (
            tshark.canonical(record[name]) for name in ("sourceAddress", "destinationAddress")
        )
        ports = record["sourceTransportPort"], record["destinationTransportPort"]
        protocol = record["protocolIdentifier"]
        for flow, (packet_column, octet_column) in zip(
            ((source, destination, *ports, protocol), (destination, source, *reversed(ports), protocol)),
            COUNT_COLUMNS,
            strict=True,
        ):
            if record[packet_column]:
                packets[flow] += record[packet_column]
                octets[flow] += record[octet_column]
    return {flow: (packets[flow], octets[flow]) for flow in packets}


if __name__ == "__main__":
    sys.exit(main())
