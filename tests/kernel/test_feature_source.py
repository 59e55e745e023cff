"""The ring, read in bulk; and the places of sessions, which the programs take and the collector frees."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from scapy.packet import Packet

from craft import frame, pcap, reply, request, udp
from flowmon import abi
from flowmon.abi import FeaturesProtocol, TimeSource
from flowmon.captures.reader import Capture
from flowmon.kernel import ring
from flowmon.kernel.feature_source import FeatureSource
from flowmon.kernel.load_options import Features, LoadOptions
from flowmon.kernel.loader import PrivateSet
from flowmon.kernel.replay import Replay, feed_of

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("kernel")]

NEVER = 1 << 63
MS = 1_000_000


class Captured:
    """Programs that capture packets, and their source."""

    def __init__(self, programs: PrivateSet, directory: Path) -> None:
        self.source = FeatureSource(programs)
        self._replay = Replay(programs)
        self._path = directory / "some.pcap"

    def feed(self, *packets: tuple[float, object]) -> np.ndarray:
        """Packets at so many ms; what they left in the ring."""
        self.feed_only(*packets)
        return self.source.read()

    def feed_only(self, *packets: tuple[float, object]) -> None:
        self._path.write_bytes(pcap([frame(at, packet) for at, packet in packets]))
        with Capture(str(self._path)) as capture:
            feed = feed_of(capture, self._replay)
            while feed.next_time_ns() is not None:
                feed.feed(NEVER, 1000)
            self._replay.flush()

    def close(self) -> None:
        self.source.close()
        self._replay.close()


@contextmanager
def captured(directory: Path, **features: int) -> Iterator[Captured]:
    programs = PrivateSet(LoadOptions(time_source=TimeSource.SKB_TSTAMP, features=Features(**features)))
    made = Captured(programs, directory)
    try:
        yield made
    finally:
        made.close()
        programs.close()


def ask(port: int) -> Packet:
    return udp("192.0.2.1", "198.51.100.2", port, 53, 30)


def test_the_ring_begins_anew_many_times(tmp_path: Path) -> None:
    """Rows of 136 octets do not divide it: each round ends elsewhere."""
    with captured(tmp_path, packets=1000, ring_octets=mmap.PAGESIZE) as made:
        room = ring.room(mmap.PAGESIZE, abi.FEATURE_PACKET)
        assert room == 30
        indexes: list[int] = []
        for turn in range(20):
            rows = made.feed(*((turn + n / 100, ask(4000)) for n in range(29)))
            assert len(rows) == 29
            assert (rows["key"]["source_port"] == 4000).all()
            assert (np.diff(rows["time_mono_ns"].astype(np.int64)) == 10_000).all()
            indexes += rows["index"].tolist()
        assert indexes == list(range(20 * 29))
        assert len(made.source.read()) == 0


def test_what_the_ring_cannot_hold_is_counted_and_leaves_a_gap(tmp_path: Path) -> None:
    with captured(tmp_path, packets=100, ring_octets=mmap.PAGESIZE) as made:
        rows = made.feed(*((n, ask(4000)) for n in range(50)))
        kept = len(rows)
        assert kept == 30
        rows = made.feed((60, ask(4000)))
        assert rows["index"].tolist() == [50]
        books = made.source.books()
        assert (books.captured_packets, books.lost_packets) == (kept + 1, 50 - kept)


def test_a_session_has_both_directions_and_a_limit(tmp_path: Path) -> None:
    with captured(tmp_path, packets=3) as made:
        rows = made.feed((0, request()), (1, reply()), (3, request()), (4, reply()))
        assert rows["is_reverse"].tolist() == [0, 1, 0]
        assert rows["interval_ns"].tolist() == [0, MS, 2 * MS]
        assert len(set(rows["began_utc_ns"])) == 1
        assert made.source.books().watched_packets == 1


def test_a_session_that_goes_on_is_captured_again(tmp_path: Path) -> None:
    with captured(tmp_path, packets=2, restart_ns=1000 * MS) as made:
        rows = made.feed(*((at, request()) for at in (0, 10, 500, 1009, 1010, 1020, 1030, 2020)))
        assert rows["round"].tolist() == [0, 0, 1, 1, 2]
        assert rows["index"].tolist() == [0, 1, 0, 1, 0]
        assert [int(at - rows["time_mono_ns"][0]) // MS for at in rows["time_mono_ns"]] == [
            0,
            10,
            1010,
            1020,
            2020,
        ]
        # Since the packet before it, captured or not.
        assert rows["interval_ns"].tolist() == [0, 10 * MS, MS, 10 * MS, 990 * MS]
        assert made.source.books().watched_packets == 3


def test_only_the_protocols_that_were_asked_for(tmp_path: Path) -> None:
    with captured(tmp_path, protocols=FeaturesProtocol.TCP | FeaturesProtocol.ICMP) as made:
        assert len(made.feed((0, request()))) == 0
        assert sum(vars(made.source.books()).values()) == 0


def test_places_run_out_and_are_freed(tmp_path: Path) -> None:
    with captured(tmp_path, sessions=3) as made:
        assert not made.source.is_full()
        rows = made.feed(*((port, ask(4000 + port)) for port in range(5)))
        assert rows["key"]["source_port"].tolist() == [4000, 4001, 4002]
        assert made.source.is_full()
        assert made.source.books().refused_packets == 2
        # The first is used again, so the second is the one least used.
        assert len(made.feed((10, ask(4000)))) == 1
        assert made.source.free_least_used(1) == 1
        assert not made.source.is_full()
        rows = made.feed((20, ask(4009)), (21, ask(4001)), (22, ask(4000)), (23, ask(4002)))
        assert rows["key"]["source_port"].tolist() == [4009, 4000, 4002]
        assert made.source.books().refused_packets == 3


def test_who_was_silent_gives_the_place_back(tmp_path: Path) -> None:
    with captured(tmp_path, sessions=3) as made:
        first = int(made.feed((0, ask(4000)), (100, ask(4001)))["time_mono_ns"][0])
        assert made.source.free_silent(first) == 0
        assert made.source.free_silent(first + 1) == 1
        assert made.source.free_silent(first + 1) == 0
        rows = made.feed((200, ask(4000)))
        # It begins anew.
        assert rows["index"].tolist() == [0]
        assert rows["interval_ns"].tolist() == [0]
        assert int(rows["began_utc_ns"][0]) == first + 200 * MS


def test_all_places_at_once(tmp_path: Path) -> None:
    """Each of them can be taken, and each comes back."""
    sessions = 1000
    with captured(tmp_path, sessions=sessions, packets=1) as made:
        for turn in range(3):
            start = 10 * turn
            rows = made.feed(*((start + n / 1000, ask(2000 + n)) for n in range(sessions + 10)))
            assert len(rows) == sessions
            assert made.source.is_full()
            assert made.source.free_silent(1 << 62) == sessions
        assert made.source.books().refused_packets == 30
