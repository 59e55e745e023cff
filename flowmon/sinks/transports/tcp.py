"""A stream."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable

from flowmon.sinks.destination import Destination
from flowmon.sinks.transports.base import GivenUpError, GoneError, reason
from flowmon.sinks.transports.sockets import WAIT_SECONDS, connected, events

CLOSING_SECONDS = 5.0  # for the last acknowledgements of a collector that closes
ACK_SECONDS = 0.005  # between two looks at what was acknowledged
TCP_INFO_SIZE = 256
BYTES_ACKED = struct.Struct("Q")
BYTES_ACKED_AT = 120  # tcpi_bytes_acked in struct tcp_info (include/uapi/linux/tcp.h)
READ_SIZE = 16384
RESET = struct.pack("ii", 1, 0)  # struct linger: what is not sent is thrown away
KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
USER_TIMEOUT_MS = 30_000  # data that nobody acknowledges for so long: the collector is gone


class Tcp:
    """A stream. stopped: asked while the collector is slow, whether to give up."""

    loses_templates = False

    def __init__(self, destination: Destination, stopped: Callable[[], bool]) -> None:
        self._destination = destination
        self._stopped = stopped
        self._socket: socket.socket | None = None
        self._sent = 0
        self._acked_before = 0
        self._last_arrived = 0
        self._finished = False

    def open(self) -> None:
        """Connects to the first address that answers."""
        self._sent = self._last_arrived = 0
        self._finished = False
        connection = connected(self._destination, socket.SOCK_STREAM, self._stopped)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        self._acked_before = self._acknowledged(connection)
        self._socket = connection

    def send(self, message: memoryview | bytes) -> int:
        """Waits as long as the collector is slow."""
        self._send_octets(message)
        return self._sent

    def _send_octets(self, octets: memoryview | bytes) -> None:
        view = memoryview(octets)
        while view:
            if self._socket is None:
                raise GoneError("not open")
            found = events(self._socket, select.POLLIN | select.POLLOUT, WAIT_SECONDS)
            if found & ~select.POLLOUT:
                self._read()
            if found & select.POLLOUT:
                view = view[self._send_some(view) :]
            elif self._stopped():
                raise GivenUpError

    def _send_some(self, view: memoryview) -> int:
        if self._socket is None:
            raise GoneError("not open")
        try:
            count = self._socket.send(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise GoneError(reason(error)) from None
        self._sent += count
        return count

    def _read(self) -> None:
        """The other side has something to say: that it goes."""
        if self._socket is None:
            return
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            raise GoneError(reason(error)) from None
        if not data:
            raise self._closed_by_collector()
        self._received(data)

    def _closed_by_collector(self) -> GoneError:
        """Once it is known what has arrived, of what this side's kernel goes on to send."""
        until = time.monotonic() + CLOSING_SECONDS
        while self._socket is not None and self.arrived() < self._sent and time.monotonic() < until:
            if events(self._socket, 0, ACK_SECONDS) or self._stopped():
                break
        return GoneError("the collector closed the connection")

    def _received(self, data: bytes) -> None:
        """IPFIX has no answers: what comes is passed over."""

    def arrived(self) -> int:
        """What the collector's kernel has acknowledged."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._last_arrived = self._acknowledged(self._socket) - self._acked_before
        return self._last_arrived

    @staticmethod
    def _acknowledged(connection: socket.socket) -> int:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
        (acked,) = BYTES_ACKED.unpack_from(info, BYTES_ACKED_AT)
        return int(acked)

    def check(self) -> None:
        """Whether the other side has closed."""
        if self._socket is None:
            raise GoneError("not open")
        if events(self._socket, select.POLLIN, 0):
            self._read()

    def finish(self) -> None:
        """Half closes."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
                self._finished = True

    def close(self) -> None:
        """Closes the socket; without `finish` before, what has not arrived does not leave any more."""
        if self._socket is not None:
            if self.arrived() < self._sent and not self._finished:
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._socket.close()
            self._socket = None
