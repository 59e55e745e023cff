"""Records with numbers, and sinks that send them: packetDeltaCount is the record's number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from collector_process import DOMAIN, LOCALHOST
from flowmon.ipfix.encoder import Profile
from flowmon.records import Context, record_batch
from flowmon.sinks.destination import destination
from flowmon.sinks.ipfix import IpfixOptions, IpfixSink
from samples import NS, counters, ended, key

NOW_NS = 1_700_000_000 * NS
FEW = frozenset({"packetDeltaCount", "octetDeltaCount"})
RECORD = 45  # octets, with the elements that are always there
OPTIONS = IpfixOptions(Profile(FEW, observation_domain_id=DOMAIN))


def batch(first: int, count: int) -> pa.RecordBatch:
    """Records with the numbers from `first`; octets are a hundred times as many."""
    numbers = np.arange(first, first + count)
    forward = np.repeat(counters(), count)
    forward["packets"], forward["octets"] = numbers, 100 * numbers
    flows = ended(np.repeat(key(), count), forward, np.repeat(counters(0), count))
    return record_batch(flows, Context(NOW_NS, {2: "eth0"}, DOMAIN))


def sink(url: str, **options: Any) -> IpfixSink:
    return IpfixSink(destination(url), replace(OPTIONS, **options))


def tcp(port: int, **options: Any) -> IpfixSink:
    return sink(f"tcp://{LOCALHOST}:{port}", **options)


class Writer:
    """Writes numbered records; the next number."""

    def __init__(self, to: IpfixSink, first: int = 1) -> None:
        self.sink = to
        self.next = first

    def write(self, count: int) -> None:
        self.sink.write(batch(self.next, count), NOW_NS)
        self.next += count

    @property
    def written(self) -> list[int]:
        return list(range(1, self.next))
