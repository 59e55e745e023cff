"""Records that the kernel finds in a pcap file, against the same file by libpcap: no difference to the last field."""

from __future__ import annotations

import json
import os
import random
import select
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from craft import MICROSECOND_MAGIC, NANOSECOND_MAGIC, SNAPLEN
from flowmon import abi
from flowmon.abi import ReplayStop, TimeSource
from flowmon.captures import reader
from flowmon.captures.reader import Capture
from flowmon.collector import CollectorOptions
from flowmon.expiry import Timeouts
from flowmon.kernel.load_options import LoadOptions
from flowmon.kernel.loader import PrivateSet
from flowmon.kernel.replay import RecordFeed, Replay
from flowmon.offline import Reading
from flowmon.sinks.gathered import GatheringSink
from kernel.offline import NS, REQUEST, command
from kernel.replay import UNTIL_THE_END, List, loaded_for_replay, take_everything

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("kernel")]

START_S = 1_767_225_600
PER_SECOND = {MICROSECOND_MAGIC: 10**6, NANOSECOND_MAGIC: 10**9}
SHORT = CollectorOptions(interval_s=0.5, timeouts=Timeouts(idle_ns=NS, active_ns=3 * NS, linger_ns=NS // 2))
OPTIONS = [UNTIL_THE_END, SHORT]
CHUNK = abi.REPLAY_CHUNK_OCTETS


class GoOn:
    requested = False


def header(*, magic: int = NANOSECOND_MAGIC, snaplen: int = SNAPLEN) -> bytes:
    return struct.pack("=IHHiIII", magic, 2, 4, 0, 0, snaplen, 1)


def record(
    octets: bytes, *, at: int = 0, fraction: int = 0, wire: int | None = None, captured: int | None = None
) -> bytes:
    lengths = len(octets) if captured is None else captured, len(octets) if wire is None else wire
    return struct.pack("=IIII", START_S + at, fraction, *lengths) + octets


def datagram(number: int, octets: int) -> bytes:
    """One of a few flows; `octets` may be fewer than its headers, or more than IP can tell."""
    frame = from_port(1000 + number % 7)
    return (frame + bytes(max(octets - len(frame), 0)))[:octets]


def from_port(port: int) -> bytes:
    at = 14 + 20  # behind the headers of Ethernet and IP
    return REQUEST.octets[:at] + port.to_bytes(2) + REQUEST.octets[at + 2 :]


def many_records(seed: int, *, largest: int, octets: int, magic: int = NANOSECOND_MAGIC) -> list[bytes]:
    """Records of all sizes in disordered times of half a minute, `octets` in all, about."""
    chance = random.Random(seed)
    made: list[bytes] = []
    size = 0
    while size < octets:
        length = chance.choice([0, 13, 60, 72, chance.randint(0, 200), chance.randint(0, largest)])
        at = 30 * size // octets + chance.choice([0, 0, 0, 0, 0, 0, 0, 0, 0, -3, 1])
        wire = length + chance.choice([0, 0, 0, 1500, 100_000])
        fraction = chance.randrange(PER_SECOND[magic])
        made.append(record(datagram(len(made), length), at=max(at, 0), fraction=fraction, wire=wire))
        size += len(made[-1])
    return made


@pytest.fixture(scope="module")
def source(kernel) -> Iterator[PrivateSet]:
    loaded = PrivateSet(LoadOptions(loader="libbpf", max_flows=4096, time_source=TimeSource.SKB_TSTAMP))
    yield loaded
    loaded.close()


def metered(source: PrivateSet, path: Path, options: CollectorOptions) -> tuple[Any, ...]:
    """All that comes of a capture: records, what its packets added to the books, and what is said of it."""
    sink = List()
    with Capture(str(path)) as capture:
        reading = Reading(capture, source, [GatheringSink(sink)], options, GoOn())
        before = asdict(reading._table.books())
        after, tally = reading.run()
        cut_short = capture.cut_short
    added = {name: changed(before[name], value) for name, value in asdict(after).items()}
    return sorted(map(repr, sink.records)), added, tally.packets, tally.by_reason, cut_short


def changed(before: Any, after: Any) -> Any:
    return {name: after[name] - before[name] for name in after} if isinstance(after, dict) else after - before


def assert_same(
    source: PrivateSet, path: Path, monkeypatch, options: CollectorOptions = UNTIL_THE_END
) -> Any:
    """Both ways; what came of it."""
    found = metered(source, path, options)
    with monkeypatch.context() as patch:
        patch.setattr(reader, "pcap_records", lambda *_: None)
        expected = metered(source, path, options)
    assert found == expected
    return found


@pytest.fixture
def made(tmp_path):
    def write(*parts: bytes) -> Path:
        path = tmp_path / "capture"
        path.write_bytes(b"".join(parts))
        return path

    return write


@pytest.mark.parametrize("options", OPTIONS, ids=["one-pass", "passes"])
@pytest.mark.parametrize("magic", PER_SECOND, ids=["us", "ns"])
@pytest.mark.parametrize("largest", [200, 5000, 70_000])
def test_records_of_all_sizes_in_disordered_times(source, made, monkeypatch, largest, magic, options):
    records = many_records(largest, largest=largest, octets=3 * CHUNK, magic=magic)
    found = assert_same(source, made(header(magic=magic), *records), monkeypatch, options)
    assert found[1]["seen_packets"] == len(records)
    assert found[4] == ""


def test_the_kernel_finds_them_all(source, made):
    """Else the other tests compare libpcap with libpcap."""
    records = many_records(1, largest=3000, octets=2 * CHUNK)
    replay = Replay(source)
    with Capture(str(made(header(), *records))) as capture:
        feed = RecordFeed(capture, capture.records, replay)
        while feed.next_time_ns() is not None:
            feed.feed(1 << 63, 1000)
        assert capture.records.count == len(records)
    replay.close()
    take_everything(source)


@pytest.mark.parametrize("short_by", range(0, 48, 3))
def test_the_end_of_a_chunk_falls_anywhere_in_a_record(source, made, monkeypatch, short_by):
    small = [record(datagram(number, 72), fraction=number) for number in range(20)]
    rest = CHUNK - short_by
    filling = []
    while rest > 0:
        length = min(rest - 16, 60_000) if rest > 16 else 0
        filling.append(record(datagram(3, length), fraction=len(filling)))
        rest -= 16 + length
    found = assert_same(source, made(header(), *filling, *small), monkeypatch)
    assert found[1]["seen_packets"] == len(filling) + len(small)


def test_the_longest_record_of_all(source, made, monkeypatch):
    longest = record(datagram(0, abi.REPLAY_RECORD_MOST))
    found = assert_same(source, made(header(), *[longest] * 5), monkeypatch)
    assert (found[1]["seen_packets"], found[4]) == (5, "")


def test_capture_without_packets(source, made, monkeypatch):
    records, added, _, _, cut_short = assert_same(source, made(header()), monkeypatch)
    assert (records, added["seen_packets"], cut_short) == ([], 0, "")


def test_cut_at_every_octet_of_the_last_two_records(source, made, monkeypatch):
    records = [record(datagram(number, 72), at=number) for number in range(5)]
    whole = header() + b"".join(records)
    for length in range(len(whole) - 2 * len(records[0]), len(whole) + 1):
        found = assert_same(source, made(whole[:length]), monkeypatch, SHORT)
        at_boundary = (len(whole) - length) % len(records[0]) == 0
        assert bool(found[4]) != at_boundary


ODD = {
    "more captured than on the wire": record(datagram(1, 72), wire=60),
    "more captured than can be": record(datagram(1, 72), captured=1 << 30, wire=1 << 30),
    "lengths without end": record(datagram(1, 72), captured=0xFFFF_FFFF, wire=0xFFFF_FFFF),
    "beyond the snapshot length": record(datagram(1, 1200)),
    "a second of microseconds": record(datagram(1, 72), fraction=10**6),
    "more nanoseconds than there are": record(datagram(1, 72), fraction=0xFFFF_FFFF),
    "longer than the file": record(datagram(1, 72), captured=1000, wire=1000),
    "a time beyond all others": record(datagram(1, 72), at=0xFFFF_FFFF - START_S),
    "before 1970, or after 2038": record(datagram(1, 72), at=(1 << 31) - START_S),
}


@pytest.mark.parametrize("options", OPTIONS, ids=["one-pass", "passes"])
@pytest.mark.parametrize("magic", PER_SECOND, ids=["us", "ns"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_record_in_the_middle(source, made, monkeypatch, odd, magic, options):
    good = [record(datagram(number, 72), at=number) for number in range(300)]
    head = header(magic=magic, snaplen=1000)
    found = assert_same(source, made(head, *good[:200], ODD[odd], *good[200:]), monkeypatch, options)
    assert found[1]["seen_packets"] >= 200


def test_odd_octets_anywhere(source, made, monkeypatch):
    chance = random.Random(5)
    content = header() + b"".join(many_records(2, largest=300, octets=20_000))
    for _ in range(50):
        octets = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            octets[chance.randrange(24, len(octets))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
        assert_same(source, made(bytes(octets)), monkeypatch, SHORT)


@pytest.mark.parametrize("tail", [b"", record(datagram(1, 72), wire=60), record(datagram(1, 72))[:50]])
@pytest.mark.parametrize("drops", [(1, 40), (1, 5000)], ids=["dribbles", "pieces"])
def test_stream(source, made, monkeypatch, tmp_path, drops, tail):
    """A pipe that gives a few octets at a time."""
    content = header() + b"".join(many_records(3, largest=400, octets=20_000 * drops[1] // 40)) + tail
    content += record(datagram(2, 72), at=9) * (len(tail) != 50)
    expected = metered(source, made(content), SHORT)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def write() -> None:
        chance, at = random.Random(4), 0
        with fifo.open("wb", buffering=0) as stream:
            while at < len(content):
                at += stream.write(content[at : at + chance.randint(*drops)])

    writer = threading.Thread(target=write)
    writer.start()
    found = metered(source, fifo, SHORT)
    writer.join()
    assert found[:4] == expected[:4]
    assert found[4] == expected[4].replace(str(tmp_path / "capture"), str(fifo))


@pytest.mark.parametrize("options", OPTIONS, ids=["one-pass", "passes"])
def test_a_table_that_is_full_makes_room_at_the_same_packets(made, monkeypatch, options):
    """Which flows end early is the kernel's choice among equals, so this is of their number."""
    records = [record(from_port(1024 + number % 5000), at=number // 4000) for number in range(20_000)]
    path = made(header(), *records)
    found = []
    for find in (reader.pcap_records, lambda *_: None):
        monkeypatch.setattr(reader, "pcap_records", find)
        small = PrivateSet(LoadOptions(max_flows=1024, time_source=TimeSource.SKB_TSTAMP))
        _, added, packets, by_reason, _ = metered(small, path, options)
        found.append((added["seen_packets"], packets, by_reason))
        small.close()
    assert found[0] == found[1]
    assert found[0][0] == len(records)


def test_bcc(made, monkeypatch):
    path = made(header(), *many_records(6, largest=4000, octets=CHUNK))
    with loaded_for_replay("bcc") as by_bcc:
        assert_same(by_bcc, path, monkeypatch, SHORT)


def test_after_the_last_whole_record_nothing_is_fed(source, made):
    replay = Replay(source)
    with Capture(str(made(header(), record(datagram(0, 72)), record(datagram(0, 72))[:-1]))) as capture:
        feed = RecordFeed(capture, capture.records, replay)
        assert feed.next_time_ns() == START_S * NS
        assert replay.stopped_at()[0] == ReplayStop.READY
        assert feed.feed(START_S * NS, 10) == 0  # not before its time
        assert feed.feed(1 << 63, 10) == 1
        assert feed.next_time_ns() is None
        assert replay.flush() == START_S * NS + 1
    replay.close()
    take_everything(source)


def test_lines_come_while_the_stream_goes_on():
    process = subprocess.Popen(
        command("-q", "-r", "-", "-j", "--idle-timeout", "1"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        # The first ends before the second, which is what makes its line, and the second's pushes that out.
        process.stdin.write(header() + b"".join(record(datagram(flow, 72), at=5 * flow) for flow in range(3)))
        process.stdin.flush()
        assert select.select([process.stdout], [], [], 30)[0]
        assert json.loads(process.stdout.readline())["sourceTransportPort"] == 1000
        process.stdin.close()
        assert [json.loads(line)["sourceTransportPort"] for line in process.stdout] == [1001, 1002]
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
