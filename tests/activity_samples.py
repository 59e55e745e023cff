"""Activity for tests of analysers, with only what a test cares about said."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any, NamedTuple

import numpy as np

from flowmon.analysers.activity import ACTIVITY, NS, Activity, Outcome, Probe
from samples import packed

Array = np.ndarray[Any, np.dtype[Any]]

START_NS = 1_700_000_000 * NS
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58


class Attempt(NamedTuple):
    """Of one biflow, judged since the last pass."""

    source: str
    destination: str
    port: int = 443
    outcome: Outcome = Outcome.SILENT
    protocol: int = TCP
    before: Outcome = Outcome.NONE
    probe: Probe = Probe.SYN
    fields: dict[str, Any] = {}  # noqa: RUF012, never changed


def rows_of(attempts: Iterable[Attempt]) -> Array:
    """ACTIVITY[n]: with a new packet each way that the outcome allows."""
    attempts = list(attempts)
    rows = np.zeros(len(attempts), ACTIVITY)
    for row, one in zip(rows, attempts, strict=True):
        row["source_address"], row["destination_address"] = packed(one.source), packed(one.destination)
        row["ip_version"] = ip_address(one.source).version
        row["destination_port"], row["protocol"] = one.port, one.protocol
        row["outcome"], row["outcome_before"], row["probe"] = one.outcome, one.before, one.probe
        row["new_forward_packets"] = 1
        for name, value in one.fields.items():
            row[name] = value
    return rows


def activity(attempts: Iterable[Attempt], seconds: float = 0.0) -> Activity:
    """A pass at `seconds` after START_NS."""
    return Activity(rows_of(attempts), at(seconds), 1.0)


def at(seconds: float) -> int:
    """UTC, ns."""
    return START_NS + round(seconds * NS)


def many(
    sources: Array, destinations: Array, ports: Array, outcome: Outcome = Outcome.SILENT, protocol: int = TCP
) -> Array:
    """ACTIVITY[n] of IPv4 addresses as numbers."""
    rows = np.zeros(len(sources), ACTIVITY)
    for name, numbers in (("source_address", sources), ("destination_address", destinations)):
        rows[name][:, 10:12] = 0xFF
        rows[name][:, 12:] = np.ascontiguousarray(numbers.astype(">u4")).view("u1").reshape(-1, 4)
    rows["ip_version"], rows["protocol"] = 4, protocol
    rows["destination_port"], rows["outcome"], rows["probe"] = ports, outcome, Probe.SYN
    rows["new_forward_packets"] = 1
    return rows
