"""Who counts as a peer, for how long, and how many there are, against a slow reference."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activity_samples import ICMP, START_NS, TCP, UDP, Attempt, activity, at, rows_of
from flowmon.analysers.active_peers import ActivePeers, ActivePeersParameters, Peer, chosen_ports
from flowmon.analysers.activity import Activity, Outcome

ANY = ActivePeersParameters(ports="all", window=10)
SERVER = "198.51.100.2"
SYN, SYN_ACK, ACK, RST = 0x02, 0x12, 0x10, 0x04


def served(source: str = "192.0.2.1", port: int = 443, protocol: int = TCP, **fields: Any) -> Attempt:
    """A biflow that was answered, and has a new packet."""
    outcome = fields.pop("outcome", Outcome.SUCCEEDED)
    flags = {"forward_flags": ACK | 2, "reverse_flags": SYN_ACK} if protocol == TCP else {}
    server = SERVER if ip_address(source).version == 4 else "2001:db8::2"
    return Attempt(source, server, port, outcome, protocol, fields={"reverse_packets": 1, **flags, **fields})


def counted(*attempts: Attempt, parameters: ActivePeersParameters = ANY) -> dict[tuple[int, int, int], int]:
    analyser = ActivePeers(parameters)
    analyser.observe(activity(attempts))
    assert analyser.assess(START_NS) == analyser.finish(START_NS) == []
    return analyser.counts()


def test_distinct_sources_by_version_protocol_and_port() -> None:
    rows = [
        *[served(source_port=port) for port in (1000, 1001)],  # one peer
        served("192.0.2.2"),
        served(port=22),
        served(protocol=UDP),
        served(protocol=ICMP, port=0),
        served("2001:db8::1"),
    ]
    expected = {(4, TCP, 443): 2, (4, TCP, 22): 1, (4, UDP, 443): 1, (4, ICMP, 0): 1, (6, TCP, 443): 1}
    assert counted(*rows) == expected


def test_peers_by_name_in_order() -> None:
    analyser = ActivePeers(ANY)
    analyser.observe(
        activity([served("192.0.2.10"), served("192.0.2.9"), served("2001:db8::1"), served("192.0.2.9", 22)])
    )
    assert analyser.peers() == [
        Peer("192.0.2.9", 4, 22, TCP),
        Peer("192.0.2.9", 4, 443, TCP),
        Peer("192.0.2.10", 4, 443, TCP),
        Peer("2001:db8::1", 6, 443, TCP),
    ]
    assert ActivePeers().peers() == []
    assert ActivePeers().counts() == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"new_forward_packets": 0}, False),
        ({"new_forward_packets": 0, "new_reverse_packets": 1}, True),
        ({"reverse_packets": 0}, False),
        ({"outcome": Outcome.HALF_OPEN, "forward_flags": SYN}, False),  # answered, as anybody is
        ({"outcome": Outcome.HALF_OPEN, "forward_flags": SYN | RST}, False),
        ({"outcome": Outcome.WAITING, "forward_flags": SYN}, False),
        ({"outcome": Outcome.CUT, "forward_flags": SYN}, False),
        ({"outcome": Outcome.NONE, "forward_flags": RST}, False),  # SYN and ACK to who did not ask
        ({"outcome": Outcome.REFUSED, "reverse_flags": RST | ACK}, False),
        ({"outcome": Outcome.NONE, "forward_flags": ACK, "reverse_flags": ACK}, True),  # older than the watch
        ({"outcome": Outcome.NONE, "forward_flags": ACK, "reverse_flags": 0}, False),
        ({"outcome": Outcome.NONE, "forward_flags": SYN_ACK, "reverse_flags": RST}, False),  # backscatter
        ({"outcome": Outcome.NONE, "forward_flags": ACK, "reverse_flags": RST | ACK}, False),
        ({"protocol": UDP, "outcome": Outcome.NONE}, True),
        ({"protocol": UDP, "outcome": Outcome.UNANSWERED, "reverse_packets": 0}, False),
    ],
)
def test_who_counts(fields: dict[str, Any], expected: bool) -> None:
    assert bool(counted(served(**fields))) == expected


def test_forged_flood_on_a_live_server_adds_nobody() -> None:
    """Each of its SYNs is answered, and never acknowledged: it waits, and is then given up or cut."""
    analyser = ActivePeers(ANY)
    clients = [served(f"192.0.2.{number}") for number in range(1, 4)]
    for second, outcome in enumerate((Outcome.WAITING, Outcome.HALF_OPEN, Outcome.CUT)):
        forged = [
            served(f"203.0.113.{number}", outcome=outcome, forward_flags=SYN, new_reverse_packets=1)
            for number in range(200)
        ]
        analyser.observe(activity([*forged, *clients], second))
        assert analyser.counts() == {(4, TCP, 443): 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("22+80+8000-8002", [22, 80, 8000, 8001, 8002]),
        ("22,80", [22, 80]),
        ("0", [0]),
        ("65535-65535", [65535]),
        ("all", list(range(65536))),
    ],
)
def test_ports(text: str, expected: list[int]) -> None:
    assert np.flatnonzero(chosen_ports(text)).tolist() == expected


@pytest.mark.parametrize(
    "text", ["", "http", "80+", "80-", "-80", "65536", "1-65536", "90-80", "1-2-3", "²", " 80"]
)
def test_no_ports(text: str) -> None:
    with pytest.raises(ValueError, match=r"^ports: expected "):
        ActivePeersParameters(ports=text)


def test_only_the_ports_asked_for() -> None:
    attempts = [served(port=port) for port in (1, 1023, 1024, 8080)]
    assert {port for _, _, port in counted(*attempts, parameters=ActivePeersParameters())} == {1, 1023}


def test_window_is_exact() -> None:
    analyser = ActivePeers(ANY)
    analyser.observe(activity([served()]))
    analyser.assess(at(10))
    assert analyser.counts() == {(4, TCP, 443): 1}
    analyser.assess(at(10) + 1)
    assert analyser.counts() == {}
    assert analyser.gauges() == {"peers": 0, "peers_evicted": 0}


def test_clock_that_is_set_back() -> None:
    """A peer stays for a window after the clock was set back, and no longer."""
    analyser = ActivePeers(ANY)
    analyser.observe(activity([served()], 3600))
    analyser.assess(at(0))
    analyser.assess(at(10))
    assert analyser.counts()
    analyser.assess(at(11))
    assert not analyser.counts()


def test_the_oldest_go_where_there_are_too_many() -> None:
    analyser = ActivePeers(ActivePeersParameters(most=3))
    for second, number in enumerate((1, 2, 3, 1, 4, 5)):
        analyser.observe(activity([served(f"192.0.2.{number}")], second))
    assert [peer.address for peer in analyser.peers()] == ["192.0.2.1", "192.0.2.4", "192.0.2.5"]
    assert analyser.gauges() == {"peers": 3, "peers_evicted": 2}


STEPS = st.lists(
    st.tuples(
        st.integers(0, 7),  # seconds since the step before
        st.lists(st.tuples(st.integers(1, 6), st.sampled_from([22, 80])), max_size=6),
        st.integers(0, 6),  # where what is observed is split
    ),
    max_size=15,
)


@given(STEPS)
def test_as_the_reference(steps: list[Any]) -> None:
    """Which remembers when it last saw whom."""
    analyser, last = ActivePeers(ANY), {}
    now = 0
    for seconds, seen, cut in steps:
        now += seconds
        last.update(dict.fromkeys(seen, now))
        rows = rows_of(served(f"192.0.2.{number}", port) for number, port in seen)
        for part in (rows[:cut], rows[cut:]):
            analyser.observe(Activity(part, at(now), 1.0))
        active = {pair for pair, when in last.items() if now - when <= 10}
        assert analyser.counts() == {(4, TCP, port): n for port, n in Counter(p for _, p in active).items()}
        assert {(int(peer.address[8:]), peer.port) for peer in analyser.peers()} == active
