"""Ordinary talkers: what they do looks suspicious, and they must never be named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scenario_packets import ACK, FIN, NS, PSH, RST, SYN, Array, Ends, Step, mapped, ping, tcp, udp
from scenario_stage import (
    ASKED,
    IN,
    LOST,
    MS,
    OUT,
    REFUSED,
    UNANSWERED,
    Stage,
    farewell,
    handshake,
    joined,
    many,
    mixed,
    names,
    session,
)


@dataclass(frozen=True)
class Talk:
    """What an ordinary talker sends and gets, and who it is."""

    packets: Array
    talkers: frozenset[str]


def bulk(stage: Stage) -> Talk:
    """Few connections with many full packets, as iperf3 makes them."""
    version = stage.version()
    client, server, count = stage.inside(version), stage.outside(version), int(stage.random.integers(1, 4))
    ends = Ends(
        many(client, count),
        many(server, count),
        stage.ports(count),
        np.full(count, 5201),
        stage.times(count),
        stage.trips(count),
    )
    pairs = int(stage.random.integers(150, 400))
    burst = [Step(OUT, ACK, 1448), Step(OUT, PSH | ACK, 1448), Step(IN, ACK)]
    return Talk(tcp(stage.random, ends, [*handshake(), *burst * pairs, *farewell()]), names(client, server))


def crawler(stage: Stage) -> Talk:
    """Many web servers, fifty at once, and some are gone."""
    version, random = stage.version(), stage.random
    hosts = int(random.integers(100, 400))
    count = hosts + int(hosts * random.random() / 2)
    client, servers = stage.inside(version), stage.outside(version, hosts)
    which = np.concatenate([np.arange(hosts), random.integers(0, hosts, count - hosts)])
    bursts = stage.times(max(1, count // 50))
    starts = bursts[np.arange(count) % len(bursts)] + random.integers(0, 300 * MS, count)
    ends = Ends(
        many(client, count),
        servers[which],
        stage.ports(count),
        np.where(random.random(hosts) < 0.8, 443, 80)[which],
        starts,
        stage.trips(count),
    )
    dead = random.random(hosts) < random.uniform(0.02, 0.08)
    fate_of = np.where(dead, random.integers(2, 4, hosts), random.integers(0, 2, hosts))
    scripts = {0: session(310, [1448, 900]), 1: session(280, [1448] * 5), 2: UNANSWERED, 3: REFUSED}
    return Talk(joined(mixed(stage, ends, fate_of[which], scripts)), names(client))


def resolver(stage: Stage) -> Talk:
    """DNS to hundreds of servers from random ports; few do not answer, few want TCP."""
    version, random = stage.version(), stage.random
    hosts, count = int(random.integers(200, 500)), int(random.integers(500, 1200))
    client, servers = stage.inside(version), stage.outside(version, hosts)
    ends = Ends(
        many(client, count),
        servers[random.integers(0, hosts, count)],
        random.integers(1024, 65536, count),
        np.full(count, 53),
        stage.times(count),
        stage.trips(count),
    )
    lost = (random.random(count) < 0.03).astype("i8")
    truncated = np.flatnonzero((lost == 0) & (random.random(count) < 0.03))
    over_tcp = ends.chosen(truncated)
    later = Ends(
        over_tcp.client,
        over_tcp.server,
        stage.ports(len(truncated)),
        over_tcp.server_port,
        over_tcp.start_ns + 2 * over_tcp.trip_ns,
        over_tcp.trip_ns,
    )
    parts = mixed(stage, ends, lost, {0: ASKED, 1: LOST}, udp)
    return Talk(joined([*parts, tcp(random, later, session(42, [1300]))]), names(client))


def gateway(stage: Stage) -> Talk:
    """Many clients behind one address; some connections are older than the capture."""
    version, random = stage.version(), stage.random
    hosts, count = int(random.integers(150, 400)), int(random.integers(250, 500))
    client, servers = stage.inside(version), stage.outside(version, hosts)
    chosen = random.integers(0, hosts, count)
    ports = random.choice([443, 443, 443, 80, 993, 5228, 8443, 22], count)
    ends = Ends(
        many(client, count),
        servers[chosen],
        stage.ports(count),
        ports,
        stage.times(count),
        stage.trips(count),
    )
    failing = random.random(count) < random.uniform(0.01, 0.04)
    fates = np.where(failing, random.integers(2, 4, count), random.integers(0, 2, count))
    scripts = {0: session(400, [1448, 700]), 1: session(200, [300], 2.0), 2: UNANSWERED, 3: REFUSED}
    parts = mixed(stage, ends, fates, scripts)
    old = int(random.integers(20, 60))
    older = Ends(
        many(client, old),
        stage.outside(version, old),
        stage.ports(old),
        random.choice([443, 993, 5228, 22], old),
        random.integers(stage.start_ns, stage.start_ns + 12 * NS, old),
        stage.trips(old),
    )
    ways: dict[int, list[Step]] = {
        0: [Step(OUT, ACK, 1, after_s=10 * at, again=True) for at in (0, 1, 1, 1, 1)],
        1: [Step(IN, PSH | ACK, 120), Step(OUT, ACK), Step(IN, PSH | ACK, 90, jitter_s=9), Step(OUT, ACK)],
        2: [Step(OUT, PSH | ACK, 60), Step(IN, RST)],
        3: [Step(OUT, FIN | ACK), Step(IN, FIN | ACK), Step(OUT, ACK)],
        4: [Step(OUT, FIN | ACK), Step(OUT, FIN | ACK, after_s=0.4, again=True)],
    }
    ways[0] = [kept for sent in ways[0] for kept in (sent, Step(IN, ACK))]  # keepalives, each acknowledged
    parts += mixed(stage, older, random.choice(5, old, p=[0.4, 0.3, 0.1, 0.15, 0.05]), ways)
    return Talk(joined(parts), names(client))


def poller(stage: Stage) -> Talk:
    """Every host is asked by ping, TCP and SNMP, again and again; some are dead all the time."""
    version, random = stage.version(), stage.random
    hosts, every_s = int(random.integers(50, 150)), random.uniform(15, 30)
    rounds = max(1, int(stage.seconds / every_s))
    client, targets = stage.inside(version), stage.inside(version, hosts)
    dead = np.tile(random.random(hosts) < random.uniform(0.05, 0.10), rounds).astype("i8")
    phase = random.random(hosts) * min(every_s, stage.seconds - 2)
    starts = (phase + np.arange(rounds)[:, None] * every_s).ravel() * NS + stage.start_ns
    trips = stage.trips(hosts * rounds, 0.2, 5)

    def asked(port: int, after_ms: int) -> Ends:
        count = hosts * rounds
        return Ends(
            many(client, count),
            np.tile(targets, (rounds, 1)),
            stage.ports(count),
            np.full(count, port),
            starts.astype("i8") + after_ms * MS,
            trips,
        )

    parts = mixed(
        stage, asked(0, 0), dead, {0: [Step(OUT, payload=56), Step(IN, payload=56)], 1: LOST * 2}, ping
    )
    parts += mixed(stage, asked(161, 20), dead, {0: ASKED, 1: [*LOST, Step(OUT, payload=40, after_s=1)]}, udp)
    for place, port in enumerate(random.permutation([22, 80, 443, 161])[: random.integers(1, 4)]):
        shut = [*handshake(), *farewell()]
        parts += mixed(stage, asked(int(port), 40 + 20 * place), dead, {0: shut, 1: UNANSWERED[:2]})
    return Talk(joined(parts), names(client))


def mail_relay(stage: Stage) -> Talk:
    """SMTP to many; some defer, some do not answer."""
    version, random = stage.version(), stage.random
    hosts = int(random.integers(40, 120))
    count = hosts * 2
    client, servers = stage.inside(version), stage.outside(version, hosts)
    which = np.concatenate([np.arange(hosts), random.integers(0, hosts, count - hosts)])
    ends = Ends(
        many(client, count),
        servers[which],
        stage.ports(count),
        np.full(count, 25),
        stage.times(count),
        stage.trips(count),
    )
    fates = random.choice(4, hosts, p=[0.72, 0.16, 0.09, 0.03])[which]
    greeting = [*handshake(), Step(IN, PSH | ACK, 60), Step(OUT, PSH | ACK, 30), Step(IN, PSH | ACK, 120)]
    taken = [Step(OUT, PSH | ACK, 900), Step(IN, PSH | ACK, 40)]
    deferred = [Step(OUT, PSH | ACK, 40), Step(IN, PSH | ACK, 50)]
    scripts = {
        0: [*greeting, *taken, *farewell()],
        1: [*greeting, *deferred, *farewell()],
        2: UNANSWERED,
        3: REFUSED,
    }
    return Talk(joined(mixed(stage, ends, fates, scripts)), names(client))


def busy_server(stage: Stage) -> Talk:
    """Up to some hundred connections a second from everywhere; a few of them get lost."""
    version = stage.version()
    server = stage.inside(version)
    return Talk(*clients_of(stage, version, server, int(stage.random.integers(500, 900)), 443))


def clients_of(
    stage: Stage, version: int, server: Array, count: int, port: int
) -> tuple[Array, frozenset[str]]:
    """So many connections to a server, some hundred a second at most, and who takes part."""
    random = stage.random
    clients = stage.outside(version, max(1, count // 3))
    rate = random.uniform(40, 400)
    length_ns = int(min(count / rate, stage.seconds - 2) * NS)
    begin = random.integers(stage.start_ns, stage.end_ns - NS - length_ns)
    ends = Ends(
        clients[random.integers(0, len(clients), count)],
        many(server, count),
        stage.ports(count),
        np.full(count, port),
        np.sort(random.integers(begin, begin + length_ns, count)),
        stage.trips(count),
    )
    fates = random.choice(3, count, p=[0.6, 0.395, 0.005])
    scripts = {0: session(300, [800]), 1: session(500, [1448, 1448, 300]), 2: UNANSWERED[:3]}
    return joined(mixed(stage, ends, fates, scripts)), names(server, ends.client)


def multicast(stage: Stage) -> Talk:
    """MDNS and SSDP: questions to groups, with answers that come from somebody else."""
    version, random = stage.version(), stage.random
    hosts, count = int(random.integers(10, 30)), int(random.integers(200, 500))
    talkers, who = stage.inside(version, hosts), random.integers(0, hosts, count)
    is_mdns = random.random(count) < 0.6
    groups = mapped(["224.0.0.251", "239.255.255.250"] if version == 4 else ["ff02::fb", "ff02::c"])
    ends = Ends(
        talkers[who],
        np.where(is_mdns[:, None], groups[0], groups[1]),
        np.where(is_mdns, 5353, 40000 + who),
        np.where(is_mdns, 5353, 1900),
        stage.times(count),
        stage.trips(count, 0.2, 5),
    )
    asked = np.flatnonzero(~is_mdns)
    answers = Ends(
        talkers[(who[asked] + 1) % hosts],
        ends.client[asked],
        np.full(len(asked), 1900),
        ends.client_port[asked],
        ends.start_ns[asked] + random.integers(MS, 900 * MS, len(asked)),
        ends.trip_ns[asked],
    )
    question = [Step(OUT, payload=120)]
    return Talk(
        joined([udp(random, ends, question), udp(random, answers, [Step(OUT, payload=300)])]), names(talkers)
    )


def dns_clients(stage: Stage) -> Talk:
    """Clients of one resolver; hardly ever is a question lost, and then it is asked again."""
    version, random = stage.version(), stage.random
    clients, server = stage.inside(version, int(random.integers(20, 50))), stage.inside(version)
    count = int(random.integers(600, 1500))
    ends = Ends(
        clients[random.integers(0, len(clients), count)],
        many(server, count),
        stage.ports(count),
        np.full(count, 53),
        stage.times(count),
        stage.trips(count, 0.2, 40),
    )
    fates = (random.random(count) < 0.01).astype("i8")
    again = [Step(OUT, payload=40), Step(OUT, payload=40, after_s=5), Step(IN, payload=180)]
    return Talk(joined(mixed(stage, ends, fates, {0: ASKED, 1: again}, udp)), names(clients, server))


def backscatter(stage: Stage) -> Talk:
    """What the victim of somebody else's flood answers to addresses of ours that were borrowed for it."""
    version, random = stage.version(), stage.random
    victim, count = stage.outside(version), int(random.integers(150, 600))
    borrowed = stage.inside(version, count)
    ends = Ends(
        many(victim, count),
        borrowed,
        np.full(count, int(random.choice([80, 443, 53]))),
        random.integers(1024, 65536, count),
        stage.times(count),
        stage.trips(count),
    )
    repeated = [Step(OUT, SYN | ACK), *(Step(OUT, SYN | ACK, after_s=s, again=True) for s in (1.0, 2.0))]
    scripts = {0: repeated, 1: [Step(OUT, SYN | ACK), Step(IN, RST)], 2: [Step(OUT, RST | ACK)]}
    return Talk(
        joined(mixed(stage, ends, random.choice(3, count, p=[0.5, 0.2, 0.3]), scripts)), names(victim)
    )


def dark_site(stage: Stage) -> Talk:
    """A poller of one service whose targets mostly vanish in the middle: a link has failed."""
    version, random = stage.version(), stage.random
    hosts, rounds = int(random.integers(30, 90)), int(stage.seconds / 6)
    client, targets, count = stage.inside(version), stage.outside(version, hosts), hosts * rounds
    starts = stage.start_ns + 6 * NS * np.arange(rounds)[:, None] + random.integers(0, 5 * NS, hosts)
    ends = Ends(
        many(client, count),
        np.tile(targets, (rounds, 1)),
        stage.ports(count),
        np.full(count, int(random.choice([22, 443, 9100]))),
        starts.ravel(),
        stage.trips(count),
    )
    is_late = ends.start_ns > stage.start_ns + random.uniform(0.3, 0.6) * stage.seconds * NS
    gone = is_late & np.tile(random.random(hosts) < random.uniform(0.5, 1.0), rounds)
    scripts = {0: [*handshake(), *farewell()], 1: UNANSWERED[:3]}
    return Talk(joined(mixed(stage, ends, gone.astype("i8"), scripts)), names(client))


def server_outage(stage: Stage) -> Talk:
    """A busy server that answers nobody for some seconds; who wants something from it tries again."""
    version, random = stage.version(), stage.random
    server, rate, length_s = stage.inside(version), random.uniform(20, 200), random.uniform(6, 12)
    count = int(rate * length_s)
    clients = stage.outside(version, max(1, count // 2))
    begin = int(random.integers(stage.start_ns, stage.end_ns - int((length_s + 8) * NS)))
    ends = Ends(
        clients[random.integers(0, len(clients), count)],
        many(server, count),
        stage.ports(count),
        np.full(count, 443),
        np.sort(random.integers(begin, begin + int(length_s * NS), count)),
        stage.trips(count),
    )
    since_s = (ends.start_ns - begin) / NS
    is_down = (since_s > length_s / 2) & (since_s < length_s / 2 + random.uniform(1.5, 5))
    scripts = {0: session(300, [800]), 1: UNANSWERED}
    return Talk(joined(mixed(stage, ends, is_down.astype("i8"), scripts)), names(server, ends.client))


def peer_to_peer(stage: Stage) -> Talk:
    """UDP from one port to a hundred hosts and ports, nearly half of which are gone."""
    version, random = stage.version(), stage.random
    count = int(random.integers(80, 140))
    client = stage.inside(version)
    ends = Ends(
        many(client, count),
        stage.outside(version, count),
        np.full(count, 51413),
        random.integers(1024, 65536, count),
        stage.times(count),
        stage.trips(count),
    )
    gone = (random.random(count) < 0.4).astype("i8")
    scripts = {0: [*ASKED * 3], 1: [*LOST, Step(OUT, payload=40, after_s=3)]}
    return Talk(joined(mixed(stage, ends, gone, scripts, udp)), names(client))


BENIGN: dict[str, Callable[[Stage], Talk]] = {
    one.__name__: one
    for one in (bulk, crawler, resolver, gateway, poller, mail_relay, busy_server, multicast, dns_clients,
                backscatter, peer_to_peer, dark_site, server_outage)
}  # fmt: skip
HARD = frozenset({"peer_to_peer", "dark_site", "server_outage"})
