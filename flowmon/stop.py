"""How a run is asked to end."""

import signal
from types import FrameType


class Stop:
    """Set by SIGTERM or SIGINT; the loop ends after the pass that is under way.

    status: what a shell would say of a process that the signal ended.
    """

    def __init__(self) -> None:
        self.requested = False
        self.status = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.requested = True
        self.status = 128 + number
