"""A stream in TLS."""

from __future__ import annotations

import contextlib
import select
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flowmon.errors import SinkError
from flowmon.sinks.destination import Destination
from flowmon.sinks.transports import sockets
from flowmon.sinks.transports.base import GivenUpError, GoneError, reason
from flowmon.sinks.transports.sockets import WAIT_SECONDS, events
from flowmon.sinks.transports.tcp import READ_SIZE, Tcp

VERDICT_SECONDS = 1.0  # for a collector to refuse our certificate, in TLS 1.3


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. ca: of the authorities that may have signed the collector's certificate (None: the system's)."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class CertificateError(GoneError):
    """The collector is not who it should be."""


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
        until = time.monotonic() + sockets.CONNECT_SECONDS
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
            if self._socket is not None and events(self._socket, select.POLLIN, WAIT_SECONDS):
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
            if events(self._socket, select.POLLIN, VERDICT_SECONDS):
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
        raise SinkError(f"{names}: {reason(error)} (--ipfix-ca, -cert, -key)") from None


def _no_password(key: Path) -> str:
    raise SinkError(f"{key}: the key has a password: give one without (openssl pkey -in … -out …)")


def _tls_error(error: ssl.SSLError) -> GoneError:
    return GoneError(f"TLS: {_tls_reason(error)}")


def _tls_reason(error: ssl.SSLError) -> str:
    return error.reason.lower().replace("_", " ") if error.reason else str(error)
