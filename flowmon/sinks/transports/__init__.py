"""How messages leave: UDP, TCP, TLS, or into a file.

Rules:
- A transport sends whole messages in order, and says how many octets of what it
  sent have arrived for all that the network can tell: what the other side's
  kernel has acknowledged, or all of it where nothing does (UDP, a file).
- A collector never sends anything in IPFIX. If it closes its side of a stream, what its
  kernel acknowledges even then has arrived, and the rest has not: that is waited for,
  as it is sent again. A collector that is killed with unread octets in its socket takes
  them along (RST): they were acknowledged, and nobody can know that they were not read.
  What it had read but not yet acknowledged then comes twice: a reset acknowledges
  nothing, and Linux delays acknowledgements by up to two segments.
- A stream that ends otherwise is reset: what was not acknowledged shall not arrive later
  on its own, since it is sent again.
- Whatever waits asks `stopped` whether to go on.
- TLS: the certificate must be the host's and of a trusted authority. There is no way
  to go on without.
"""

from __future__ import annotations

from collections.abc import Callable

from flowmon.sinks.destination import FILE, Destination
from flowmon.sinks.transports.base import Transport
from flowmon.sinks.transports.file import File
from flowmon.sinks.transports.tcp import Tcp
from flowmon.sinks.transports.tls import Tls, TlsFiles
from flowmon.sinks.transports.udp import Udp


def transport(
    destination: Destination, stopped: Callable[[], bool], files: TlsFiles, udp_rate: float
) -> Transport:
    """That of the destination's scheme."""
    if destination.scheme == FILE:
        return File(destination)
    if destination.scheme == "udp":
        return Udp(destination, stopped, udp_rate)
    return Tcp(destination, stopped) if destination.scheme == "tcp" else Tls(destination, stopped, files)
