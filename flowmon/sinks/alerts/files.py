"""Alerts for programs: JSON lines and Parquet, in the columns of ALERT_SCHEMA."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from flowmon.analysers.alerts import Alert, alert_batch
from flowmon.errors import ConfigError, SinkError
from flowmon.sinks.json_lines import json_lines
from flowmon.sinks.parquet import PartitionedFiles

STANDARD_OUTPUT = "-"
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_NO_WAITING = os.O_NONBLOCK  # for the reader of a FIFO


class JsonAlerts:
    """One JSON object a line, appended to a file; `-` is standard output.

    The file is opened for each writing, so that it can be rotated. What a full disk cut off
    in the middle of a line is written first the next time: no reader sees half a line for good.
    """

    def __init__(self, path: str) -> None:
        """Raises SinkError where it cannot be written, ConfigError where standard output is closed."""
        self._path = path
        self._name = "standard output" if path == STANDARD_OUTPUT else path
        self._torn = b""
        if path == STANDARD_OUTPUT and sys.stdout is None:
            raise ConfigError("standard output is closed: open it, or give --alerts json:PATH")
        try:
            os.close(self._opened())
        except OSError as error:
            raise self._failed(error) from None

    def write(self, alerts: list[Alert]) -> None:
        """Raises SinkError; BrokenPipeError where whoever read standard output has gone."""
        if not alerts:
            return
        text = self._torn + b"".join(text.as_buffer() for text in json_lines(alert_batch(alerts)))
        written = 0
        try:
            fd = self._opened()
            try:
                while written < len(text):
                    written += os.write(fd, text[written:])
            finally:
                self._torn = _rest_of_line(self._torn, text, written)
                os.close(fd)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and self._path == STANDARD_OUTPUT:
                raise
            raise self._failed(error) from None

    def close(self) -> None:
        """Nothing is open."""

    def _opened(self) -> int:
        if self._path != STANDARD_OUTPUT:
            return os.open(self._path, _APPEND | _NO_WAITING, 0o644)
        sys.stdout.flush()
        return os.dup(sys.stdout.fileno())

    def _failed(self, error: OSError) -> SinkError:
        return SinkError(
            f"{self._name} cannot be written ({error.strerror}): make room or give another file (--alerts json:PATH)"
        )


def _rest_of_line(torn: bytes, text: bytes, written: int) -> bytes:
    """What is to come first the next time; torn: what was to come first this time."""
    if written < len(torn):
        return torn[written:]
    if text[:written].endswith(b"\n") or written == 0:
        return b""
    return text[written : text.index(b"\n", written) + 1]


class ParquetAlerts:
    """One file `alerts-….parquet` a writing, in the same partitions as flows."""

    def __init__(self, directory: Path, now: Callable[[], int]) -> None:
        """now: UTC in nanoseconds. Raises SinkError."""
        self._files = PartitionedFiles(directory, "alerts", "--alerts parquet:DIR")
        self._now = now

    def write(self, alerts: list[Alert]) -> None:
        """Raises SinkError, nothing written."""
        self._files.write(alert_batch(alerts), self._now())

    def close(self) -> None:
        """Removes the temporary file, if there is one."""
        self._files.close()
