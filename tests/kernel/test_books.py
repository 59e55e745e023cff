"""The books balance, whatever is thrown at the table: seen = counted + ignored, inserted = taken + resident + evicted."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from many_flows import write_many_flows
from netns import Host, collector, monitor, wait_for

pytestmark = pytest.mark.kernel

REPLAY_PACKETS_PER_SECOND = "60000"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A capture of 100,000 biflows, and its truth."""
    path = tmp_path_factory.mktemp("many") / "many.pcap"
    return path, write_many_flows(path, 100_000, seed=1)


def load(host: Host, table: tuple[str, ...], *options: str) -> None:
    done = host.flowmon("load", *table, "--iface", "veth0", "--direction", "ingress", *options)
    assert done.returncode == 0, done.stderr


def books_of(host: Host, table: tuple[str, ...]) -> dict:
    return json.loads(host.flowmon("status", *table, "--json").stdout)["books"]


def query(columns: str, directory: Path) -> list[tuple]:
    """What DuckDB reads in the directory."""
    return duckdb.sql(f"select {columns} from '{directory}/**/*.parquet'").fetchall()


def assert_balanced(books: dict) -> None:
    """Each equation, unit by unit."""
    for unit in ("packets", "octets"):
        assert books[f"seen_{unit}"] == books[f"counted_{unit}"] + sum(books[f"ignored_{unit}"].values())
        accounted = books[f"taken_{unit}"] + books[f"resident_{unit}"] + books[f"evicted_{unit}"]
        assert books[f"counted_{unit}"] == accounted
    flows = books["taken_flows"] + books["resident_flows"] + books["evicted_flows"]
    assert books["flows_inserted"] == flows


def test_every_flow_of_a_large_replay_is_recorded_once(pair, pin_set, many, tmp_path):
    capture, truth = many
    table = ("-f", str(pin_set.table_path))
    load(pair.right, table, "--max-flows", "524288")
    received = pair.right.link_counters()["rx_packets"]
    pair.left.run("tcpreplay", "-q", "--pps", REPLAY_PACKETS_PER_SECOND, "-i", "veth0", str(capture))
    received = pair.right.link_counters()["rx_packets"] - received
    packets = int(truth["packetDeltaCount"].sum() + truth["reversePacketDeltaCount"].sum())
    assert received == packets, "the replay itself lost packets"
    done = pair.right.flowmon(*table, "-i", "0", "--idle-timeout", "0", "--linger", "0", "-d", str(tmp_path))
    assert done.returncode == 0, done.stderr
    books = books_of(pair.right, table)
    assert_balanced(books)
    assert books["seen_packets"] == books["taken_packets"] == packets
    assert books["evicted_flows"] == books["late_packets"] == sum(books["ignored_packets"].values()) == 0

    names = [name for name in truth.dtype.names if name not in ("flowStartNanoseconds", "flowEndNanoseconds")]
    columns = ", ".join(f"coalesce({name}, 0)" if "ControlBits" in name else name for name in names)
    recorded = query(columns, tmp_path)
    expected = truth[names].tolist()
    assert len(recorded) == len(expected) == 100_000
    assert set(recorded) == set(expected)


def test_a_table_far_too_small_loses_flows_and_says_so(pair, pin_set, many, tmp_path):
    capture, _ = many
    table = ("-f", str(pin_set.table_path))
    load(pair.right, table, "--max-flows", "1024")
    arguments = (*table, "-i", "1", "-d", str(tmp_path))
    with collector(pair.right, *arguments) as process:
        pair.left.run("tcpreplay", "-q", "--topspeed", "-i", "veth0", str(capture))
        said = ended(process)
    books = books_of(pair.right, table)
    assert_balanced(books)
    assert books["evicted_flows"] > 0
    assert books["evicted_packets"] > 0
    assert "evicted" in said
    recorded = query("sum(packetDeltaCount) + sum(reversePacketDeltaCount)", tmp_path)
    assert recorded == [(books["taken_packets"],)]


def test_twenty_thousand_new_biflows_a_second_are_all_kept(pair, pin_set, tmp_path):
    """The default table holds 1.6 seconds of them: the collector relieves it in time."""
    capture = tmp_path / "many.pcap"
    truth = write_many_flows(capture, 400_000, seed=2, packets_per_direction=1)
    packets = int(truth["packetDeltaCount"].sum() + truth["reversePacketDeltaCount"].sum())
    table = ("-f", str(pin_set.table_path))
    load(pair.right, table)
    arguments = (*table, "-i", "10", "-d", str(tmp_path / "flows"))
    with collector(pair.right, *arguments) as process:
        begun = time.monotonic()
        rate = str(round(packets / 20))
        pair.left.run("tcpreplay", "-q", "--pps", rate, "-i", "veth0", str(capture))
        took = time.monotonic() - begun
        ended(process)
    assert took < 23, "the replay was not fast enough to be a trial"
    books = books_of(pair.right, table)
    assert_balanced(books)
    assert books["seen_packets"] == packets
    assert books["evicted_flows"] == 0
    ((early,),) = query("sum((flowEndReason = 5)::int)", tmp_path / "flows")
    assert early > 0


def test_a_killed_collector_loses_nothing_that_it_had_not_taken(pair, pin_set):
    table = ("-f", str(pin_set.table_path))
    load(pair.right, table)
    with monitor(pair.right, *table, "-i", "0.2", "-j", "-v") as running:
        pair.left.run("ping", "-q", "-c", "4", "-i", "0.1", pair.right.ipv4)
        running.kill()
    done = pair.right.flowmon(*table, "-i", "0", "--idle-timeout", "0", "-j")
    (record,) = map(json.loads, done.stdout.splitlines())
    assert record["packetDeltaCount"] == 4
    assert_balanced(books_of(pair.right, table))


def test_an_active_timeout_splits_a_flow_and_loses_nothing(pair, pin_set):
    """The entry stays: the window scale of the SYN holds in every record, and forward stays the client."""
    server = "import socket,time; s=socket.create_server(('', 9000)); c,_=s.accept(); c.recv(1)"
    client = (
        "import socket,time; c=socket.create_connection(('10.77.0.2', 9000));"
        " [(c.send(b'x'*100), time.sleep(0.05)) for _ in range(60)]; c.close()"
    )
    with pair.right.server(9000, sys.executable, "-c", server + "; [c.recv(4096) for _ in range(70)]"):
        with monitor(
            pair.left, "--iface", "veth0", "-i", "0.2", "-j", "--active-timeout", "0.7", "--linger", "0.3"
        ) as running:
            sent = pair.left.tcp_segments_sent()
            pair.left.run(sys.executable, "-c", client)
            time.sleep(1.5)
            sent = pair.left.tcp_segments_sent() - sent
            records = [r for r in running.stop() if r["destinationTransportPort"] == 9000]
    assert [record["flowEndReason"] for record in records][:3] == [2, 2, 2]
    assert len({record["flowId"] for record in records}) == 1
    assert sum(record["packetDeltaCount"] for record in records) == sent
    assert sum(record["tcpSynTotalCount"] for record in records) == 1
    scales = {record["tcpWindowScale"] for record in records}
    assert len(scales) == 1
    assert all(record["maximumTcpWindowSize"] >= 1 << next(iter(scales)) for record in records)
    ends = [record["flowEndNanoseconds"] for record in records]
    starts = [record["flowStartNanoseconds"] for record in records]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_a_full_disk_keeps_the_flows_in_the_table(pair, pin_set, tmp_path):
    table = ("-f", str(pin_set.table_path))
    load(pair.right, table)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    try:
        arguments = (*table, "-i", "0.2", "--idle-timeout", "0.5", "-d", str(disk / "flows"))
        with collector(pair.right, *arguments) as process:
            fill(disk / "filler")
            pair.left.run("ping", "-q", "-c", "4", "-i", "0.1", pair.right.ipv4)
            time.sleep(1.5)
            assert books_of(pair.right, table)["resident_flows"] == 1
            (disk / "filler").unlink()
            wait_for(lambda: list(disk.glob("flows/*/*/*.parquet")), "the record to be written")
            said = ended(process)
        records = query("packetDeltaCount", disk / "flows")
        fill(disk / "filler")
        refused = pair.right.flowmon(*arguments)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert records == [(4,)]
    assert said.count("No space left on device") == 1
    assert "the flows stay in the table" in said
    assert "writing again" in said
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1


def test_flows_that_find_no_room_at_the_end_stay_in_the_table(pair, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    try:
        with monitor(pair.left, "--iface", "veth0", "-i", "1", "-d", str(disk / "flows")) as running:
            fill(disk / "filler")
            pair.left.run("ping", "-q", "-c", "4", "-i", "0.1", pair.right.ipv4)
            said = running.fail()
        assert "the last flows stay in" in said
        assert "clsact" not in pair.left.tc()
        (disk / "filler").unlink()
        pair.left.flowmon("-i", "0", "--idle-timeout", "0", "-d", str(disk / "flows"))
        records = query("packetDeltaCount", disk / "flows")
        assert pair.left.flowmon("purge").returncode == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert records == [(4,)]


def fill(path: Path) -> None:
    """Takes all the room that the file system has."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def ended(process: subprocess.Popen) -> str:
    """Ends a collector, and gives what it said."""
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said
