"""nfcapd and nfdump 1.7.1 as a referee: nfcapd collects over UDP, nfdump prints what it has.

What they make of IPFIX and NetFlow v9:
- Reverse packets and octets of a biflow are "out" packets and octets. Any other reverse element is taken
  for the forward one: start, end, TCP control bits, type of service are those of the later field.
- Start and end of a flow are read from elements 152 and 153 (milliseconds) only, and from 21 and 22 of
  NetFlow v9. Those of --ipfix-time us or ns are not read.
- IPFIX: options records of templates that nfcapd has no use for are not counted, so it finds fault with
  the sequence once for each time that some went before flow records.
"""

import json
import os
import signal
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from netns import Host
from referees import receiver
from referees.expected import Flow

PORT = 9995
BUFFER = 8_000_000
"""Octets."""


def collecting(host: Host, directory: Path) -> AbstractContextManager[None]:
    """nfcapd writes what arrives in the block."""
    where = ("-b", host.ipv4, "-p", str(PORT), "-w", str(directory))
    command = ("nfcapd", *where, "-B", str(BUFFER), "-t", "3600")
    return receiver.collector(host, PORT, signal.SIGTERM, *command)


def flows(directory: Path) -> list[Flow]:
    """Every flow that was collected."""
    return [
        Flow(
            source=record.get("src4_addr") or record["src6_addr"],
            destination=record.get("dst4_addr") or record["dst6_addr"],
            source_port=record["src_port"],
            destination_port=record["dst_port"],
            protocol=record["proto"],
            packets=record["in_packets"],
            octets=record["in_bytes"],
            reverse_packets=record.get("out_packets", 0),
            reverse_octets=record.get("out_bytes", 0),
            start_ns=_time_ns(record["first"]),
            end_ns=_time_ns(record["last"]),
        )
        for record in records(directory)
    ]


def records(directory: Path) -> list[dict[str, Any]]:
    """As nfdump prints them."""
    without_brackets = _nfdump(directory, "-q", "-o", "json")
    return json.loads(f"[{without_brackets}]")


def statistics(directory: Path) -> dict[str, int]:
    """nfcapd's own sums, by their names; packets and bytes are of both directions."""
    lines = (line.partition(": ") for line in _nfdump(directory, "-I").splitlines())
    return {name: int(value) for name, _, value in lines if value.isdigit()}


def _time_ns(text: str) -> int:
    return int(np.datetime64(text, "ns").astype("i8"))


def _nfdump(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["nfdump", "-R", str(directory), *arguments],
        env=os.environ | {"TZ": "UTC"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
