"""Alerts: what a detector says, as records, and the life of an event.

Rules:
- One alert an event: it starts, is updated where what is known of it has grown much, and ends.
  Each of these is a row with the same alertId; the latest row holds what is known.
- An event is over when its subject was quiet for a time that the detector knows.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields, replace
from typing import Any
from uuid import uuid4

import pyarrow as pa

STARTED, UPDATED, ENDED = "started", "updated", "ended"
EXAMPLES_MOST = 16

_TIME = pa.timestamp("ns", tz="UTC")
_TEXTS = pa.list_(pa.string())


def _column(name: str, type_: pa.DataType, meaning: str, **default: Any) -> Any:
    return field(metadata={"name": name, "type": type_, "meaning": meaning}, **default)


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One row of an alert. Its columns, in ALERT_SCHEMA, come from here."""

    alert_id: str = _column("alertId", pa.string(), "the event", default="")
    state: str = _column("alertState", pa.string(), "started, updated or ended", default=STARTED)
    detector: str = _column("detector", pa.string(), "which analyser")
    kind: str = _column("alertKind", pa.string(), "what it is, in the detector's words")
    start_ns: int = _column("alertStartNanoseconds", _TIME, "first evidence")
    end_ns: int = _column("alertEndNanoseconds", _TIME, "latest evidence")
    source: str = _column(
        "sourceAddress", pa.string(), "who does it: address or prefix; null: many", default=""
    )
    victim: str = _column(
        "destinationAddress", pa.string(), "to whom: address or prefix; null: many", default=""
    )
    protocol: int | None = _column("protocolIdentifier", pa.uint8(), "null: several", default=None)
    port: int | None = _column("destinationTransportPort", pa.uint16(), "null: several", default=None)
    sources: int | None = _column("distinctSources", pa.uint32(), "how many, in the window", default=None)
    hosts: int | None = _column("distinctDestinations", pa.uint32(), "likewise", default=None)
    ports: int | None = _column("distinctPorts", pa.uint32(), "likewise", default=None)
    attempts: int | None = _column("attempts", pa.uint64(), "since the start", default=None)
    failures: int | None = _column(
        "failures", pa.uint64(), "of them, those that came to nothing", default=None
    )
    rate: float | None = _column("attemptsPerSecond", pa.float64(), "highest so far", default=None)
    example_sources: tuple[str, ...] = _column("exampleSources", _TEXTS, "some of them", default=())
    example_hosts: tuple[str, ...] = _column("exampleDestinations", _TEXTS, "some of them", default=())
    example_ports: tuple[int, ...] = _column(
        "examplePorts", pa.list_(pa.uint16()), "some of them", default=()
    )
    confidence: float = _column("confidence", pa.float64(), "0 to 1", default=1.0)
    action: str = _column(
        "action", pa.string(), "what was done about it: blocked, would block; else empty", default=""
    )

    @property
    def size(self) -> int:
        """How much is known; where it has doubled, that is news."""
        return max(
            self.sources or 0, self.hosts or 0, self.ports or 0, self.failures or 0, int(self.rate or 0)
        )


ALERT_FIELDS = fields(Alert)
ALERT_SCHEMA = pa.schema([pa.field(one.metadata["name"], one.metadata["type"]) for one in ALERT_FIELDS])


def alert_batch(alerts: list[Alert]) -> pa.RecordBatch:
    """One row an alert, in the columns of ALERT_SCHEMA; an empty text is null."""
    columns = []
    for one in ALERT_FIELDS:
        values = [getattr(alert, one.name) for alert in alerts]
        if one.metadata["type"] == pa.string():
            values = [value or None for value in values]
        columns.append(
            pa.array([list(v) if isinstance(v, tuple) else v for v in values], one.metadata["type"])
        )
    return pa.RecordBatch.from_arrays(columns, schema=ALERT_SCHEMA)


class Events:
    """The events of one detector that go on, by subject."""

    def __init__(self, quiet_ns: int, make_id: Callable[[], str] = lambda: uuid4().hex) -> None:
        self._quiet_ns = quiet_ns
        self._make_id = make_id
        self._going_on: dict[Hashable, Alert] = {}
        self._said: dict[Hashable, Alert] = {}

    def __len__(self) -> int:
        return len(self._going_on)

    def __contains__(self, subject: Hashable) -> bool:
        return subject in self._going_on

    def get(self, subject: Hashable) -> Alert | None:
        """What is known of an event that goes on."""
        return self._going_on.get(subject)

    def saw(self, subject: Hashable, evidence: Alert) -> list[Alert]:
        """Takes in evidence; what is to be said of it now: a start, an update, or nothing.

        Of an event that goes on, the start stays and the highest rate counts.
        """
        known = self._going_on.get(subject)
        if known is None:
            started = replace(evidence, alert_id=self._make_id(), state=STARTED)
            self._going_on[subject] = self._said[subject] = started
            return [started]
        rate = max((r for r in (known.rate, evidence.rate) if r is not None), default=None)
        current = replace(
            evidence, alert_id=known.alert_id, state=UPDATED, start_ns=known.start_ns, rate=rate
        )
        self._going_on[subject] = current
        said = self._said[subject]
        if current.kind == said.kind and current.size < 2 * said.size:
            return []
        self._said[subject] = current
        return [current]

    def quiet(self, now_ns: int) -> list[Alert]:
        """The ends of those that were quiet for long enough."""
        over = [s for s, alert in self._going_on.items() if now_ns - alert.end_ns >= self._quiet_ns]
        return [self._end(subject) for subject in over]

    def finish(self) -> list[Alert]:
        """The ends of all."""
        return [self._end(subject) for subject in list(self._going_on)]

    def _end(self, subject: Hashable) -> Alert:
        del self._said[subject]
        return replace(self._going_on.pop(subject), state=ENDED)
