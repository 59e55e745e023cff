"""The answer to alerts: entries of the deny-list.

Rules:
- Nothing is dropped on an analyser's word unless --enforce says so; without it, entries only count
  what they would have dropped.
- Every entry has an end and a reason. While an event goes on, its entry is renewed.
- What may never be blocked wins. An entry that a user made is not touched, and whom a user lets go stays free.
- Trouble with the list is said, and does not end the collector.
- Automatic entries have a most: beyond it, an alert says that it blocked nobody.
"""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from pyroute2.netlink.exceptions import NetlinkError

from flowmon import session
from flowmon.abi import DenyKind
from flowmon.analysers.alerts import ENDED, Alert
from flowmon.analysers.syn_rate import FEW_SOURCES
from flowmon.blocking import network, never_rules, say_freed, short
from flowmon.errors import FlowmonError, KernelError
from flowmon.kernel import loader
from flowmon.kernel.deny_list import DenyList, Entry, Network, why_never
from flowmon.kernel.pins import PinSet

log = logging.getLogger("flowmon")

SCAN, FLOOD = "scan", "flood"
SCOPES = {"port-fanout": SCAN, "random-walk": SCAN, "syn-rate": FLOOD}  # which detectors they stand for
REFRESH_S = 10.0
SAID_MOST = 1000  # refusals in the log: alerts say them all
NS = 1_000_000_000
AUTOMATIC = "alert: "  # how the reason of an automatic entry begins


@dataclass(frozen=True)
class BlockOptions:
    """What is done about alerts. scopes: of SCOPES; most: automatic entries at a time."""

    scopes: frozenset[str] = frozenset()
    enforce: bool = False
    ttl_s: float = 3600.0
    most: int = 1000
    never: tuple[str, ...] = ()


class Blocker:
    """Answers alerts with entries of the deny-list. Close it after use."""

    def __init__(self, source: PinSet, options: BlockOptions) -> None:
        self._options = options
        self._source = source
        self._list = DenyList(source)
        self._kind = DenyKind.DROP if options.enforce else DenyKind.DRY_RUN
        self._going_on: dict[str, Alert] = {}  # those that hold an entry
        self._actions: dict[str, str] = {}  # by alert
        self._denied: dict[Network, Entry] = {}  # as of the latest look, and of what was done since
        self._never: list[Entry] = []
        self._automatic = 0
        self._released: set[Network] = set()  # by hand, of what was put here
        self._said: set[str] = set()
        self._refresh_at = 0.0
        # Hosts may have hundreds of thousands of routes: that is not for the collector to wait for.
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="never-block")
        self._rules: Future[dict[Network, str]] | None = None
        if self._switch_on():
            say_freed(self._list.protect(never_rules(options.never)))

    def close(self) -> None:
        """Lets go of the list; what is on it stays until it expires."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._list.close()

    def tick(self) -> None:
        """From time to time: takes out what has expired, renews, and looks whom the host needs now."""
        if time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + REFRESH_S
        try:
            if self._switch_on():
                self._refresh()
        except (FlowmonError, OSError, NetlinkError) as error:
            self._say_once(f"the deny-list: {error}")

    def _switch_on(self) -> bool:
        """Whether the programs look at the list; they do where alerts are answered."""
        if self._options.scopes:
            session.change(self._source, lambda: True)
        try:
            options = loader.loaded_options(self._source)
        except KernelError:  # somebody is removing it: the collector is about to notice
            return False
        return options.deny or options.guard is not None

    def _refresh(self) -> None:
        for entry in self._list.expire():
            log.info("%s is no longer blocked: its time is over (%s)", short(entry.network), entry.reason)
        if self._rules is not None and self._rules.done():
            say_freed(self._list.protect(self._rules.result()))
            self._rules = None
        if self._rules is None:
            self._rules = self._pool.submit(never_rules, self._options.never)
        self._look()
        for alert in self._going_on.values():
            self._answer(alert)

    def respond(self, alerts: list[Alert]) -> list[Alert]:
        """The alerts, with what was done about each in `action`."""
        concern = [alert for alert in alerts if SCOPES.get(alert.detector) in self._options.scopes]
        if not concern:
            return alerts
        try:
            self._look()
            for alert in concern:
                self._respond(alert)
        except (FlowmonError, OSError) as error:
            self._say_once(f"the deny-list: {error}")
        answered = [replace(alert, action=self._actions.get(alert.alert_id, "")) for alert in alerts]
        for alert in concern:
            if alert.state == ENDED:
                self._actions.pop(alert.alert_id, None)
        return answered

    def _look(self) -> None:
        """Reads the list, once for all that is to be answered."""
        now_ns = time.time_ns()
        before = [one for one in self._denied.values() if self._is_mine(one) and one.expires_at_ns > now_ns]
        entries = self._list.entries()
        self._never = [entry for entry in entries if entry.kind == DenyKind.NEVER]
        self._denied = {entry.network: entry for entry in entries if entry.kind != DenyKind.NEVER}
        self._automatic = sum(entry.reason.startswith(AUTOMATIC) for entry in self._denied.values())
        self._released.update(one.network for one in before if one.network not in self._denied)

    def _is_mine(self, entry: Entry) -> bool:
        return entry.reason.startswith(AUTOMATIC)

    def _respond(self, alert: Alert) -> None:
        if alert.state == ENDED:
            self._going_on.pop(alert.alert_id, None)
            return
        answers = self._answer(alert)
        self._actions[alert.alert_id] = "; ".join(text for text, _ in answers)
        if any(holds for _, holds in answers):
            self._going_on[alert.alert_id] = alert

    def _answer(self, alert: Alert) -> list[tuple[str, bool]]:
        """Blocks who is behind it, as far as that may be; what was done in words, and whether there is an entry."""
        return [self._block(text, alert) for text in culprits(alert)]

    def _block(self, text: str, alert: Alert) -> tuple[str, bool]:
        wanted = network(text)
        known = self._denied.get(wanted)
        if known is not None and not self._is_mine(known):
            return f"{text} is blocked already ({known.reason})", False
        refusal = "" if known is not None else self._refusal(wanted)
        if refusal:
            self._say_once(f"{text} is not blocked: {refusal}")
            return f"{text} not blocked: {refusal}", False
        verb = "blocked" if self._options.enforce else "would block"
        done = f"{verb} {text} for {self._options.ttl_s:g} s"
        left_ns = known.expires_at_ns - time.time_ns() if known is not None else 0
        if known is None or known.kind != self._kind or left_ns < self._options.ttl_s * NS / 2:
            try:
                entry = self._list.put(wanted, self._options.ttl_s, _reason(alert), self._kind)
            except (FlowmonError, OSError) as error:
                self._say_once(f"{text} is not blocked: {error}")
                return f"{text} not blocked: {error}", False
            self._denied[wanted] = entry
        if known is None:
            self._automatic += 1
            log.warning("%s: %s", done, _reason(alert))
        return done, True

    def _refusal(self, wanted: Network) -> str:
        """Why that may not become an automatic entry; empty where it may."""
        if wanted in self._released:
            return "it was unblocked by hand"
        rule = why_never(wanted, self._never)
        if rule:
            return rule
        most = self._options.most
        return f"{most} automatic entries are the most (--block-most)" if self._automatic >= most else ""

    def _say_once(self, text: str) -> None:
        if text in self._said or len(self._said) >= SAID_MOST:
            return
        self._said.add(text)
        log.warning("%s", text)


def culprits(alert: Alert) -> tuple[str, ...]:
    """Whom a block would meet: the source, or a flood's few; nobody where there are many (they are forged)."""
    if alert.source:
        return (alert.source,)
    return alert.example_sources if alert.kind == FEW_SOURCES else ()


def _reason(alert: Alert) -> str:
    return f"{AUTOMATIC}{alert.detector} {alert.kind} {alert.alert_id[:8]}"
