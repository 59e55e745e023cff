"""Damaged frames through the program, against tshark (the outer packet) and the oracle (what is in tunnels).

Each batch is another seed. By default a million frames against tshark and half a million against the oracle, the same
at every run and every speed of the machine, or as many as there are in three minutes; FLOWMON_FUZZ_SECONDS looks
for as long as it says. What differs is in the capture that the failure names, for tests/pcaps/ to keep:

    FLOWMON_FUZZ_SECONDS=3600 make test PYTEST="tests/kernel/test_mutated_packets.py -s"
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import fuzz
import oracle
import tshark
from flowmon.kernel.flow_table import Books
from kernel.replay import loaded_for_replay, run_capture

pytestmark = pytest.mark.kernel

SECONDS = os.environ.get("FLOWMON_FUZZ_SECONDS")
FIRST_SEED = int(os.environ.get("FLOWMON_FUZZ_SEED", "1"))
BATCH = 25_000
BATCHES = 40
ORACLE_BATCH = 5_000
ORACLE_BATCHES = 50  # and as many with --decap
LONGEST_SECONDS = 180.0  # of what is bounded by its number
CASES = Path(__file__).parent.parent / "pcaps"


@pytest.fixture(scope="module")
def corpus() -> list[bytes]:
    return fuzz.corpus_of(CASES)


def batches(corpus: list[bytes], size: int, number: int) -> Iterator[tuple[int, list[bytes]]]:
    """(seed, frames): ``number`` of them, or those of ``SECONDS``; one at least."""
    end = time.monotonic() + (LONGEST_SECONDS if SECONDS is None else float(SECONDS))
    seeds = count(FIRST_SEED) if SECONDS else range(FIRST_SEED, FIRST_SEED + number)
    frames = 0
    for seed in seeds:
        batch = list(fuzz.frames(seed, corpus, size))
        yield seed, batch
        frames += len(batch)
        if time.monotonic() > end:
            break
    print(f"{frames} frames, seeds {FIRST_SEED} to {seed}")


def metered(capture: Path, *, decap: bool) -> tuple[Counter[Any], Counter[Any], Books]:
    """Packets and IP octets of each directed 5-tuple, and the books."""
    with loaded_for_replay("libbpf", decap=decap) as source:
        records, books = run_capture(source, capture)
    packets: Counter[Any] = Counter()
    octets: Counter[Any] = Counter()
    for record in records:
        forward, reverse = directions(record)
        for flow, prefix in ((forward, "p"), (reverse, "reverseP")):
            packets[flow] += record[f"{prefix}acketDeltaCount"]
        for flow, prefix in ((forward, "o"), (reverse, "reverseO")):
            octets[flow] += record[f"{prefix}ctetDeltaCount"]
    return +packets, +octets, books


def directions(record: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The directed 5-tuples of both directions."""
    source, destination = (
        (record[f"{side}Address"], record[f"{side}TransportPort"]) for side in ("source", "destination")
    )
    return tuple(
        (one[0], other[0], one[1], other[1], record["protocolIdentifier"])
        for one, other in ((source, destination), (destination, source))
    )


def assert_same(found: Counter[Any], expected: Counter[Any], what: str, seed: int, kept: Path) -> None:
    """Shows a few differences, and where the batch is."""
    different = [flow for flow in found.keys() | expected.keys() if found[flow] != expected[flow]]
    shown = {flow: (found[flow], expected[flow]) for flow in sorted(different, key=str)[:5]}
    assert not different, f"{what} of {len(different)} flows differ, seed {seed}, kept in {kept}: {shown}"


def test_the_outer_packets_are_those_that_tshark_reads(kernel, corpus, tmp_path):
    for seed, batch in batches(corpus, BATCH, BATCHES):
        capture = tmp_path / "batch.pcap"
        fuzz.write_pcap(capture, batch)
        expected = tshark.expected(capture)
        undecided = set(expected.undecided)
        assert len(undecided) < BATCH / 50
        fuzz.write_pcap(capture, batch, without=undecided)
        packets, octets, books = metered(capture, decap=False)
        assert_same(packets, expected.packets, "packets", seed, capture)
        assert_same(octets, expected.octets, "octets", seed, capture)
        assert sum(books.ignored_packets.values()) == expected.ignored.total()
        assert books.seen_packets == len(batch) - len(undecided)
        assert books.evicted_packets == 0


@pytest.mark.parametrize("decap", [False, True], ids=["outside", "inside"])
def test_records_and_reasons_are_the_oracles(kernel, corpus, tmp_path, decap):
    for seed, batch in batches(corpus, ORACLE_BATCH, ORACLE_BATCHES):
        capture = tmp_path / "batch.pcap"
        fuzz.write_pcap(capture, batch)
        expected_packets: Counter[Any] = Counter()
        expected_octets: Counter[Any] = Counter()
        for flow in oracle.flows_of(capture, decap=decap):
            forward, reverse = directions(flow)
            expected_packets[forward] += flow["packetDeltaCount"]
            expected_packets[reverse] += flow["reversePacketDeltaCount"]
            expected_octets[forward] += flow["octetDeltaCount"]
            expected_octets[reverse] += flow["reverseOctetDeltaCount"]
        packets, octets, books = metered(capture, decap=decap)
        assert_same(packets, +expected_packets, "packets", seed, capture)
        assert_same(octets, +expected_octets, "octets", seed, capture)
        reasons = {reason: number for reason, number in books.ignored_packets.items() if number}
        expected_reasons = oracle.ignored_of(capture, decap=decap)
        assert reasons == {reason: number for reason, number in expected_reasons.items() if number}, seed
