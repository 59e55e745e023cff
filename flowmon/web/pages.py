"""What each address answers, made from the latest View. Pure: a request in, an answer out."""

from __future__ import annotations

import gzip
import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from flowmon.analysers.alerts import ALERT_FIELDS, ENDED

if TYPE_CHECKING:
    from flowmon.analysers.active_peers import Peer
    from flowmon.analysers.alerts import Alert
    from flowmon.web import metrics
    from flowmon.web.health import Watch
    from flowmon.web.view import Board, Posted, View

# Prometheus's client is imported when somebody asks for something: it takes time, which the start is spared.

NS = 1_000_000_000
METHODS = "GET", "HEAD"
GOING_ON = "going-on"
KEPT_MOST = 16  # answers made of one view
GZIP_LEAST = 1024  # octets: less is not worth it
GZIP_LEVEL = 1  # nearly as small as any other, for a text that repeats itself, and quick

TEXT, JSON = "text/plain; charset=utf-8", "application/json"


@dataclass(frozen=True)
class Request:
    """What was asked for. accept, accept_encoding: those headers."""

    method: str
    path: str
    query: str = ""
    accept: str = ""
    accept_encoding: str = ""


@dataclass(frozen=True)
class Answer:
    """What is sent; headers: those beside Content-Type and Content-Length."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)


class Pages:
    """The addresses, and their answers. serve_ip_list: whether /list tells addresses of peers."""

    def __init__(self, board: Board, watch: Watch, *, serve_ip_list: bool) -> None:
        self._board = board
        self._watch = watch
        self._serve_ip_list = serve_ip_list
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, str, bool], Answer] = {}
        self._made_of: tuple[Posted, int] | None = None
        self._pages: dict[str, tuple[Callable[[Request], Answer], str]] = {
            "/": (self._index, "this list"),
            "/metrics": (self._metrics, "Prometheus metrics"),
            "/alerts": (self._alerts, "what the analysers alerted, newest first; ?state=going-on: what has not ended"),
            "/list": (self._list, "the active peers (--serve-ip-list)"),
            "/healthz": (self._healthz, "whether flowmon does its work: 200 or 503, and why"),
        }  # fmt: skip

    @cached_property
    def _expositions(self) -> metrics.Expositions:
        from flowmon.web import metrics

        return metrics.Expositions(self._board)

    def answer(self, request: Request) -> Answer:
        """Always one."""
        page, _ = self._pages.get(request.path, (None, ""))
        if page is None:
            return text(HTTPStatus.NOT_FOUND, "there is nothing here: / lists what there is")
        if request.method not in METHODS:
            allowed = ", ".join(METHODS)
            return text(HTTPStatus.METHOD_NOT_ALLOWED, f"only {allowed}", {"Allow": allowed})
        if request.path == "/metrics":  # which keeps its own
            return compressed(page(request), request.accept_encoding)
        return self._kept(page, request)

    def _kept(self, page: Callable[[Request], Answer], request: Request) -> Answer:
        """One rendering of a View, or a second, for all who ask: it costs, and anybody may ask."""
        key = (request.path, request.query, _takes_gzip(request.accept_encoding))
        with self._lock:
            posted, second = self._board.latest, int(self._board.now_s())
            if self._made_of != (posted, second):
                self._made_of, self._answers = (posted, second), {}
            if key not in self._answers:
                answer = compressed(page(request), request.accept_encoding)
                if len(self._answers) >= KEPT_MOST:
                    return answer
                self._answers[key] = answer
            return self._answers[key]

    def _index(self, _: Request) -> Answer:
        return text(HTTPStatus.OK, "\n".join(f"{path:<9} {what}" for path, (_, what) in self._pages.items()))

    def _metrics(self, request: Request) -> Answer:
        body, content_type = self._expositions.exposition(request.accept)
        return Answer(HTTPStatus.OK, body, content_type, {"Vary": "Accept"})

    def _alerts(self, request: Request) -> Answer:
        wanted = parse_qsl(request.query, keep_blank_values=True)
        if wanted not in ([], [("state", GOING_ON)]):
            return text(HTTPStatus.BAD_REQUEST, f"/alerts takes ?state={GOING_ON} or nothing")
        view = self._board.latest.view
        alerts = view.alerts.recent if view else ()
        return as_json([alert_object(alert) for alert in alerts if not wanted or alert.state != ENDED])

    def _list(self, _: Request) -> Answer:
        if not self._serve_ip_list:
            return text(HTTPStatus.NOT_FOUND, "the list of peers is off: --serve-ip-list turns it on")
        view = self._board.latest.view
        return as_json([peer_object(peer) for peer in view.peers()] if view else [])

    def _healthz(self, _: Request) -> Answer:
        health = self._watch.health()
        said: dict[str, Any] = {
            "status": "ok" if health.is_well else "failing",
            "reasons": health.reasons,
            "warnings": health.warnings,
            "secondsSinceView": round(health.age_s, 3),
        } | _summary(self._board.latest.view)
        return as_json(said, HTTPStatus.OK if health.is_well else HTTPStatus.SERVICE_UNAVAILABLE)


def _summary(view: View | None) -> dict[str, Any]:
    if view is None:
        return {}
    return {
        "startedAt": iso_time(view.started_at_ns),
        "viewAt": iso_time(view.at_ns),
        "records": view.records,
    }


def text(status: HTTPStatus, line: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Plain text, its line feed added."""
    return Answer(status, f"{line}\n".encode(), TEXT, headers or {})


def as_json(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """A JSON text."""
    return Answer(status, json.dumps(value, separators=(",", ":")).encode() + b"\n", JSON)


def _takes_gzip(accept_encoding: str) -> bool:
    from prometheus_client.exposition import gzip_accepted

    return gzip_accepted(accept_encoding)


def compressed(answer: Answer, accept_encoding: str) -> Answer:
    """With gzip where that is asked for, and worth while."""
    if len(answer.body) < GZIP_LEAST:
        return answer
    vary = ", ".join(filter(None, (answer.headers.get("Vary"), "Accept-Encoding")))
    headers = {**answer.headers, "Vary": vary}
    if not _takes_gzip(accept_encoding):
        return Answer(answer.status, answer.body, answer.content_type, headers)
    body = gzip.compress(answer.body, GZIP_LEVEL, mtime=0)
    return Answer(answer.status, body, answer.content_type, headers | {"Content-Encoding": "gzip"})


def iso_time(utc_ns: int) -> str:
    """ISO 8601 with nanoseconds, as in records."""
    return f"{datetime.fromtimestamp(utc_ns // NS, UTC):%Y-%m-%dT%H:%M:%S}.{utc_ns % NS:09}Z"


def alert_object(alert: Alert) -> dict[str, Any]:
    """By the column names of ALERT_SCHEMA; an empty text is null, and so is a number that JSON has not."""
    return {one.metadata["name"]: _json_value(one.name, getattr(alert, one.name)) for one in ALERT_FIELDS}


def _json_value(name: str, value: Any) -> Any:
    if name.endswith("_ns"):
        return iso_time(value)
    is_nothing = value == "" or (isinstance(value, float) and not math.isfinite(value))
    return None if is_nothing else value


def peer_object(peer: Peer) -> dict[str, Any]:
    """As `/list` has it; a protocol without a name is a number."""
    from flowmon.web import metrics

    protocol = metrics.protocol_name(peer.protocol)
    return {
        "ip": peer.address,
        "type": metrics.IP_NAMES[peer.ip_version],
        "port": peer.port,
        "proto": int(protocol) if protocol.isdecimal() else protocol,
    }
