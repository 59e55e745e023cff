"""Runs a capture through the kernel program, packet by packet, with the capture's own times."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flowmon.abi import TimeSource
from flowmon.collector import Collector, CollectorOptions
from flowmon.kernel import libbpf, loader
from flowmon.kernel.flow_table import FlowTable
from flowmon.kernel.loader import LoadOptions
from flowmon.kernel.pins import PinSet
from oracle import frames_of

LOOPBACK = 1


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


@contextmanager
def loaded_for_replay(pin_set: PinSet, loader_name: str) -> Iterator[PinSet]:
    """The programs, taking packets' times from the buffers."""
    loader.ensure_loaded(pin_set, LoadOptions(loader=loader_name, time_source=TimeSource.SKB_TSTAMP))
    yield pin_set
    pin_set.remove()


def run_packet(program: int, frame: bytes, time_ns: int, gso_segs: int = 0, gso_size: int = 0) -> None:
    """One packet through the program."""
    context = SkBuff(ifindex=LOOPBACK, tstamp=time_ns, gso_segs=gso_segs, gso_size=gso_size)
    data = np.frombuffer(frame, "u1")
    options = libbpf._TestRunOpts(
        sz=ctypes.sizeof(libbpf._TestRunOpts),
        data_in=data.ctypes.data,
        data_size_in=len(frame),
        ctx_in=ctypes.addressof(context),
        ctx_size_in=ctypes.sizeof(context),
        repeat=1,
    )
    libbpf.check(libbpf.library().bpf_prog_test_run_opts(program, ctypes.byref(options)), "test run")


def run_capture(pin_set: PinSet, capture: Path) -> int:
    """All packets of a capture, as on ingress of the loopback; how many there were."""
    program = pin_set.open_program("ingress_ethernet")
    count = 0
    for time_ns, _, frame in frames_of(capture):
        run_packet(program, frame, time_ns)
        count += 1
    os.close(program)
    return count


class _List:
    """A sink that keeps the records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def reserve(self, rows: int) -> None:
        pass

    def write(self, batch, exported_at_ns: int) -> None:
        self.records += batch.to_pylist()

    def close(self) -> None:
        pass


class _CaptureClock:
    """The capture's times are UTC already."""

    def now_mono_ns(self) -> int:
        return 0

    def utc_offset_ns(self) -> int:
        return 0


def take_everything(pin_set: PinSet) -> list[dict[str, Any]]:
    """All records of the table, forced out, in order of their start."""
    table, sink = FlowTable(pin_set), _List()
    Collector(table, [sink], CollectorOptions(), dict, _CaptureClock()).collect(everything=True)
    table.close()
    return sorted(sink.records, key=lambda record: record["flowStartNanoseconds"].value)
