"""Names into addresses, addresses into connections."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from flowmon.sinks.destination import Destination
from flowmon.sinks.transports.base import GivenUpError, GoneError, reason

CONNECT_SECONDS = 5.0
WAIT_SECONDS = 0.2  # between two looks at whether to go on


class NoSuchHostError(GoneError):
    """The name means nothing now."""


def resolved(destination: Destination, kind: socket.SocketKind) -> Sequence[tuple[Any, ...]]:
    """The host's addresses, as getaddrinfo gives them. Raises NoSuchHostError, GoneError."""
    try:
        return socket.getaddrinfo(destination.host, destination.port, type=kind)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise GoneError(f"its name cannot be resolved now ({error.strerror})") from None
        raise NoSuchHostError(f"no such host ({error.strerror})") from None


def connected(
    destination: Destination, kind: socket.SocketKind, stopped: Callable[[], bool], turn: int = 0
) -> socket.socket:
    """A socket, not blocking, connected to the first address that answers. Raises GoneError, GivenUpError.

    turn: with which of the addresses to begin.
    """
    why = "no address"
    addresses = list(resolved(destination, kind))
    first = turn % len(addresses)
    for family, _, _, _, address in addresses[first:] + addresses[:first]:
        try:
            return _connected_to(socket.socket(family, kind), address, stopped)
        except OSError as error:
            why = reason(error)
    raise GoneError(why)


def _connected_to(one: socket.socket, address: Any, stopped: Callable[[], bool]) -> socket.socket:
    try:
        one.setblocking(False)
        number = one.connect_ex(address)
        until = time.monotonic() + CONNECT_SECONDS
        while number == errno.EINPROGRESS:
            if stopped():
                raise GivenUpError
            if time.monotonic() > until:
                number = errno.ETIMEDOUT
            elif events(one, select.POLLOUT, WAIT_SECONDS):
                number = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
    except BaseException:
        one.close()
        raise
    return one


def events(one: socket.socket, wanted: int, seconds: float) -> int:
    """What poll() says of it within that time; 0: nothing."""
    poll = select.poll()
    poll.register(one, wanted)
    return next((events for _, events in poll.poll(1000 * seconds)), 0)
