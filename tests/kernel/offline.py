"""Runs of `flowmon -r` as a user's, and captures to read that every test knows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from scapy.layers.l2 import ARP

from craft import (
    MICROSECOND_MAGIC,
    Frame,
    Tcp,
    cut,
    frame,
    pcap,
    pcapng,
    reply,
    request,
    request6,
)

NS = 1_000_000_000
EPOCH = "1970-01-01T00:00:00.000000000Z"
IDLE, ACTIVE, ENDED, FORCED, LACK = range(1, 6)

Record = dict[str, Any]
PACKETS = "sum(packetDeltaCount + reversePacketDeltaCount)"  # in SQL


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "flowmon", *map(str, arguments)]


def flowmon(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """`flowmon -r ARGUMENTS`, to its end."""
    return run(command("-r", *arguments), **options)


def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(words, text=True, timeout=60, check=False, **streams)


def in_shell(line: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`flowmon -r ARGUMENTS` as "$@" of a shell's line."""
    return run(["sh", "-c", line, "sh", *command("-r", *arguments)])


def read(*arguments: str | Path, **options: Any) -> list[Record]:
    """The records that `flowmon -r ARGUMENTS` prints, in order of their start; it must succeed."""
    done = flowmon(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return by_start(done.stdout)


def by_start(output: str | bytes) -> list[Record]:
    records = [json.loads(line) for line in output.splitlines()]
    return sorted(records, key=lambda record: record["flowStartNanoseconds"])


def text_of(time_ns: int) -> str:
    """A time as JSON lines have it."""
    at = np.datetime64(time_ns, "ns")
    return f"{at}Z"


def packets_of(record: Record) -> int:
    return record["packetDeltaCount"] + record["reversePacketDeltaCount"]


def packets_in(records: list[Record]) -> int:
    return sum(map(packets_of, records))


def reasons_and_packets(records: list[Record]) -> list[tuple[int, int]]:
    return [(record["flowEndReason"], packets_of(record)) for record in records]


@dataclass(frozen=True)
class Summary:
    """What the line at the end says."""

    packets: int
    in_records: int
    records: int
    ignored: dict[str, int]
    evicted: int


SUMMARY = re.compile(
    r": ([\d,]+) packets: ([\d,]+) in ([\d,]+) records"
    r"(?:; ([\d,]+) ignored \(([^)]*)\))?(?:; ([\d,]+) lost with evicted flows)?"
)


def summary_of(done: subprocess.CompletedProcess[str]) -> Summary:
    """The one summary line of a run."""
    (found,) = filter(None, map(SUMMARY.search, done.stderr.splitlines()))
    packets, in_records, records, ignored, reasons, evicted = found.groups()
    by_reason = dict(reversed(part.split(" ", 1)) for part in re.split(", ", reasons or "") if part)
    counts = {reason: number(count) for reason, count in by_reason.items()}
    assert sum(counts.values()) == number(ignored)
    return Summary(number(packets), number(in_records), number(records), counts, number(evicted))


def number(text: str | None) -> int:
    return int((text or "0").replace(",", ""))


def later(seconds: float, *frames: Frame) -> list[Frame]:
    """The frames so much later."""
    return [Frame(each.time_ns + round(seconds * NS), each.octets) for each in frames]


def packet_at(seconds: float, packet: Any) -> Frame:
    return frame(seconds * 1000, packet)


TCP = Tcp()
CONNECTION = [
    *TCP.handshake(),
    TCP.client(30, "PA", seq=1, ack=1, octets=100),
    TCP.server(40, "PA", seq=1, ack=101, octets=1000),
    TCP.client(50, "FA", seq=101, ack=1001),
    TCP.server(55, "FA", seq=1001, ack=102),
    TCP.client(60, "A", seq=102, ack=1002),
]
"""Within 60 ms."""
REQUEST, REPLY, REQUEST6 = (packet_at(0, made) for made in (request(), reply(), request6()))


def in_order(frames: list[Frame]) -> list[Frame]:
    return sorted(frames, key=lambda frame: frame.time_ns)


MIXED = [
    *CONNECTION,
    *later(0.1, REQUEST),
    *later(0.2, REPLY),
    *later(0.3, REQUEST6),
    packet_at(0.4, ARP()),
    cut(packet_at(0.5, request(1000)), 20),
    *later(1.5, REQUEST),
    *later(20.000001, REQUEST),
]
"""Times are of whole microseconds."""
MIXED_RECORDS = 4
MIXED_PACKETS = len(MIXED) - 2  # without ARP, and the one cut in its IP header

FORMS = {
    "little-endian-ns": pcap(MIXED),
    "big-endian-ns": pcap(MIXED, order=">"),
    "little-endian-us": pcap(MIXED, magic=MICROSECOND_MAGIC),
    "big-endian-us": pcap(MIXED, magic=MICROSECOND_MAGIC, order=">"),
    "pcapng": pcapng([1], [(0, each) for each in MIXED]),
    "pcapng-two-interfaces": pcapng([1, 1], [(at % 2, each) for at, each in enumerate(MIXED)]),
}


@dataclass(frozen=True)
class Many:
    """A capture of many biflows."""

    path: Path
    biflows: int
    packets: int


def in_parquet(directory: Path, what: str) -> Any:
    """One value of all records of a directory, as DuckDB finds them."""
    files = f"read_parquet('{directory}/**/*.parquet', hive_partitioning = true)"
    return duckdb.sql(f"SELECT {what} FROM {files}").fetchall()[0][0]
