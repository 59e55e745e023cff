"""A directory that files of packets go to."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from flowmon.errors import SinkError

OPTION = "--features-directory"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger("flowmon")


class Directory:
    """Made where it is not there. Raises SinkError where no file can be made in it.

    option: how the user gives another. opened_ns: when it was opened, by the clock that its files' times go by.
    """

    def __init__(self, path: Path, option: str) -> None:
        self.path = path
        self._option = option
        # Always of the same name: what a killed process left is written over.
        self._temporary = path / ".flowmon-features.tmp"
        try:
            self.make()
            self._temporary.write_bytes(b"")
            self.opened_ns = self._temporary.stat().st_mtime_ns
            self._temporary.unlink()
        except OSError as error:
            raise self.failed(error) from None

    def make(self) -> None:
        """Again, where it was removed meanwhile. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)

    def write_whole(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """A file that has its name only when it is whole and on disk. Raises SinkError, nothing written."""
        try:
            self.make()
            with self._temporary.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            self._temporary.replace(self.path / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            raise self.failed(error) from None
        self._sync_name(name)

    def failed(self, error: OSError) -> SinkError:
        """What is said where it cannot be written."""
        advice = "make room or " if error.errno in NO_ROOM else ""
        return SinkError(
            f"{self.path} cannot be written ({error.strerror}): {advice}give another directory ({self._option})"
        )

    def _sync_name(self, name: str) -> None:
        """Makes it durable. A failure is said, but the file is there all the same."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            log.warning("%s: its name may not outlive a power cut (%s)", self.path / name, error.strerror)
