"""What each sink says of its queue."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from collector_process import Collector, free_port, wait_until
from flowmon.errors import SinkError
from flowmon.sinks import SinkState, backlog
from flowmon.sinks.gathered import GatheringSink
from flowmon.sinks.json_lines import JsonLinesSink
from flowmon.sinks.parquet import ParquetSink
from ipfix_samples import NOW_NS, batch, tcp


class Full(io.RawIOBase):
    """A stream that takes `room` octets."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, octets: memoryview) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = min(self.room, len(octets))
        self.room -= taken
        return taken


def test_files_and_what_is_gathered_for_them(tmp_path: Path) -> None:
    files = ParquetSink(tmp_path)
    sink = GatheringSink(files)
    sink.write(batch(1, 3), NOW_NS)
    assert sink.state() == SinkState(str(tmp_path), "parquet", waiting_records=3)
    sink.flush()
    files.write(batch(4, 2), NOW_NS)
    assert sink.state() == SinkState(str(tmp_path), "parquet", sent_records=5)
    sink.close()


def test_lines_that_were_cut_off() -> None:
    stream = Full(room=100)
    sink = JsonLinesSink(stream)  # type: ignore[arg-type]
    records = batch(1, 3)
    with pytest.raises(SinkError):
        sink.write(records, NOW_NS)
    cut_off = sink.state()
    assert cut_off.sent_records == 0
    assert cut_off.waiting_octets > 0
    stream.room = 1 << 20
    sink.write(records, NOW_NS)
    assert sink.state() == SinkState("standard output", "json-lines", sent_records=3)


def test_what_is_sent_to_a_collector() -> None:
    with Collector() as collector:
        sink = tcp(collector.port)
        sink.write(batch(1, 7), NOW_NS)
        wait_until(lambda: sink.state().sent_records == 7)
        wait_until(lambda: sink.state().connected)
        name = f"tcp://127.0.0.1:{collector.port}"
        assert sink.state() == SinkState(name, "ipfix", sent_records=7)
        sink.finish()
        sink.close()


def test_what_waits_for_a_collector_that_is_away(tmp_path: Path) -> None:
    sink = tcp(free_port(), spool=tmp_path, memory_bytes=1)
    sink.write(batch(1, 7), NOW_NS)
    sink.write(batch(8, 5), NOW_NS)
    wait_until(lambda: sink.state().complaint)
    state = sink.state()
    assert (state.waiting_records, state.sent_records, state.lost_records) == (12, 0, 0)
    assert state.spooled_records in (5, 12)
    assert state.waiting_octets > 0
    assert not state.connected
    sink.close()


def test_what_a_bound_forced_out_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "SMALL_BYTES", 0)
    sink = tcp(free_port(), memory_bytes=1)
    for _ in range(3):
        sink.write(batch(1, 7), NOW_NS)
    state = sink.state()
    assert state.lost_records + state.waiting_records == 21
    assert state.lost_records
    sink.close()
