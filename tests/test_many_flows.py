"""The truth that the generator of large captures tells is what the oracle reads from its capture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import oracle
from pcaps.many_flows import TRUTH, main, write_many_flows


@pytest.mark.parametrize("packets_per_direction", [1, 3])
def test_truth_is_what_the_oracle_reads(tmp_path: Path, packets_per_direction: int) -> None:
    capture = tmp_path / "many.pcap"
    truth = write_many_flows(capture, 2_000, packets_per_direction=packets_per_direction, seed=1)
    records = oracle.flows_of(capture)
    read = [tuple(record[column] or 0 for column in TRUTH.names) for record in records]
    assert read == truth.tolist()
    for column in ("tcpRetransmittedPacketDeltaCount", "tcpOutOfOrderPacketDeltaCount"):
        assert {record[column] for record in records} == {0}


def test_biflows_are_of_every_kind_and_interleaved(tmp_path: Path) -> None:
    truth = write_many_flows(tmp_path / "many.pcap", 10_000)
    kinds = {
        (row["ipVersion"], row["protocolIdentifier"], row["reversePacketDeltaCount"] > 0) for row in truth
    }
    assert kinds == {(version, *kind) for version in (4, 6) for kind in ((6, True), (17, True), (17, False))}
    assert (truth["flowStartNanoseconds"][1:] < truth["flowEndNanoseconds"][:-1]).sum() > 1_000


def test_same_seed_same_capture(tmp_path: Path) -> None:
    captures = [tmp_path / name for name in ("one.pcap", "two.pcap", "other.pcap")]
    for capture, seed in zip(captures, (7, 7, 8), strict=True):
        write_many_flows(capture, 100, seed=seed)
    one, two, other = (capture.read_bytes() for capture in captures)
    assert one == two != other


def test_command_line_saves_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture, truth = tmp_path / "out.pcap", tmp_path / "truth.npy"
    main([str(capture), "--biflows", "50", "--truth", str(truth)])
    assert len(np.load(truth)) == len(oracle.flows_of(capture)) == 50
    assert capsys.readouterr().out.startswith("50 biflows")
