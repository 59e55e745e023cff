"""Packet features at interfaces: each packet once and in order, whatever else passes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kernel.talkers import TALKERS
from kernel.test_detection_live import check_books, prepare, write_flood
from netns import Host, Pair, collector, monitor, wait_for

pytestmark = pytest.mark.kernel

TALKERS_PY = str(Path(__file__).with_name("talkers.py"))
LIMIT = 100  # --packets-per-session
SESSION = ["flowId", "captureStartNanoseconds", "captureRound"]


def features_of(directory: Path) -> pd.DataFrame:
    """Of each session in order."""
    return pd.read_parquet(directory / "_features").sort_values([*SESSION, "packetIndex"])


def feature_books(host: Host) -> dict[str, int]:
    return json.loads(host.flowmon("status", "--json").stdout)["features"]


def is_whole(session: pd.DataFrame) -> bool:
    """Whether no packet is missing up to the last one that is there."""
    return list(session["packetIndex"]) == list(range(len(session)))


def test_bulk_transfers_are_told_packet_by_packet(pair: Pair, tmp_path: Path) -> None:
    """What comes as one large buffer is told as the segments that it is on the wire."""
    left, right = pair.left, pair.right
    with (
        right.server(5201, "iperf3", "-s", "-1"),
        monitor(right, "--iface", right.interface, "-d", str(tmp_path), "--features") as running,
    ):
        left.run("iperf3", "-c", right.ipv4, "-n", "20M", "-P", "2")
        books = feature_books(right)
        running.stop()
    found = features_of(tmp_path)
    flows = pd.read_parquet(tmp_path)
    tcp = flows[flows["protocolIdentifier"] == 6]
    assert set(found["flowId"]) == set(flows["flowId"])
    sessions = dict(iter(found[found["captureRound"] == 0].groupby("flowId")))
    for flow_id, records in tcp.groupby("flowId"):
        session = sessions[flow_id]
        packets = records["packetDeltaCount"].sum() + records["reversePacketDeltaCount"].sum()
        assert is_whole(session)
        assert len(session) == min(LIMIT, packets)
        assert session["sourceTransportPort"].unique() == records["sourceTransportPort"].unique()
        # UTC is reckoned anew at each writing.
        apart = session["observationTimeNanoseconds"].iloc[0] - records["flowStartNanoseconds"].min()
        assert abs(apart) < pd.Timedelta("10us")
        for _, way in session.groupby("biflowDirection"):
            # A SYN stands for one octet, and so does a FIN.
            taken = way["transportPayloadLength"] + (way["tcpControlBits"] & 3 != 0)
            expected = np.concatenate(([0], np.cumsum(taken)[:-1]))
            assert list(way["tcpRelativeSequenceNumber"]) == list(expected)
            assert way["ipTotalLength"].max() <= 1500
    assert sum(books.values()) == tcp_and_others(flows)
    assert books["captured_packets"] == len(found)
    assert books["lost_packets"] == books["refused_packets"] == books["elsewhere_packets"] == 0


def tcp_and_others(flows: pd.DataFrame) -> int:
    """Packets of the protocols that features are of."""
    of_them = flows[flows["protocolIdentifier"].isin((1, 6, 17, 58))]
    return int(of_them["packetDeltaCount"].sum() + of_them["reversePacketDeltaCount"].sum())


def test_a_packet_comes_once_of_all_points(pair: Pair, tmp_path: Path) -> None:
    """On the loopback interface each passes both hooks."""
    host = pair.right
    options = ("--features", "--protocols", "icmp")
    with monitor(host, "--iface", "lo", "-d", str(tmp_path), *options) as running:
        host.run("ping", "-q", "-c", "5", "-i", "0.05", "-I", "127.0.0.2", "127.0.0.1")
        books = feature_books(host)
        running.stop()
    found = features_of(tmp_path)
    assert list(found["packetIndex"]) == list(range(10))
    assert list(found["biflowDirection"]) == [1, 2] * 5
    assert list(found["icmpType"]) == [8, 0] * 5
    assert (books["captured_packets"], books["elsewhere_packets"]) == (10, 10)


def test_ordinary_sessions_are_whole_in_a_flood(pair: Pair, tmp_path: Path) -> None:
    left, right = pair.left, pair.right
    mac = prepare(pair)
    flood = tmp_path / "flood.pcap"
    write_flood(flood, mac, right.ipv4, 8000, 1_000_000)
    with (
        right.background(sys.executable, TALKERS_PY, "serve"),
        monitor(right, "--iface", right.interface, "-d", str(tmp_path / "out"), "--features") as running,
    ):
        conversing = subprocess.Popen(
            left.command(sys.executable, TALKERS_PY, "converse", "20", "8"), stdout=subprocess.PIPE, text=True
        )
        left.run("sleep", "1")
        left.run("tcpreplay", "-q", "-K", "--topspeed", "-i", left.interface, str(flood))
        ports = dict(json.loads(conversing.communicate(timeout=60)[0]))
        features = feature_books(right)
        check_all_are_accounted_for(right, features)
        running.stop()
    found = features_of(tmp_path / "out")
    own = found[(found["sourceAddress"] == TALKERS[-1]) & (found["destinationTransportPort"] == 8001)]
    sessions = dict(iter(own[own["captureRound"] == 0].groupby("sourceTransportPort")))
    assert set(sessions) == set(ports)
    assert [len(session) for session in sessions.values()] == [LIMIT] * 20
    assert all(map(is_whole, sessions.values()))
    print(features, found["flowId"].nunique(), "sessions")
    assert features["refused_packets"] > 400_000
    assert features["lost_packets"] == 0


def check_all_are_accounted_for(host: Host, features: dict[str, int]) -> None:
    books: dict[str, Any] = json.loads(host.flowmon("status", "--json").stdout)["books"]
    check_books(books)
    assert sum(features.values()) == pytest.approx(books["counted_packets"], rel=0.001)


# --- across commands ---


@pytest.fixture
def loaded(pair: Pair) -> Iterator[Host]:
    """A host in which something may be loaded; nothing is left."""
    yield pair.right
    assert pair.right.flowmon("purge").returncode == 0


def load(host: Host, *options: str) -> subprocess.CompletedProcess[str]:
    return host.flowmon("load", "--iface", "lo", *options)


def collect(host: Host, directory: Path) -> pd.DataFrame:
    """What one pass over all writes."""
    done = host.flowmon("-i", "0", "--idle-timeout", "0", "-d", str(directory))
    assert done.returncode == 0, done.stderr
    return features_of(directory)


def ping(host: Host, count: int) -> None:
    host.run("ping", "-q", "-c", str(count), "-i", "0.01", "-I", "127.0.0.2", "127.0.0.1")


def test_the_ring_waits_for_a_collector(loaded: Host, tmp_path: Path) -> None:
    assert load(loaded, "--features").returncode == 0
    ping(loaded, 3)
    now = pd.Timestamp.now("UTC")
    found = collect(loaded, tmp_path / "one")
    assert list(found["packetIndex"]) == list(range(6))
    assert abs(found["captureStartNanoseconds"].iloc[0] - now) < pd.Timedelta("10s")
    ping(loaded, 2)
    assert len(collect(loaded, tmp_path / "two")) == 4


def test_blocking_goes_with_features(loaded: Host, tmp_path: Path) -> None:
    """Other programs take the place of those attached, on the same maps."""
    assert load(loaded, "--features", "--packets-per-session", "7").returncode == 0
    ping(loaded, 1)
    assert loaded.flowmon("block", "192.0.2.99").returncode == 0
    ping(loaded, 4)
    found = collect(loaded, tmp_path)
    assert sum(found.groupby(SESSION).size()) == 2 + 7
    assert feature_books(loaded)["watched_packets"] == 1


def test_other_features_need_another_load(loaded: Host, tmp_path: Path) -> None:
    assert load(loaded, "--features", "--sessions", "10").returncode == 0
    ping(loaded, 1)
    assert load(loaded, "--features", "--sessions", "10").returncode == 0
    refused = load(loaded, "--features", "--sessions", "20")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "flowmon unload" in refused.stderr
    assert loaded.flowmon("unload").returncode == 0
    assert load(loaded, "--features", "--sessions", "20", "--ring-size", "1").returncode == 0
    ping(loaded, 3)
    assert len(collect(loaded, tmp_path / "one")) == 6
    assert loaded.flowmon("unload").returncode == 0
    assert load(loaded).returncode == 0
    ping(loaded, 1)
    status = json.loads(loaded.flowmon("status", "--json").stdout)
    assert status["features"] is None
    assert status["books"]["counted_packets"] == 4 * (1 + 3 + 1)


def test_a_collector_without_a_directory_says_that_they_go_nowhere(loaded: Host) -> None:
    assert load(loaded, "--features").returncode == 0
    done = loaded.flowmon("-i", "0", "--idle-timeout", "0", "-j")
    assert done.returncode == 0
    assert "those that are captured go nowhere" in done.stderr


def test_the_daemon_writes_features(loaded: Host, tmp_path: Path) -> None:
    options = ("--log-file", str(tmp_path / "log"), "-d", str(tmp_path / "out"), "--features", "--debug")
    assert loaded.flowmon("start", "--iface", "lo", "-i", "0.2", *options).returncode == 0
    ping(loaded, 2)
    wait_for(lambda: any((tmp_path / "out" / "_features").rglob("*.parquet")), "packets to be written")
    assert "captured" in loaded.flowmon("status").stdout
    assert loaded.flowmon("stop").returncode == 0
    assert len(features_of(tmp_path / "out")) == 4
    (csv,) = (tmp_path / "out" / "_features" / "_sessions").iterdir()
    assert csv.name.startswith("127.0.0.2-0___127.0.0.1-0___")
    assert "packet features: 4 written" in (tmp_path / "log").read_text()


# --- beside the lists of first packets ---


def test_lists_of_records_are_the_packets_of_sessions(pair: Pair, tmp_path: Path) -> None:
    """Two ways through the kernel, one result: super-packets with it."""
    left, right = pair.left, pair.right
    options = ("--features", "--splt", "32", "-d", str(tmp_path))
    with (
        right.server(5201, "iperf3", "-s", "-1"),
        monitor(right, "--iface", right.interface, "--max-flows", "1000", *options) as running,
    ):
        left.run("ping", "-q", "-c", "3", "-i", "0.01", right.ipv4)
        left.run("iperf3", "-c", right.ipv4, "-n", "5M", "-P", "2")
        assert right.flowmon("block", "192.0.2.99").returncode == 0  # other programs, on the same lists
        left.run("ping", "-q", "-c", "20", "-i", "0.01", right.ipv6)
        running.stop()
    flows = pd.read_parquet(tmp_path).drop_duplicates("flowId")
    sessions = dict(iter(features_of(tmp_path).groupby("flowId")))
    assert len(flows) == len(sessions) == 5
    for record in flows.itertuples():
        packets = sessions[record.flowId].iloc[:32]
        assert list(record.packetLengths) == list(packets["ipTotalLength"])
        assert list(record.packetDirections) == list(packets["biflowDirection"])
        apart = pd.to_datetime(record.packetTimes, utc=True) - pd.DatetimeIndex(
            packets["observationTimeNanoseconds"]
        )
        assert abs(apart).max() < pd.Timedelta("10us")


def test_other_lists_need_another_load(loaded: Host, tmp_path: Path) -> None:
    assert load(loaded, "--splt", "5").returncode == 0
    ping(loaded, 2)
    refused = load(loaded, "--splt", "7")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "flowmon unload" in refused.stderr
    assert loaded.flowmon("unload").returncode == 0
    assert load(loaded, "--splt", "7").returncode == 0
    ping(loaded, 4)
    done = loaded.flowmon("-i", "0", "--idle-timeout", "0", "-d", str(tmp_path))
    assert done.returncode == 0, done.stderr
    flows = pd.read_parquet(tmp_path).sort_values("flowStartNanoseconds")
    assert [len(lengths) for lengths in flows["packetLengths"]] == [4, 7]


def test_places_are_freed_without_a_collector_that_stays(loaded: Host, tmp_path: Path) -> None:
    """As from cron."""
    assert load(loaded, "--features", "--sessions", "3").returncode == 0
    for turn in range(3):
        for _ in range(3):
            ping(loaded, 1)
        time.sleep(0.3)
        directory = tmp_path / str(turn)
        done = loaded.flowmon("-i", "0", "--idle-timeout", "0.2", "-d", str(directory))
        assert done.returncode == 0, done.stderr
        assert len(features_of(directory)) == 6


def test_a_collector_is_not_left_on_other_maps(loaded: Host, tmp_path: Path) -> None:
    assert load(loaded, "--features").returncode == 0
    with collector(loaded, "-d", str(tmp_path)):
        assert loaded.flowmon("unload").returncode == 0
        for other in (("--features", "--sessions", "7"), ("--splt", "5"), ()):
            refused = load(loaded, *other)
            assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
            assert "end it first" in refused.stderr
        assert load(loaded, "--features").returncode == 0
    assert loaded.flowmon("unload").returncode == 0
    assert load(loaded, "--features", "--sessions", "7").returncode == 0
    refused = loaded.flowmon("-i", "0", "-d", str(tmp_path), "--features", "--sessions", "8")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def test_what_was_read_is_written_where_the_table_goes(loaded: Host, tmp_path: Path) -> None:
    assert load(loaded, "--features").returncode == 0
    for number in (1, 2):
        with collector(loaded, "-d", str(tmp_path), "--features-format", "json") as running:
            ping(loaded, number)
            time.sleep(0.5)
            assert loaded.flowmon("purge").returncode == 0
            wait_for(lambda running=running: running.poll() is not None, "the collector to end")
        assert load(loaded, "--features").returncode == 0
    sizes = [
        [len(session["packets"]) for session in json.loads((tmp_path / "_features" / name).read_text())]
        for name in ("result.json", "result-2.json")
    ]
    assert sizes == [[2], [4]]


def test_another_path_is_followed(pair: Pair, tmp_path: Path) -> None:
    """A direction that comes by another interface from some time on."""
    left, right = pair.left, pair.right
    left.run("ip", "link", "add", "v1", "type", "veth", "peer", "name", "v1", "netns", right.namespace)
    for host in (left, right):
        host.run("ip", "link", "set", "v1", "up")
        host.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.v1.rp_filter=0")
    options = ("--features", "--packets-per-session", "8", "--session-restart", "0.5", "-d", str(tmp_path))
    with monitor(right, "--iface", right.interface, "--iface", "v1", *options) as running:
        pinging = subprocess.Popen(left.command("ping", "-q", "-c", "50", "-i", "0.1", right.ipv4))
        time.sleep(1)
        mac = json.loads(right.run("ip", "-j", "link", "show", "dev", "v1"))[0]["address"]
        left.run("ip", "route", "add", f"{right.ipv4}/32", "dev", "v1", "src", left.ipv4)
        left.run("ip", "neighbour", "replace", right.ipv4, "lladdr", mac, "dev", "v1")
        assert pinging.wait(timeout=30) == 0
        running.stop()
    found = features_of(tmp_path)
    whole = [rows for _, rows in found.groupby("captureRound") if len(rows) == 8]
    assert len(whole) > 2  # one is of the time in which the forward direction is nobody's
    assert all(list(rows["biflowDirection"]).count(1) == 4 for rows in (whole[0], whole[-1]))
