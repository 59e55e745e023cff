"""What a packet costs: nanoseconds by BPF_PROG_TEST_RUN, less an empty program.

Beside it stands the floor: a program that reads a key of 12 octets from TCP over IPv4 and looks it up in a hash
(bench.bpf.c), run on TCP/IPv4 ACK whatever the row's packet is. The deny-list and the guard are off, but for
the rows that name them, whose ratio is to the same packet without them.

One frame again and again is a TCP segment that is retransmitted, and meets a table that is all in the cache. So
there are rows in which each segment follows the one before, rows in which each packet is of another of many
flows, and rows in which it is of a new one: a program that changes the frame comes first, and what that takes in
front of the empty program is subtracted.

Where all is in the cache, a figure is the least of a few tries: what else is on the CPU only ever adds to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

from measure import FLOWMON, Bench, Row, alternate, at_most
from programs import Flowmon, OwnPrograms, nanoseconds
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

PART = "per packet"
ROUNDS = 13
REPEAT = 60_000
TRIES = 5
NS = "ns"
EMPTY, FLOOR = "empty", "floor"

ETHERNET = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
IPV4, IPV6 = IP(src="192.0.2.1", dst="192.0.2.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")
ACK = "TCP/IPv4 ACK"
OCTETS = 1000  # of a segment
FRAGMENT = "UDP/IPv4, later fragment"
PACKETS: dict[str, Packet] = {
    ACK: ETHERNET / IPV4 / TCP(sport=1024, dport=80, flags="A"),
    "TCP/IPv6 ACK": ETHERNET / IPV6 / TCP(sport=1024, dport=80, flags="A"),
    "UDP/IPv4": ETHERNET / IPV4 / UDP(sport=1024, dport=53) / bytes(64),
    "UDP/IPv6": ETHERNET / IPV6 / UDP(sport=1024, dport=53) / bytes(64),
    "ICMP echo": ETHERNET / IPV4 / ICMP(id=7) / bytes(56),
    "TCP/IPv4 ACK, one tag": ETHERNET / Dot1Q(vlan=7) / IPV4 / TCP(sport=1024, dport=80, flags="A"),
    "TCP/IPv4 data, retransmitted": ETHERNET / IPV4 / TCP(sport=1025, dport=80, flags="PA") / bytes(OCTETS),
    FRAGMENT: ETHERNET / IP(src="192.0.2.1", dst="192.0.2.2", id=9, frag=100, proto=17) / bytes(1000),
    "UDP/IPv6, destination options": ETHERNET / IPV6 / IPv6ExtHdrDestOpt() / UDP(sport=1, dport=53),
}
DATA: dict[str, Packet] = {
    "TCP/IPv4 data": ETHERNET / IPV4 / TCP(sport=1026, dport=80, flags="PA") / bytes(OCTETS),
    "TCP/IPv6 data": ETHERNET / IPV6 / TCP(sport=1026, dport=80, flags="PA") / bytes(OCTETS),
}
# Whose the later fragment is.
FIRST_FRAGMENT = bytes(
    ETHERNET / IP(src="192.0.2.1", dst="192.0.2.2", id=9, flags="MF") / UDP(sport=1, dport=53) / bytes(792)
)
TARGETS = (at_most(88), at_most(2.3, FLOOR))

WALKS = (1 << 10, 1 << 16, 1 << 20)  # flows
NEW_ROOM = 1 << 20  # entries of a table into which new flows go
FULL = 1 << 16  # entries of a table that is full of them

ON_DEMAND = (ACK, "TCP/IPv6 ACK")  # measured with the deny-list, the guard and packet features as well
DENIED = 10_000  # prefixes of the list, none of them the packet's
WITHOUT = "without"

Runs = dict[str, Callable[[], float]]


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of existing flows, of many of them, of new ones, and of what is off by default."""
    own = OwnPrograms()
    trees = {name: Flowmon(tree) for name, tree in bench.trees.items()}
    yield from _existing(bench, own, trees)
    yield from _data(bench, own, trees)
    yield from _on_demand(bench, own, trees[FLOWMON])
    if not all(loaded.has_flows() for loaded in trees.values()):
        sys.exit("a program counted nothing: what was measured is not its work")
    for loaded in (own, *trees.values()):
        loaded.close()
    for flows in WALKS:
        yield _many(bench, flows)
    yield _new(bench, "table with room", NEW_ROOM)
    yield _new(bench, "table full", FULL)


def _existing(bench: Bench, own: OwnPrograms, trees: dict[str, Flowmon]) -> Iterator[Row]:
    """One frame again and again."""
    ack = bytes(PACKETS[ACK])
    nanoseconds(own.programs["learn"], ack, 1)
    for name, packet in PACKETS.items():
        frame = bytes(packet)
        runs: Runs = {key: partial(_one, loaded, frame) for key, loaded in trees.items()}
        runs[FLOOR] = partial(_least, own.programs["look_up"], ack)
        runs[EMPTY] = partial(_least, own.programs["empty"], frame)
        targets = TARGETS if name == ACK else ()
        found = alternate(runs, bench.rounds_or(ROUNDS))
        yield Row(PART, name, "1 flow", NS, found, EMPTY, targets)


def _one(loaded: Flowmon, frame: bytes) -> float:
    """The first fragment goes before, in case the frame is a later one of it."""
    nanoseconds(loaded.program, FIRST_FRAGMENT, 1)
    return _least(loaded.program, frame)


def _least(program: int, frame: bytes) -> float:
    return min(nanoseconds(program, frame, REPEAT) for _ in range(TRIES))


def _data(bench: Bench, own: OwnPrograms, trees: dict[str, Flowmon]) -> Iterator[Row]:
    """Segments in order, each new. The floor looks up the flow over IPv4."""
    programs = {name: loaded.program for name, loaded in trees.items()}
    programs |= {FLOOR: own.programs["look_up"], EMPTY: own.programs["empty"]}
    over_ipv4 = bytes(next(iter(DATA.values())))
    nanoseconds(own.programs["learn"], over_ipv4, 1)
    for name, packet in DATA.items():
        sent = dict.fromkeys(programs, 0)

        def run(who: str, packet: Packet = packet, sent: dict[str, int] = sent) -> float:
            frame = over_ipv4 if who == FLOOR else bytes(packet)
            tries = []
            for _ in range(TRIES):
                tries.append(own.advance(programs[who], frame, OCTETS, REPEAT, sent[who]))
                sent[who] += REPEAT
            return min(tries)

        runs: Runs = {who: partial(run, who) for who in programs}
        found = alternate(runs, bench.rounds_or(ROUNDS))
        targets = TARGETS if IP in packet else ()
        yield Row(PART, name, "1 flow", NS, found, EMPTY, targets)


def _on_demand(bench: Bench, own: OwnPrograms, without: Flowmon) -> Iterator[Row]:
    """With the list, the guard, and features of a session at its limit, beside the same packet without."""
    tree = bench.trees[FLOWMON]
    kinds = {
        "an empty deny-list": Flowmon(tree, deny=True),
        f"{DENIED:,} prefixes": Flowmon(tree, deny=True, denied=DENIED),
        "a guard": Flowmon(tree, guard_ports=20),
        "features": Flowmon(tree, features_packets=100),
    }
    for name in ON_DEMAND:
        frame = bytes(PACKETS[name])
        for how, loaded in kinds.items():
            runs: Runs = {
                FLOWMON: partial(_one, loaded, frame),
                WITHOUT: partial(_one, without, frame),
                EMPTY: partial(_least, own.programs["empty"], frame),
            }
            yield Row(PART, f"{name}, {how}", "1 flow", NS, alternate(runs, bench.rounds_or(ROUNDS)), EMPTY)
    for loaded in kinds.values():
        loaded.close()


def _many(bench: Bench, flows: int) -> Row:
    """Existing flows in turn, so many of them. Tables are of twice that size."""
    own = OwnPrograms(2 * flows)
    trees = {name: Flowmon(tree, max_flows=2 * flows) for name, tree in bench.trees.items()}
    frame = bytes(PACKETS[ACK])
    times = max(TRIES * REPEAT, flows)
    programs = {name: loaded.program for name, loaded in trees.items()}
    for program in (*programs.values(), own.programs["learn"]):
        own.walk(program, frame, flows, flows)
    programs |= {FLOOR: own.programs["look_up"], EMPTY: own.programs["empty"]}
    runs: Runs = {name: partial(own.walk, program, frame, flows, times) for name, program in programs.items()}
    found = alternate(runs, bench.rounds_or(ROUNDS))
    for loaded in (own, *trees.values()):
        loaded.close()
    return Row(PART, f"{ACK}, flows in turn", f"{flows:,} flows", NS, found, EMPTY)


def _new(bench: Bench, size: str, entries: int) -> Row:
    """Each packet begins a flow. A table with room has it to the last round."""
    own = OwnPrograms()
    trees = {name: Flowmon(tree, max_flows=entries) for name, tree in bench.trees.items()}
    frame = bytes(PACKETS[ACK])
    rounds = bench.rounds_or(ROUNDS)
    times = NEW_ROOM // (2 * rounds)
    begun = dict.fromkeys((*trees, EMPTY), 0)
    if entries == FULL:
        for name, loaded in trees.items():
            own.walk(loaded.program, frame, 1 << 32, 2 * FULL)
            begun[name] = 2 * FULL

    def run(name: str, program: int) -> float:
        first = begun[name]
        begun[name] += times
        return own.walk(program, frame, 1 << 32, times, first)

    runs: Runs = {name: partial(run, name, loaded.program) for name, loaded in trees.items()}
    runs[EMPTY] = partial(run, EMPTY, own.programs["empty"])
    found = alternate(runs, rounds)
    for loaded in (own, *trees.values()):
        loaded.close()
    return Row(PART, "a new flow, TCP/IPv4", size, NS, found, EMPTY)
