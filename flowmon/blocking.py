"""What `flowmon block`, `unblock` and `blocked` do.

What may never be blocked is found anew before every block, and wins.
"""

import ipaddress
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pyroute2 import IPRoute

from flowmon import session
from flowmon.abi import DenyKind, Direction
from flowmon.errors import ConfigError
from flowmon.kernel import loader
from flowmon.kernel.deny_list import (
    GIVEN,
    MAPPED_BITS,
    MAPPED_NETWORK,
    DenyList,
    Entry,
    Network,
    deny_list,
    guard_registry,
    overlap,
)
from flowmon.kernel.never_block import host_rules
from flowmon.kernel.pins import PinSet

log = logging.getLogger("flowmon")

NS = 1_000_000_000
TTL_MOST_S = 10 * 365 * 86400

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def network(text: str) -> Network:
    """An address, or a prefix. Raises ConfigError."""
    if "%" in text:
        raise ConfigError(
            f"{text}: the list holds addresses of all interfaces: leave out {text[text.index('%') :]}"
        )
    try:
        return _as_ipv4(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(
            f"{text!r} is no address: expected IPv4 or IPv6, or a prefix as 192.0.2.0/24"
        ) from None
    raise ConfigError(f"{text} has bits behind its prefix: is {meant} meant?")


def _as_ipv4(given: Network) -> Network:
    """IPv4 in the form of IPv6 as what it is. Raises ConfigError for a prefix that holds more than that."""
    if given.version == 4 or not given.overlaps(MAPPED_NETWORK):
        return given
    if given.prefixlen < MAPPED_BITS:
        raise ConfigError(f"{given} holds all of IPv4 as the kernel has it: give a longer prefix")
    return ipaddress.IPv4Network((given.network_address.packed[12:], given.prefixlen - MAPPED_BITS))


def seconds(text: str) -> float:
    """A time as 90, 90s, 15m, 1h or 7d, in seconds. Raises ConfigError."""
    match = _DURATION.fullmatch(text.strip())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < value <= TTL_MOST_S:
        raise ConfigError(f"{text!r} is no time to live: expected more than 0, as 90s, 15m, 1h or 7d")
    return value


def never_rules(given: Sequence[str]) -> dict[Network, str]:
    """What may not be blocked on this host, and what a user gave (--never-block), with the reasons."""
    with IPRoute() as netlink:
        rules = host_rules(netlink)
    return rules | {network(text): f"{GIVEN} {text}" for text in given}


@contextmanager
def open_list(pin_set: PinSet, given: Sequence[str]) -> Iterator[DenyList]:
    """The deny-list, with what may never be blocked brought up to date."""
    with deny_list(pin_set) as opened:
        say_freed(opened.protect(never_rules(given)))
        yield opened


def say_freed(freed: list[Entry]) -> None:
    """Logs what is no longer blocked, as it may not be."""
    for entry in freed:
        log.warning("%s is unblocked: it may not be blocked any longer (%s)", entry.network, entry.reason)


def protect_loaded(pin_set: PinSet, rules: Mapping[Network, str]) -> None:
    """Writes down what may never be blocked, for the programs and for those who come later."""
    with deny_list(pin_set) as opened:
        say_freed(opened.protect(rules))


def block(pin_set: PinSet, text: str, ttl: str, reason: str, never: Sequence[str]) -> str:
    """Blocks an address or prefix; what was done, in words. Raises ConfigError, KernelError."""
    loader.check_loaded(pin_set)
    wanted, ttl_s = network(text), seconds(ttl)
    with open_list(pin_set, never) as opened:
        opened.expire()
        entry = opened.block(wanted, ttl_s, _checked_reason(reason))
        session.change(pin_set, lambda: True)
    hooks = [hook for _, hooks in session.attached_interfaces(pin_set) for hook in hooks]
    nowhere = (
        "" if Direction.INGRESS in hooks else "; but no interface is watched on ingress: nothing is dropped"
    )
    return f"{short(wanted)} is blocked until {_iso(entry.expires_at_ns)} ({entry.reason}){nowhere}"


def _checked_reason(reason: str) -> str:
    if not reason.strip() or not reason.isprintable():
        raise ConfigError(f"--reason {reason!r}: expected a line of text that can be printed")
    return reason


def unblock(pin_set: PinSet, text: str) -> str:
    """Takes a prefix off the list, and its addresses out of the guard's registry; what was taken, in words.

    Where nothing is blocked any longer, the programs stop looking at the list.
    """
    loader.check_loaded(pin_set)
    wanted = network(text)
    done: list[str] = []
    options = loader.loaded_options(pin_set)
    with deny_list(pin_set) as opened:
        opened.expire()
        if opened.unblock(wanted):
            done.append(f"{short(wanted)} is unblocked")
        denied = [entry.network for entry in opened.entries() if entry.kind != DenyKind.NEVER]
        # Asked under the lock: who blocks at the same time changes it after this.
        session.change(pin_set, lambda: any(entry.kind != DenyKind.NEVER for entry in opened.entries()))
    if options.guard:
        with guard_registry(pin_set, options.guard.block_s) as registry:
            released = registry.unblock(wanted)
        if released:
            done.append(f"the guard lets go of {released} address{'es' * (released > 1)} in {short(wanted)}")
    if not done:
        around = next((short(one) for one in denied if overlap(one, wanted)), "")
        advice = f"{around} is: unblock that" if around else "`flowmon blocked` says what is"
        raise ConfigError(f"{short(wanted)} is not blocked: {advice}")
    return "; ".join(done)


def blocked(pin_set: PinSet) -> dict[str, Any]:
    """The list and the guard's registry as plain values, as `--json` prints them."""
    loader.check_loaded(pin_set)
    options = loader.loaded_options(pin_set)
    with deny_list(pin_set) as opened:
        found: dict[str, Any] = {
            "enforced": options.deny or options.guard is not None,
            "deny": [_plain(entry) for entry in opened.entries()],
            "guard": None,
        }
    if options.guard:
        with guard_registry(pin_set, options.guard.block_s) as registry:
            sources = registry.blocked()
            found["guard"] = vars(options.guard) | {
                "books": vars(registry.books()),
                "blocked": [
                    {
                        "address": str(one.address),
                        "blocked_at": _iso(one.blocked_at_ns),
                        "until": _iso(one.blocked_until_ns),
                        "trigger_port": one.trigger_port,
                        "packets": one.packets,
                        "octets": one.octets,
                        "blocks": one.blocks,
                    }
                    for one in sources
                ],
            }
    return found


def print_blocked(found: dict[str, Any]) -> None:
    """The same as a table for people; what may never be blocked comes last."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if os.isatty(1) else 120, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("address or prefix", "state", "until"):
        table.add_column(name)
    table.add_column("packets", justify="right")
    table.add_column("octets", justify="right")
    table.add_column("reason", overflow="fold")
    for one in (find for find in found["deny"] if find["state"] != "never"):
        counts = (f"{one['packets']:,}", f"{one['octets']:,}")
        table.add_row(one["prefix"], one["state"], one["until"] or "-", *counts, escape(one["reason"]))
    guard = found["guard"]
    for one in guard["blocked"] if guard else ():
        counts = (f"{one['packets']:,}", f"{one['octets']:,}")
        reason = f"guard: a SYN to port {one['trigger_port']}, one more than {guard['ports']} ports"
        table.add_row(one["address"], "guard", one["until"], *counts, reason)
    console.print(table if table.row_count else "nothing is blocked")
    if table.row_count and not found["enforced"]:
        console.print("the programs do not look at this list: nothing is dropped", style="bold")
    never = [f"{one['prefix']} ({one['reason']})" for one in found["deny"] if one["state"] == "never"]
    if never:
        console.print(f"\nnever blocked: {escape(', '.join(never))}", style="dim")


_STATES = {DenyKind.DROP: "blocked", DenyKind.DRY_RUN: "dry run", DenyKind.NEVER: "never"}


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        "prefix": short(entry.network),
        "state": _STATES[entry.kind],
        "reason": entry.reason,
        "since": _iso(entry.made_at_ns),
        "until": _iso(entry.expires_at_ns) if entry.expires_at_ns else None,
        "packets": entry.packets,
        "octets": entry.octets,
    }


def short(network_: Network) -> str:
    """A prefix of one address without its length."""
    return str(network_.network_address if network_.prefixlen == network_.max_prefixlen else network_)


def _iso(utc_ns: int) -> str:
    return f"{datetime.fromtimestamp(utc_ns // NS, UTC):%Y-%m-%dT%H:%M:%SZ}"
