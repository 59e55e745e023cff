"""Detectors over what moved in an interval. Pure: arrays and a time in, alerts out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flowmon.analysers.activity import Activity
    from flowmon.analysers.alerts import Alert


class Analyser(Protocol):
    """Watches the stream.

    name: what `--analyse` calls it.
    """

    name: str

    def observe(self, activity: Activity) -> None:
        """Takes in what moved; every pass, and there may be several an interval."""

    def assess(self, now_ns: int) -> list[Alert]:
        """What is to be said at the end of an interval; now_ns: UTC, of the latest reading."""

    def finish(self, now_ns: int) -> list[Alert]:
        """The last word: what is still going on ends here."""

    def gauges(self) -> Mapping[str, int]:
        """How much it remembers and what it had to forget, by name: for the metrics."""
