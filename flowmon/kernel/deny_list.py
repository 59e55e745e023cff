"""The deny-list in the kernel: whose packets the programs drop on ingress, and who may never be blocked.

Rules:
- The kernel's map is the only list: it outlives collectors, and ends with `purge`.
- What may never be blocked wins: a prefix that touches it is refused, whoever asks.
- Every entry says why it is there, and until when.
"""

import errno
import ipaddress
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowmon import abi
from flowmon.abi import DenyKind
from flowmon.errors import ConfigError, KernelError
from flowmon.kernel import libbpf
from flowmon.kernel.clock import monotonic_ns, utc_offset_ns
from flowmon.kernel.pins import MapSource

Array = np.ndarray[Any, np.dtype[Any]]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NS = 1_000_000_000
GIVEN = "--never-block"  # how the reason of a rule begins that a user gave: it stays until the purge
MAPPED_BITS = 96  # before an IPv4 address
MAPPED = b"\0" * 10 + b"\xff\xff"
MAPPED_NETWORK = ipaddress.IPv6Network("::ffff:0:0/96")
ROOM_FOR_RULES = 1024  # of the list, for those who may never be blocked


@dataclass(frozen=True)
class Entry:
    """One prefix of the list. Times are UTC nanoseconds; expires_at_ns 0: never. packets: that met it."""

    network: Network
    kind: DenyKind
    reason: str
    made_at_ns: int
    expires_at_ns: int
    packets: int
    octets: int


@dataclass(frozen=True)
class GuardedSource:
    """What the guard knows of a source. Times are UTC nanoseconds; blocked_until_ns 0: it is not blocked."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    blocked_at_ns: int
    blocked_until_ns: int
    last_seen_ns: int
    trigger_port: int
    packets: int
    octets: int
    blocks: int


@dataclass(frozen=True)
class GuardBooks:
    """All that the guard did since the load; tracked: sources in its registry."""

    blocks: int
    packets: int
    octets: int
    tracked: int


class DenyList:
    """The opened list. Close it after use."""

    def __init__(self, source: MapSource) -> None:
        self._map = source.open_map("deny")
        self._most = libbpf.map_info(self._map).max_entries

    def close(self) -> None:
        """Closes the descriptor; the list stays."""
        os.close(self._map)

    def entries(self) -> list[Entry]:
        """All that have not expired, those that may never be blocked as well."""
        now, offset = monotonic_ns(), utc_offset_ns()
        return [_entry(key, value, offset) for key, value in self._rows() if not _has_expired(value, now)]

    def block(
        self, network: Network, ttl_s: float | None, reason: str, kind: DenyKind = DenyKind.DROP
    ) -> Entry:
        """Puts a prefix on the list; one that is there already begins anew, but keeps its counts.

        ttl_s None: for ever. Raises ConfigError where it touches what may never be
        blocked (naming the rule), KernelError where the list is full.
        """
        entries = self.entries()
        rule = why_never(network, entries)
        if rule:
            raise ConfigError(f"{network} may not be blocked: {rule}")
        if len(entries) >= self._most - ROOM_FOR_RULES:
            raise self._is_full()
        return self.put(network, ttl_s, reason, kind)

    def put(self, network: Network, ttl_s: float | None, reason: str, kind: DenyKind) -> Entry:
        """As `block`, for who has looked at the rules already; the entry."""
        value = np.zeros(1, abi.DENY_ENTRY)
        if network.version == 6 and network.overlaps(MAPPED_NETWORK):
            raise ConfigError(f"{network} holds IPv4 addresses as the kernel has them: give those as IPv4")
        is_there = self._holds(network, value)
        if is_there and value["kind"][0] == DenyKind.NEVER:
            raise ConfigError(f"{network} may not be blocked: it has become {_reason(value[0])}")
        if not is_there or value["kind"][0] != kind:
            value = np.zeros(1, abi.DENY_ENTRY)
        self._write(network, value, kind, reason, ttl_s)
        return _entry(_key(network)[0], value[0], utc_offset_ns())

    def unblock(self, network: Network) -> bool:
        """Takes that very prefix off; whether it was there."""
        value = np.zeros(1, abi.DENY_ENTRY)
        if not self._holds(network, value) or value["kind"][0] == DenyKind.NEVER:
            return False
        libbpf.delete(self._map, _key(network))
        return True

    def expire(self) -> list[Entry]:
        """Takes out what has expired, and says what that was."""
        now, offset = monotonic_ns(), utc_offset_ns()
        gone = [_entry(key, value, offset) for key, value in self._rows() if _has_expired(value, now)]
        for entry in gone:
            libbpf.delete(self._map, _key(entry.network))
        return gone

    def protect(self, rules: Mapping[Network, str]) -> list[Entry]:
        """Makes `rules` (prefix and reason) what may never be blocked, beside what users gave earlier.

        What is blocked, and may be no longer, is taken off and given back.
        """
        present = {entry.network: entry for entry in self.entries()}
        never = {network for network, entry in present.items() if entry.kind == DenyKind.NEVER}
        freed = [
            entry
            for network, entry in present.items()
            if network not in never and any(_is_within(network, rule) for rule in rules)
        ]
        stale = [n for n in never.difference(rules) if not present[n].reason.startswith(GIVEN)]
        for network in [*stale, *(entry.network for entry in freed)]:
            libbpf.delete(self._map, _key(network))
        # What a user gives, too, stays when the host needs it no longer.
        given = {n for n in never if rules.get(n, "").startswith(GIVEN)}
        for network in set(rules).difference(never - given):
            self._write(network, np.zeros(1, abi.DENY_ENTRY), DenyKind.NEVER, rules[network], None)
        return freed

    def _holds(self, network: Network, value: Array) -> bool:
        """Whether the very prefix is there (a look-up finds the next shorter one, too); `value` is filled in."""
        key = _key(network)
        return libbpf.lookup(self._map, key, value) and value["prefix_length"][0] == key["prefix_length"][0]

    def _rows(self) -> Iterator[tuple[Any, Any]]:
        for key in libbpf.keys(self._map, abi.DENY_KEY):
            value = np.zeros(1, abi.DENY_ENTRY)
            if libbpf.lookup(self._map, np.array([key]), value):
                yield key, value[0]

    def _write(
        self, network: Network, value: Array, kind: DenyKind, reason: str, ttl_s: float | None
    ) -> None:
        key, now = _key(network), monotonic_ns()
        value["kind"], value["prefix_length"] = kind, key["prefix_length"]
        value["made_mono_ns"] = now
        value["expires_mono_ns"] = 0 if ttl_s is None else now + max(1, int(ttl_s * NS))
        text = reason.encode(errors="replace")[: abi.DENY_REASON_MOST]
        value["reason"] = np.frombuffer(text.ljust(abi.DENY_REASON_MOST, b"\0"), "u1")
        try:
            libbpf.update(self._map, key, value)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise self._is_full() from None

    def _is_full(self) -> KernelError:
        return KernelError(
            f"the deny-list is full ({self._most} prefixes): unblock some, or block wider prefixes"
        )


class GuardRegistry:
    """The guard's map of sources. Close it after use."""

    def __init__(self, source: MapSource, block_s: int) -> None:
        self._map = source.open_map("guard")
        self._books = source.open_map("guard_books")
        self._block_ns = block_s * NS

    def close(self) -> None:
        """Closes the descriptors; the registry stays."""
        os.close(self._map)
        os.close(self._books)

    def blocked(self) -> list[GuardedSource]:
        """The sources that it drops."""
        now, offset = monotonic_ns(), utc_offset_ns()
        found = []
        for key in libbpf.keys(self._map, abi.GUARD_SOURCE):
            value = np.zeros(1, abi.GUARD_ENTRY)
            libbpf.lookup(self._map, np.array([key]), value)
            since = int(value["blocked_mono_ns"][0])
            if since and now - since < self._block_ns:
                found.append(_guarded(key, value[0], offset, self._block_ns))
        return found

    def unblock(self, network: Network) -> int:
        """Forgets the blocked sources in that prefix; how many there were."""
        inside = [one for one in self.blocked() if overlap(ipaddress.ip_network(one.address), network)]
        for one in inside:
            libbpf.delete(self._map, np.array([(_mapped(one.address),)], abi.GUARD_SOURCE))
        return len(inside)

    def books(self) -> GuardBooks:
        """Cheap but for the count of sources."""
        values = np.zeros(libbpf.possible_cpus(), abi.GUARD_BOOKS)
        libbpf.lookup(self._books, np.zeros(1, "u4"), values)
        tracked = len(libbpf.keys(self._map, abi.GUARD_SOURCE))
        return GuardBooks(
            int(values["blocks"].sum()), int(values["packets"].sum()), int(values["octets"].sum()), tracked
        )


@contextmanager
def deny_list(source: MapSource) -> Iterator[DenyList]:
    """The list, closed at the end."""
    opened = DenyList(source)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def guard_registry(source: MapSource, block_s: int) -> Iterator[GuardRegistry]:
    """The registry, closed at the end."""
    opened = GuardRegistry(source, block_s)
    try:
        yield opened
    finally:
        opened.close()


def why_never(network: Network, entries: Iterable[Entry]) -> str:
    """The rule of `entries` by which the prefix, or an address in it, may never be blocked; empty: there is none."""
    never = (entry for entry in entries if entry.kind == DenyKind.NEVER)
    rules = (f"{entry.network} is {entry.reason}" for entry in never if overlap(entry.network, network))
    return next(rules, "")


def overlap(one: Network, other: Network) -> bool:
    """Whether they have an address in common."""
    return (
        one.version == other.version
        and int(one.network_address) <= int(other.broadcast_address)
        and int(other.network_address) <= int(one.broadcast_address)
    )


def _is_within(network: Network, rule: Network) -> bool:
    return network.prefixlen >= rule.prefixlen and overlap(network, rule)


def _mapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Array:
    packed = address.packed
    return np.frombuffer(packed if address.version == 6 else MAPPED + packed, "u1")


def _key(network: Network) -> Array:
    bits = network.prefixlen + (MAPPED_BITS if network.version == 4 else 0)
    return np.array([(bits, _mapped(network.network_address))], abi.DENY_KEY)


def _network(key: Any) -> Network:
    packed, bits = key["address"].tobytes(), int(key["prefix_length"])
    if bits >= MAPPED_BITS and packed.startswith(MAPPED):
        return ipaddress.IPv4Network((packed[12:], bits - MAPPED_BITS))
    return ipaddress.IPv6Network((packed, bits))


def _has_expired(value: Any, now_mono_ns: int) -> bool:
    return 0 < value["expires_mono_ns"] <= now_mono_ns


def _reason(value: Any) -> str:
    """Without the piece of a character that did not fit."""
    return value["reason"].tobytes().rstrip(b"\0").decode(errors="ignore")


def _entry(key: Any, value: Any, utc_offset_ns_: int) -> Entry:
    expires = int(value["expires_mono_ns"])
    return Entry(
        network=_network(key),
        kind=DenyKind(int(value["kind"])),
        reason=_reason(value),
        made_at_ns=int(value["made_mono_ns"]) + utc_offset_ns_,
        expires_at_ns=expires + utc_offset_ns_ if expires else 0,
        packets=int(value["packets"]),
        octets=int(value["octets"]),
    )


def _guarded(key: Any, value: Any, utc_offset_ns_: int, block_ns: int) -> GuardedSource:
    packed = key["address"].tobytes()
    blocked_at_ns = int(value["blocked_mono_ns"]) + utc_offset_ns_
    return GuardedSource(
        address=ipaddress.ip_address(packed[12:] if packed.startswith(MAPPED) else packed),
        blocked_at_ns=blocked_at_ns,
        blocked_until_ns=blocked_at_ns + block_ns,
        last_seen_ns=int(value["last_seen_mono_ns"]) + utc_offset_ns_,
        trigger_port=int(value["trigger_port"]),
        packets=int(value["packets"]),
        octets=int(value["octets"]),
        blocks=int(value["blocks"]),
    )
