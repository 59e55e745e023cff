"""What analysers see of the passes, and where their alerts go.

Rules:
- Analysers see every pass; they are asked for alerts once an interval.
- An alert sink that fails is said once, and does not stop the others, nor the collector.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flowmon.analysers import Analyser
from flowmon.analysers.activity import NS, Seen, Tracker, new_connections
from flowmon.analysers.alerts import Alert
from flowmon.errors import SinkError
from flowmon.web.view import AlertHistory

if TYPE_CHECKING:
    from flowmon.sinks.alerts import AlertSink

log = logging.getLogger("flowmon")

EARLY = 0.5  # of an interval: a pass is never quite on time, and relief passes come much closer


class Watch:
    """Feeds `analysers`, and hands on what they say.

    respond: what is done about alerts (a block); gives them back with what it did.
    """

    def __init__(
        self,
        analysers: Sequence[Analyser],
        sinks: Sequence[AlertSink],
        interval_s: float,
        respond: Callable[[list[Alert]], list[Alert]] = lambda alerts: alerts,
    ) -> None:
        self.analysers = analysers
        self.history = AlertHistory()
        self.new_connections = 0  # TCP, attempted
        self._sinks = sinks
        self._respond = respond
        self._interval_ns = int(EARLY * interval_s * NS)
        self._tracker = Tracker()
        self._assessed_mono_ns = -self._interval_ns  # the first pass is due
        self._latest_ns = 0
        self._complaints: dict[AlertSink, str] = {}

    def passed(self, found: Seen, read_at_mono_ns: int, utc_offset_ns: int) -> None:
        """A pass found that."""
        activity = self._tracker.follow(found, read_at_mono_ns, utc_offset_ns)
        self.new_connections += new_connections(activity.rows)
        for analyser in self.analysers:
            analyser.observe(activity)
        self._latest_ns = activity.at_ns
        # Not by UTC, which may be set back.
        if read_at_mono_ns - self._assessed_mono_ns >= self._interval_ns:
            self._assessed_mono_ns = read_at_mono_ns
            self._tell([alert for one in self.analysers for alert in one.assess(activity.at_ns)])

    def finish(self) -> None:
        """No more passes: what goes on ends here."""
        self._tell([alert for one in self.analysers for alert in one.finish(self._latest_ns)])

    def _tell(self, alerts: list[Alert]) -> None:
        if not alerts:
            return
        alerts = self._respond(alerts)
        self.history.take(alerts)
        for sink in self._sinks:
            self._write(sink, alerts)

    def _write(self, sink: AlertSink, alerts: list[Alert]) -> None:
        try:
            sink.write(alerts)
            complaint = ""
        except SinkError as error:
            complaint = str(error)
            if complaint != self._complaints.get(sink, ""):
                log.warning("%s; alerts go on where they can", complaint)
        self._complaints[sink] = complaint
