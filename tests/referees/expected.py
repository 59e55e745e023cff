"""What every referee has to find: the flows of one capture, as the script that made it counted them.

Rules:
- A referee's flows are compared one by one; sums alone would forgive two errors that cancel out.
- Sums go first, so that a failure says at once how much is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from netns import Host

DOMAIN = 7
"""observationDomainId of every run."""
MS, US = 1_000_000, 1_000
"""Nanoseconds."""


class Flow(NamedTuple):
    """A flow record. Times are nanoseconds since 1970, 0 where a referee does not tell them."""

    source: str
    destination: str
    source_port: int
    destination_port: int
    protocol: int
    packets: int
    octets: int
    reverse_packets: int = 0
    reverse_octets: int = 0
    start_ns: int = 0
    end_ns: int = 0


@dataclass(frozen=True)
class Sums:
    """Of many flows."""

    flows: int
    packets: int
    octets: int
    reverse_packets: int
    reverse_octets: int


@dataclass(frozen=True)
class Captured:
    """A capture and the truth about it, of dtype many_flows.TRUTH."""

    path: Path
    truth: np.ndarray[Any, np.dtype[Any]]

    def biflows(self, unit_ns: int = MS) -> list[Flow]:
        """Each conversation once, its times cut to the unit."""
        truth = self.truth
        return [
            Flow(*values)
            for values in zip(
                truth["sourceAddress"].tolist(),
                truth["destinationAddress"].tolist(),
                truth["sourceTransportPort"].tolist(),
                truth["destinationTransportPort"].tolist(),
                truth["protocolIdentifier"].tolist(),
                truth["packetDeltaCount"].tolist(),
                truth["octetDeltaCount"].tolist(),
                truth["reversePacketDeltaCount"].tolist(),
                truth["reverseOctetDeltaCount"].tolist(),
                (truth["flowStartNanoseconds"] // unit_ns * unit_ns).tolist(),
                (truth["flowEndNanoseconds"] // unit_ns * unit_ns).tolist(),
                strict=True,
            )
        ]

    def uniflows(self) -> list[Flow]:
        """Each direction that has packets; without times, which the truth has of both together."""
        biflows = self.biflows()
        forward = [
            flow._replace(reverse_packets=0, reverse_octets=0, start_ns=0, end_ns=0) for flow in biflows
        ]
        return forward + [
            Flow(
                source=flow.destination,
                destination=flow.source,
                source_port=flow.destination_port,
                destination_port=flow.source_port,
                protocol=flow.protocol,
                packets=flow.reverse_packets,
                octets=flow.reverse_octets,
            )
            for flow in biflows
            if flow.reverse_packets
        ]

    def export(self, host: Host, *arguments: str) -> str:
        """What a run of flowmon on the capture printed. It must have nothing to complain of."""
        done = host.flowmon("-r", str(self.path), "-q", "--observation-domain", str(DOMAIN), *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


def without_times(flows: Iterable[Flow]) -> list[Flow]:
    return [flow._replace(start_ns=0, end_ns=0) for flow in flows]


def with_times_in(unit_ns: int, flows: Iterable[Flow]) -> list[Flow]:
    """Their times cut to the unit."""
    return [
        flow._replace(start_ns=flow.start_ns // unit_ns * unit_ns, end_ns=flow.end_ns // unit_ns * unit_ns)
        for flow in flows
    ]


def sums(flows: Iterable[Flow]) -> Sums:
    counts = [(1, *flow[5:9]) for flow in flows]
    return Sums(*map(sum, zip(*counts, strict=True))) if counts else Sums(0, 0, 0, 0, 0)


def assert_same(found: list[Flow], expected: list[Flow]) -> None:
    """Every flow that is expected was found, as often as expected, and no other."""
    assert sums(found) == sums(expected)
    missing, too_many = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    few = [list(islice(some, 3)) for some in (missing, too_many)]
    assert few == [[], []], f"{missing.total()} missing, {too_many.total()} that are not there"
