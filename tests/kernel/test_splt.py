"""--splt: a record's first packets are those of the capture, one by one."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from craft import frame, reply, request, write_pcap
from first_packets_oracle import FORWARD, REVERSE, Listed, lists_of, talk
from flowmon.abi import TimeSource
from flowmon.collector import Collector, CollectorOptions
from flowmon.elements import LISTING_SCHEMA, LISTS, RECORD_SCHEMA
from flowmon.kernel import loader as loader_module
from flowmon.kernel.flow_table import FlowTable
from flowmon.kernel.load_options import LoadOptions
from flowmon.kernel.loader import PrivateSet
from kernel.offline import flowmon, packets_of, read
from kernel.replay import List, _NoClock, run_capture, run_super_packet
from many_flows import write_many_flows

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("kernel")]

CASES = Path(__file__).parent.parent / "pcaps"
CAPTURES = sorted(path for path in CASES.glob("*/*") if path.suffix in {".pcap", ".pcapng"})
COUNTS = [1, 5, 32]
NAMES = [element.name for element in LISTS]
UNTIL_THE_END = ("-q", "-j", "-i", "0", "--idle-timeout", "1e9", "--active-timeout", "1e9", "--linger", "1e9")


@pytest.fixture(scope="module")
def talking(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.pcap"
    write_pcap(path, talk())
    return path


def listed(record: dict[str, Any]) -> list[Listed] | None:
    """The list of a record that was read from JSON lines or as Arrow has it."""
    lengths, directions, times = (record[name] for name in NAMES)
    if lengths is None:
        return None
    return [
        Listed(length, direction, time_ns(time))
        for length, direction, time in zip(lengths, directions, times, strict=True)
    ]


def time_ns(time: Any) -> int:
    if isinstance(time, str):
        return int(np.datetime64(time.removesuffix("Z"), "ns").astype("i8"))
    return int(time.value)


def private(loader: str = "libbpf", **options: Any) -> PrivateSet:
    return PrivateSet(LoadOptions(loader=loader, time_source=TimeSource.SKB_TSTAMP, **options))


@pytest.fixture(scope="module", params=COUNTS)
def loaded(request, kernel) -> Iterator[PrivateSet]:
    source = private(first_packets=request.param)
    yield source
    source.close()


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_lists_are_the_captures(loaded, capture):
    most = loaded.first_packets
    if "fragment" in capture.stem:  # the programs remember those of the capture before
        loaded = private(first_packets=most)
    records, _ = run_capture(loaded, capture)
    assert [listed(record) for record in records] == lists_of(capture, most)


@pytest.mark.parametrize("most", COUNTS)
def test_the_command_lists_them(talking, most):
    records = read(talking, *UNTIL_THE_END, "--splt", str(most))
    assert sorted(map(listed, records)) == sorted(lists_of(talking, most))


@pytest.mark.parametrize(("loader", "most"), [*(("libbpf", most) for most in COUNTS), ("bcc", 5)])
def test_many_conversations_at_once(talking, most, loader):
    source = private(loader, first_packets=most)
    records, _ = run_capture(source, talking)
    source.close()
    assert sorted(map(listed, records)) == sorted(lists_of(talking, most))
    assert {len(listed(record)) == most for record in records} == {True, False} or most == 1


def test_tshark_says_the_same(talking):
    """By ports: each conversation has a client port of its own."""
    fields = (
        "frame.time_epoch",
        "ip.len",
        "ipv6.plen",
        "tcp.srcport",
        "udp.srcport",
        "tcp.dstport",
        "udp.dstport",
    )
    command = [
        "tshark",
        "-n",
        "-r",
        str(talking),
        "-T",
        "fields",
        *(word for field in fields for word in ("-e", field)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for line in done.stdout.splitlines():
        _, length4, length6, *ports = line.split("\t")
        source, destination = (int(ports[at] or ports[at + 1]) for at in (0, 2))
        expected[max(source, destination)].append(
            (int(length4 or int(length6) + 40), FORWARD if source > destination else REVERSE)
        )
    records = read(talking, *UNTIL_THE_END, "--splt", "32")
    found = {record["sourceTransportPort"]: listed(record) for record in records}
    assert found.keys() == expected.keys()
    # Whose times are all in order and differ; of others the order is the oracle's matter.
    clear = [port for port, packets in found.items() if is_in_order(packets) and len(expected[port]) <= 32]
    assert len(clear) > 15
    assert {port: [(one.length, one.direction) for one in found[port]] for port in clear} == {
        port: expected[port] for port in clear
    }


def is_in_order(packets: list[Listed]) -> bool:
    times = [one.time_ns for one in packets]
    return len(set(times)) == len(times)


def test_without_it_nothing_changes(talking):
    without, with_lists = read(talking, *UNTIL_THE_END), read(talking, *UNTIL_THE_END, "--splt", "8")
    assert [list(record) for record in without] == [RECORD_SCHEMA.names] * len(without)
    assert [list(record) for record in with_lists] == [LISTING_SCHEMA.names] * len(without)
    assert [{name: record[name] for name in RECORD_SCHEMA.names} for record in with_lists] == without


@pytest.mark.parametrize("most", ["-1", "33", "some"])
def test_a_number_that_cannot_be_is_wrong_usage(talking, most):
    done = flowmon(talking, "--splt", most)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--splt" in done.stderr


def test_parquet_has_what_json_lines_have(talking, tmp_path):
    flowmon(talking, *UNTIL_THE_END, "--splt", "7", "-d", tmp_path)
    (file,) = tmp_path.glob("date=*/hour=*/*.parquet")
    assert pq.read_schema(file).equals(LISTING_SCHEMA)
    group = pq.ParquetFile(file).metadata.row_group(0)
    chunks = [group.column(at) for at in range(group.num_columns)]
    encodings = {chunk.path_in_schema: chunk.encodings for chunk in chunks}
    assert "RLE_DICTIONARY" in encodings["packetLengths.list.element"]
    assert "RLE_DICTIONARY" not in encodings["packetTimes.list.element"]
    printed = sorted(map(listed, read(talking, *UNTIL_THE_END, "--splt", "7")))
    rows = duckdb.sql(
        f"SELECT packetLengths, packetDirections, [epoch_ns(t) for t in packetTimes] FROM '{file}'"
    ).fetchall()
    assert sorted([Listed(*one) for one in zip(*row, strict=True)] for row in rows) == printed


# Records that follow each other, and tables that are full


@pytest.mark.parametrize("active_s", [1, 3])
def test_each_record_of_a_long_flow_lists_its_own(tmp_path, active_s):
    """A packet every half second: those of all records together are those of the capture."""
    path = tmp_path / "long.pcap"
    frames = [
        one for at in range(0, 20_000, 500) for one in (frame(at, request(at // 100)), frame(at + 1, reply()))
    ]
    write_pcap(path, frames)
    options = ("-q", "-j", "-i", "0.5", "--active-timeout", str(active_s), "--splt", "32")
    records = read(path, *options)
    assert len(records) > 4
    (expected,) = lists_of(path, 1000)
    assert [one for record in records for one in listed(record)] == expected


def test_where_lists_are_evicted_there_is_none(tmp_path):
    """The map of lists is made too small; what a list has adds up to the record's packets and octets."""
    path = tmp_path / "many.pcap"
    write_many_flows(path, 4000)
    options = LoadOptions(max_flows=1 << 14, time_source=TimeSource.SKB_TSTAMP, first_packets=32)
    with pytest.MonkeyPatch.context() as patch:
        sizes = loader_module._optional_sizes(options) | {"first_packets": 256}
        patch.setattr(loader_module, "_optional_sizes", lambda _: sizes)
        source = PrivateSet(options)
    records, _ = run_capture(source, path)
    source.close()
    assert len(records) == 4000
    known = [record for record in records if record["packetLengths"] is not None]
    assert 0 < len(known) < 4000
    for record in known:
        packets = listed(record)
        assert len(packets) == packets_of(record) <= 32
        assert (
            sum(one.length for one in packets) == record["octetDeltaCount"] + record["reverseOctetDeltaCount"]
        )
        assert [one.time_ns for one in packets] == sorted(one.time_ns for one in packets)
        assert record["packetDeltaCount"] == sum(one.direction == FORWARD for one in packets)
    assert {name for record in records for name in NAMES if record[name] is None} == set(NAMES)


# Super-packets, as an interface gives them

ENDS = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2")
SEGMENT, LAST = 1448 + 40, 104 + 40


class Observing:
    """Programs that list so many packets, as at an interface."""

    def __init__(self, loader: str, most: int) -> None:
        self.source = PrivateSet(LoadOptions(loader=loader, first_packets=most))

    def lengths(self, *payloads: int, size: int = 1448) -> list[int]:
        """Those of the one list that comes of buffers with so many octets, cut into segments of `size` on the wire."""
        for octets in payloads:
            packet = bytes(ENDS / TCP(sport=1000, dport=80, flags="A") / bytes(octets))
            run_super_packet(self.source, packet, 0, size if octets > size else 0)
        table, sink = FlowTable(self.source, first_packets=self.source.first_packets), List()
        Collector(table, [sink], CollectorOptions(), dict, _NoClock()).collect(everything=True)
        table.close()
        (record,) = sink.records
        times = [one.time_ns for one in listed(record)]
        assert times == sorted(times)
        assert len(set(times)) <= len(payloads)
        return record["packetLengths"]


@pytest.fixture
def observe(kernel) -> Iterator[Any]:
    opened: list[Observing] = []

    def made(most: int, loader: str = "libbpf") -> Observing:
        opened.append(Observing(loader, most))
        return opened[-1]

    yield made
    for one in opened:
        one.source.close()


@pytest.mark.parametrize("loader", ["libbpf", "bcc"])
def test_segments_are_listed_one_by_one(observe, loader):
    all_of = observe(32, loader)
    assert all_of.lengths(3000) == [SEGMENT, SEGMENT, LAST]
    assert all_of.lengths(3000, 10, 3000) == [SEGMENT, SEGMENT, LAST, 50, SEGMENT, SEGMENT, LAST]
    assert all_of.lengths(10, 3000) == [50, SEGMENT, SEGMENT, LAST]
    assert all_of.lengths(3300, size=100) == [140] * 32
    assert all_of.lengths(3150, 7, size=100) == [140] * 31 + [90]


def test_segments_beyond_the_number_are_not(observe):
    two = observe(2)
    assert two.lengths(3000) == [SEGMENT] * 2
    assert two.lengths(3000, 10) == [SEGMENT] * 2
    assert two.lengths(3000, 10, 10) == [SEGMENT] * 2
    assert observe(3).lengths(10, 3000) == [50, SEGMENT, SEGMENT]
    assert observe(1).lengths(10, 3000) == [50]
