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

import contextlib
import errno
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flowmon.errors import SinkError
from flowmon.sinks.destination import FILE, Destination

CONNECT_SECONDS = 5.0
VERDICT_SECONDS = 1.0  # for a collector to refuse our certificate, in TLS 1.3
CLOSING_SECONDS = 5.0  # for the last acknowledgements of a collector that closes
WAIT_SECONDS = 0.2  # between two looks at whether to go on
ACK_SECONDS = 0.005  # between two looks at what was acknowledged
TCP_INFO_SIZE = 256
BYTES_ACKED = struct.Struct("Q")
BYTES_ACKED_AT = 120  # tcpi_bytes_acked in struct tcp_info (include/uapi/linux/tcp.h)
READ_SIZE = 16384
BURST = 32  # datagrams that may leave at once: a collector's socket buffer holds about a hundred
BURST_SECONDS = 0.01  # a burst is no more than the rate allows in that time
# What ICMP says of a datagram, or a firewall of this host.
REFUSALS = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM)
RESET = struct.pack("ii", 1, 0)  # struct linger: what is not sent is thrown away
KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
USER_TIMEOUT_MS = 30_000  # data that nobody acknowledges for so long: the collector is gone


class GoneError(Exception):
    """The connection is over, or could not be made. What did not arrive is to be sent again."""


class GivenUpError(Exception):
    """Nobody wants to wait for the collector any longer."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. ca: of the authorities that may have signed the collector's certificate (None: the system's)."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


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


class Udp:
    """Datagrams. What a host refuses by ICMP is counted in `refused`, and goes on all the same."""

    loses_templates = True

    def __init__(
        self, destination: Destination, stopped: Callable[[], bool], messages_per_second: float = 0
    ) -> None:
        self.refused = 0
        self._destination = destination
        self._stopped = stopped
        self._rate = messages_per_second
        self._burst_s = (
            max(1, min(BURST, int(self._rate * BURST_SECONDS))) / self._rate if self._rate else 0.0
        )
        self._due_at = 0.0
        self._socket: socket.socket | None = None
        self._sent = 0
        self._turn = 0  # with the next address, where one refuses
        self._has_others = False

    def open(self) -> None:
        """Resolves the name; there is nobody to greet."""
        self._sent = 0
        self._has_others = len(resolved(self._destination, socket.SOCK_DGRAM)) > 1
        self._socket = _connected(self._destination, socket.SOCK_DGRAM, self._stopped, self._turn)
        self._socket.setblocking(True)

    def send(self, message: memoryview | bytes) -> int:
        """One datagram."""
        self._keep_rate()
        if self._socket is None:
            raise GoneError("not open")
        for _ in range(2):
            try:
                self._socket.send(message)
            except OSError as error:
                if error.errno not in REFUSALS:
                    raise GoneError(_reason(error)) from None
                self.refused += 1  # an earlier datagram: this one was not sent
                self._turn += 1
                if self._has_others:
                    raise GoneError("nobody listens at one of its addresses") from None
            else:
                break
        self._sent += len(message)
        return self._sent

    def arrived(self) -> int:
        """All of it: nobody will tell."""
        return self._sent

    def check(self) -> None:
        """Nothing to look at."""

    def finish(self) -> None:
        """Nothing to say; a refusal of the last datagrams is noticed."""
        if self._socket is not None:
            try:
                self._socket.settimeout(0.05)
                self._socket.recv(1)
            except ConnectionRefusedError:
                self.refused += 1
            except OSError:
                pass

    def close(self) -> None:
        """Closes the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _keep_rate(self) -> None:
        """Waits where more than a burst left before it was due, until half of that is."""
        if not self._rate:
            return
        now = time.monotonic()
        self._due_at = max(self._due_at, now) + 1 / self._rate
        if self._due_at <= now + self._burst_s:
            return
        until = self._due_at - self._burst_s / 2
        while (left := until - time.monotonic()) > 0:
            if self._stopped():
                raise GivenUpError
            time.sleep(min(left, WAIT_SECONDS))


class Tcp:
    """A stream. stopped: asked while the collector is slow, whether to give up."""

    loses_templates = False

    def __init__(self, destination: Destination, stopped: Callable[[], bool]) -> None:
        self._destination = destination
        self._stopped = stopped
        self._socket: socket.socket | None = None
        self._sent = 0
        self._acked_before = 0
        self._last_arrived = 0
        self._finished = False

    def open(self) -> None:
        """Connects to the first address that answers."""
        self._sent = self._last_arrived = 0
        self._finished = False
        connection = _connected(self._destination, socket.SOCK_STREAM, self._stopped)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        self._acked_before = self._acknowledged(connection)
        self._socket = connection

    def send(self, message: memoryview | bytes) -> int:
        """Waits as long as the collector is slow."""
        self._send_octets(message)
        return self._sent

    def _send_octets(self, octets: memoryview | bytes) -> None:
        view = memoryview(octets)
        while view:
            if self._socket is None:
                raise GoneError("not open")
            events = _events(self._socket, select.POLLIN | select.POLLOUT, WAIT_SECONDS)
            if events & ~select.POLLOUT:
                self._read()
            if events & select.POLLOUT:
                view = view[self._send_some(view) :]
            elif self._stopped():
                raise GivenUpError

    def _send_some(self, view: memoryview) -> int:
        if self._socket is None:
            raise GoneError("not open")
        try:
            count = self._socket.send(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise GoneError(_reason(error)) from None
        self._sent += count
        return count

    def _read(self) -> None:
        """The other side has something to say: that it goes."""
        if self._socket is None:
            return
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            raise GoneError(_reason(error)) from None
        if not data:
            raise self._closed_by_collector()
        self._received(data)

    def _closed_by_collector(self) -> GoneError:
        """Once it is known what has arrived, of what this side's kernel goes on to send."""
        until = time.monotonic() + CLOSING_SECONDS
        while self._socket is not None and self.arrived() < self._sent and time.monotonic() < until:
            if _events(self._socket, 0, ACK_SECONDS) or self._stopped():
                break
        return GoneError("the collector closed the connection")

    def _received(self, data: bytes) -> None:
        """IPFIX has no answers: what comes is passed over."""

    def arrived(self) -> int:
        """What the collector's kernel has acknowledged."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._last_arrived = self._acknowledged(self._socket) - self._acked_before
        return self._last_arrived

    @staticmethod
    def _acknowledged(connection: socket.socket) -> int:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
        (acked,) = BYTES_ACKED.unpack_from(info, BYTES_ACKED_AT)
        return int(acked)

    def check(self) -> None:
        """Whether the other side has closed."""
        if self._socket is None:
            raise GoneError("not open")
        if _events(self._socket, select.POLLIN, 0):
            self._read()

    def finish(self) -> None:
        """Half closes."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
                self._finished = True

    def close(self) -> None:
        """Closes the socket; without `finish` before, what has not arrived does not leave any more."""
        if self._socket is not None:
            if self.arrived() < self._sent and not self._finished:
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._socket.close()
            self._socket = None


class Tls(Tcp):
    """A stream in TLS. What goes over the wire is counted, not what went into it."""

    def __init__(self, destination: Destination, stopped: Callable[[], bool], files: TlsFiles) -> None:
        super().__init__(destination, stopped)
        self._context = tls_context(files)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self._new_object()

    def _new_object(self) -> ssl.SSLObject:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = self._destination.host.partition("%")[0].removesuffix(".")  # as certificates have it
        return self._context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    def open(self) -> None:
        """Connects and shakes hands. Raises CertificateError where the collector is not who it should be."""
        super().open()
        self._tls = self._new_object()
        until = time.monotonic() + CONNECT_SECONDS
        try:
            while not self._step():
                if time.monotonic() > until:
                    raise GoneError("no answer to the TLS handshake")
                if self._stopped():
                    raise GivenUpError
            self._await_verdict()
        except BaseException:
            self.close()
            raise

    def _step(self) -> bool:
        """One step of the handshake; whether it is over."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            if self._socket is not None and _events(self._socket, select.POLLIN, WAIT_SECONDS):
                self._read()
            return False
        except ssl.SSLCertVerificationError as error:
            self._say_why()
            raise CertificateError(f"its certificate was refused: {error.verify_message}") from None
        except ssl.SSLError as error:
            self._say_why()
            raise _tls_error(error) from None
        self._flush()
        return True

    def _await_verdict(self) -> None:
        """In TLS 1.3 a collector judges our certificate only after the handshake, as we see it.

        It sends an alert, or session tickets, or nothing. Until then nothing is sent:
        its kernel would acknowledge what is thrown away.
        """
        if self._socket is not None and self._tls.version() == "TLSv1.3":
            self._received(b"")  # what came with the handshake
            if _events(self._socket, select.POLLIN, VERDICT_SECONDS):
                self._read()

    def _say_why(self) -> None:
        """The alert, for the collector's log."""
        with contextlib.suppress(GoneError, GivenUpError):
            self._flush()

    def send(self, message: memoryview | bytes) -> int:
        """In records of TLS."""
        try:
            self._tls.write(message)
        except ssl.SSLError as error:
            raise _tls_error(error) from None
        self._flush()
        return self._sent

    def _flush(self) -> None:
        while self._outgoing.pending:
            self._send_octets(self._outgoing.read())

    def _received(self, data: bytes) -> None:
        """Session tickets, and the alert that says why a collector does not want us."""
        self._incoming.write(data)
        try:
            while self._tls.version():
                if not self._tls.read(READ_SIZE):
                    raise self._closed_by_collector()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise _tls_error(error) from None

    def finish(self) -> None:
        """Says goodbye, and half closes."""
        with contextlib.suppress(ssl.SSLError, GoneError, GivenUpError):
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            self._flush()
        super().finish()


class CertificateError(GoneError):
    """The collector is not who it should be."""


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Verifies the host's name and the authority. Raises SinkError where a file is not what it should be."""
    with _naming(files.ca):
        context = ssl.create_default_context(cafile=files.ca)
    if files.certificate is not None:
        for path in (files.certificate, files.key):
            if path is not None:
                with _naming(path):
                    path.open("rb").close()
        key = files.key or files.certificate
        with _naming(files.certificate, files.key):
            context.load_cert_chain(files.certificate, files.key, lambda: _no_password(key))
    return context


@contextlib.contextmanager
def _naming(*paths: Path | None) -> Iterator[None]:
    """Makes a SinkError with their names of what is wrong with them."""
    try:
        yield
    except OSError as error:
        names = " and ".join(str(path) for path in paths if path) or "the system's authorities"
        if isinstance(error, ssl.SSLError):
            why = _tls_reason(error)
            expected = "PEM files that belong together" if len(paths) > 1 else "a PEM file"
            raise SinkError(f"{names}: expected {expected} (--ipfix-ca, -cert, -key): {why}") from None
        raise SinkError(f"{names}: {_reason(error)} (--ipfix-ca, -cert, -key)") from None


def _no_password(key: Path) -> str:
    raise SinkError(f"{key}: the key has a password: give one without (openssl pkey -in … -out …)")


def _tls_error(error: ssl.SSLError) -> GoneError:
    return GoneError(f"TLS: {_tls_reason(error)}")


def _tls_reason(error: ssl.SSLError) -> str:
    return error.reason.lower().replace("_", " ") if error.reason else str(error)


class File:
    """A file of messages, one after the other (RFC 5655). What is there already stays in front."""

    loses_templates = False

    def __init__(self, destination: Destination) -> None:
        self._path = destination.path
        self._fd: int | None = None
        self._sent = 0

    def open(self) -> None:
        """Opens the end of the file."""
        self._sent = 0
        if self._path.is_fifo():
            raise GoneError("a pipe would hold everything up: expected a file")
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise GoneError(_reason(error)) from None

    def send(self, message: memoryview | bytes) -> int:
        """Writes all of it, or takes back what it wrote of it."""
        if self._fd is None:
            raise GoneError("not open")
        rest = memoryview(message)
        end = os.fstat(self._fd).st_size
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, end)
            raise GoneError(_reason(error)) from None
        self._sent += len(message)
        return self._sent

    def arrived(self) -> int:
        """What was written."""
        return self._sent

    def check(self) -> None:
        """Nothing to look at."""

    def finish(self) -> None:
        """Makes it durable."""
        if self._fd is not None:
            try:
                os.fsync(self._fd)
            except OSError as error:
                if error.errno != errno.EINVAL:  # that is not for such a file
                    raise GoneError(_reason(error)) from None

    def close(self) -> None:
        """Closes the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def transport(
    destination: Destination, stopped: Callable[[], bool], files: TlsFiles, udp_rate: float
) -> Transport:
    """That of the destination's scheme."""
    if destination.scheme == FILE:
        return File(destination)
    if destination.scheme == "udp":
        return Udp(destination, stopped, udp_rate)
    return Tcp(destination, stopped) if destination.scheme == "tcp" else Tls(destination, stopped, files)


def resolved(destination: Destination, kind: socket.SocketKind) -> Sequence[tuple[Any, ...]]:
    """The host's addresses, as getaddrinfo gives them. Raises NoSuchHostError, GoneError."""
    try:
        return socket.getaddrinfo(destination.host, destination.port, type=kind)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise GoneError(f"its name cannot be resolved now ({error.strerror})") from None
        raise NoSuchHostError(f"no such host ({error.strerror})") from None


def _connected(
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
            why = _reason(error)
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
            elif _events(one, select.POLLOUT, WAIT_SECONDS):
                number = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
    except BaseException:
        one.close()
        raise
    return one


def _events(one: socket.socket, wanted: int, seconds: float) -> int:
    """What poll() says of it within that time; 0: nothing."""
    poll = select.poll()
    poll.register(one, wanted)
    return next((events for _, events in poll.poll(1000 * seconds)), 0)


class NoSuchHostError(GoneError):
    """The name means nothing now."""


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
