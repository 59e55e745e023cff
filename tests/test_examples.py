"""The recipe for a detector: arrays, labels and twins; and a capture with floods, from packets to precision and recall."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import train_detector
from scenario_attacks import flood
from scenario_packets import Array, address_texts, write_pcap
from scenario_stage import Stage, joined
from scenario_talkers import crawler, dns_clients, gateway, mail_relay, multicast
from train_detector import by_address, by_file, is_twin, session_arrays

START = pd.Timestamp("2026-01-01", tz="UTC")
SYN, ACK = 2, 16
SEED = 38


def packet(index: int, **other: object) -> dict[str, object]:
    known = {
        "flowId": 7,
        "captureStartNanoseconds": START,
        "captureRound": 0,
        "packetIndex": index,
        "biflowDirection": 1,
        "ipTotalLength": 60,
        "transportPayloadLength": 0,
        "interArrivalNanoseconds": 0,
        "tcpControlBits": SYN,
        "tcpWindowSize": 64240,
    }
    return known | other


def arrays_of(*packets: dict[str, object], first: int = 3) -> pd.DataFrame:
    return session_arrays(pd.DataFrame(packets), first)


def test_session_array_has_each_packet_at_its_index() -> None:
    found = arrays_of(packet(2, tcpControlBits=ACK), packet(0), packet(3)).iloc[0]
    assert [found[f"SYN of packet {at}"] for at in range(3)] == [1, -1, 0]
    assert [found[f"ACK of packet {at}"] for at in range(3)] == [0, -1, 1]
    assert [found[f"ipTotalLength of packet {at}"] for at in range(3)] == [60, -1, 60]
    assert "ipTotalLength of packet 3" not in found


def test_session_array_is_as_wide_where_all_sessions_are_short() -> None:
    assert arrays_of(packet(0)).shape == (1, 30)


def test_session_array_of_udp_has_no_tcp() -> None:
    found = arrays_of(packet(0, tcpControlBits=None, tcpWindowSize=None), packet(0, flowId=8)).loc[7].iloc[0]
    assert [found[f"{name} of packet 0"] for name in ("SYN", "ACK", "tcpWindowSize")] == [-1, -1, -1]
    assert found["ipTotalLength of packet 0"] == 60


def test_captures_of_a_flow_are_sessions_of_their_own() -> None:
    assert len(arrays_of(packet(0), packet(0, captureRound=1), packet(0, flowId=2**63 + 1))) == 3


def test_arrays_know_no_address_port_or_time_of_day() -> None:
    found = arrays_of(packet(0, sourceAddress="10.0.0.1", sourceTransportPort=5, ipTTL=64))
    assert not [name for name in found.columns if re.search("Address|Port|Start|observation|TTL", name)]


FLOWS = pd.DataFrame(
    {
        "sourceAddress": ["10.66.0.3", "10.0.0.1", "2001:db8::1"],
        "destinationAddress": ["10.0.0.1", "10.66.1.9", "2001:db8::2"],
        "protocolIdentifier": [6, 17, 6],
    }
)


def test_label_by_address_of_either_side() -> None:
    assert list(by_address(FLOWS, "10.66.0.0/23")) == ["attack", "attack", "benign"]
    assert list(by_address(FLOWS, "10.66.0.3,2001:db8::/127")) == ["attack", "benign", "attack"]


def test_label_by_file_where_all_columns_are_equal(tmp_path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("sourceAddress,protocolIdentifier,label\n10.66.0.3,6,flood\n10.0.0.1,6,scan\n")
    assert list(by_file(FLOWS, path)) == ["flood", "benign", "benign"]


def test_twin_is_equal_but_for_the_times() -> None:
    learned = arrays_of(packet(0), packet(1, interArrivalNanoseconds=5))
    late = arrays_of(packet(0), packet(1, interArrivalNanoseconds=9))
    longer = arrays_of(packet(0), packet(1, ipTotalLength=61))
    assert list(is_twin(pd.concat([late, longer]), learned)) == [True, False]


def test_training_where_there_are_no_features_says_so(tmp_path) -> None:
    with pytest.raises(SystemExit, match="/_features is not there: was flowmon run with"):
        train_detector.main([str(tmp_path), "--attackers", "10.66.0.1"])


AVERAGE = re.compile(r"^ *macro avg +([\d.]+) +([\d.]+)", re.MULTILINE)


def scores(report: str) -> tuple[float, float]:
    """Precision and recall of all tested sessions, averaged over the classes: 0.5 is chance, whatever their sizes."""
    found = AVERAGE.search(report)
    assert found, report
    return float(found[1]), float(found[2])


def make_capture(path: Path, labels: Path) -> None:
    """Five ordinary talkers and two floods, and whose the floods' sessions are."""
    stage = Stage(np.random.default_rng(SEED), 20)
    talkers = (crawler, gateway, dns_clients, mail_relay, multicast)
    floods = [flood(stage) for _ in range(2)]
    packets = joined([*(talk(stage).packets for talk in talkers), *(made for made, _ in floods)])
    write_pcap(packets[np.argsort(packets["time_ns"], kind="stable")], path)
    sources = [text for made, attack in floods for text in others(made, attack.victim)]
    labels.write_text("sourceAddress,label\n" + "".join(f"{text},attack\n" for text in sources))


def others(packets: Array, victim: str) -> list[str]:
    found = np.unique(packets["source"], axis=0)
    return [text for text in address_texts(found) if text != victim]


@pytest.fixture(scope="module")
def recorded(kernel, tmp_path_factory) -> Path:
    """A directory with flows, packet features in it, and labels.csv."""
    directory = tmp_path_factory.mktemp("recorded")
    make_capture(directory / "floods.pcap", directory / "labels.csv")
    options = ("-d", directory / "flows", "--features", "--sessions", "65536")
    command = [sys.executable, "-m", "flowmon", "-r", directory / "floods.pcap", *options]
    subprocess.run(command, check=True, timeout=60)
    return directory


@pytest.mark.kernel
def test_floods_of_a_capture_are_found(recorded) -> None:
    model = recorded / "detector.joblib"
    options = (recorded / "flows", "--labels", recorded / "labels.csv", "--save", model)
    command = [sys.executable, train_detector.__file__, *options]
    report = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    precision, recall = scores(report)
    assert precision > 0.95
    assert recall > 0.95
    kept = joblib.load(model)
    assert len(kept["columns"]) == kept["model"].n_features_in_ == 10 * kept["first"]


@pytest.mark.kernel
def test_with_shuffled_labels_nothing_is_found(recorded, capsys) -> None:
    labels = str(recorded / "labels.csv")
    train_detector.main([str(recorded / "flows"), "--labels", labels, "--shuffle-labels"])
    precision, recall = scores(capsys.readouterr().out)
    assert precision < 0.6
    assert recall < 0.6
