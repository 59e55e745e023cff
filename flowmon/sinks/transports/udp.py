"""Datagrams."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

from flowmon.sinks.destination import Destination
from flowmon.sinks.transports.base import GivenUpError, GoneError, reason
from flowmon.sinks.transports.sockets import WAIT_SECONDS, connected, resolved

BURST = 32  # datagrams that may leave at once: a collector's socket buffer holds about a hundred
BURST_SECONDS = 0.01  # a burst is no more than the rate allows in that time
# What ICMP says of a datagram, or a firewall of this host.
REFUSALS = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM)


class Udp:
    """Datagrams. What a host refuses by ICMP is counted in `refused`, and goes on all the same."""

    loses_templates = True

    def __init__(
        self, destination: Destination, stopped: Callable[[], bool], messages_per_second: float = 0
    ) -> None:
        self.refused = 0
        self._destination = destination
        self._stopped = stopped
        self._rate = messages_per_second
        self._burst_s = (
            max(1, min(BURST, int(self._rate * BURST_SECONDS))) / self._rate if self._rate else 0.0
        )
        self._due_at = 0.0
        self._socket: socket.socket | None = None
        self._sent = 0
        self._turn = 0  # with the next address, where one refuses
        self._has_others = False

    def open(self) -> None:
        """Resolves the name; there is nobody to greet."""
        self._sent = 0
        self._has_others = len(resolved(self._destination, socket.SOCK_DGRAM)) > 1
        self._socket = connected(self._destination, socket.SOCK_DGRAM, self._stopped, self._turn)
        self._socket.setblocking(True)

    def send(self, message: memoryview | bytes) -> int:
        """One datagram."""
        self._keep_rate()
        if self._socket is None:
            raise GoneError("not open")
        for _ in range(2):
            try:
                self._socket.send(message)
            except OSError as error:
                if error.errno not in REFUSALS:
                    raise GoneError(reason(error)) from None
                self.refused += 1  # an earlier datagram: this one was not sent
                self._turn += 1
                if self._has_others:
                    raise GoneError("nobody listens at one of its addresses") from None
            else:
                break
        self._sent += len(message)
        return self._sent

    def arrived(self) -> int:
        """All of it: nobody will tell."""
        return self._sent

    def check(self) -> None:
        """Nothing to look at."""

    def finish(self) -> None:
        """Nothing to say; a refusal of the last datagrams is noticed."""
        if self._socket is not None:
            try:
                self._socket.settimeout(0.05)
                self._socket.recv(1)
            except ConnectionRefusedError:
                self.refused += 1
            except OSError:
                pass

    def close(self) -> None:
        """Closes the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _keep_rate(self) -> None:
        """Waits where more than a burst left before it was due, until half of that is."""
        if not self._rate:
            return
        now = time.monotonic()
        self._due_at = max(self._due_at, now) + 1 / self._rate
        if self._due_at <= now + self._burst_s:
            return
        until = self._due_at - self._burst_s / 2
        while (left := until - time.monotonic()) > 0:
            if self._stopped():
                raise GivenUpError
            time.sleep(min(left, WAIT_SECONDS))
