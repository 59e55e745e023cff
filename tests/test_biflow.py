"""Pairing against a slow oracle, and by examples."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmon import abi, biflow
from flowmon.biflow import NONE, Biflows
from pairing_oracle import conversations

INGRESS, EGRESS = abi.Direction.INGRESS, abi.Direction.EGRESS
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
ETH0, ETH1 = 2, 3

POINT = ("ifindex", "direction")


def address(text: str) -> list[int]:
    parsed = ipaddress.ip_address(text)
    return list(parsed.packed if parsed.version == 6 else b"\0" * 10 + b"\xff\xff" + parsed.packed)


CHOICES = {
    # In order by the first eight bytes, by the last eight and by their highest bits.
    "source_address": [
        address(text)
        for text in ("10.0.0.1", "10.0.0.2", "200.0.0.1", "2001:db8::1", "2001:db9::", "ff02::1")
    ],
    "source_port": [0, 1, 256, 65535],
    "ifindex": [1, 2, 2**32 - 1],
    "vlan_id": [0, 1, 4094],
    "customer_vlan_id": [0, 1, 4094],
    "in_tunnel": [0, 1],
    "protocol": [ICMP, TCP, UDP],
    "ip_version": [4, 6],
    "direction": [INGRESS, EGRESS],
}
CHOICES["destination_address"] = CHOICES["source_address"]
CHOICES["destination_port"] = CHOICES["source_port"]


def make_keys(*entries: dict) -> np.ndarray:
    keys = np.zeros(len(entries), abi.FLOW_KEY)
    for row, entry in enumerate(entries):
        for name, value in entry.items():
            keys[name][row] = value
    return keys


@st.composite
def tables(draw: st.DrawFn, *, distinct_births: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(keys, born): each key once, with so few values that many entries share a conversation."""
    width = draw(st.integers(1, 3))
    entry = st.fixed_dictionaries({name: st.sampled_from(of[:width]) for name, of in CHOICES.items()})
    keys = make_keys(*draw(st.lists(entry, max_size=24, unique_by=lambda each: str(sorted(each.items())))))
    births = st.integers(1, 2**62) if distinct_births else st.integers(1, 6)
    born = draw(st.lists(births, min_size=len(keys), max_size=len(keys), unique=distinct_births))
    return keys, np.array(born, "u8")


def turned(keys: np.ndarray) -> np.ndarray:
    """Every key with its source and destination exchanged (the ports of ICMP are of neither)."""
    other = keys.copy()
    for what, chosen in (("address", slice(None)), ("port", keys["protocol"] != ICMP)):
        other[f"source_{what}"][chosen] = keys[f"destination_{what}"][chosen]
        other[f"destination_{what}"][chosen] = keys[f"source_{what}"][chosen]
    return other


def pair(keys: np.ndarray, born: object, *, every_interface: bool = False) -> Biflows:
    return biflow.pair(keys, np.asarray(born, "u8"), every_interface=every_interface)


def groups(biflows: Biflows) -> list[set[int]]:
    """The entries of each conversation."""
    return [set(np.flatnonzero(biflows.conversation_of == number).tolist()) for number in range(len(biflows))]


def chosen(biflows: Biflows) -> set[tuple[int, int]]:
    return set(zip(biflows.forward.tolist(), biflows.reverse.tolist(), strict=True))


def check_against_oracle(keys: np.ndarray, born: np.ndarray, *, every_interface: bool) -> Biflows:
    biflows = pair(keys, born, every_interface=every_interface)
    expected = conversations(keys, born, every_interface=every_interface).values()
    allowed = {frozenset(conversation.entries): conversation.pairs for conversation in expected}
    found = groups(biflows)
    assert len(biflows.conversation_of) == len(keys)
    assert sorted(map(sorted, found)) == sorted(map(sorted, allowed))
    for entries, forward, reverse in zip(found, biflows.forward, biflows.reverse, strict=True):
        assert (forward, reverse) in allowed[frozenset(entries)]
    return biflows


@contextmanager
def weak_hash(weak_seeds: int, mask: int) -> Iterator[list[int]]:
    """Hashes of the first seeds keep only the bits of `mask`; yields the seeds asked for."""
    strong, asked = biflow.hash_rows, []

    def hash_rows(rows: np.ndarray, seed: int) -> np.ndarray:
        asked.append(seed)
        return strong(rows, seed) & np.uint64(mask if seed < weak_seeds else 2**64 - 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(biflow, "hash_rows", hash_rows)
        yield asked


@given(tables(), st.booleans())
def test_pairs_as_the_oracle(table: tuple, every_interface: bool) -> None:
    check_against_oracle(*table, every_interface=every_interface)


@given(tables(), st.booleans(), st.integers(1, 3), st.sampled_from([0, 1, 3 << 62]))
def test_hash_collisions_mix_nothing(table: tuple, every_interface: bool, weak_seeds: int, mask: int) -> None:
    with weak_hash(weak_seeds, mask):
        check_against_oracle(*table, every_interface=every_interface)


@given(tables(distinct_births=True), st.booleans())
def test_turned_round_births_still_decide(table: tuple, every_interface: bool) -> None:
    """The first born stays forward, whichever way its addresses stand."""
    keys, born = table
    one = pair(keys, born, every_interface=every_interface)
    other = pair(turned(keys), born, every_interface=every_interface)
    assert chosen(one) == chosen(other)
    assert one.flow_id[one.conversation_of].tolist() == other.flow_id[other.conversation_of].tolist()


@given(tables(distinct_births=True), st.booleans())
def test_births_turned_round_swap_the_directions(table: tuple, every_interface: bool) -> None:
    """Where each direction has one entry, later births first exchange forward and reverse."""
    keys, born = table
    one = pair(keys, born, every_interface=every_interface)
    other = pair(keys, 2**63 - born, every_interface=every_interface)
    single = {
        (forward, reverse)
        for (forward, reverse), entries in zip(
            zip(one.forward.tolist(), one.reverse.tolist(), strict=True), groups(one), strict=True
        )
        if reverse != NONE and len(entries) == 2
    }
    assert {(reverse, forward) for forward, reverse in single} <= chosen(other)


@given(st.data(), tables(distinct_births=True), st.booleans())
def test_row_order_does_not_matter(data: st.DataObject, table: tuple, every_interface: bool) -> None:
    keys, born = table
    order = np.array(data.draw(st.permutations(range(len(keys)))), np.int64)
    one = pair(keys, born, every_interface=every_interface)
    other = pair(keys[order], born[order], every_interface=every_interface)
    back = np.append(order, NONE)  # NONE, which is -1, is the last one
    assert chosen(one) == set(zip(back[other.forward].tolist(), back[other.reverse].tolist(), strict=True))
    assert one.flow_id[one.conversation_of][order].tolist() == other.flow_id[other.conversation_of].tolist()


@given(tables())
def test_flow_id_names_the_conversation_at_every_point(table: tuple) -> None:
    """One id for each 5-tuple without direction, with `every_interface` and without, and no two share one."""
    keys, born = table
    expected = conversations(keys, born, every_interface=False).values()
    ids = []
    for every_interface in (False, True):
        biflows = pair(keys, born, every_interface=every_interface)
        ids.append(biflows.flow_id[biflows.conversation_of].tolist())
    assert ids[0] == ids[1]
    sets = [{ids[0][row] for row in conversation.entries} for conversation in expected]
    assert all(len(each) == 1 for each in sets)
    assert len(set().union(*sets)) == len(sets)


WEB = {
    "source_address": address("192.168.1.9"),
    "destination_address": address("10.0.0.2"),
    "source_port": 40000,
    "destination_port": 443,
    "ifindex": ETH0,
    "vlan_id": 0,
    "customer_vlan_id": 0,
    "in_tunnel": 0,
    "protocol": TCP,
    "ip_version": 4,
    "direction": EGRESS,
}


def answer(entry: dict, **changes: object) -> dict:
    """The other direction of `entry`, at the other hook."""
    return {
        **entry,
        "source_address": entry["destination_address"],
        "destination_address": entry["source_address"],
        "source_port": entry["destination_port"],
        "destination_port": entry["source_port"],
        "direction": INGRESS if entry["direction"] == EGRESS else EGRESS,
        **changes,
    }


@pytest.mark.parametrize(("born", "expected"), [([5, 6], (0, 1)), ([6, 5], (1, 0))])
def test_forward_is_the_first_born(born: list[int], expected: tuple[int, int]) -> None:
    for keys in (make_keys(WEB, answer(WEB)), turned(make_keys(WEB, answer(WEB)))):
        assert chosen(pair(keys, born)) == {expected}


def test_one_direction_only() -> None:
    for entry in (WEB, answer(WEB)):  # either order of the addresses
        biflows = pair(make_keys(entry), [7])
        assert chosen(biflows) == {(0, NONE)}
        assert biflows.conversation_of.tolist() == [0]


def test_empty_table() -> None:
    for every_interface in (False, True):
        biflows = pair(make_keys(), [], every_interface=every_interface)
        assert len(biflows) == 0
        assert [len(each) for each in (biflows.forward, biflows.reverse, biflows.flow_id)] == [0, 0, 0]
        assert len(biflows.conversation_of) == 0
        assert biflows.flow_id.dtype == np.uint64


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("10.0.0.1", "10.0.0.2"),
        ("10.0.0.255", "10.0.1.0"),  # as bytes, not as numbers of the host's byte order
        ("9.255.255.255", "128.0.0.0"),
        ("::ffff:255.255.255.255", "2001:db8::"),
        ("2001:db8::ffff", "ff02::1"),
        ("2001:db8:0:1::", "2001:db8:0:1::1"),
    ],
)
def test_lower_side_comes_first(low: str, high: str) -> None:
    entry = {**WEB, "source_address": address(low), "destination_address": address(high)}
    rows, was_turned = biflow.canonical(make_keys(entry, answer(entry)))
    assert was_turned.tolist() == [False, True]
    assert rows[0].tolist() == rows[1].tolist()


def test_same_address_is_ordered_by_port() -> None:
    entry = {**WEB, "destination_address": WEB["source_address"]}
    rows, was_turned = biflow.canonical(make_keys(entry, answer(entry)))
    assert was_turned.tolist() == [True, False]
    assert rows[0].tolist() == rows[1].tolist()


def test_ports_go_with_their_addresses() -> None:
    """a:1 to b:2 is not the conversation of a:2 and b:1."""
    other = {**WEB, "source_port": WEB["destination_port"], "destination_port": WEB["source_port"]}
    assert chosen(pair(make_keys(WEB, other), [1, 2])) == {(0, NONE), (1, NONE)}


def test_first_point_of_each_direction_reports() -> None:
    """A forwarded connection: in at eth0 and out at eth1, and the answers the other way."""
    entries = [
        {**WEB, "ifindex": ETH1, "direction": EGRESS},
        {**WEB, "ifindex": ETH0, "direction": INGRESS},
        answer(WEB, ifindex=ETH0, direction=EGRESS),
        answer(WEB, ifindex=ETH1, direction=INGRESS),
    ]
    born = [11, 10, 31, 30]
    biflows = pair(make_keys(*entries), born)
    assert chosen(biflows) == {(1, 3)}
    assert biflows.conversation_of.tolist() == [0, 0, 0, 0]

    apart = pair(make_keys(*entries), born, every_interface=True)
    assert chosen(apart) == {(1, 2), (0, 3)}
    assert len(set(apart.flow_id.tolist())) == 1
    assert apart.flow_id[0] == biflows.flow_id[0]


@pytest.mark.parametrize("every_interface", [False, True])
def test_loopback_reports_once(every_interface: bool) -> None:
    """Both hooks of lo see both directions."""
    request = {**WEB, "source_address": address("127.0.0.1"), "destination_address": address("127.0.0.1")}
    request = {**request, "ifindex": 1}
    entries = [
        {**request, "direction": INGRESS},
        {**request, "direction": EGRESS},
        answer(request, direction=INGRESS),
        answer(request, direction=EGRESS),
    ]
    biflows = pair(make_keys(*entries), [11, 10, 21, 20], every_interface=every_interface)
    assert chosen(biflows) == {(1, 3)}
    assert biflows.conversation_of.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("every_interface", [False, True])
def test_mirror_port_sees_both_directions_at_one_hook(every_interface: bool) -> None:
    seen = {**WEB, "direction": INGRESS}
    keys = make_keys(answer(seen, direction=INGRESS), seen)
    assert chosen(pair(keys, [9, 8], every_interface=every_interface)) == {(1, 0)}


def test_icmp_class_and_identifier_tell_flows_apart() -> None:
    def icmp(kind: int, code: int, identifier: int) -> dict:
        return {
            **WEB,
            "protocol": ICMP,
            "source_port": identifier,
            "destination_port": kind << 8 | code,
        }

    ping, other_ping, timestamp = icmp(8, 0, 77), icmp(8, 0, 78), icmp(13, 0, 77)
    unreachable, other_code = icmp(3, 1, 0), icmp(3, 3, 0)
    ports = ("source_port", "destination_port")
    answers = [answer(query, **{port: query[port] for port in ports}) for query in (ping, timestamp)]
    keys = make_keys(ping, other_ping, timestamp, unreachable, other_code, *answers)
    biflows = pair(keys, range(1, 8))
    assert chosen(biflows) == {(0, 5), (1, NONE), (2, 6), (3, NONE), (4, NONE)}


@pytest.mark.parametrize("name", [name for name in abi.FLOW_KEY.names if name not in POINT])
def test_every_bit_of_the_key_counts(name: str) -> None:
    """But for the point: no other bit is lost between key and flow id."""
    keys = np.repeat(make_keys(WEB), 1 + 8 * abi.FLOW_KEY[name].itemsize)
    raw = keys.view("u1").reshape(len(keys), -1)
    start = abi.FLOW_KEY.fields[name][1]
    for bit in range(len(keys) - 1):
        raw[1 + bit, start + bit // 8] ^= 1 << bit % 8
    biflows = pair(keys, np.arange(1, len(keys) + 1))
    assert len(biflows) == len(keys)
    assert len(set(biflows.flow_id.tolist())) == len(keys)


@pytest.mark.parametrize("name", POINT)
def test_point_is_no_part_of_the_conversation(name: str) -> None:
    keys = make_keys(WEB, {**WEB, name: WEB[name] ^ 1})
    assert chosen(pair(keys, [2, 1])) == {(1, NONE)}


def test_collision_is_hashed_again() -> None:
    """Two flows under one hash, their entries in turns, so that sorting by it leaves them mixed."""
    other = {**WEB, "source_port": 40001}
    keys = make_keys(WEB, other, answer(WEB), answer(other))
    with weak_hash(weak_seeds=2, mask=0) as asked:
        biflows = pair(keys, [1, 2, 3, 4])
    assert chosen(biflows) == {(0, 2), (1, 3)}
    assert asked == [0, 1, 2]


def test_no_second_hash_without_a_collision() -> None:
    with weak_hash(weak_seeds=0, mask=0) as asked:
        pair(make_keys(WEB, answer(WEB)), [1, 2])
    assert asked == [0]


def test_a_point_without_packets_leaves_the_report_to_one_that_has_some() -> None:
    """The path changed: the direction stays that of the first birth, wherever that was."""
    keys = make_keys(WEB, {**WEB, "ifindex": ETH1}, answer(WEB))
    biflows = biflow.pair(
        keys, np.array([5, 9, 7], "u8"), every_interface=False, counting=np.array([False, True, True])
    )
    assert chosen(biflows) == {(1, 2)}
    assert biflows.is_forward.tolist() == [True, True, False]


def test_an_entry_that_was_not_born_yet_comes_last() -> None:
    assert chosen(pair(make_keys(WEB, answer(WEB)), [100, 0])) == {(0, 1)}


def test_vlans_and_tunnel_do_not_run_into_each_other() -> None:
    one = {"vlan_id": 0, "customer_vlan_id": 0, "in_tunnel": 0}
    keys = make_keys(*({**one, name: 1} for name in one))
    assert len(pair(keys, [1, 2, 3])) == 3
