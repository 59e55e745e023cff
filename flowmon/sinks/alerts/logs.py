"""Alerts for people: standard error, syslog and the journal.

Rules:
- A datagram goes to whoever listens at the path now: there is no connection that a daemon
  which starts anew would break.
- Syslog: `<PRI>flowmon[pid]: text` (RFC 3164 section 4.1, without its header, which the
  local daemon adds).
- Journal: its native protocol, a field a line; a field that stands there several
  times has several values (systemd.io/JOURNAL_NATIVE_PROTOCOL).
"""

import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowmon.analysers.alerts import ALERT_FIELDS, STARTED, Alert
from flowmon.errors import SinkError
from flowmon.sinks.alerts.words import line, sentence

SYSLOG_SOCKET = Path("/dev/log")
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
IDENTIFIER = "flowmon"
WARNING, NOTICE = 4, 5  # severities, RFC 5424 section 6.2.1
DAEMON = 3  # facility, likewise
PATIENCE_S = 1.0  # for a daemon that does not read


class StandardErrorAlerts:
    """One line an alert on standard error, whatever that is at the time."""

    def write(self, alerts: list[Alert]) -> None:
        """Raises SinkError where it is closed or full."""
        text = "".join(f"{line(alert)}\n" for alert in alerts)
        try:
            if sys.stderr is None:
                raise OSError(9, "it is closed")
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError) as error:
            raise SinkError(f"standard error cannot be written: {_reason(error)}") from None

    def close(self) -> None:
        """It is not ours."""


class _Datagrams:
    """Datagrams to a daemon's socket. Raises SinkError where nobody listens."""

    def __init__(self, path: Path, advice: str) -> None:
        self._path = path
        self._advice = advice
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(PATIENCE_S)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as trial:
                trial.connect(str(path))
        except OSError as error:
            self.close()
            raise self._failed(error) from None

    def send(self, message: bytes) -> None:
        try:
            self._socket.sendto(message, str(self._path))
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        self._socket.close()

    def _failed(self, error: OSError) -> SinkError:
        return SinkError(f"{self._path} takes no alerts ({_reason(error)}): {self._advice}")


class SyslogAlerts:
    """To syslog, facility daemon: warning for a start, notice for the rest."""

    def __init__(self, path: Path = SYSLOG_SOCKET) -> None:
        self._datagrams = _Datagrams(path, "start a syslog daemon, or give another --alerts")

    def write(self, alerts: list[Alert]) -> None:
        """Raises SinkError."""
        for alert in alerts:
            text = f"<{DAEMON << 3 | _severity(alert)}>{IDENTIFIER}[{os.getpid()}]: {sentence(alert)}"
            self._datagrams.send(text.encode())

    def close(self) -> None:
        """Closes the socket."""
        self._datagrams.close()


class JournalAlerts:
    """To the journal, with the columns of ALERT_SCHEMA as fields: alertId is FLOWMON_ALERT_ID."""

    def __init__(self, path: Path = JOURNAL_SOCKET) -> None:
        self._datagrams = _Datagrams(path, "is journald running? Else give another --alerts")

    def write(self, alerts: list[Alert]) -> None:
        """Raises SinkError."""
        for alert in alerts:
            self._datagrams.send(b"".join(_entry(name, text) for name, text in _journal_fields(alert)))

    def close(self) -> None:
        """Closes the socket."""
        self._datagrams.close()


def _journal_fields(alert: Alert) -> Iterator[tuple[str, str]]:
    yield "MESSAGE", sentence(alert)
    yield "PRIORITY", str(_severity(alert))
    yield "SYSLOG_FACILITY", str(DAEMON)
    yield "SYSLOG_IDENTIFIER", IDENTIFIER
    for one in ALERT_FIELDS:
        name = "FLOWMON_" + re.sub(r"(?=[A-Z])", "_", one.metadata["name"]).upper()
        for value in _values(getattr(alert, one.name)):
            yield name, str(value)


def _values(value: Any) -> tuple[Any, ...]:
    """Those to be written: of a null or an empty text none."""
    if isinstance(value, tuple):
        return value
    return () if value is None or value == "" else (value,)


def _entry(name: str, text: str) -> bytes:
    data = text.encode()
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def _severity(alert: Alert) -> int:
    return WARNING if alert.state == STARTED else NOTICE


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
