"""The HTTP server, by real connections: what it answers, and that no client holds it up."""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPConnection, HTTPResponse

import pytest

from flowmon.analysers.alerts import ALERT_SCHEMA
from flowmon.errors import ConfigError
from flowmon.web import server as server_module
from flowmon.web.health import Watch
from flowmon.web.pages import Pages
from flowmon.web.server import Server, is_literal, parse_listen
from flowmon.web.view import Board
from view_samples import empty, full


@dataclass
class Running:
    """A server with its board."""

    server: Server
    board: Board

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers={"Host": "localhost"} | named)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response, body

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def say(self, *parts: bytes, pause_s: float = 0.0) -> bytes:
        """All that comes back of what is sent so, until the server closes."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            return everything(connection)


def everything(connection: socket.socket) -> bytes:
    """Until it is closed."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def status(answer: bytes) -> int:
    return int(answer.split()[1])


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Running] = []

    def started(*, address: str = "127.0.0.1", serve_ip_list: bool = False) -> Running:
        board = Board()
        pages = Pages(board, Watch(board, 1.0, dict), serve_ip_list=serve_ip_list)
        made = Server(address, 0, pages)
        made.start()
        running.append(Running(made, board))
        return running[-1]

    yield started
    for one in running:
        one.server.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_S", 0.4)
    monkeypatch.setattr(server_module, "LINGER_S", 0.1)
    monkeypatch.setattr(server_module, "LOOK_S", 0.01)


@pytest.fixture
def running(start: Start) -> Running:
    made = start()
    made.board.post(full())
    return made


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Whatever a client does, nothing above DEBUG is logged, and nothing printed."""
    caplog.set_level(logging.DEBUG, "flowmon")
    yield
    time.sleep(0.05)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert capfd.readouterr() == ("", "")


def test_metrics_as_a_browser_and_as_prometheus_asks(running: Running) -> None:
    response, body = running.ask("/metrics")
    assert (response.status, response.headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    assert b"\nflowmon_seen_packets_total" in body
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    response, packed = running.ask("/metrics", Accept=accept, Accept_Encoding="gzip")
    assert response.headers["Content-Encoding"] == "gzip"
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert gzip.decompress(packed).endswith(b"# EOF\n")


def test_an_answer_is_of_the_latest_view(running: Running) -> None:
    running.board.post(empty(new_connections=5))
    assert b"network_new_connections_count 5.0\n" in running.ask("/metrics")[1]
    running.board.post(empty(new_connections=6))
    assert b"network_new_connections_count 6.0\n" in running.ask("/metrics")[1]


def test_the_list_of_peers(start: Start, running: Running) -> None:
    serving = start(serve_ip_list=True)
    assert json.loads(serving.ask("/list")[1]) == []
    serving.board.post(full())
    assert json.loads(serving.ask("/list")[1]) == [
        {"ip": "192.0.2.9", "type": "ipv4", "port": 443, "proto": "tcp"},
        {"ip": "2001:db8::1", "type": "ipv6", "port": 53, "proto": "udp"},
        {"ip": "192.0.2.8", "type": "ipv4", "port": 0, "proto": 47},
    ]
    response, body = running.ask("/list")
    assert (response.status, body) == (404, b"the list of peers is off: --serve-ip-list turns it on\n")


def test_alerts_have_the_columns_of_the_schema_newest_first(running: Running) -> None:
    alerts = json.loads(running.ask("/alerts")[1])
    assert all(list(alert) == ALERT_SCHEMA.names for alert in alerts)
    assert [(alert["alertId"], alert["alertState"]) for alert in alerts] == [
        ("event3", "started"),
        ("event2", "ended"),
        ("event1", "updated"),
    ]
    (first, *_) = alerts
    assert first["alertEndNanoseconds"] == "2023-11-14T22:13:20.123456792Z"
    assert datetime.fromisoformat(first["alertStartNanoseconds"]).year == 2023
    assert (first["destinationAddress"], first["attemptsPerSecond"]) == (None, None)
    assert (alerts[1]["attemptsPerSecond"], alerts[1]["examplePorts"]) == (12.5, [22, 80])
    going_on = json.loads(running.ask("/alerts?state=going-on")[1])
    assert [alert["alertId"] for alert in going_on] == ["event3", "event1"]


@pytest.mark.parametrize(
    "query", ["state=ended", "state=", "state=going-on&state=going-on", "limit=1", "state"]
)
def test_alerts_refuse_other_parameters(running: Running, query: str) -> None:
    assert running.ask(f"/alerts?{query}")[0].status == 400


def test_health_is_a_status_and_why(running: Running) -> None:
    response, body = running.ask("/healthz")
    said = json.loads(body)
    assert (response.status, said["status"]) == (503, "failing")
    assert said["reasons"][0] == "records are refused: /var/flows cannot be written"
    running.board.post(empty())
    response, body = running.ask("/healthz")
    assert (response.status, json.loads(body)["status"]) == (200, "ok")


def test_the_index_lists_what_there_is(running: Running) -> None:
    lines = running.ask("/")[1].decode().splitlines()
    paths = [line.split()[0] for line in lines]
    assert paths == ["/", "/metrics", "/alerts", "/list", "/healthz"]


@pytest.mark.parametrize(
    "path", ["/metrics/", "/etc/passwd", "/../etc/passwd", "//metrics", "/%2e%2e/", "/METRICS"]
)
def test_nothing_else_is_there(quiet: None, running: Running, path: str) -> None:
    response, _ = running.ask(path)
    assert response.status == (200 if path == "//metrics" else 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_told_which_there_are(quiet: None, running: Running, method: str) -> None:
    response, _ = running.ask("/metrics", method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/metrics", "/alerts", "/healthz", "/nothing"])
def test_head_is_get_without_the_body(running: Running, path: str) -> None:
    running.board.post(empty())
    got, body = running.ask(path)
    answer = running.say(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, after = answer.partition(b"\r\n\r\n")
    assert (status(answer), after) == (got.status, b"")
    if path not in ("/metrics", "/healthz"):  # the process, and the age, go on
        assert f"Content-Length: {len(body)}".encode() in head


def test_a_connection_serves_many_requests(running: Running) -> None:
    connection = HTTPConnection("127.0.0.1", running.port, timeout=5)
    for path in ("/metrics", "/alerts", "/nothing", "/metrics"):
        connection.request("GET", path, headers={"Host": "127.0.0.1"})
        response = connection.getresponse()
        assert response.read()
        assert not response.will_close
    connection.close()


def test_twenty_scrape_at_a_time(quiet: None, running: Running) -> None:
    def scrape(_: int) -> tuple[int, bool]:
        response, body = running.ask("/metrics")
        return response.status, body.endswith(b"\n") and b"flowmon_guard_tracked_sources" in body

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(scrape, range(100))) == {(200, True)}


def test_who_sends_nothing_or_little_by_little_is_cut_off(quiet: None, running: Running) -> None:
    began = time.monotonic()
    assert running.say() == b""
    assert time.monotonic() - began < 2
    with running.connect() as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n")
        until = time.monotonic() + 2
        with suppress(OSError):
            while time.monotonic() < until:
                connection.sendall(b"X")
                time.sleep(0.02)
        assert time.monotonic() < until


def test_who_reads_nothing_is_cut_off(quiet: None, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "ANSWER_S", 0.3)
    many = {(4, 6, port): port for port in range(1, 60000)}
    running.board.post(empty(active_users=many))
    with running.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
        wait_until(lambda: answering() == 1)
        wait_until(lambda: answering() == 0)


def answering() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_too_many_connections_are_turned_away_and_leave_room_when_they_go(
    quiet: None, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "CONNECTIONS_MOST", 4)
    monkeypatch.setattr(server_module, "REQUEST_S", 1.0)
    one = start()
    idle = [one.connect() for _ in range(4)]
    wait_until(lambda: answering() == 4)
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert status(one.say(request)) == 503
    for connection in idle:
        connection.close()
    wait_until(lambda: answering() == 0)
    assert status(one.say(request)) == 200


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 5000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", 413),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\nExpect: 100-continue\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"no request at all\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n", 403),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
    ],
)
def test_what_is_refused(quiet: None, running: Running, request_: bytes, expected: int) -> None:
    """And the connection is closed, so that what follows is not taken for another request."""
    answer = running.say(request_)
    assert status(answer) == expected
    assert answer.count(b"HTTP/1.1 ") == 1
    assert running.ask("/")[0].status == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET http://127.0.0.1:2112/ HTTP/1.1\r\nHost: 127.0.0.1:2112\r\nConnection: close\r\n\r\n",
        b"GET /metrics?a=b HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n",
    ],
)
def test_what_is_lawful(quiet: None, running: Running, request_: bytes) -> None:
    assert status(running.say(request_, pause_s=0.01)) == 200


def test_a_request_may_come_in_pieces(running: Running) -> None:
    parts = b"GE", b"T / HTTP/1.1\r\nHo", b"st: localhost\r\nConnection: cl", b"ose\r\n\r\n"
    assert status(running.say(*parts, pause_s=0.02)) == 200


def test_by_any_name_where_it_is_not_on_a_loopback_address(start: Start) -> None:
    one = start(address="0.0.0.0")
    assert one.ask("/", Host="monitor.example")[0].status == 200


def test_a_host_is_known_by_address_or_as_localhost() -> None:
    known = "localhost", "LocalHost:2112", "127.0.0.1", "192.0.2.1:80", "[::1]", "[2001:db8::1]:2112"
    unknown = "", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example"
    assert all(is_literal(host) for host in known)
    assert not any(is_literal(host) for host in (*unknown, "[::1].evil.example", "localhost:80evil", "[::1"))


def test_an_error_of_flowmon_itself_is_logged_once(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(running.server._http, "pages", type("P", (), {"answer": staticmethod(broken)}))
    assert [running.ask("/")[0].status for _ in range(3)] == [500] * 3
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_an_address_in_use_is_the_users_to_change(running: Running) -> None:
    expected = (
        f"--listen 127.0.0.1:{running.port}: address already in use: give another address, or --listen off"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        Server("127.0.0.1", running.port, Pages(Board(), Watch(Board(), 1, dict), serve_ip_list=False))


def test_closed_it_can_listen_there_again(start: Start) -> None:
    one = start()
    assert one.ask("/")[0].status == 200
    one.server.close()
    with pytest.raises(ConnectionRefusedError):
        one.connect()
    again = Server("127.0.0.1", one.port, Pages(Board(), Watch(Board(), 1, dict), serve_ip_list=False))
    again.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("off", None),
        ("127.0.0.1:2112", ("127.0.0.1", 2112)),
        ("localhost:0", ("127.0.0.1", 0)),
        ("[::1]:2112", ("::1", 2112)),
        ("[::]:65535", ("::", 65535)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
    ],
)
def test_where_to_listen(text: str, expected: tuple[str, int] | None) -> None:
    assert parse_listen(text) == expected


WRONG = (
    ":2112 2112 127.0.0.1 ::1:2112 [::1] [127.0.0.1]:80 127.0.0.1:65536 127.0.0.1:-1 127.0.0.1:8O 127.0.0.1:٣"
    " example.org:80 1.2.3:4 OFF [::1:80"
).split()


@pytest.mark.parametrize("text", [*WRONG, "", "127.0.0.1:" + "9" * 5000])
def test_where_it_cannot_listen(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--listen .*: expected ADDRESS:PORT \(.*\) or off$"):
        parse_listen(text)


def test_it_listens_on_ipv6(start: Start) -> None:
    try:
        one = start(address="::1")
    except ConfigError:
        pytest.skip("no IPv6 here")
    with socket.create_connection(("::1", one.port), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n")
        assert status(everything(connection)) == 200
