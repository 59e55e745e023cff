"""Whether flowmon does its work: what `/healthz` says.

Rules:
- Silent: no View for five seconds, or for three intervals where these are longer.
- Bypassed: the host counted more than MOVED_LEAST packets on an interface while flowmon saw none.
  What the host counted up to a look is compared with a View that was read after it, so that
  packets which are only not in the View yet raise no alarm; so a verdict needs three looks.
- Refusing: a sink takes no records, or records that were taken wait for one.
- A collector that is away is a warning: its records wait in their queue, and nothing stands still.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowmon.errors import FlowmonError

if TYPE_CHECKING:
    from flowmon.web.view import Board, View

SILENT_S = 5.0
SILENT_INTERVALS = 3
MOVED_LEAST = 100  # packets: a few go past programs, as what a driver answers itself

Packets = Mapping[str, int]  # by interface


@dataclass(frozen=True)
class Health:
    """reasons: why flowmon is not well; empty: it is. warnings: what to look at all the same."""

    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    age_s: float

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong."""
        return not self.reasons


@dataclass(frozen=True)
class Look:
    """What the host counted at `at_s`, and what flowmon had seen by the View of then."""

    at_s: float
    host: Packets
    flowmon: Packets


def silence(age_s: float, interval_s: float, *, is_first: bool) -> list[str]:
    """What is wrong with a latest View of that age; is_first: none came yet."""
    limit_s = max(SILENT_S, SILENT_INTERVALS * interval_s)
    if age_s <= limit_s:
        return []
    what = "nothing was collected yet" if is_first else "nothing was collected"
    return [f"{what} for {age_s:.1f} s, expected every {interval_s:g} s: see the log"]


def bypassed(first: Look, last: Look, now: Packets, moved_least: int = MOVED_LEAST) -> list[str]:
    """The interfaces on which packets went by unseen, each as a reason.

    Between the looks `first` and `last` the host counted them; `now` is what flowmon had seen by a View
    that was read after `last`.
    """
    reasons = []
    for name in sorted(first.host.keys() & last.host.keys()):
        moved = last.host[name] - first.host[name]
        has_stood_still = now.get(name, 0) == first.flowmon.get(name, 0)
        if moved > moved_least and has_stood_still:
            reasons.append(
                f"{name}: the host counted {moved} packets, flowmon none of them: the programs are gone or"
                " bypassed (flowmon status)"
            )
    return reasons


def refusals(view: View) -> list[str]:
    """What a sink does not take."""
    reasons = [f"records are refused: {view.refused_by}"] if view.refused_by else []
    if view.unwritten_records:
        reasons.append(f"{view.unwritten_records} records were taken from the table and are not written yet")
    return reasons


def warnings(view: View) -> list[str]:
    """What the sinks complain of, and what they lost."""
    said = [f"{sink.name}: {sink.complaint}" for sink in view.sinks if sink.complaint]
    return said + [
        f"{sink.name}: {sink.lost_records} records were lost" for sink in view.sinks if sink.lost_records
    ]


def seen(view: View) -> dict[str, int]:
    """Packets by interface that flowmon has seen."""
    packets: dict[str, int] = {}
    for point in view.points:
        packets[point.interface] = packets.get(point.interface, 0) + point.seen_packets
    return packets


class Watch:
    """Looks each time that somebody asks, and remembers the looks that the next verdict needs.

    interface_packets: what the host counted so far, by attached interface, of the attached directions.
    """

    def __init__(self, board: Board, interval_s: float, interface_packets: Callable[[], Packets]) -> None:
        self._board = board
        self._interval_s = interval_s
        self._interface_packets = interface_packets
        self._first: Look | None = None
        self._last: Look | None = None
        self._bypassed: list[str] = []
        self._lock = threading.Lock()

    def health(self) -> Health:
        """As it is now. Any thread may ask."""
        # In this order: what the View says was read before the host was asked, and that was before now.
        posted = self._board.latest
        host, complaints = self._ask_host()
        now_s = self._board.now_s()
        view, age_s = posted.view, now_s - posted.at_s
        reasons = silence(age_s, self._interval_s, is_first=view is None)
        if view is None:
            return Health(tuple(reasons), (), age_s)
        with self._lock:
            # Of a collector that is silent it is known why nothing is accounted for.
            if not reasons and not complaints:
                look = Look(now_s, host, seen(view))
                reasons += self._look(look, posted.read_after_s)
        return Health((*reasons, *complaints, *refusals(view)), tuple(warnings(view)), age_s)

    def _ask_host(self) -> tuple[Packets, list[str]]:
        try:
            return dict(self._interface_packets()), []
        except (FlowmonError, OSError) as error:
            return {}, [f"the host cannot be asked for its interfaces: {error}"]

    def _look(self, look: Look, read_after_s: float) -> list[str]:
        if self._first is None or self._last is None:
            self._first = self._last = look
        elif read_after_s >= self._last.at_s:
            self._bypassed = bypassed(self._first, self._last, look.flowmon)
            self._first, self._last = _still(self._first, look), look
        return self._bypassed


def _still(first: Look, look: Look) -> Look:
    """The first look, but begun anew for interfaces where something was seen, or that are new."""
    host = dict(look.host)
    for name in look.host.keys() & first.host.keys():
        if look.flowmon.get(name, 0) == first.flowmon.get(name, 0) and first.host[name] <= look.host[name]:
            host[name] = first.host[name]
    return Look(first.at_s, host, look.flowmon)
