"""Events by who does it.

Rules:
- One event a source, whatever the number of its targets.
- An IPv6 /64 has one only where none of its addresses has its own; while it goes on, its
  addresses get none.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from flowmon.analysers.alerts import Alert, Events
from flowmon.analysers.examples import Source


class SourceEvents:
    """The events of one detector that go on, by source."""

    def __init__(self, quiet_ns: int) -> None:
        self._events = Events(quiet_ns)
        self._sources: dict[str, Source] = {}
        self._addresses_in: Counter[str] = Counter()  # that have an event, by /64

    def __len__(self) -> int:
        return len(self._events)

    def get(self, source: Source) -> Alert | None:
        """What is known of an event that goes on."""
        return self._events.get(source.text)

    def uncovered(self, sources: Iterable[Source]) -> list[Source]:
        """Those that have an event or may start one, of all that are seen at once; addresses first."""
        known = list(sources)
        addresses = [one for one in known if not one.is_prefix and self._may_start(one)]
        taken = {one.prefix for one in addresses if one.text not in self._events}
        prefixes = [one for one in known if one.is_prefix and self._may_start(one)]
        return addresses + [one for one in prefixes if one.text in self._events or one.prefix not in taken]

    def saw(self, evidence: Mapping[Source, Alert]) -> list[Alert]:
        """Takes in evidence on uncovered sources; what is to be said of it now."""
        alerts = []
        for source, alert in evidence.items():
            self._remember(source)
            alerts += self._events.saw(source.text, alert)
        return alerts

    def quiet(self, now_ns: int) -> list[Alert]:
        """The ends of those that were quiet for long enough."""
        return self._forget(self._events.quiet(now_ns))

    def finish(self) -> list[Alert]:
        """The ends of all."""
        return self._forget(self._events.finish())

    def _may_start(self, source: Source) -> bool:
        if source.text in self._events:
            return True
        if source.is_prefix:
            return source.prefix not in self._addresses_in
        return source.prefix not in self._events

    def _remember(self, source: Source) -> None:
        if source.text not in self._events:
            self._sources[source.text] = source
            if source.prefix and not source.is_prefix:
                self._addresses_in[source.prefix] += 1

    def _forget(self, ended: list[Alert]) -> list[Alert]:
        for alert in ended:
            source = self._sources.pop(alert.source)
            if source.prefix and not source.is_prefix:
                self._addresses_in[source.prefix] -= 1
                if self._addresses_in[source.prefix] == 0:
                    del self._addresses_in[source.prefix]
        return ended
