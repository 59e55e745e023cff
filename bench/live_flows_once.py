"""One measurement of live_flows.py, in a process of its own, of the flowmon that is on Python's path.

    live_flows_once.py FLOWS parquet|ipfix DIRECTORY

Prints JSON. Memory is what the kernel gives as VmHWM: the peak of this program, not of what started it.
"""

from __future__ import annotations

import json
import resource
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowmon import abi
from flowmon.collector import Collector, CollectorOptions
from flowmon.kernel import libbpf
from flowmon.kernel.flow_table import FlowTable, map_into_memory
from flowmon.kernel.loader import LoadOptions, PrivateSet
from flowmon.sinks import Sink

LOOKS = 4  # passes in which nothing ends, each after a packet of every flow; the first does not count
WARMING_FLOWS = 2_000
START_NS = 1_800_000_000 * 10**9
FLOW_NS = 4000  # from one biflow to the next: those of a million flows begin within 2 s
STEP_NS = 10**9  # from one packet of a flow to the next: none becomes idle
PORTS = 4  # of a client
IP_OCTETS, TCP_ACK = 40, 16
CLIENT, CLIENT_PORT = slice(26, 30), slice(34, 36)  # in a frame from the client
CLIENT_BACK, CLIENT_PORT_BACK = slice(30, 34), slice(36, 38)  # in one to it

# Reads and drops, until the other side ends.
READER = """
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as listener:
    buffer = bytearray(1 << 20)
    while True:
        connection, _ = listener.accept()
        while connection.recv_into(buffer):
            pass
        connection.close()
"""


@dataclass
class StillClock:
    """The capture's time, which stands still."""

    mono_ns: int

    def now_mono_ns(self) -> int:
        """Of the last packet."""
        return self.mono_ns

    def utc_offset_ns(self) -> int:
        """The packets have UTC."""
        return 0


def send(source: PrivateSet, flows: int, number: int) -> int:
    """One more packet of each of so many directed flows, by the table's own program; the time of the last.

    number: how many each has had before; the first puts it into the table.
    """
    program = source.open_program("replay")
    packets = map_into_memory(source, "replay_packets", abi.CAPTURED_PACKET, abi.REPLAY_BATCH)
    state = map_into_memory(source, "replay_state", abi.REPLAY_STATE, 1)
    to, back = _frames()
    buffer = np.zeros(abi.CAPTURED_MOST, "u1")
    octets = packets["octets"]
    octets[0::2, : len(to)], octets[1::2, : len(back)] = to, back
    for name in ("length", "end", "layer2_length"):
        packets[name] = len(to)
    last_ns = 0
    for first in range(0, flows // 2, abi.REPLAY_BATCH // 2):
        biflow = np.arange(first, min(first + abi.REPLAY_BATCH // 2, flows // 2))
        count = 2 * len(biflow)
        host = (10 << 24 | biflow // PORTS).astype(">u4").view("u1").reshape(-1, 4)
        port = (1024 + biflow % PORTS).astype(">u2").view("u1").reshape(-1, 2)
        octets[0:count:2, CLIENT], octets[1:count:2, CLIENT_BACK] = host, host
        octets[0:count:2, CLIENT_PORT], octets[1:count:2, CLIENT_PORT_BACK] = port, port
        at_ns = START_NS + biflow * FLOW_NS + number * STEP_NS
        packets["time_ns"][0:count:2], packets["time_ns"][1:count:2] = at_ns, at_ns + 1000
        state["cursor"] = 0
        while (done := int(state["cursor"][0])) < count:
            libbpf.test_run(program, buffer, repeat=count - done)
        last_ns = int(packets["time_ns"][count - 1])
    if state["failed"][0]:
        sys.exit("the table could not be filled")
    return last_ns


def _frames() -> tuple[np.ndarray, np.ndarray]:
    """An ACK of a client, and one of the server's; equally long.

    By hand: Scapy would be a third of the memory that is measured.
    """
    client, server = bytes((10, 0, 0, 0)), bytes((192, 0, 2, 1))
    to, back = [
        bytes(12)
        + struct.pack(">HBBHHHBBH", 0x0800, 0x45, 0, IP_OCTETS, 0, 0, 64, abi.TCP, 0)
        + source
        + destination
        + struct.pack(">HHIIBBHHH", *ports, 0, 0, 5 << 4, TCP_ACK, 8192, 0, 0)
        for source, destination, ports in ((client, server, (1024, 443)), (server, client, (443, 1024)))
    ]
    return np.frombuffer(to, "u1"), np.frombuffer(back, "u1")


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of CPU of all threads."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peak_mb() -> float:
    """Of resident memory, so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def parquet_sink(directory: Path) -> Sink:
    """On a disk."""
    from flowmon.sinks.parquet import ParquetSink

    return ParquetSink(directory)


def ipfix_sink(port: int) -> Sink:
    """As the command makes it by default."""
    from flowmon.ipfix.encoder import Profile
    from flowmon.ipfix.fields import CHOICES, NOT_BY_DEFAULT
    from flowmon.sinks.destination import Destination
    from flowmon.sinks.ipfix import IpfixOptions, IpfixSink

    profile = Profile(frozenset(CHOICES) - NOT_BY_DEFAULT)
    return IpfixSink(Destination("tcp", "127.0.0.1", port), IpfixOptions(profile))


def run(flows: int, sink: Sink) -> dict[str, float]:
    """Fills, looks, ends; after a small round in which all is done for the first time."""
    source = PrivateSet(LoadOptions(max_flows=2 * flows, time_source=abi.TimeSource.SKB_TSTAMP))
    table = FlowTable(source)
    clock = StillClock(send(source, WARMING_FLOWS, 0))
    collector = Collector(table, [sink], CollectorOptions(), dict, clock)
    collector.collect(everything=True)
    before = collector.tally.records
    looks = []
    for number in range(LOOKS):
        clock.mono_ns = send(source, flows, number)
        looks.append(measured(collector.collect))
    looks = looks[1:]
    live_mb = peak_mb()
    if collector.tally.records != before:
        sys.exit("flows ended that were to go on")
    complaints: list[str] = []

    def end() -> None:
        collector.collect(everything=True)
        complaints.extend(collector.finish())

    ended_s, ended_cpu_s = measured(end)
    expected = flows * LOOKS + WARMING_FLOWS
    if complaints or collector.tally.packets != expected:
        sys.exit(f"{collector.tally.packets} packets in records, not {expected}: {complaints}")
    return {
        "live_s": statistics.median(took for took, _ in looks),
        "live_cpu_s": statistics.median(cpu for _, cpu in looks),
        "live_mb": live_mb,
        "ended_per_s": flows / ended_s,
        "ended_cpu_s": ended_cpu_s,
        "ended_mb": peak_mb(),
    }


def main() -> None:
    """Prints what was measured."""
    flows, kind, directory = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    if kind == "parquet":
        try:
            found = run(flows, parquet_sink(directory))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            fd = listener.fileno()
            reader = subprocess.Popen([sys.executable, "-c", READER, str(fd)], pass_fds=[fd])
            try:
                found = run(flows, ipfix_sink(listener.getsockname()[1]))
            finally:
                reader.kill()
                reader.wait()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
