"""How full the table is between two passes, and when it will be too full.

Rules:
- It is reckoned from the counter of entries made, which costs nothing to read.
- A pass that takes T seconds lets rate * T entries in before the next can start,
  so the high-water mark sinks as the rate rises.
"""

import time

from flowmon.kernel.flow_table import FlowTable

LOOK_SECONDS = 0.1  # between two looks at the counter
LOOK_SECONDS_LEAST = 0.005
HIGH_WATER = 0.6  # of the table; lower where a pass lets more than that come in
SAFETY = 0.1  # of the table, kept free of all reckoning


class Pressure:
    """Of one table, as its collector sees it. `look_again_s`: seconds until the next look."""

    def __init__(self, table: FlowTable) -> None:
        self.look_again_s = LOOK_SECONDS
        self._table = table
        self._pass_seconds = 0.05
        self._rate = 0.0  # entries made a second
        self._last_made = self._made_at_pass = table.entries_made()
        self._last_look = time.monotonic()
        self._entries_at_pass = table.resident().entries

    def passed(self, made: int, entries: int, seconds: float) -> None:
        """A pass left so many entries in the table; `made` was the counter before it."""
        self._made_at_pass = made
        self._entries_at_pass = entries
        self._pass_seconds = 0.5 * self._pass_seconds + 0.5 * seconds

    def resident(self, made: int) -> int:
        """Entries in the table, when the counter of those made stands at `made`."""
        return min(self._table.max_flows, self._entries_at_pass + made - self._made_at_pass)

    def look(self) -> int:
        """How many entries should go now; 0 where there is room."""
        now, made = time.monotonic(), self._table.entries_made()
        elapsed = now - self._last_look
        if elapsed > 0:
            rate = (made - self._last_made) / elapsed
            self._rate = max(rate, 0.5 * self._rate + 0.5 * rate)
        self._last_made, self._last_look = made, now
        size = self._table.max_flows
        resident = self.resident(made)
        during_a_pass = self._rate * self._pass_seconds
        high_water = max(SAFETY * size, min(HIGH_WATER * size, (1 - SAFETY) * size - during_a_pass))
        room = high_water - resident
        self.look_again_s = LOOK_SECONDS
        if self._rate > 0:
            half_way = 0.5 * room / self._rate
            self.look_again_s = min(LOOK_SECONDS, max(LOOK_SECONDS_LEAST, half_way))
        return 0 if room > 0 else int(resident - high_water / 2)
