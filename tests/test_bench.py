"""The bench's own reckoning: turns, ratios, targets, the table and the JSON; and the frames that it sends."""

from __future__ import annotations

import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.utils import RawPcapReader, rdpcap

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import frames
import measure
from measure import Bench, Row, alternate, as_json, at_least, at_most, column, table, verdicts


def row(**other: object) -> Row:
    values = {"flowmon": [100.0, 130.0, 110.0], "floor": [40.0, 45.0, 60.0], "empty": [10.0, 20.0, 20.0]}
    known = {"part": "a part", "name": "a packet", "size": "1 flow", "unit": "ns", "less": "empty"}
    return Row(**(known | {"values": values} | other))


def test_alternate_begins_each_round_with_another() -> None:
    said: list[str] = []

    def says(name: str) -> int:
        said.append(name)
        return len(said)

    found = alternate({name: lambda name=name: says(name) for name in "abc"}, 4)
    assert "".join(said) == "abcbcacababc"
    assert found == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}


def test_column_takes_one_of_several_figures() -> None:
    found = {"flowmon": [{"s": 1.0, "mb": 9.0}, {"s": 2.0, "mb": 8.0}], "before": [{"s": 3.0, "mb": 7.0}]}
    assert column(found, "s") == {"flowmon": [1.0, 2.0], "before": [3.0]}


def test_what_is_subtracted_is_of_the_same_round() -> None:
    assert row().shown() == {"flowmon": [90.0, 110.0, 90.0], "floor": [30.0, 25.0, 40.0]}


def test_nothing_is_subtracted_where_nothing_is_named() -> None:
    assert row(less="").shown() == row().values


def test_ratios_are_within_a_round() -> None:
    assert row().ratios("floor") == [3.0, 4.4, 2.25]


def test_a_ratio_to_nothing_is_no_number_and_reaches_no_target() -> None:
    nothing = row(values={"flowmon": [1.0], "floor": [0.0]}, less="", targets=(at_most(9, "floor"),))
    assert math.isnan(nothing.ratios("floor")[0])
    assert any("NOT reached" in line for line in verdicts([nothing]))


@pytest.mark.parametrize(
    ("target", "value", "is_reached"),
    [
        (at_most(90), 90.0, True),
        (at_most(89), 90.0, False),
        (at_least(90), 90.0, True),
        (at_least(91), 90.0, False),
        (at_most(3, "floor"), 3.0, True),  # the median of the rounds' ratios, not the ratio of the medians
        (at_least(3.1, "floor"), 3.0, False),
    ],
)
def test_targets(target: measure.Target, value: float, is_reached: bool) -> None:
    one = row(targets=(target,))
    assert one.of(target) == value
    (line,) = verdicts([one])
    assert line.split()[0] == ("reached" if is_reached else "NOT")


def test_the_table_has_a_line_for_each_contender() -> None:
    targets = (at_most(88), at_most(2.3, "floor"))
    lines = list(table([row(targets=targets), row(name="another", less="")]))
    assert lines[0] == ""
    assert lines[1].split()[:2] == ["a", "part"]
    first, second = lines[2], lines[3]
    assert first.split() == "a packet 1 flow flowmon 90 90 110.0 ns ≤ 88 NOT reached".split()
    assert second.split() == "floor 30 25 40 ns 3.000 2.25–4.40 ≤ 2.3 NOT reached".split()
    assert len(lines) == 2 + 2 + 3
    assert "empty" in lines[-1]


def test_json_holds_every_value_and_what_follows(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.note("something is not installed")
    bench.note("something is not installed")
    found = json.loads(as_json([row(targets=(at_most(88),))], bench, datetime.now(UTC)))
    assert found["notes"] == ["something is not installed"]
    assert {"cpu", "cpus", "kernel", "python", "numpy", "pyarrow"} <= found["machine"].keys()
    (one,) = found["rows"]
    assert one["values"] == row().values
    assert one["figures"]["flowmon"] == {"median": 90.0, "least": 90.0, "most": 110.0}
    assert one["ratios"] == {"floor": {"median": 3.0, "least": 2.25, "most": 4.4}}
    assert one["targets"] == [{"target": "≤ 88", "over": "", "value": 90.0, "reached": False}]


def test_json_has_no_word_that_json_has_not(tmp_path: Path) -> None:
    nothing = row(values={"flowmon": [1.0], "floor": [0.0]}, less="")  # a ratio of something over nothing
    unknown: list[str] = []
    json.loads(as_json([nothing], Bench(tmp_path), datetime.now(UTC)), parse_constant=unknown.append)
    assert unknown == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.25, 1.0])
def test_the_share_of_packets_that_begins_a_flow(share: float) -> None:
    flows = frames.beginning(10_000, share, 50)
    new = flows[flows >= 100]
    assert len(new) == round(10_000 * share)
    assert len(np.unique(new)) == len(new)
    assert set(flows[flows < 100]) <= set(range(100))
    # Spread evenly: no thousand packets has more of them than another, but for one.
    counts = (flows >= 100).reshape(10, -1).sum(axis=1)
    assert np.ptp(counts) <= 1


def test_frames_are_what_a_receiver_reads(tmp_path: Path) -> None:
    capture = tmp_path / "flows.pcap"
    frames.write(capture, frames.existing(2))
    packets = rdpcap(str(capture))
    assert [(p[IP].src, p[UDP].sport, p[IP].dst, p[UDP].dport) for p in packets] == [
        ("10.0.0.0", 4000, "192.0.2.1", 53),
        ("192.0.2.1", 53, "10.0.0.0", 4000),
        ("10.0.0.1", 4000, "192.0.2.1", 53),
        ("192.0.2.1", 53, "10.0.0.1", 4000),
    ]
    for packet in packets:
        assert len(packet) == frames.OCTETS == 14 + packet[IP].len
        assert packet[IP].len == 20 + packet[UDP].len


def test_frames_of_many_flows_all_differ(tmp_path: Path) -> None:
    capture = tmp_path / "flows.pcap"
    frames.write(capture, frames.beginning(2000, 1.0, 10))
    assert len({octets for octets, _ in RawPcapReader(str(capture))}) == 2000
