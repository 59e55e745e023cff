"""Sends blocks to one collector, in a thread of its own.

Rules:
- The collecting thread only puts: a slow collector, or none, never holds it up.
- What has not arrived when a connection ends goes out again in the next session, in
  the same order, after the templates; what has arrived does not.
- A connection is tried again after half a second, then ever later, up to half a
  minute; one that did not last as long as the wait before it was no success.
- At the end it waits for the collector as long as anything moves: whole data messages
  that arrive, so that it ends even where connections are taken and nothing else; but
  no longer than `longest_end_s`.
- What nobody expects to go wrong in the thread is as a connection that ends, logged with
  its traceback, and remembered as `failure`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from flowmon.ipfix.block import Block
from flowmon.ipfix.encoder import Encoder
from flowmon.ipfix.options_records import Report
from flowmon.ipfix.session import Dictionary, Session
from flowmon.sinks.backlog import Backlog
from flowmon.sinks.transports.base import GivenUpError, GoneError, Transport
from flowmon.sinks.transports.udp import Udp

log = logging.getLogger("flowmon")

FIRST_RETRY_S, LAST_RETRY_S = 0.5, 30.0
LOOK_S = 0.2  # between two looks at the connection while there is nothing to send
PATIENCE_S = 10.0  # at the end, without anything moving
SHORT_PATIENCE_S = 1.0  # where what waits is kept on disk
FEW = 64  # messages between two looks at what else is due


@dataclass(frozen=True)
class Refresh:
    """How often templates go out again over UDP, and statistics over everything."""

    seconds: float = 60.0
    messages: int = 1000


@dataclass
class _InFlight:
    """A block that is sent: where each of its messages ended in the stream, and how many had arrived when last seen."""

    block: Block
    ends: list[int]
    arrived: int = 0


class Exporter:
    """One collector, and what waits for it.

    metering: gives a Report of what was metered; exporting fills in the rest.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        dictionary: Dictionary,
        backlog: Backlog,
        refresh: Refresh,
        metering: Callable[[], Report],
        longest_end_s: float = math.inf,
    ) -> None:
        self._name = name
        self._encoder = encoder
        self._dictionary = dictionary
        self._backlog = backlog
        self._refresh = refresh
        self._metering = metering
        self._longest_end_s = longest_end_s
        self._end_by = math.inf
        self._transport: Transport | None = None
        self._session: Session | None = None
        self._in_flight: deque[_InFlight] = deque()
        self._finishing = threading.Event()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"export to {name}", daemon=True)
        self._moved_at = 0.0
        self._opened_at = 0.0
        self._retry_s = FIRST_RETRY_S
        self._complaint = ""
        self.failure = ""
        self._is_known = False
        self._refused_said = 0
        self._due_at = 0.0
        self._since_refresh = 0
        self._last_end = 0
        self._sent = Report()

    def start(self, transport: Transport) -> None:
        """Begins to send."""
        self._transport = transport
        self._thread.start()

    @property
    def is_started(self) -> bool:
        """Whether `start` was called."""
        return self._transport is not None

    def finish(self) -> None:
        """Waits until all that was put has arrived, or nothing moves any more."""
        self._moved_at = time.monotonic()
        self._end_by = self._moved_at + self._longest_end_s
        self._finishing.set()
        self._backlog.wake()
        if self.is_started:
            self._thread.join()

    def give_up(self) -> None:
        """Ends now; what waits stays in the backlog."""
        self._given_up.set()
        self.finish()

    @property
    def complaint(self) -> str:
        """Why nothing can be sent; empty while it can."""
        return self._complaint

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection; over UDP, a socket that nobody has refused."""
        return self._session is not None and not self._complaint

    @property
    def sent_records(self) -> int:
        """Data records handed to the connection so far; those sent again count again."""
        return self._sent.exported_records

    @property
    def is_moving(self) -> bool:
        """Whether it is worth while to wait for the collector: it was connected to, or moved a short time ago."""
        return not self._complaint or time.monotonic() < self._moved_at + PATIENCE_S

    def is_stopped(self) -> bool:
        """Whether nobody waits for the collector any longer. Only the thread asks; it notices what has moved."""
        if not self._finishing.is_set():
            return False
        self._notice_movement()
        is_safe = self._session is None and self._backlog.has_spool
        patience = SHORT_PATIENCE_S if is_safe else PATIENCE_S
        until = min(self._moved_at + patience, self._end_by)
        return self._given_up.is_set() or time.monotonic() > until

    def _run(self) -> None:
        try:
            while not self._is_over():
                try:
                    self._step()
                except GoneError as error:
                    self._lost(str(error))
                except GivenUpError:
                    break
                except Exception as error:  # noqa: BLE001 - neither to go unheard nor to end the export
                    self._fail(error)
                    self._lost(self.failure)
            self._end()
        except Exception as error:  # noqa: BLE001 - likewise
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        failure = f"an error of flowmon itself ({error!r})"
        if failure != self.failure:
            log.error("%s: %s", self._name, failure, exc_info=error)
        self._complaint = self.failure = failure

    def _is_over(self) -> bool:
        """All has arrived that will."""
        if not self._finishing.is_set():
            return False
        was_tried = self._session is not None or self._complaint
        if was_tried and not self._in_flight and self._backlog.is_empty:
            return True
        return self.is_stopped()

    def _step(self) -> None:
        if self._session is None:
            self._connect()
        self._send_due()
        block = self._backlog.take(LOOK_S if not self._finishing.is_set() else 0.01)
        if block is not None:
            self._send_block(block)
        self._open_transport().check()
        self._settle()
        if self._complaint:
            log.warning("%s: connected again, %d records wait", self._name, self._backlog.waiting_records)
        elif not self._is_known:
            log.info("sending to %s", self._name)
        self._complaint, self._is_known = "", True

    def _open_transport(self) -> Transport:
        if self._transport is None:
            raise GoneError("not started")
        return self._transport

    def _connect(self) -> None:
        self._open_transport().open()
        self._session = Session(self._encoder, self._dictionary)
        self._opened_at = time.monotonic()
        self._send_refresh()
        self._send_statistics()

    def _send_messages(self, messages: Iterable[bytes]) -> None:
        for message in messages:
            self._send(message)

    def _send(self, message: memoryview | bytes) -> int:
        self._last_end = end = self._open_transport().send(message)
        self._sent.exported_messages += 1
        self._sent.exported_octets += len(message)
        self._since_refresh += 1
        return end

    def _current(self) -> Session:
        if self._session is None:
            raise GoneError("not connected")
        return self._session

    def _send_due(self) -> None:
        """From time to time statistics; over UDP, and after so many messages, everything that explains others."""
        loses = self._open_transport().loses_templates
        is_due = time.monotonic() >= self._due_at
        if loses and (is_due or self._since_refresh >= self._refresh.messages):
            self._send_refresh()
        if is_due:
            self._send_statistics()

    def _send_refresh(self) -> None:
        self._send_messages(self._current().refresh(self._report()))
        self._since_refresh = 0

    def _send_statistics(self) -> None:
        """And what has changed since the last time."""
        self._due_at = time.monotonic() + self._refresh.seconds
        self._send_messages(self._current().statistics(self._report()))

    def _send_block(self, block: Block) -> None:
        """Its templates, and its messages, a few at a time with what else is due."""
        flight = _InFlight(block, [])
        self._in_flight.append(flight)
        session = self._current()
        self._send_messages(session.announce(block))
        ends, records, content = block.ends.tolist(), block.records.tolist(), block.content.data
        first = 0
        while first < len(block):
            self._send_due()
            last = min(first + self._few(), len(block))
            session.stamp(block, first, last)
            for number in range(first, last):
                if self.is_stopped():
                    raise GivenUpError
                start = ends[number - 1] if number else 0
                flight.ends.append(self._send(content[start : ends[number]]))
                self._sent.exported_records += records[number]
            first = last

    def _few(self) -> int:
        """Messages until something else may be due."""
        if not self._open_transport().loses_templates:
            return FEW
        return max(1, min(FEW, self._refresh.messages - self._since_refresh))

    def _notice_movement(self) -> None:
        """Whether more data messages have arrived than the last time."""
        if self._in_flight:
            flight = self._in_flight[0]
            number = bisect_right(flight.ends, self._open_transport().arrived())
            if number > flight.arrived:
                flight.arrived = number
                self._moved_at = time.monotonic()

    def _settle(self) -> None:
        """Lets go of what has arrived."""
        arrived = self._open_transport().arrived()
        while self._in_flight and self._in_flight[0].ends[-1] <= arrived:
            self._backlog.sent(self._in_flight.popleft().block)
            self._moved_at = time.monotonic()
        self._say_refused()

    def _lost(self, reason: str) -> None:
        """The connection is over: what did not arrive goes out again, later."""
        lasted_s = time.monotonic() - self._opened_at if self._session else 0.0
        self._disconnect()
        if reason != self._complaint:
            log.warning("%s: %s; records wait, and it is tried again", self._name, reason)
        self._complaint = reason
        if lasted_s > self._retry_s:
            self._retry_s = FIRST_RETRY_S
        if self._finishing.wait(self._retry_s):
            self._given_up.wait(min(FIRST_RETRY_S, self._retry_s))
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _disconnect(self) -> None:
        transport = self._open_transport()
        transport.close()
        arrived = transport.arrived()
        back = []
        for flight in self._in_flight:
            number = bisect_right(flight.ends, arrived)
            if number == len(flight.block):
                self._backlog.sent(flight.block)
            else:
                back.append(flight.block.after(number))
        self._in_flight.clear()
        self._backlog.put_back(back)
        self._session = None

    def _end(self) -> None:
        """Says goodbye where all has arrived, and gives back what was not sent."""
        transport = self._open_transport()
        try:
            if self._session is not None and not self._in_flight and not self._given_up.is_set():
                self._send_messages(self._session.statistics(self._report()))
                transport.finish()
                self._wait_until_read(transport)
        except GoneError as error:
            log.warning("%s: %s, before the last statistics", self._name, error)
        except GivenUpError:
            log.warning("%s: it did not take the last statistics", self._name)
        self._say_refused()
        self._disconnect()

    def _wait_until_read(self, transport: Transport) -> None:
        """Until the last message has arrived; not for long, since there is nothing left but statistics."""
        until = time.monotonic() + 1.0
        while transport.arrived() < self._last_end and time.monotonic() < until:
            time.sleep(0.01)

    def _report(self) -> Report:
        """Metering and exporting, as they stand now."""
        lost = self._backlog.not_sent
        return replace(
            self._metering(),
            exported_messages=self._sent.exported_messages,
            exported_records=self._sent.exported_records,
            exported_octets=self._sent.exported_octets,
            not_sent_records=lost.records,
            not_sent_packets=lost.packets,
            not_sent_octets=lost.octets,
            not_sent_first_ns=lost.first_ns,
            not_sent_last_ns=lost.last_ns,
        )

    def _say_refused(self) -> None:
        """Whenever there are twice as many as were said."""
        transport = self._transport
        if isinstance(transport, Udp) and transport.refused >= max(1, 2 * self._refused_said):
            self._refused_said = transport.refused
            log.warning(
                "%s: nobody listens there, %d datagrams were refused so far", self._name, transport.refused
            )
