"""Addresses and times as users give them, whom a block would meet, and what an alert has for an answer."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flowmon import blocker
from flowmon.abi import DenyKind
from flowmon.analysers.alerts import ENDED, UPDATED, Alert
from flowmon.analysers.syn_rate import FEW_SOURCES
from flowmon.blocker import Blocker, BlockOptions, culprits
from flowmon.blocking import TTL_MOST_S, network, seconds, short
from flowmon.errors import ConfigError, KernelError
from flowmon.kernel.deny_list import Entry, Network

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(ADDRESSES)
    length = draw(st.integers(0, address.max_prefixlen))
    found = ipaddress.ip_network((address, length), strict=False)
    assume(not holds_mapped(found))
    return found


def holds_mapped(one: Network) -> bool:
    """Whether it has IPv4 addresses in the form of IPv6 in it."""
    return one.version == 6 and one.overlaps(ipaddress.IPv6Network("::ffff:0:0/96"))


# --- addresses ---


@given(networks())
def test_prefix_is_read_as_it_is_written(one: Network) -> None:
    assert network(str(one)) == network(short(one)) == one
    assert ("/" in short(one)) == (one.prefixlen < one.max_prefixlen)


@given(ADDRESSES, st.data())
def test_bits_behind_a_prefix_are_refused_and_the_prefix_is_named(address: Any, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, address.max_prefixlen))
    meant = ipaddress.ip_network((address, length), strict=False)
    assume(not holds_mapped(meant))
    if meant.network_address == address:
        assert network(f"{address}/{length}") == meant
        return
    with pytest.raises(ConfigError) as error:
        network(f"{address}/{length}")
    assert str(error.value) == f"{address}/{length} has bits behind its prefix: is {meant} meant?"


@pytest.mark.parametrize(
    ("text", "meant"), [("::ffff:192.0.2.1", "192.0.2.1/32"), ("::ffff:192.0.2.0/120", "192.0.2.0/24")]
)
def test_ipv4_in_the_form_of_ipv6_is_ipv4(text: str, meant: str) -> None:
    assert network(text) == ipaddress.ip_network(meant)


@pytest.mark.parametrize("text", ["::/0", "::/64", "::fffe:0:0/95"])
def test_prefix_around_all_of_ipv4_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="holds all of IPv4"):
        network(text)


@pytest.mark.parametrize(
    "text", ["", "192.0.2", "192.0.2.1/33", "::/129", "host", " 192.0.2.1", "1", "[::1]", "::1/-1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        network(text)
    assert str(error.value) == f"{text!r} is no address: expected IPv4 or IPv6, or a prefix as 192.0.2.0/24"


@pytest.mark.parametrize("text", ["fe80::1%eth0", "fe80::%eth0/64", "192.0.2.1%eth0"])
def test_address_with_a_zone_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"holds addresses of all interfaces: leave out %eth0") as error:
        network(text)
    assert str(error.value).startswith(f"{text}: ")


# --- times ---


@given(st.integers(1, 3650), st.sampled_from([("", 1), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]))
def test_time(number: int, unit: tuple[str, int]) -> None:
    name, factor = unit
    assert seconds(f"{number}{name}") == seconds(f" {number * factor} ") == number * factor
    assert seconds(f"{number}.5{name}") == (number + 0.5) * factor if number < 3650 else True


@pytest.mark.parametrize(
    "text",
    ["", "0", "0.0h", "-1", "1w", "1h30m", "h", "1 h", "1H", ".5", "1e3", "inf", "nan", "3650.1d", "9" * 400],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        seconds(text)
    assert str(error.value).startswith(f"{text!r} is no time to live: expected more than 0, as 90s")


def test_longest_time() -> None:
    assert seconds("3650d") == TTL_MOST_S


# --- whom a block would meet ---

SOURCES = tuple(f"198.51.100.{number}" for number in range(1, 17))
OF_FEW = {"detector": "syn-rate", "kind": FEW_SOURCES}


def alert(number: int = 1, **fields: Any) -> Alert:
    known = {"detector": "port-fanout", "kind": "vertical", "start_ns": 1, "end_ns": 2}
    return Alert(alert_id=f"{number:08d}", **(known | fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"source": "198.51.100.9"}, ("198.51.100.9",)),
        ({"source": "2001:db8::/64"}, ("2001:db8::/64",)),
        ({"source": "198.51.100.9", "sources": 5, "example_sources": SOURCES}, ("198.51.100.9",)),
        (OF_FEW | {"example_sources": SOURCES[:2]}, SOURCES[:2]),
        (OF_FEW | {"sources": 900, "example_sources": SOURCES}, SOURCES),  # the others are next to nothing
        ({"kind": "syn-flood", "sources": 16, "example_sources": SOURCES}, ()),  # forged, most likely
        ({}, ()),
    ],
)
def test_culprits(fields: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert culprits(alert(**fields)) == expected


# --- answers ---


class FakeList:
    """A deny-list by prefix; `never` is what may not be blocked."""

    never = "203.0.113.0/24"

    def __init__(self) -> None:
        self.by_network: dict[Network, Entry] = {}
        self.ttls: list[float] = []
        self.is_closed = False

    def entries(self) -> list[Entry]:
        rule = ipaddress.ip_network(self.never)
        return [Entry(rule, DenyKind.NEVER, "ours", 0, 0, 0, 0), *self.by_network.values()]

    def put(self, one: Network, ttl_s: float, reason: str, kind: DenyKind) -> Entry:
        self.by_network[one] = Entry(one, kind, reason, 0, time.time_ns() + int(ttl_s * 10**9), 0, 0)
        self.ttls.append(ttl_s)
        return self.by_network[one]

    def expire(self) -> list[Entry]:
        return []

    def protect(self, rules: Any) -> list[Entry]:
        return []

    def close(self) -> None:
        self.is_closed = True

    def give(self, text: str, reason: str = "by hand", kind: DenyKind = DenyKind.DROP) -> None:
        one = ipaddress.ip_network(text)
        self.by_network[one] = Entry(one, kind, reason, 0, 1, 0, 0)

    def said(self) -> dict[str, tuple[DenyKind, str]]:
        return {short(one): (entry.kind, entry.reason) for one, entry in self.by_network.items()}


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> FakeList:
    """The list that blockers open; the time stands at 1000 s."""
    found = FakeList()
    monkeypatch.setattr(blocker, "DenyList", lambda _: found)
    monkeypatch.setattr(blocker.session, "change", lambda *_, **__: None)
    monkeypatch.setattr(blocker.loader, "loaded_options", lambda _: SimpleNamespace(deny=True, guard=None))
    monkeypatch.setattr(blocker, "never_rules", lambda _: {})
    monkeypatch.setattr(blocker.time, "monotonic", lambda: 1000.0)
    return found


def made(**fields: Any) -> Blocker:
    source: Any = None
    return Blocker(source, BlockOptions(**({"scopes": frozenset({"scan"})} | fields)))


def actions(one: Blocker, *alerts: Alert) -> list[str]:
    answered = one.respond(list(alerts))
    assert [replace(each, action="") for each in answered] == list(alerts)
    return [each.action for each in answered]


@pytest.mark.parametrize(
    ("enforce", "kind", "verb"), [(False, DenyKind.DRY_RUN, "would block"), (True, DenyKind.DROP, "blocked")]
)
def test_alert_is_answered(deny: FakeList, enforce: bool, kind: DenyKind, verb: str) -> None:
    one = made(enforce=enforce, ttl_s=90.0)
    assert actions(one, alert(source="198.51.100.9")) == [f"{verb} 198.51.100.9 for 90 s"]
    assert deny.said() == {"198.51.100.9": (kind, "alert: port-fanout vertical 00000001")}
    assert deny.ttls == [90]


def test_only_what_is_in_scope_is_answered(deny: FakeList) -> None:
    alerts = [
        alert(1, **OF_FEW, example_sources=SOURCES[:1]),
        alert(2, detector="active-peers", source=SOURCES[1]),
        alert(3, detector="random-walk", source=SOURCES[2]),
        alert(4, source=SOURCES[3], state=ENDED),
        alert(5),
    ]
    assert [bool(action) for action in actions(made(), *alerts)] == [False, False, True, False, False]
    assert list(deny.said()) == [SOURCES[2]]
    assert actions(made(scopes=frozenset()), *alerts) == [""] * 5


def test_few_sources_are_answered_each(deny: FakeList) -> None:
    flood = alert(**OF_FEW, example_sources=SOURCES[:2])
    (said,) = actions(made(scopes=frozenset({"flood"})), flood)
    assert said == f"would block {SOURCES[0]} for 3600 s; would block {SOURCES[1]} for 3600 s"


def test_what_may_never_be_blocked_is_not(deny: FakeList, caplog: pytest.LogCaptureFixture) -> None:
    one = made(enforce=True)
    expected = "203.0.113.7 not blocked: 203.0.113.0/24 is ours"
    assert actions(one, alert(source="203.0.113.7")) == [expected]
    assert deny.said() == {}
    assert [record.message for record in caplog.records] == [
        "203.0.113.7 is not blocked: 203.0.113.0/24 is ours"
    ]


def test_entry_of_a_user_is_not_touched(deny: FakeList) -> None:
    deny.give("198.51.100.9")
    before = deny.said()
    said = actions(made(enforce=True), alert(source="198.51.100.9"))
    assert said == ["198.51.100.9 is blocked already (by hand)"]
    assert deny.said() == before


def test_entry_that_only_counts_stands_beside_a_users_wider_prefix(deny: FakeList) -> None:
    """As it leaves the decision to shorter prefixes, the user's drops as before."""
    deny.give("198.51.100.0/24")
    by_hand = deny.said()
    assert actions(made(), alert(source="198.51.100.9")) == ["would block 198.51.100.9 for 3600 s"]
    assert deny.said() == by_hand | {
        "198.51.100.9": (DenyKind.DRY_RUN, "alert: port-fanout vertical 00000001")
    }


def test_automatic_entries_have_a_most(deny: FakeList) -> None:
    deny.give("192.0.2.1")  # by hand: it does not count
    one = made(most=2)
    said = actions(one, *(alert(number, source=SOURCES[number]) for number in range(4)))
    refusal = "not blocked: 2 automatic entries are the most (--block-most)"
    assert said[2:] == [f"{SOURCES[2]} {refusal}", f"{SOURCES[3]} {refusal}"]
    assert len(deny.said()) == 3
    assert actions(one, alert(0, source=SOURCES[0], state=UPDATED)) == said[:1]  # known ones are renewed


def test_entry_is_renewed_while_its_event_goes_on(deny: FakeList, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made()
    actions(one, alert(1, source=SOURCES[1]), alert(2, source=SOURCES[2]))
    actions(one, alert(2, source=SOURCES[2], state=ENDED))
    soon = time.time_ns() + 10**9
    deny.by_network = {key: replace(entry, expires_at_ns=soon) for key, entry in deny.by_network.items()}
    one.tick()
    renewed = [short(key) for key, entry in deny.by_network.items() if entry.expires_at_ns > soon]
    assert renewed == [SOURCES[1]]
    writes = len(deny.ttls)
    monkeypatch.setattr(blocker.time, "monotonic", lambda: 1000 + blocker.REFRESH_S)
    one.tick()
    assert len(deny.ttls) == writes  # more than half of its time is left


def test_whom_a_user_lets_go_stays_free(deny: FakeList) -> None:
    one = made(enforce=True)
    actions(one, alert(1, source=SOURCES[1]))
    deny.by_network.clear()  # flowmon unblock
    one.tick()
    assert deny.said() == {}
    refusal = f"{SOURCES[1]} not blocked: it was unblocked by hand"
    assert actions(one, alert(1, source=SOURCES[1], state=UPDATED)) == [refusal]


def test_trouble_with_the_list_ends_nothing(
    deny: FakeList, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> Entry:
        raise KernelError("the deny-list is full")

    monkeypatch.setattr(deny, "put", full)
    one = made(enforce=True)
    for _ in range(3):
        assert actions(one, alert(source=SOURCES[1])) == [f"{SOURCES[1]} not blocked: the deny-list is full"]
    assert len(caplog.records) == 1  # said once


def test_end_of_an_event_says_what_was_done(deny: FakeList) -> None:
    one = made()
    (said,) = actions(one, alert(1, source=SOURCES[1]))
    assert actions(one, alert(1, source=SOURCES[1], state=ENDED)) == [said]


def test_close_leaves_the_list_as_it_is(deny: FakeList) -> None:
    one = made()
    actions(one, alert(source=SOURCES[1]))
    one.close()
    assert (deny.is_closed, len(deny.said())) == (True, 1)
