"""An HTTP server that answers from Pages, and lets no client hold it up.

Rules:
- At most CONNECTIONS_MOST at a time: one more is told 503 and goes.
- A request has REQUEST_S from the moment it is waited for, and REQUEST_OCTETS with its headers; its answer has
  ANSWER_S. Who takes longer is cut off: also who sends an octet now and then.
- No request body is taken. GET and HEAD only.
- On a loopback address, a Host header by another name is refused: a web page whose name was made to point here
  would read as if it were of this host (DNS rebinding).
- What a client does wrong is logged at DEBUG. An error of flowmon itself is logged once, with its traceback.

Source: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import errno
import io
import logging
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flowmon.config import given_as
from flowmon.errors import ConfigError
from flowmon.web.pages import METHODS, TEXT, Answer, Pages, Request, text

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

log = logging.getLogger("flowmon")

CONNECTIONS_MOST = 64
REQUEST_S = 10.0
ANSWER_S = 10.0
LOOK_S = 0.5  # between two looks at whether it shall end
LINGER_S = 0.5  # after a refusal, for the client to read it
REQUEST_OCTETS = 16 << 10
PORT_MOST = 65535
OUT_OF_FILES = errno.EMFILE, errno.ENFILE

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


def parse_listen(value: str) -> tuple[str, int] | None:
    """Address and port of "HOST:PORT", "[HOST]:PORT"; None of "off". Names but localhost are not resolved.

    Raises ConfigError.
    """
    if value == "off":
        return None
    host, colon, port = value.rpartition(":")
    address = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > PORT_MOST:
        raise _no_address(value)
    try:
        is_right = is_bracketed == (ip_address(address).version == 6)
    except ValueError:
        is_right = False
    if not is_right:
        raise _no_address(value)
    return address, int(port)


def _no_address(value: str) -> ConfigError:
    expected = "expected ADDRESS:PORT (127.0.0.1:2112, [::1]:2112, localhost:2112) or off"
    return ConfigError(f"{given_as('listen', '--listen')} {value}: {expected}")


class Server:
    """Answers from `pages` at an address, from `start` to `close`, in threads of its own.

    port: 0: any that is free. Raises ConfigError where it cannot listen there.
    """

    def __init__(self, address: str, port: int, pages: Pages) -> None:
        try:
            self._http = _HttpServer(address, port, pages)
        except OSError as error:
            where, why = _authority(address, port), (error.strerror or str(error)).lower()
            option = given_as("listen", "--listen")
            raise ConfigError(f"{option} {where}: {why}: give another address, or {option} off") from None
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(LOOK_S,), name="http", daemon=True
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        address, port = self._http.server_address[:2]
        return f"http://{_authority(str(address), int(port))}"

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def close(self) -> None:
        """Listens no more. What is being answered goes on for ANSWER_S at most."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()


def _authority(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class _HttpServer(ThreadingHTTPServer):
    """A thread a connection, of which there is a most."""

    daemon_threads = True
    request_queue_size = CONNECTIONS_MOST

    def __init__(self, address: str, port: int, pages: Pages) -> None:
        self.pages = pages
        self.is_loopback = ip_address(address).is_loopback
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MOST)
        self._failure = ""
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        """Without asking a name server for the host's name, as the one of HTTPServer does."""
        TCPServer.server_bind(self)

    def get_request(self) -> tuple[Any, Any]:
        """A connection. Where there is no descriptor for it, the loop shall not spin."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in OUT_OF_FILES:
                time.sleep(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread, or says that there are too many."""
        if not self._slots.acquire(blocking=False):
            self._turn_away(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def shutdown_request(self, request: Any) -> None:
        """Closes it, but lets the client read first: what it sent and nobody read would cut it off."""
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            until = time.monotonic() + LINGER_S
            left = 4 * REQUEST_OCTETS
            while left > 0 and (wait_s := until - time.monotonic()) > 0:
                request.settimeout(wait_s)
                octets = len(request.recv(left))
                left -= octets or left
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A client that goes away is no error."""
        error = sys.exception()
        if isinstance(error, OSError):
            log.debug("http: %s: %s", client_address[0], error)
        elif error is not None:
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        """Logs an error of flowmon itself, each time that it is another one."""
        if repr(error) != self._failure:
            log.error("http: an error of flowmon itself (%r)", error, exc_info=error)
        self._failure = repr(error)

    def _turn_away(self, request: Any) -> None:
        """Without waiting for anything: this is the thread that takes all connections."""
        log.debug("http: more than %d connections", CONNECTIONS_MOST)
        with suppress(OSError):
            request.setblocking(False)
            with suppress(BlockingIOError):
                request.recv(REQUEST_OCTETS)
            request.send(BUSY)
            request.shutdown(socket.SHUT_WR)
        self.close_request(request)


class _TooLargeError(Exception):
    """A request beyond REQUEST_OCTETS."""


class _Incoming(io.RawIOBase):
    """What a client sends, within a time and a size that are for all of a request."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until = 0.0
        self._left = 0

    def expect(self, seconds: float, octets: int) -> None:
        """Another request may come: so long, and so large."""
        self._until, self._left = time.monotonic() + seconds, octets

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """How much came. Raises TimeoutError, _TooLargeError."""
        wait_s = self._until - time.monotonic()
        if self._left <= 0:
            raise _TooLargeError
        if wait_s <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(wait_s)
        octets = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= octets
        return octets


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _HttpServer
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"
    error_message_format, error_content_type = "%(message)s\n", TEXT
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Reads with limits."""
        super().setup()
        self.rfile.close()
        self._incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        """Reads a request and answers it."""
        self.command, self.requestline, self.request_version = "", "", self.default_request_version
        self.close_connection = True
        try:
            self._incoming.expect(REQUEST_S, REQUEST_OCTETS)
            self.raw_requestline = self.rfile.readline(REQUEST_OCTETS)
            if self.raw_requestline and self.parse_request():
                self._send(self._answer())
        except _TooLargeError:
            self.close_connection = True
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._send(text(status, f"a request is {REQUEST_OCTETS} octets at most"))

    def version_string(self) -> str:
        """The Server header."""
        return "flowmon"

    def handle_expect_100(self) -> bool:
        """No body is taken, so none is encouraged."""
        return True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called there
        """At DEBUG."""
        log.debug("http: %s: %a", self.client_address[0], format % args)

    def _answer(self) -> Answer:
        has_body = "Transfer-Encoding" in self.headers or self.headers.get("Content-Length", "0") != "0"
        # What follows may be the body, not another request.
        self.close_connection |= has_body or self.command not in METHODS
        try:
            target = urlsplit(self.path)
        except ValueError:
            return text(HTTPStatus.BAD_REQUEST, "the address cannot be read")
        refusal = self._refusal(target.netloc)
        if refusal is not None:
            self.close_connection = True
            return refusal
        if has_body and self.command in METHODS:
            return text(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "no request body is taken")
        headers = self.headers
        accept, encoding = headers.get("Accept", ""), headers.get("Accept-Encoding", "")
        return self._page(Request(self.command, target.path, target.query, accept, encoding))

    def _page(self, request: Request) -> Answer:
        try:
            return self.server.pages.answer(request)
        except Exception as error:  # noqa: BLE001 - not to go unheard, nor to end the connection without a word
            self.server.failed(error)
            return text(
                HTTPStatus.INTERNAL_SERVER_ERROR, "an error of flowmon itself: see its log, and report it"
            )

    def _refusal(self, netloc: str) -> Answer | None:
        """Where the request names no host, several, or one that this is not."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) > 1 or (not hosts and self.request_version != "HTTP/1.0"):
            return text(HTTPStatus.BAD_REQUEST, "expected one Host header")
        names = [netloc, *hosts] if netloc else hosts
        if self.server.is_loopback and not all(map(is_literal, names)):
            return text(HTTPStatus.FORBIDDEN, "by an IP address or as localhost only, not by another name")
        return None

    def _send(self, answer: Answer) -> None:
        self.connection.settimeout(ANSWER_S)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close" if self.close_connection else "keep-alive")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)


def is_literal(host: str) -> bool:
    """Whether a Host header has an IP address or localhost, whatever the port."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        if not bracket:
            return False
    else:
        name, colon, port = host.partition(":")
        port = colon + port
    if port and not (port[0] == ":" and port[1:].isdecimal()):
        return False
    if name.lower() == "localhost":
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
