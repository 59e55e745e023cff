"""Where alerts go: what `--alerts WHERE` names.

Rules:
- What a sink could not write is gone, and said by a SinkError: an alert is news, not a record,
  and nothing waits for it.
- Each alert is written whole, at once.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from flowmon.analysers.alerts import Alert
from flowmon.config import given_as
from flowmon.errors import ConfigError
from flowmon.sinks.alerts.files import JsonAlerts, ParquetAlerts
from flowmon.sinks.alerts.logs import JournalAlerts, StandardErrorAlerts, SyslogAlerts

EXPECTED = "stderr, syslog, journal, json:PATH (-: standard output) or parquet:DIR"
_LOGS = {"stderr": StandardErrorAlerts, "syslog": SyslogAlerts, "journal": JournalAlerts}


class AlertSink(Protocol):
    """Takes alerts as they come."""

    def write(self, alerts: list[Alert]) -> None:
        """Writes them all. Raises SinkError; those that were not written then are lost."""

    def close(self) -> None:
        """Gives back what was opened."""


def alert_sinks(texts: Sequence[str], now: Callable[[], int] = time.time_ns) -> list[AlertSink]:
    """The sinks that the texts of `--alerts` name, opened.

    now: UTC in nanoseconds; the hour of the writing is the partition of Parquet files.

    Raises ConfigError of a text that means nothing, SinkError of what cannot be written.
    """
    for text in texts:
        _check(text)
        if list(texts).count(text) > 1:
            raise ConfigError(f"{_option(text)} stands there twice")
    found: list[AlertSink] = []
    try:
        for text in texts:
            found.append(_opened(text, now))  # noqa: PERF401 - those before are to be closed
    except BaseException:
        for sink in found:
            sink.close()
        raise
    return found


def _check(text: str) -> None:
    kind, colon, path = text.partition(":")
    if text in _LOGS or (kind in ("json", "parquet") and path):
        return
    if kind in ("json", "parquet"):
        expected = "json:PATH (-: standard output)" if kind == "json" else "parquet:DIR"
        raise ConfigError(f"{_option(text)} names no path: expected {expected}")
    if kind in _LOGS and colon:
        raise ConfigError(f"{_option(text)}: {kind} takes nothing more: expected {kind}")
    raise ConfigError(f"{_option(text)} is not known: expected {EXPECTED}")


def _opened(text: str, now: Callable[[], int]) -> AlertSink:
    if text in _LOGS:
        return _LOGS[text]()
    kind, _, path = text.partition(":")
    return JsonAlerts(path) if kind == "json" else ParquetAlerts(Path(path), now)


def _option(text: str) -> str:
    return f"{given_as('alerts', '--alerts')} {text}"
