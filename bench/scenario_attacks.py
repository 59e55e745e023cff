"""Scans and floods, each with the truth about it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

import numpy as np
from scenario_packets import (
    ACK,
    FIN,
    NS,
    PSH,
    RST,
    SYN,
    URG,
    Array,
    Ends,
    Step,
    address_texts,
    mapped,
    ping,
    port_unreachable,
    tcp,
    udp,
)
from scenario_stage import IN, MS, OUT, REFUSED, UNANSWERED, Stage, handshake, joined, many, mixed
from scenario_talkers import clients_of
from scenario_truth import Attack, Probes, Thresholds, flood_crossings, known, scanner

AFTER_NS = 8 * NS  # of ordinary traffic when the attacks are over
OPEN, CLOSED, FILTERED = 0, 1, 2  # what a port answers: SYN and ACK, RST, nothing


@dataclass(frozen=True)
class Scan:
    """How it is probed. flags: of a TCP probe. completes: open ports are connected to, as connect(2) does."""

    name: str
    flags: int
    completes: bool = False


SCANS = (
    Scan("syn", SYN),
    Scan("connect", SYN, completes=True),
    Scan("fin", FIN),
    Scan("null", 0),
    Scan("xmas", FIN | PSH | URG),
    Scan("ack", ACK),
)
SPEEDS = {"T4": (400.0, 900.0), "T3": (60.0, 250.0), "T2": (2.5, 2.5)}  # probes a second
TARGETS = {
    "lan": (0.03, 0.92, 0.05),
    "firewalled": (0.02, 0.03, 0.95),
    "mixed": (0.05, 0.50, 0.45),
    "served": (0.45, 0.40, 0.15),  # a port that many hosts have open
}
Plan = tuple[Array, Array]  # hosts u1[n, 16] and ports i8[n], in the order of probing


def vertical(stage: Stage, version: int, *, inside: bool) -> Plan:
    """Many ports of one host."""
    ports = stage.random.choice(np.arange(1, 65536), stage.size(20, 1000), replace=False)
    return many(stage.subnet(version, inside=inside)[:1], len(ports)), ports


def horizontal(stage: Stage, version: int, *, inside: bool) -> Plan:
    """One port of the hosts of a subnet."""
    hosts = stage.random.permutation(stage.subnet(version, inside=inside))[: stage.size(25, 254)]
    return hosts, np.full(len(hosts), int(stage.random.choice([22, 23, 80, 443, 445, 3389, 8080])))


def block(stage: Stage, version: int, *, inside: bool) -> Plan:
    """Some ports of some hosts."""
    hosts = stage.subnet(version, inside=inside)[: stage.random.integers(40, 120)]
    ports = stage.random.choice([21, 22, 23, 25, 80, 110, 139, 443, 445, 3306, 3389, 8080], 6, replace=False)
    order = stage.random.permutation(len(hosts) * len(ports))
    return hosts[order // len(ports)], ports[order % len(ports)]


PLANS = (vertical, horizontal, block)


def scan(stage: Stage) -> tuple[Array, Attack]:
    """A TCP scan as nmap makes it."""
    random, version = stage.random, stage.version()
    plan, how = PLANS[random.integers(len(PLANS))], SCANS[random.choice(6, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])]
    speed = str(random.choice(list(SPEEDS)))
    from_inside = random.random() < 0.5
    source = stage.inside(version) if from_inside else stage.outside(version)
    hosts, ports = plan(stage, version, inside=not from_inside)
    times = _probe_times(stage, len(ports), random.uniform(*SPEEDS[speed]))
    hosts, ports = hosts[: len(times)], ports[: len(times)]
    kinds_of_target = list(TARGETS)[: 3 if plan is vertical else 4]
    answers = random.choice(3, len(times), p=TARGETS[str(random.choice(kinds_of_target))])
    packets = _scan_packets(stage, many(source, len(times)), (hosts, ports), times, answers, how)
    kind = f"{how.name} {plan.__name__} {speed}"
    return packets, scanner(kind, address_texts(source)[0], _probes(times, hosts, ports, answers, how))


def mass_scan(stage: Stage) -> tuple[Array, Attack]:
    """Hosts and ports in random order, fast and from one port, as masscan does."""
    random, version = stage.random, stage.version()
    source = stage.outside(version)
    networks = np.concatenate([stage.subnet(version, inside=True) for _ in range(random.integers(4, 12))])
    ports = random.choice([22, 80, 443, 8080, 3389], int(random.integers(1, 4)), replace=False)
    order = random.permutation(len(networks) * len(ports))
    hosts, tried = networks[order // len(ports)], ports[order % len(ports)]
    times = _probe_times(stage, len(order), random.uniform(800, 3000))
    answers = random.choice(3, len(order), p=(0.02, 0.08, 0.90))
    how = Scan("mass", SYN)
    packets = _scan_packets(stage, many(source, len(order)), (hosts, tried), times, answers, how)
    return packets, scanner("mass", address_texts(source)[0], _probes(times, hosts, tried, answers, how))


def slow_scan(stage: Stage) -> tuple[Array, Attack]:
    """So slow that no window holds a threshold: for those who remember."""
    random, version = stage.random, stage.version()
    source = stage.outside(version)
    hosts = random.permutation(stage.subnet(version, inside=True))
    rest_s = stage.seconds - AFTER_NS / NS - 1
    least_s = max(2.0, 1.3 * min(Thresholds().window_s, rest_s) / Thresholds().hosts)
    mean_s = random.uniform(least_s, max(least_s, min(15.0, rest_s / 7)))
    times = _probe_times(stage, 60, 1 / mean_s)
    hosts = hosts[: len(times)]
    answers = random.choice(3, len(times), p=TARGETS["firewalled"])
    ports, how = np.full(len(times), int(random.choice([22, 445, 3389]))), Scan("slow", SYN)
    packets = _scan_packets(stage, many(source, len(times)), (hosts, ports), times, answers, how)
    return packets, scanner("slow", address_texts(source)[0], _probes(times, hosts, ports, answers, how))


def rotating_scan(stage: Stage) -> tuple[Array, Attack]:
    """IPv6: each few probes come from another address of the scanner's /64."""
    random = stage.random
    home = stage.outside(6)
    hosts, ports = PLANS[random.integers(2)](stage, 6, inside=True)
    times = _probe_times(stage, len(ports), random.uniform(20, 200))
    hosts, ports = hosts[: len(times)], ports[: len(times)]
    turn = np.arange(len(times)) // int(random.integers(1, 6))
    sources = np.repeat(home, len(times), axis=0)
    sources[:, 8:] = random.integers(0, 256, (int(turn.max()) + 1, 8))[turn]
    answers = random.choice(3, len(times), p=TARGETS["mixed"])
    how = Scan("rotating", SYN)
    packets = _scan_packets(stage, sources, (hosts, ports), times, answers, how)
    prefix = str(ip_address(bytes(home[0, :8]) + bytes(8))) + "/64"
    return packets, scanner("rotating", prefix, _probes(times, hosts, ports, answers, how))


def udp_scan(stage: Stage) -> tuple[Array, Attack]:
    """UDP ports of a host, whose ICMP errors come once a second at most, as Linux limits them."""
    random, version = stage.random, stage.version()
    source = stage.outside(version)
    hosts, ports = vertical(stage, version, inside=True)
    times = _probe_times(stage, len(ports), random.uniform(15, 120))
    hosts, ports = hosts[: len(times)], ports[: len(times)]
    count = len(times)
    ends = Ends(many(source, count), hosts, stage.ports(1).repeat(count), ports, times, stage.trips(count))
    answered = random.random(count) < 0.02
    probes = udp(random, ends.chosen(~answered), [Step(OUT)])
    second = probes["time_ns"] // NS
    first = np.flatnonzero(np.append(True, second[1:] != second[:-1]))
    errors = port_unreachable(probes[first], np.full(len(first), 20 * MS))
    parts = [probes, errors, udp(random, ends.chosen(answered), [Step(OUT), Step(IN, payload=60)])]
    found = Probes(times, hosts, ports, ~answered)
    return joined(parts), scanner("udp vertical", address_texts(source)[0], found)


def ping_sweep(stage: Stage) -> tuple[Array, Attack]:
    """An echo request to every host of a subnet, where few are."""
    random, version = stage.random, stage.version()
    source = stage.outside(version)
    hosts = random.permutation(stage.subnet(version, inside=True))
    times = _probe_times(stage, len(hosts), random.uniform(10, 300))
    hosts, count = hosts[: len(times)], len(times)
    ends = Ends(
        many(source, count), hosts, stage.ports(count), np.zeros(count, "i8"), times, stage.trips(count)
    )
    dead = (random.random(count) < random.uniform(0.6, 0.95)).astype("i8")
    echo = [Step(OUT, payload=8), Step(IN, payload=8)]
    packets = joined(mixed(stage, ends, dead, {0: echo, 1: echo[:1]}, ping))
    found = Probes(times, hosts, np.zeros(count, "i8"), dead > 0)
    return packets, scanner("ping sweep", address_texts(source)[0], found)


def _probe_times(stage: Stage, count: int, rate: float) -> Array:
    """i8[≤ count]: at that many a second, begun in the first third; as many as there is time for."""
    begin = stage.random.integers(stage.start_ns + NS, stage.start_ns + (stage.end_ns - stage.start_ns) // 3)
    if count < rate * 5 or rate < 5:  # short, or as long as it can be
        begin = stage.start_ns + int(stage.random.integers(NS // 2, 4 * NS))
    gaps = stage.random.uniform(0.7, 1.3, count) / rate * NS
    times = begin + np.cumsum(gaps).astype("i8")
    return times[times < stage.end_ns - AFTER_NS]


def _scan_packets(stage: Stage, sources: Array, plan: Plan, times: Array, answers: Array, how: Scan) -> Array:
    hosts, ports = plan
    count = len(times)
    own = stage.ports(count) if how.completes else stage.ports(1).repeat(count)
    ends = Ends(sources, hosts, own, ports, times, stage.trips(count, 1, 80))
    parts = mixed(stage, ends, answers, _answers(how))
    unsure = np.flatnonzero(answers == FILTERED)
    if how.name in ("syn", "fin", "null", "xmas", "ack") and len(
        unsure
    ):  # nmap asks once more, from the next port
        again = ends.chosen(unsure[unsure < 300])
        later = Ends(
            again.client,
            again.server,
            again.client_port + 1,
            again.server_port,
            again.start_ns + NS,
            again.trip_ns,
        )
        parts.append(tcp(stage.random, later, [Step(OUT, how.flags)]))
    return joined(parts)


def _answers(how: Scan) -> dict[int, list[Step]]:
    """What an open, a closed and a filtered port makes of a probe (RFC 9293 section 3.10.7)."""
    probe = Step(OUT, how.flags)
    refused = [probe, Step(IN, RST if how.flags & ACK else RST | ACK)]
    if how.completes:
        return {OPEN: [*handshake(), Step(OUT, RST | ACK)], CLOSED: refused, FILTERED: UNANSWERED[:2]}
    if how.flags == SYN:
        return {OPEN: [probe, Step(IN, SYN | ACK), Step(OUT, RST)], CLOSED: refused, FILTERED: [probe]}
    if how.flags == ACK:
        return {OPEN: refused, CLOSED: refused, FILTERED: [probe]}
    return {OPEN: [probe], CLOSED: refused, FILTERED: [probe]}


def _probes(times: Array, hosts: Array, ports: Array, answers: Array, how: Scan) -> Probes:
    """Only a completed connection is no failure."""
    return Probes(times, hosts, ports, ~((answers == OPEN) & how.completes))


def flood(stage: Stage) -> tuple[Array, Attack]:
    """SYNs to one server beside its ordinary clients, which are in the packets too (see `scenario`)."""
    random, version = stage.random, stage.version()
    server, rate = stage.inside(version), stage.size(200, 3000)
    count = int(min(rate * random.uniform(2, 5), 7000))
    who, on_random_ports = str(random.choice(["one", "few", "spoofed"])), random.random() < 0.3
    sources = stage.outside(version, {"one": 1, "few": int(random.integers(3, 12)), "spoofed": count}[who])
    times = _probe_times(stage, count, rate)
    ports = random.integers(1, 65536, count) if on_random_ports else np.full(count, 443)
    ends = Ends(
        sources[np.arange(count) % len(sources)],
        many(server, count),
        random.integers(1024, 65536, count),
        ports,
        times,
        stage.trips(count),
    )
    live = random.random(count) < (0.1 if who == "spoofed" else 0.0)
    answers = np.where(live, 1, 0) if random.random() < 0.5 else np.where(np.arange(count) < 512, live, 2)
    answered = [Step(OUT, SYN), Step(IN, SYN | ACK)]
    scripts = {0: answered, 1: [*answered, Step(OUT, RST)], 2: answered[:1], 3: REFUSED}
    packets = joined(mixed(stage, ends, np.where(ports == 443, answers, 3), scripts))
    texts = address_texts(sources)
    attack = Attack(
        f"flood {who}{' random ports' if on_random_ports else ''}",
        texts[0] if who == "one" else "",
        address_texts(server)[0],
        int(times[0]),
        int(times[-1]),
        known(
            flood_crossings(
                Probes(times, ends.client, ports, np.ones(len(times), bool)), sources, Thresholds()
            )
        ),
        frozenset(texts if who == "few" else ()),
    )
    return packets, attack


def flood_among_clients(stage: Stage) -> tuple[Array, Attack, frozenset[str]]:
    """A flood, and the clients of its victim, who must not be named; nor must the port of somebody else."""
    packets, attack = flood(stage)
    version = ip_address(attack.victim).version
    ordinary, talkers = clients_of(
        stage, version, mapped([attack.victim]), int(stage.random.integers(100, 300)), 443
    )
    return joined([packets, ordinary]), attack, talkers - {attack.victim}
