"""A file of messages."""

from __future__ import annotations

import contextlib
import errno
import os

from flowmon.sinks.destination import Destination
from flowmon.sinks.transports.base import GoneError, reason


class File:
    """A file of messages, one after the other (RFC 5655). What is there already stays in front."""

    loses_templates = False

    def __init__(self, destination: Destination) -> None:
        self._path = destination.path
        self._fd: int | None = None
        self._sent = 0

    def open(self) -> None:
        """Opens the end of the file."""
        self._sent = 0
        if self._path.is_fifo():
            raise GoneError("a pipe would hold everything up: expected a file")
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise GoneError(reason(error)) from None

    def send(self, message: memoryview | bytes) -> int:
        """Writes all of it, or takes back what it wrote of it."""
        if self._fd is None:
            raise GoneError("not open")
        rest = memoryview(message)
        end = os.fstat(self._fd).st_size
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, end)
            raise GoneError(reason(error)) from None
        self._sent += len(message)
        return self._sent

    def arrived(self) -> int:
        """What was written."""
        return self._sent

    def check(self) -> None:
        """Nothing to look at."""

    def finish(self) -> None:
        """Makes it durable."""
        if self._fd is not None:
            try:
                os.fsync(self._fd)
            except OSError as error:
                if error.errno != errno.EINVAL:  # that is not for such a file
                    raise GoneError(reason(error)) from None

    def close(self) -> None:
        """Closes the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
