"""What a packet of an existing flow costs: nanoseconds by BPF_PROG_TEST_RUN, less an empty program.

With --against COMMIT the programs of that commit run in turn with these, and ratios are printed. The deny-list
and the guard are off, but for the last rows, whose ratio is to the same packet without them.

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
from itertools import product
from pathlib import Path

import numpy as np
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from flowmon import abi
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


BLOCKING = ("TCP/IPv4 ACK", "TCP/IPv6 ACK")  # measured with the deny-list and the guard as well
DENIED = 10_000  # prefixes of the list, none of them the packet's


class Program:
    """The program for ingress on Ethernet of a built object, loaded for as long as this process lives.

    deny, guard_ports: as in the settings. denied: prefixes on the list.
    """

    def __init__(self, path: Path, deny: int = 0, guard_ports: int = 0, denied: int = 0) -> None:
        lib = libbpf.library()
        said: list[str] = []
        libbpf.set_print(said.append)
        handle = lib.bpf_object__open_file(os.fsencode(path), None)
        settings = lib.bpf_object__find_map_by_name(handle, b".rodata")
        size = ctypes.c_size_t()
        values = lib.bpf_map__initial_value(settings, ctypes.byref(size))
        in_use = np.array([0, 1], "u4")  # time_source, plain_unlock; whatever follows stays off
        if deny or guard_ports:
            chosen = {"plain_unlock": 1, "deny": deny, "guard_ports": guard_ports, "guard_window_s": 60}
            in_use = np.array([tuple(chosen.get(name, 0) for name in abi.SETTINGS.names or ())], abi.SETTINGS)
        ctypes.memmove(values, in_use.ctypes.data, in_use.nbytes)
        if lib.bpf_object__load(handle) < 0:
            sys.exit(f"{path} cannot be loaded: {said[-1][-300:] if said else ''}")
        self.fd = lib.bpf_program__fd(lib.bpf_object__find_program_by_name(handle, b"ingress_ethernet"))
        if denied:
            _fill(lib.bpf_map__fd(lib.bpf_object__find_map_by_name(handle, b"deny")), denied)


def _fill(deny_map: int, denied: int) -> None:
    """Blocks so many addresses of 10.0.0.0/8."""
    key, value = np.zeros(1, abi.DENY_KEY), np.zeros(1, abi.DENY_ENTRY)
    key["prefix_length"] = value["prefix_length"] = 128
    value["kind"] = abi.DenyKind.DROP
    for number in range(denied):
        address = b"\0" * 10 + b"\xff\xff" + (10 << 24 | number * 1021).to_bytes(4)
        key["address"] = np.frombuffer(address, "u1")
        libbpf.update(deny_map, key, value)


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
        blocking = {
            "an empty deny-list": Program(OBJECT, deny=1).fd,
            f"{DENIED:,} prefixes": Program(OBJECT, deny=1, denied=DENIED).fd,
            "a guard": Program(OBJECT, guard_ports=20).fd,
        }
        for name, (how, fd) in product(BLOCKING, blocking.items()):
            packet = PACKETS[name]
            table[f"{name}, {how}"] = measure(
                {
                    "empty": lambda packet=packet: nanoseconds(fds["empty"], packet),
                    "now": lambda fd=fd, packet=packet: nanoseconds(fd, packet),
                    "before": lambda packet=packet: nanoseconds(fds["now"], packet),
                },
                options.rounds,
            )
    print(f"{'ns a packet, less the empty program':<44}{'median':>8}{'least':>8}{'most':>8}", end="")
    print(f"{'before':>8}{'ratio':>8}")
    for name, found in table.items():
        empty = statistics.median(found["empty"])
        now = sorted(value - empty for value in found["now"])
        print(f"{name:<44}{statistics.median(now):>8.1f}{now[0]:>8.1f}{now[-1]:>8.1f}", end="")
        if "before" in found:
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
