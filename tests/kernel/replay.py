"""Runs packets through the kernel program, as `flowmon -r` does, with records kept in memory."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flowmon.abi import TimeSource
from flowmon.captures.reader import Capture
from flowmon.collector import Collector, CollectorOptions
from flowmon.kernel import libbpf
from flowmon.kernel.flow_table import Books, FlowTable
from flowmon.kernel.load_options import LoadOptions
from flowmon.kernel.loader import PrivateSet
from flowmon.kernel.pins import MapSource
from flowmon.offline import Reading
from flowmon.sinks import Metering
from flowmon.sinks.gathered import GatheringSink

LOOPBACK = 1
UNTIL_THE_END = CollectorOptions(interval_s=0)


@contextmanager
def loaded_for_replay(loader_name: str, *, decap: bool = False) -> Iterator[PrivateSet]:
    """The programs, taking packets' times from the buffers."""
    source = PrivateSet(LoadOptions(loader=loader_name, time_source=TimeSource.SKB_TSTAMP, decap=decap))
    yield source
    source.close()


class _GoOn:
    """What never asks to stop."""

    requested = False


class List:
    """A sink that keeps the records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def reserve(self, rows: int, *, more: bool = False) -> None:
        pass

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        self.records += batch.to_pylist()

    def report(self, metering: Metering) -> None:
        pass

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def run_capture(
    source: PrivateSet, capture: Path, options: CollectorOptions = UNTIL_THE_END
) -> tuple[list[dict[str, Any]], Books]:
    """The records of a capture in order of their start, and the books of all that `source` ever saw."""
    sink = List()
    with Capture(str(capture)) as opened:
        books, _ = Reading(opened, source, [GatheringSink(sink)], options, _GoOn()).run()
    return _by_start(sink.records), books


class SkBuff(ctypes.Structure):
    """struct __sk_buff, as far as a test run takes it."""

    _fields_ = [
        ("head", ctypes.c_uint32 * 10),
        ("ifindex", ctypes.c_uint32),
        ("middle", ctypes.c_uint32 * 27),
        ("tstamp", ctypes.c_uint64),
        ("wire_len", ctypes.c_uint32),
        ("gso_segs", ctypes.c_uint32),
        ("sk", ctypes.c_uint64),
        ("gso_size", ctypes.c_uint32),
    ]


def run_super_packet(source: MapSource, frame: bytes, gso_segs: int, gso_size: int) -> None:
    """One buffer as an interface would give it, through programs that were loaded for that."""
    context = SkBuff(ifindex=LOOPBACK, gso_segs=gso_segs, gso_size=gso_size)
    data = np.frombuffer(frame, "u1")
    options = libbpf.TestRunOptions(
        sz=ctypes.sizeof(libbpf.TestRunOptions),
        data_in=data.ctypes.data,
        data_size_in=len(frame),
        ctx_in=ctypes.addressof(context),
        ctx_size_in=ctypes.sizeof(context),
        repeat=1,
    )
    program = source.open_program("ingress_ethernet")
    libbpf.check(libbpf.library().bpf_prog_test_run_opts(program, ctypes.byref(options)), "test run")
    os.close(program)


class _NoClock:
    """The capture's times are UTC already."""

    def now_mono_ns(self) -> int:
        return 0

    def utc_offset_ns(self) -> int:
        return 0


def take_everything(source: MapSource) -> list[dict[str, Any]]:
    """All records of the table, forced out, in order of their start."""
    table, sink = FlowTable(source), List()
    Collector(table, [sink], CollectorOptions(), dict, _NoClock()).collect(everything=True)
    table.close()
    return _by_start(sink.records)


def _by_start(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda record: record["flowStartNanoseconds"].value)
