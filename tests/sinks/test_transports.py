"""Ways to a collector: what arrives, what is known to have arrived, and who is refused."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import random
import re
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from collector_process import (
    DOMAIN,
    LOCALHOST,
    PATIENCE,
    Collector,
    UdpCollector,
    free_port,
    wait_until,
)
from flowmon.errors import SinkError
from flowmon.sinks.destination import Destination, destination
from flowmon.sinks.transports import sockets
from flowmon.sinks.transports.base import GivenUpError, GoneError, Transport
from flowmon.sinks.transports.file import File
from flowmon.sinks.transports.sockets import NoSuchHostError, resolved
from flowmon.sinks.transports.tcp import Tcp
from flowmon.sinks.transports.tls import CertificateError, Tls, TlsFiles, tls_context
from flowmon.sinks.transports.udp import Udp

FILE_ERRORS = "(--ipfix-ca, -cert, -key)"


def never() -> bool:
    return False


def to(port: int, scheme: str = "tcp", host: str = LOCALHOST) -> Destination:
    return Destination(scheme, host, port)


def message(number: int, octets: int = 1000) -> bytes:
    """An IPFIX header, and nothing that a reader would understand."""
    return struct.pack(">HHIII", 10, octets, 0, number, DOMAIN) + bytes(octets - 16)


def numbers(messages: list[bytes]) -> list[int]:
    return [struct.unpack_from(">I", one, 8)[0] for one in messages]


def sent_until(error: type[Exception], transport: Transport) -> list[int]:
    """Numbered messages until that is raised; where each ends."""
    ends: list[int] = []
    with contextlib.suppress(error):
        while True:
            ends.append(transport.send(message(len(ends))))
    return ends


def send_until_gone(transport: Transport) -> list[int]:
    """Numbered messages until the connection ends, which is then closed; those that have arrived."""
    ends = sent_until(GoneError, transport)
    transport.close()
    return [number for number, end in enumerate(ends) if end <= transport.arrived()]


def fill(transport: Tcp, stopped: threading.Event) -> list[int]:
    """Messages until the collector takes no more; where each ends."""
    threading.Timer(0.3, stopped.set).start()
    return sent_until(GivenUpError, transport)


def resolving_to(*addresses: tuple[str, int]) -> Callable[..., list[Any]]:
    return lambda *_, **kind: [(socket.AF_INET, kind["type"], 0, "", address) for address in addresses]


# --- TCP ---


def test_tcp_knows_what_has_arrived() -> None:
    with Collector() as collector:
        transport = Tcp(to(collector.port), never)
        transport.open()
        assert transport.arrived() == 0
        ends = [transport.send(message(number)) for number in range(100)]
        assert ends == list(range(1000, 101_000, 1000))
        wait_until(lambda: transport.arrived() == 100_000)
        transport.finish()
        transport.close()
        assert transport.arrived() >= 100_000
        (session,) = collector.wait_for_end()
    assert numbers(session) == list(range(100))


def test_tcp_knows_exactly_what_a_collector_has_read_that_went() -> None:
    chosen = random.Random(1)
    for _ in range(40):
        collector = Collector(dies_after=chosen.randrange(1, 200_000))
        transport = Tcp(to(collector.port), never)
        transport.open()
        arrived = send_until_gone(transport)
        (session,) = collector.wait() or [[]]
        assert numbers(session) == arrived


def test_tcp_closed_without_an_end_sends_nothing_more() -> None:
    stopped = threading.Event()
    with Collector(receive_buffer=4096) as collector:
        collector.reading.clear()
        transport = Tcp(to(collector.port), stopped.is_set)
        transport.open()
        ends = fill(transport, stopped)
        transport.close()
        collector.reading.set()
        (session,) = collector.wait_for_end()
    assert numbers(session) == [number for number, end in enumerate(ends) if end <= transport.arrived()]
    assert len(session) < len(ends)


def test_tcp_closed_after_its_end_sends_the_rest() -> None:
    stopped = threading.Event()
    with Collector(receive_buffer=4096) as collector:
        collector.reading.clear()
        transport = Tcp(to(collector.port), stopped.is_set)
        transport.open()
        for number in range(500):
            transport.send(message(number))
        assert transport.arrived() < 500_000
        transport.finish()
        transport.close()
        collector.reading.set()
        (session,) = collector.wait_for_end()
    assert numbers(session) == list(range(500))


def test_tcp_reset_takes_what_was_not_read() -> None:
    stopped = threading.Event()
    collector = Collector(receive_buffer=65_536)
    collector.reading.clear()
    transport = Tcp(to(collector.port), stopped.is_set)
    transport.open()
    ends = fill(transport, stopped)
    acknowledged = transport.arrived()
    assert 0 < acknowledged < ends[-1]
    wait_until(lambda: collector.streams)
    collector.streams[0].reset()
    with pytest.raises(GoneError, match=r"reset|Broken pipe"):
        wait_until(transport.check)
    transport.close()
    assert transport.arrived() == acknowledged
    assert collector.stop() == []


def test_tcp_notices_a_collector_that_goes_while_nothing_is_sent() -> None:
    collector = Collector()
    transport = Tcp(to(collector.port), never)
    transport.open()
    transport.check()
    wait_until(lambda: collector.streams)
    collector.streams[0].half_close()
    with pytest.raises(GoneError, match="the collector closed the connection"):
        wait_until(transport.check)
    transport.close()
    collector.stop()


def test_tcp_refused() -> None:
    with pytest.raises(GoneError, match=r"^Connection refused$"):
        Tcp(to(free_port()), never).open()


@pytest.mark.parametrize("make", [Tcp, Udp])
def test_next_address_is_tried(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = socket.SOCK_STREAM if make is Tcp else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as one:
        one.bind((LOCALHOST, 0))
        if make is Tcp:
            one.listen()
        wrong = [("255.255.255.255", 1), (LOCALHOST, free_port())][: 2 if make is Tcp else 1]
        monkeypatch.setattr(socket, "getaddrinfo", resolving_to(*wrong, one.getsockname()))
        transport = make(to(1, host="name"), never)
        transport.open()
        assert transport._socket.getpeername() == one.getsockname()
        transport.close()


@pytest.mark.parametrize("make", [Tcp, Udp])
def test_host_without_sockets_of_that_kind(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(GoneError, match="Address family not supported"):
        make(to(1), never).open()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Where connections are neither taken nor refused."""
    with socket.socket() as listener, socket.socket() as first:
        listener.bind((LOCALHOST, free_port()))
        listener.listen(0)
        first.connect(listener.getsockname())
        yield listener.getsockname()[1]


def test_tcp_connection_takes_no_longer_than_that(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "CONNECT_SECONDS", 0.1)
    with pytest.raises(GoneError, match=r"^Connection timed out$"):
        Tcp(to(silent_port), never).open()


def test_tcp_connection_is_given_up(silent_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(GivenUpError):
        Tcp(to(silent_port), lambda: True).open()
    assert time.monotonic() - started < 2


def test_tcp_with_many_files_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        with Collector() as collector:
            transport = Tcp(to(collector.port), never)
            transport.open()
            transport.send(message(0))
            transport.check()
            transport.finish()
            transport.close()
            assert [numbers(session) for session in collector.wait_for_end()] == [[0]]
    finally:
        for fd in others:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (socket.EAI_NONAME, NoSuchHostError, "no such host (why)"),
        (socket.EAI_AGAIN, GoneError, "its name cannot be resolved now (why)"),
    ],
)
def test_names(number: int, kind: type[GoneError], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "why")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(GoneError) as error:
        resolved(to(1, host="collector.invalid"), socket.SOCK_STREAM)
    assert type(error.value) is kind
    assert str(error.value) == text


# --- UDP ---


def test_udp_counts_what_is_refused() -> None:
    transport = Udp(to(free_port(socket.SOCK_DGRAM), "udp"), never)
    transport.open()
    for number in range(10):
        transport.send(message(number))
    assert transport.refused == 9
    transport.finish()
    assert transport.refused == 10
    assert transport.arrived() == 10_000
    transport.close()


def test_udp_sends_again_what_an_earlier_refusal_held_up() -> None:
    port = free_port(socket.SOCK_DGRAM)
    transport = Udp(to(port, "udp"), never)
    transport.open()
    transport.send(message(0))
    with UdpCollector(port) as collector:
        for number in range(1, 4):
            transport.send(message(number))
        wait_until(lambda: len(collector.messages) == 3)
    assert numbers(collector.messages) == [1, 2, 3]
    assert transport.refused == 1
    transport.close()


def test_udp_turns_to_the_next_address_where_one_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with UdpCollector() as collector:
        nobody = (LOCALHOST, free_port(socket.SOCK_DGRAM))
        monkeypatch.setattr(socket, "getaddrinfo", resolving_to(nobody, (LOCALHOST, collector.port)))
        transport = Udp(to(1, "udp", host="name"), never)
        transport.open()
        transport.send(message(0))
        with pytest.raises(GoneError, match="nobody listens at one of its addresses"):
            transport.send(message(1))
        transport.close()
        transport.open()
        for number in range(2, 5):
            transport.send(message(number))
        transport.close()
    assert (numbers(collector.messages), transport.refused) == ([2, 3, 4], 1)


class _Rejected:
    """A socket behind a firewall that says so, once."""

    def __init__(self, number: int) -> None:
        self.sent: list[bytes] = []
        self._error = OSError(number, os.strerror(number))

    def send(self, octets: bytes) -> None:
        if not self.sent:
            self.sent.append(b"")
            raise self._error
        self.sent.append(octets)


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM])
def test_udp_rejected_by_a_firewall_is_refused(number: int) -> None:
    transport = Udp(to(1, "udp"), never)
    rejected = _Rejected(number)
    transport._socket = rejected  # type: ignore[assignment]
    transport.send(message(0))
    assert (transport.refused, rejected.sent) == (1, [b"", message(0)])


def test_udp_message_that_cannot_be_sent() -> None:
    transport = Udp(to(free_port(socket.SOCK_DGRAM), "udp"), never)
    transport.open()
    with pytest.raises(GoneError, match="Message too long"):
        transport.send(bytes(70_000))
    assert transport.arrived() == 0
    transport.close()


@pytest.mark.parametrize("rate", [40, 1000, 5000])
def test_udp_rate(rate: int) -> None:
    def shares() -> tuple[float, float]:
        """Of the rate: the average over a second, and the most in any tenth of one."""
        with UdpCollector() as collector:
            transport = Udp(to(collector.port, "udp"), never, rate)
            transport.open()
            started = time.monotonic()
            for number in range(rate):
                transport.send(message(number, 64))
            lasted = time.monotonic() - started
            transport.close()
            wait_until(lambda: len(collector.messages) == rate)
        times = collector.times
        window = rate // 10
        shortest = min(late - early for early, late in zip(times, times[window:], strict=False))
        return 1 / lasted, 0.1 / shortest

    found = [shares()]
    while found[-1][0] < 0.8 and len(found) < 5:  # the machine had other things to do
        found.append(shares())
    assert found[-1][0] >= 0.8
    assert all(average <= 1.2 for average, _ in found)
    assert all(most <= 2 for _, most in found)


def test_udp_wait_for_the_rate_is_given_up() -> None:
    transport = Udp(to(free_port(socket.SOCK_DGRAM), "udp"), lambda: True, 0.001)
    transport.open()
    transport.send(message(0))
    started = time.monotonic()
    with pytest.raises(GivenUpError):
        transport.send(message(1))
    assert time.monotonic() - started < 2
    transport.close()


# --- TLS ---

AUTHORITY = trustme.CA()
OTHER_AUTHORITY = trustme.CA()
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def server(
    leaf: trustme.LeafCert | None = None,
    version: ssl.TLSVersion | None = None,
    clients_of: trustme.CA | None = None,
) -> ssl.SSLContext:
    """Of a collector. clients_of: whose certificate a client must have."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (leaf or AUTHORITY.issue_cert(LOCALHOST, "localhost")).configure_cert(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if clients_of is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        clients_of.configure_trust(context)
    return context


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate, and its key."""
    leaf = AUTHORITY.issue_cert("exporter")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def tls(port: int, files: TlsFiles, host: str = LOCALHOST, stopped: Callable[[], bool] = never) -> Tls:
    return Tls(to(port, "tls", host), stopped, files)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("host", [LOCALHOST, "localhost", "localhost."])
def test_tls(version: ssl.TLSVersion, host: str, ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector(tls=server(version=version)) as collector:
        monkeypatch.setattr(socket, "getaddrinfo", resolving_to((LOCALHOST, collector.port)))
        transport = tls(collector.port, TlsFiles(ca), host)
        transport.open()
        ends = [transport.send(message(number)) for number in range(100)]
        assert ends[-1] > 100_000  # what goes over the wire, with TLS's own
        wait_until(lambda: transport.arrived() == ends[-1])
        transport.check()
        transport.finish()
        transport.close()
        (session,) = collector.wait_for_end()
    assert numbers(session) == list(range(100))


@pytest.mark.parametrize("version", VERSIONS)
def test_tls_knows_exactly_what_a_collector_has_read_that_went(version: ssl.TLSVersion, ca: Path) -> None:
    chosen = random.Random(2)
    for _ in range(10):
        collector = Collector(tls=server(version=version), dies_after=chosen.randrange(1, 200_000))
        transport = tls(collector.port, TlsFiles(ca))
        transport.open()
        arrived = send_until_gone(transport)
        (session,) = collector.wait() or [[]]
        assert numbers(session) == arrived


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        (AUTHORITY.issue_cert("collector.example"), "IP address mismatch"),
        (OTHER_AUTHORITY.issue_cert(LOCALHOST), "unable to get local issuer certificate"),
        (
            AUTHORITY.issue_cert(LOCALHOST, not_after=datetime.datetime(2020, 1, 1)),  # noqa: DTZ001
            "certificate has expired",
        ),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_tls_refuses_a_wrong_certificate(
    leaf: trustme.LeafCert, why: str, version: ssl.TLSVersion, ca: Path
) -> None:
    with Collector(tls=server(leaf, version)) as collector:
        transport = tls(collector.port, TlsFiles(ca))
        with pytest.raises(CertificateError, match=f"^its certificate was refused: .*{why}"):
            transport.open()
        wait_until(lambda: collector.errors)
    assert "ALERT" in collector.errors[0]  # it is told why
    assert collector.sessions == []


def test_tls_refuses_another_name(ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector(tls=server(AUTHORITY.issue_cert("localhost"))) as collector:
        monkeypatch.setattr(socket, "getaddrinfo", resolving_to((LOCALHOST, collector.port)))
        with pytest.raises(CertificateError, match="Hostname mismatch"):
            tls(collector.port, TlsFiles(ca), "collector.example").open()


def test_tls_does_without_an_authority_of_its_own_only_where_the_system_knows_it(ca: Path) -> None:
    with Collector(tls=server()) as collector:
        with pytest.raises(CertificateError):
            tls(collector.port, TlsFiles()).open()


@pytest.mark.parametrize("version", VERSIONS)
def test_tls_with_a_certificate_of_ours(version: ssl.TLSVersion, ca: Path, own: tuple[Path, Path]) -> None:
    both = ca.with_name("both.pem")
    both.write_bytes(own[0].read_bytes() + own[1].read_bytes())
    for files in (TlsFiles(ca, *own), TlsFiles(ca, both)):
        with Collector(tls=server(version=version, clients_of=AUTHORITY)) as collector:
            transport = tls(collector.port, files)
            transport.open()
            transport.send(message(1))
            transport.finish()
            transport.close()
            assert [numbers(session) for session in collector.wait_for_end()] == [[1]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("of", [None, OTHER_AUTHORITY])
def test_tls_says_that_the_collector_wants_another_certificate(
    version: ssl.TLSVersion, of: trustme.CA | None, ca: Path, tmp_path: Path
) -> None:
    files = TlsFiles(ca)
    if of is not None:
        of.issue_cert("exporter").private_key_and_cert_chain_pem.write_to_path(tmp_path / "other.pem")
        files = TlsFiles(ca, tmp_path / "other.pem")
    with Collector(tls=server(version=version, clients_of=AUTHORITY)) as collector:
        with pytest.raises(GoneError, match=r"^TLS: .*(certificate required|handshake failure|unknown ca)"):
            tls(collector.port, files).open()


def test_tls_without_an_answer(ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "CONNECT_SECONDS", 0.3)
    with socket.create_server((LOCALHOST, 0)) as listener:
        transport = tls(listener.getsockname()[1], TlsFiles(ca))
        with pytest.raises(GoneError, match="no answer to the TLS handshake"):
            transport.open()
        answers = iter([False])  # of the connection; then nobody wants to wait
        with pytest.raises(GivenUpError):
            tls(listener.getsockname()[1], TlsFiles(ca), stopped=lambda: next(answers, True)).open()


def test_tls_with_a_collector_without_tls(ca: Path) -> None:
    with socket.create_server((LOCALHOST, 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(10_000)
            connection.sendall(b"220 mail\r\n")
            while connection.recv(10_000):
                pass
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(GoneError, match=r"TLS: wrong version number|packet length"):
            tls(listener.getsockname()[1], TlsFiles(ca)).open()


def open_and_check(transport: Transport) -> None:
    transport.open()
    wait_until(transport.check)


def test_tls_notices_a_goodbye(ca: Path) -> None:
    with socket.create_server((LOCALHOST, 0)) as listener:
        ended = threading.Event()

        def say_goodbye() -> None:
            connection = server().wrap_socket(listener.accept()[0], server_side=True)
            connection.settimeout(0.1)
            with connection:
                with contextlib.suppress(OSError):
                    connection.unwrap()  # waits for the answer, and leaves TCP as it is
                ended.wait(2 * PATIENCE)

        thread = threading.Thread(target=say_goodbye, daemon=True)
        thread.start()
        transport = tls(listener.getsockname()[1], TlsFiles(ca))
        with pytest.raises(GoneError, match="the collector closed the connection"):
            open_and_check(transport)
        ended.set()
        transport.close()
        thread.join()


def test_tls_files(ca: Path, own: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = own
    text, missing, other = tmp_path / "text.pem", tmp_path / "missing.pem", tmp_path / "other.pem"
    text.write_text("no PEM")
    OTHER_AUTHORITY.issue_cert("exporter").private_key_pem.write_to_path(other)
    wrong = {
        TlsFiles(missing): f"{missing}: No such file or directory",
        TlsFiles(text): f"{text}: expected a PEM file",
        TlsFiles(tmp_path): f"{tmp_path}: ",
        TlsFiles(ca, missing, key): f"{missing}: No such file or directory",
        TlsFiles(ca, certificate, missing): f"{missing}: No such file or directory",
        TlsFiles(ca, text, key): f"{text} and {key}: expected PEM files that belong together",
        TlsFiles(ca, certificate, text): f"{certificate} and {text}: expected PEM files that belong together",
        TlsFiles(
            ca, certificate, other
        ): f"{certificate} and {other}: expected PEM files that belong together",
        TlsFiles(ca, certificate): f"{certificate}: expected PEM files that belong together",
        TlsFiles(ca, tmp_path, key): f"{tmp_path}: Is a directory",
    }
    for files, expected in wrong.items():
        with pytest.raises(SinkError, match="^" + re.escape(expected)) as error:
            tls_context(files)
        assert FILE_ERRORS in str(error.value)
        assert "\n" not in str(error.value)
    assert isinstance(tls_context(TlsFiles(ca, *own)), ssl.SSLContext)


def test_tls_key_with_a_password(ca: Path, own: tuple[Path, Path], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as pem

    key = pem.load_pem_private_key(own[1].read_bytes(), None)
    secret = tmp_path / "secret.pem"
    secret.write_bytes(
        key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"password"))
    )
    with pytest.raises(SinkError, match=f"^{secret}: the key has a password"):
        tls_context(TlsFiles(ca, own[0], secret))


# --- a file ---


def file(path: Path) -> File:
    return File(destination(f"file:{path}"))


def whole(path: Path) -> list[int]:
    content = path.read_bytes()
    return numbers([content[start : start + 1000] for start in range(0, len(content), 1000)])


def test_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "two words.ipfix"
    for start in (0, 3):
        transport = file(path)
        transport.open()
        assert [transport.send(message(start + number)) for number in range(3)] == [1000, 2000, 3000]
        assert transport.arrived() == 3000
        transport.check()
        transport.finish()
        transport.close()
    assert whole(path) == list(range(6))


def test_pipe_is_refused(tmp_path: Path) -> None:
    """Without a reader it would never be opened."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GoneError, match="a pipe would hold everything up"):
        file(tmp_path / "pipe").open()


def test_file_has_no_half_message(tmp_path: Path) -> None:
    transport = file(tmp_path / "a.ipfix")
    transport.open()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, before[1]))
    try:
        transport.send(message(0))
        transport.send(message(1))
        with pytest.raises(GoneError, match=r"^File too large$"):
            transport.send(message(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert transport.arrived() == 2000
    assert whole(tmp_path / "a.ipfix") == [0, 1]
    transport.send(message(2))
    transport.close()
    assert whole(tmp_path / "a.ipfix") == [0, 1, 2]


def test_file_on_a_full_disk() -> None:
    transport = file(Path("/dev/full"))
    transport.open()
    with pytest.raises(GoneError, match=r"^No space left on device$"):
        transport.send(message(0))
    assert transport.arrived() == 0
    transport.finish()  # a device cannot be synced, which is no error
    transport.close()


def test_file_that_cannot_be_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    transport = file(tmp_path / "a.ipfix")
    transport.open()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(GoneError, match="Input/output error"):
        transport.finish()
    transport.close()


@pytest.mark.parametrize("path", ["/dev/null/a.ipfix", "/nowhere/a.ipfix", "/sys/a.ipfix", "/tmp"])
def test_file_that_cannot_be_written(path: str) -> None:
    with pytest.raises(
        GoneError, match=r"Not a directory|No such file|Permission|not permitted|Read-only|Is a directory"
    ):
        file(Path(path)).open()
