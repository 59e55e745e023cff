"""Captures that several tests read, made once a module."""

from pathlib import Path

import pytest

from kernel.offline import FORMS, Many, flowmon
from many_flows import write_many_flows


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mixed") / "mixed.pcap"
    path.write_bytes(FORMS["little-endian-ns"])
    return path


@pytest.fixture(scope="module")
def mixed_lines(mixed) -> str:
    """What it gives."""
    done = flowmon(mixed, "-j")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Many:
    path = tmp_path_factory.mktemp("many") / "many.pcap"
    truth = write_many_flows(path, 2000)
    packets = int(truth["packetDeltaCount"].sum() + truth["reversePacketDeltaCount"].sum())
    return Many(path, len(truth), packets)
