"""What every way to a collector is, and how it fails."""

from __future__ import annotations

from typing import Protocol


class GoneError(Exception):
    """The connection is over, or could not be made. What did not arrive is to be sent again."""


class GivenUpError(Exception):
    """Nobody wants to wait for the collector any longer."""


class Transport(Protocol):
    """One way to one collector."""

    loses_templates: bool
    """Whether a template that was sent may not have arrived."""

    def open(self) -> None:
        """Connects. Raises GoneError."""

    def send(self, message: memoryview | bytes) -> int:
        """Sends one message; the octets sent since `open`, this message's last. Raises GoneError, GivenUpError."""

    def arrived(self) -> int:
        """Octets since `open` that have arrived, for all that is known. After a GoneError still that of its end."""

    def check(self) -> None:
        """Looks whether the other side is still there. Raises GoneError."""

    def finish(self) -> None:
        """Says that there is no more."""

    def close(self) -> None:
        """Ends it, however it stands."""


def reason(error: OSError) -> str:
    """What went wrong, in the words of the system."""
    return error.strerror or str(error) or type(error).__name__
