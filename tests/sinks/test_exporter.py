"""The thread that sends: what it does when a way to a collector breaks, stalls, or has an error of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from collector_process import PACKETS, FlowReader, flows_of, wait_until
from flowmon.errors import SinkError
from flowmon.ipfix.encoder import Encoder
from flowmon.ipfix.options_records import Report
from flowmon.ipfix.session import Dictionary, Session
from flowmon.ipfix.templates import Register
from flowmon.sinks import exporter, ipfix
from flowmon.sinks.backlog import Backlog
from flowmon.sinks.exporter import Exporter, Refresh
from flowmon.sinks.transports.base import GivenUpError, GoneError
from flowmon.sinks.transports.tls import TlsFiles
from ipfix_samples import NOW_NS, OPTIONS, Writer, batch, sink


class Pretended:
    """A transport that keeps what it is sent, by session, and does what a test says.

    acknowledges: how many octets have arrived of so many that were sent.
    """

    def __init__(self, *, loses_templates: bool = False) -> None:
        self.loses_templates = loses_templates
        self.sessions: list[list[bytes]] = []
        self.opened_at: list[float] = []
        self.finished = 0
        self.is_open = False
        self.acknowledges: Callable[[int], int] = lambda sent: sent
        self.on_open: Callable[[], None] = lambda: None
        self.on_send: Callable[[bytes], None] = lambda _: None
        self.on_check: Callable[[], None] = lambda: None
        self._sent = 0

    def open(self) -> None:
        assert not self.is_open
        self.opened_at.append(time.monotonic())
        self.on_open()
        self.is_open = True
        self._sent = 0
        self.sessions.append([])

    def send(self, message: memoryview | bytes) -> int:
        assert self.is_open
        self.on_send(bytes(message))
        self.sessions[-1].append(bytes(message))
        self._sent += len(message)
        return self._sent

    def arrived(self) -> int:
        return self.acknowledges(self._sent)

    def check(self) -> None:
        assert self.is_open
        self.on_check()

    def finish(self) -> None:
        self.finished += 1

    def close(self) -> None:
        self.is_open = False

    @property
    def flows(self) -> list[int]:
        return flows_of(self.sessions)


def gone(*_: object) -> None:
    raise GoneError("it broke")


class Bench:
    """An exporter with its backlog, and a transport."""

    def __init__(self, refresh: Refresh = Refresh(), **how: Any) -> None:  # noqa: B008 - it is frozen
        register = Register()
        self.encoder = Encoder(OPTIONS.profile, 700, register)
        dictionary = Dictionary(self.encoder, register)
        self.backlog = Backlog(1 << 30)
        self.transport = Pretended(**how)
        self.exporter = Exporter("it", self.encoder, dictionary, self.backlog, refresh, Report)
        self.next = 1

    def start(self) -> None:
        self.exporter.start(self.transport)

    def put(self, count: int) -> None:
        for block in self.encoder.encode(batch(self.next, count), NOW_NS):
            self.backlog.put(block)
        self.next += count

    @property
    def written(self) -> list[int]:
        return list(range(1, self.next))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(exporter, "LAST_RETRY_S", 0.05)
    monkeypatch.setattr(exporter, "LOOK_S", 0.01)
    monkeypatch.setattr(exporter, "PATIENCE_S", 0.3)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.exporter.give_up()
    made.backlog.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "export to it"]
    assert not made.transport.is_open


class Waits(threading.Event):
    """Notes how long it would have been waited for, and waits for a hundredth of that."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.seconds.append(timeout)
        return super().wait(timeout / 100)


@pytest.fixture
def waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited between tries, with the times of real life."""
    monkeypatch.setattr(exporter, "FIRST_RETRY_S", 0.5)
    monkeypatch.setattr(exporter, "LAST_RETRY_S", 30.0)
    bench.exporter._retry_s = 0.5
    bench.exporter._finishing = made = Waits()
    return made.seconds


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_all_arrives_and_goodbye_is_said(bench: Bench) -> None:
    bench.put(100)
    bench.start()
    bench.exporter.finish()
    assert bench.transport.flows == bench.written
    assert bench.transport.finished == 1
    assert bench.backlog.waiting_records == 0
    assert bench.backlog.not_sent.records == 0


def test_broken_at_every_message(bench: Bench) -> None:
    """Each session ends one message later than the one before, and what had not arrived comes again."""

    def break_later(_: bytes) -> None:
        if len(bench.transport.sessions[-1]) > len(bench.transport.sessions) + 2:
            gone()

    bench.transport.on_send = break_later
    bench.put(200)
    bench.start()
    wait_until(lambda: bench.transport.flows == bench.written)
    assert len(bench.transport.sessions) > 3


def test_what_was_not_acknowledged_comes_again_and_in_order(bench: Bench) -> None:
    """Of each session the last 100 octets do not arrive: the message that they belong to is not counted."""
    got: list[int] = []

    def acknowledge(sent: int) -> int:
        return sent if len(bench.transport.sessions) > 3 else max(0, sent - 100)

    def break_it() -> None:
        messages = bench.transport.sessions[-1]
        if len(bench.transport.sessions) <= 3 and len(messages) > 2:
            reader = FlowReader(10, 7)
            got.extend(flow[PACKETS] for one in messages[:-1] for flow in reader.read(one).flows)
            gone()

    bench.transport.acknowledges = acknowledge
    bench.transport.on_check = break_it
    for _ in range(3):
        bench.put(100)
    bench.start()
    bench.exporter.finish()
    reader = FlowReader(10, 7)
    last = [flow[PACKETS] for one in bench.transport.sessions[-1] for flow in reader.read(one).flows]
    assert got + last == bench.written


def test_retries_come_ever_later(bench: Bench, waits: list[float], caplog: pytest.LogCaptureFixture) -> None:
    bench.transport.on_open = gone
    bench.start()
    wait_until(lambda: len(waits) >= 9)
    assert waits[:9] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert said(caplog) == ["it: it broke; records wait, and it is tried again"]
    bench.transport.on_open = lambda: None
    wait_until(lambda: len(said(caplog)) == 2)
    assert said(caplog)[1] == "it: connected again, 0 records wait"


def test_connection_that_is_taken_and_dropped_is_no_success(bench: Bench, waits: list[float]) -> None:
    bench.transport.on_check = gone
    bench.start()
    wait_until(lambda: len(waits) >= 3)
    assert waits[:3] == [0.5, 1, 2]
    bench.transport.on_check = lambda: None
    wait_until(lambda: bench.transport.is_open)
    bench.exporter._opened_at -= 100  # it has lasted
    before = len(waits)
    bench.transport.on_check = gone
    wait_until(lambda: len(waits) > before + 1)
    assert waits[before : before + 2] == [0.5, 1]


def test_finish_is_over_though_connections_are_taken(bench: Bench) -> None:
    bench.transport.on_check = gone
    bench.transport.acknowledges = lambda sent: min(sent, 200)  # of what goes before records
    bench.put(1000)
    bench.start()
    wait_until(lambda: len(bench.transport.sessions) > 2)
    started = time.monotonic()
    bench.exporter.finish()
    assert 0.3 <= time.monotonic() - started < 5
    bench.backlog.close()
    assert bench.backlog.not_sent.records == 1000
    assert bench.exporter.complaint == "it broke"


def test_finish_waits_while_anything_moves(bench: Bench) -> None:
    """One block of many messages, of which one arrives every tenth of a second."""
    began = time.monotonic()
    bench.transport.acknowledges = lambda sent: min(sent, int((time.monotonic() - began) * 8000))
    bench.put(200)
    bench.start()
    bench.exporter.finish()
    assert time.monotonic() - began > 0.9
    assert bench.backlog.not_sent.records == 0
    assert bench.backlog.close() == 0


def test_finish_gives_up_and_counts_messages_that_have_arrived(bench: Bench) -> None:
    bench.transport.acknowledges = lambda sent: min(sent, 3000)
    bench.put(200)
    bench.start()
    started = time.monotonic()
    bench.exporter.finish()
    assert 0.3 <= time.monotonic() - started < 5
    bench.backlog.close()
    reader, octets, arrived = FlowReader(10, 7), 0, 0
    for one in bench.transport.sessions[0]:
        octets += len(one)
        arrived += len(reader.read(one).flows) if octets <= 3000 else 0
    assert 0 < arrived < 200
    assert bench.backlog.not_sent.records == 200 - arrived


def test_transport_that_gives_up(bench: Bench) -> None:
    def give_up(_: bytes) -> None:
        if bench.transport.sessions[-1][3:]:
            raise GivenUpError

    bench.transport.on_send = give_up
    bench.put(200)
    bench.start()
    bench.exporter.finish()
    bench.backlog.close()
    assert bench.backlog.not_sent.records == 200 - len(bench.transport.flows)
    assert bench.transport.finished == 0


def test_goodbye_that_does_not_arrive_is_no_failure(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.put(10)
    bench.start()
    wait_until(lambda: bench.transport.sessions and bench.transport.flows == bench.written)
    wait_until(lambda: not bench.exporter._in_flight)
    bench.transport.on_send = gone
    bench.exporter.finish()
    assert said(caplog) == ["it: it broke, before the last statistics"]
    assert bench.backlog.not_sent.records == 0


@pytest.mark.parametrize("where", ["on_open", "on_send", "on_check"])
def test_error_of_its_own_is_said_and_tried_again(
    where: str, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("nobody expects this")

    expected = "an error of flowmon itself (ZeroDivisionError('nobody expects this'))"
    setattr(bench.transport, where, fail)
    bench.start()
    wait_until(lambda: len(bench.transport.opened_at) > 2)
    assert [text for text in said(caplog) if "connected" not in text] == [f"it: {expected}"]
    error = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert error.exc_info is not None
    assert bench.exporter.failure == expected
    setattr(bench.transport, where, lambda *_: None)
    bench.put(100)
    bench.exporter.finish()
    assert bench.transport.flows == bench.written
    assert bench.exporter.failure == expected


def test_error_while_nothing_can_be_put_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no way back")

    monkeypatch.setattr(bench.backlog, "put_back", fail)
    bench.transport.on_check = gone
    bench.start()
    wait_until(lambda: bench.exporter.failure)
    assert "no way back" in said(caplog)[0]
    bench.exporter.finish()
    bench.transport.close()


def test_error_of_its_own_is_told_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("announce")

    made = Pretended()
    monkeypatch.setattr(ipfix, "transport", lambda *_: made)
    one = Writer(sink("tcp://127.0.0.1:1", tls=TlsFiles()))
    with monkeypatch.context() as patched:
        patched.setattr(Session, "announce", fail)
        one.write(10)
        wait_until(lambda: said(caplog))
    with pytest.raises(SinkError) as error:
        one.sink.finish()
    one.sink.close()
    assert made.flows == one.written  # afterwards all was well
    expected = (
        "tcp://127.0.0.1:1: an error of flowmon itself (KeyError('announce')): see the log, and report it"
    )
    assert str(error.value) == expected


def test_give_up_ends_at_once_in_a_wait_for_the_next_try(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "FIRST_RETRY_S", 20)
    bench.exporter._retry_s = 20
    bench.transport.on_open = gone
    bench.put(10)
    bench.start()
    wait_until(lambda: bench.exporter.complaint)
    started = time.monotonic()
    bench.exporter.give_up()
    assert time.monotonic() - started < 2
    assert bench.backlog.close() == 10


def test_give_up_ends_at_once_in_the_middle_of_a_block(bench: Bench) -> None:
    bench.transport.on_send = lambda _: time.sleep(0.01)
    bench.put(10_000)
    bench.start()
    wait_until(lambda: bench.transport.sessions and len(bench.transport.sessions[0]) > 5)
    started = time.monotonic()
    bench.exporter.give_up()
    assert time.monotonic() - started < 2
    assert bench.backlog.close() == 10_000 - len(bench.transport.flows)


def test_statistics_go_out_from_time_to_time_in_a_long_block_too() -> None:
    made = Bench(Refresh(0.05))
    made.transport.on_send = lambda _: time.sleep(0.001)
    made.put(5000)
    made.start()
    made.exporter.finish()
    made.backlog.close()
    reader = FlowReader(10, 7)
    kinds = ["flows" if reader.read(one).flows else "options" for one in made.transport.sessions[0]]
    first, last = kinds.index("flows"), len(kinds) - kinds[::-1].index("flows")
    assert kinds[first:last].count("options") >= 3


def test_statistics_count_what_was_sent() -> None:
    made = Bench(Refresh(0.02))
    made.transport.on_send = lambda _: time.sleep(0.001)
    made.put(2000)
    made.start()
    made.exporter.finish()
    made.backlog.close()
    reader, messages, records, octets = FlowReader(10, 7), 0, 0, 0
    for one in made.transport.sessions[0]:
        found = reader.read(one)
        for record in found.options:
            if (0, 41) in record:
                assert (record[0, 41], record[0, 42], record[0, 40]) == (messages, records, octets)
        messages, records, octets = messages + 1, records + len(found.flows), octets + len(one)
    assert records == 2000


def test_everything_is_explained_again_where_it_may_get_lost() -> None:
    made = Bench(Refresh(1e9, 5), loses_templates=True)
    made.put(400)
    made.start()
    made.exporter.finish()
    made.backlog.close()
    (session,) = made.transport.sessions
    starts = [number for number, one in enumerate(session) if one[16:18] == b"\0\3"]
    assert {later - earlier for earlier, later in pairwise(starts[1:])} == {7}
    assert flows_of([session]) == made.written
