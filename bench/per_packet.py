"""What a packet of an existing flow costs: nanoseconds by BPF_PROG_TEST_RUN, less an empty program.

With --against COMMIT the programs of that commit run in turn with these, and ratios are printed.

    bench/per_packet.py [--against COMMIT] [--rounds N] [--json FILE]
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from flowmon.kernel import libbpf

PROJECT = Path(__file__).resolve().parent.parent
OBJECT = PROJECT / "kern" / "flowmon.bpf.o"
REPEAT = 500_000
SCHED_CLS = 3

ETHERNET = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
IPV4, IPV6 = IP(src="192.0.2.1", dst="192.0.2.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")
PACKETS: dict[str, Packet] = {
    "TCP/IPv4 ACK": ETHERNET / IPV4 / TCP(sport=1024, dport=80, flags="A"),
    "TCP/IPv4 data": ETHERNET / IPV4 / TCP(sport=1025, dport=80, flags="PA") / bytes(1000),
    "TCP/IPv6 ACK": ETHERNET / IPV6 / TCP(sport=1024, dport=80, flags="A"),
    "UDP/IPv4": ETHERNET / IPV4 / UDP(sport=1024, dport=53) / bytes(64),
    "ICMP echo": ETHERNET / IPV4 / ICMP(id=7) / bytes(56),
    "TCP/IPv4, one tag": ETHERNET / Dot1Q(vlan=7) / IPV4 / TCP(sport=1024, dport=80, flags="A"),
    "UDP/IPv4, later fragment": ETHERNET
    / IP(src="192.0.2.1", dst="192.0.2.2", frag=100, proto=17)
    / bytes(1000),
    "UDP/IPv6, destination options": ETHERNET / IPV6 / IPv6ExtHdrDestOpt() / UDP(sport=1, dport=53),
}


class Program:
    """The program for ingress on Ethernet of a built object, loaded for as long as this process lives."""

    def __init__(self, path: Path) -> None:
        lib = libbpf.library()
        said: list[str] = []
        libbpf.set_print(said.append)
        handle = lib.bpf_object__open_file(os.fsencode(path), None)
        settings = lib.bpf_object__find_map_by_name(handle, b".rodata")
        size = ctypes.c_size_t()
        values = lib.bpf_map__initial_value(settings, ctypes.byref(size))
        in_use = np.array([0, 1], "u4")  # time_source, plain_unlock; whatever follows stays off
        ctypes.memmove(values, in_use.ctypes.data, in_use.nbytes)
        if lib.bpf_object__load(handle) < 0:
            sys.exit(f"{path} cannot be loaded: {said[-1][-300:] if said else ''}")
        self.fd = lib.bpf_program__fd(lib.bpf_object__find_program_by_name(handle, b"ingress_ethernet"))


class EmptyProgram:
    """Two instructions: return TC_ACT_UNSPEC."""

    def __init__(self) -> None:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        instructions = np.array([0xFFFFFFFF_0000_00_B7, 0x95], "u8")
        self.fd = lib.bpf_prog_load(
            SCHED_CLS, b"empty", b"GPL", instructions.ctypes.data_as(ctypes.c_void_p), 2, None
        )
        if self.fd < 0:
            sys.exit("a BPF program cannot be loaded: run as root")


def nanoseconds(fd: int, packet: Packet) -> float:
    """Of one run, the mean of many."""
    data = np.frombuffer(bytes(packet), "u1")
    libbpf.test_run(fd, data, 1000)
    return libbpf.timed_run(fd, data, REPEAT)


def build(commit: str, directory: Path) -> Path:
    """The object of another commit."""
    archive = subprocess.run(
        ["git", "-C", PROJECT, "archive", commit, "kern"], capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
    subprocess.run(["make", "-s", "-C", directory / "kern"], check=True)
    return directory / "kern" / "flowmon.bpf.o"


def measure(programs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each in turn, so that what else the machine does meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            found[name].append(run())
    return found


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    fds = {"empty": EmptyProgram().fd, "now": Program(OBJECT).fd}
    with tempfile.TemporaryDirectory() as directory:
        if options.against:
            fds["before"] = Program(build(options.against, Path(directory))).fd
        table = {}
        for name, packet in PACKETS.items():
            runs = {key: (lambda fd=fd, packet=packet: nanoseconds(fd, packet)) for key, fd in fds.items()}
            table[name] = measure(runs, options.rounds)
    print(f"{'ns a packet, less the empty program':<36}{'median':>8}{'least':>8}{'most':>8}", end="")
    print(f"{'before':>8}{'ratio':>8}" if options.against else "")
    for name, found in table.items():
        empty = statistics.median(found["empty"])
        now = sorted(value - empty for value in found["now"])
        print(f"{name:<36}{statistics.median(now):>8.1f}{now[0]:>8.1f}{now[-1]:>8.1f}", end="")
        if options.against:
            before = [value - empty for value in found["before"]]
            ratio = statistics.median(a / b for a, b in zip(_less(found["now"], empty), before, strict=True))
            print(f"{statistics.median(before):>8.1f}{ratio:>8.3f}", end="")
        print()
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


def _less(values: list[float], empty: float) -> list[float]:
    return [value - empty for value in values]


if __name__ == "__main__":
    main()
