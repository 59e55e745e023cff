"""From record batches to collectors that are slow, go, come back, or never were there."""

from __future__ import annotations

import logging
import random
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trustme

from collector_process import (
    DOMAIN,
    LOCALHOST,
    Collector,
    CollectorProcess,
    UdpCollector,
    flows,
    flows_of,
    free_port,
    options,
    read,
    wait_until,
)
from flowmon.errors import ConfigError, SinkError
from flowmon.ipfix.encoder import Encoder, Profile
from flowmon.ipfix.fields import CHOICES, NOT_BY_DEFAULT
from flowmon.kernel.flow_table import Books
from flowmon.sinks import Metering, exporter, ipfix
from flowmon.sinks.exporter import Refresh
from flowmon.sinks.ipfix import IpfixSink, _MeteringReport
from flowmon.sinks.spool import Spool
from flowmon.sinks.transports.tcp import Tcp
from flowmon.sinks.transports.tls import TlsFiles
from ipfix_reader import IPFIX, Reader
from ipfix_samples import FEW, NOW_NS, OPTIONS, RECORD, Writer, batch, sink, tcp

WARNINGS = logging.WARNING
ALL_BY_DEFAULT = frozenset(CHOICES) - NOT_BY_DEFAULT
SMALL_MESSAGES = 1400
SEGMENT = 65_536  # octets: the longest on the loopback interface


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried again soon, and given up soon."""
    monkeypatch.setattr(exporter, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(exporter, "LAST_RETRY_S", 0.05)
    monkeypatch.setattr(exporter, "LOOK_S", 0.01)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("export")]
    assert left == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "PATIENCE_S", 0.3)
    monkeypatch.setattr(exporter, "SHORT_PATIENCE_S", 0.1)


def lost(one: IpfixSink) -> tuple[int, int, int]:
    not_sent = one._backlog.not_sent
    return not_sent.records, not_sent.packets, not_sent.octets


def sums(numbers: list[int]) -> tuple[int, int, int]:
    """Records, packets and octets of the records with these numbers."""
    return len(numbers), sum(numbers), 100 * sum(numbers)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= WARNINGS]


# --- TCP: a collector that comes and goes ---


def test_everything_arrives(caplog: pytest.LogCaptureFixture) -> None:
    with Collector() as collector:
        one = Writer(tcp(collector.port))
        for count in (1, 1000, 5):
            one.write(count)
        one.sink.finish()
        one.sink.close()
        (session,) = collector.wait_for_end()
    assert flows(session) == one.written
    (statistics,) = options(session, 41)[-1:]
    before_last = session[:-1]  # what the last one says is of those before it
    assert statistics[0, 42] == 1006
    assert statistics[0, 41] == len(before_last)
    assert statistics[0, 40] == sum(map(len, before_last))
    assert said(caplog) == []


def test_collector_that_closes_at_any_moment_gets_each_record_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipfix, "STREAM_MESSAGE", SMALL_MESSAGES)
    chosen = random.Random(3)
    port = free_port()
    one = Writer(tcp(port))
    sessions = []
    for _ in range(40):
        collector = Collector(port, dies_after=chosen.randrange(1, 40_000))
        while any(thread.is_alive() for thread in collector._threads):
            one.write(chosen.randrange(1, 200))
            time.sleep(0.0005)
        sessions += collector.wait()
    with Collector(port) as collector:
        one.write(10)
        one.sink.finish()
        one.sink.close()
        sessions += collector.wait_for_end()
    assert len(sessions) > 30
    assert flows_of(sessions) == one.written


def wait_for_all(one: Writer, before: list[list[bytes]], process: CollectorProcess) -> None:
    wait_until(lambda: len(flows_of(before + process.sessions)) == one.next - 1, "the records")


def test_killed_process_that_had_read_all_gets_each_record_once() -> None:
    port = free_port()
    one = Writer(tcp(port))
    sessions: list[list[bytes]] = []
    for _ in range(5):
        process = CollectorProcess(port)
        one.write(300)
        wait_for_all(one, sessions, process)
        sessions += process.kill()
        one.write(50)
    with Collector(port) as collector:
        one.sink.finish()
        one.sink.close()
        sessions += collector.wait_for_end()
    assert flows_of(sessions) == one.written


def test_process_killed_at_any_moment_costs_no_more_than_was_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ipfix, "STREAM_MESSAGE", SMALL_MESSAGES)
    chosen = random.Random(4)
    port = free_port()
    one = Writer(tcp(port))
    sessions: list[list[bytes]] = []
    for _ in range(5):
        process = CollectorProcess(port)
        enough = one.next + chosen.randrange(500, 3000)
        while one.next < enough or not process.sessions:
            one.write(200)
        sessions += process.kill()
    with Collector(port) as collector:
        one.write(10)
        one.sink.finish()
        one.sink.close()
        sessions += collector.wait_for_end()
    runs = [numbers for numbers in map(flows, sessions) if numbers]
    assert all(numbers == list(range(numbers[0], numbers[-1] + 1)) for numbers in runs)
    assert runs[-1][-1] == one.next - 1
    for before, after in pairwise(runs):
        twice = before[-1] + 1 - after[0]  # less than 0: lost, having been acknowledged and not read
        assert twice * RECORD <= 2 * SEGMENT
    assert lost(one.sink) == (0, 0, 0)  # nobody knows of them


def test_reset_takes_what_was_acknowledged_and_unread_and_nothing_comes_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ipfix, "STREAM_MESSAGE", SMALL_MESSAGES)
    acknowledged: list[int] = []
    close = Tcp.close

    def noted(self: Tcp) -> None:
        acknowledged.append(self.arrived())
        close(self)

    collector = Collector(receive_buffer=65_536)
    collector.reading.clear()
    one = Writer(tcp(collector.port))
    monkeypatch.setattr(Tcp, "close", noted)
    one.write(5000)
    (stream,) = wait_until(lambda: collector.streams)
    transport = one.sink._transport
    assert isinstance(transport, Tcp)
    wait_until(lambda: transport.arrived() > 20_000)
    stream.reset()
    assert collector.stop() == []
    with Collector(collector.port) as following:
        one.sink.finish()
        one.sink.close()
        (session,) = following.wait_for_end()
    arrived = flows(session)
    missing = one.next - 1 - len(arrived)
    assert arrived == one.written[missing:]
    assert 0 < missing * RECORD <= acknowledged[0]
    assert lost(one.sink) == (0, 0, 0)


def test_each_session_explains_itself(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    one = Writer(tcp(port))
    for number in range(3):
        with Collector(port) as collector:
            one.write(10)
            wait_until(lambda: len(collector.flows) == 10)
        (session,) = collector.sessions
        assert flows(session) == one.written[10 * number :]
        assert int.from_bytes(session[0][8:12], "big") == 0
        wait_until(lambda: one.sink._exporter._session is None)
    one.sink.close()
    name = f"tcp://{LOCALHOST}:{port}"
    assert f"{name}: the collector closed the connection; records wait, and it is tried again" in said(caplog)
    assert f"{name}: connected again, 0 records wait" in said(caplog)
    assert len(said(caplog)) < 15


# --- a slow collector ---


def test_slow_collector_holds_nobody_up_and_hears_of_what_was_lost(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "PATIENCE_S", 20)
    profile = Profile(ALL_BY_DEFAULT, observation_domain_id=DOMAIN)
    with Collector(receive_buffer=2304) as collector:
        collector.reading.clear()
        one = Writer(tcp(collector.port, profile=profile, memory_bytes=500_000, refresh=Refresh(0.1)))
        slowest = 0.0
        for _ in range(50):
            started = time.monotonic()
            one.write(1000)
            slowest = max(slowest, time.monotonic() - started)
            assert one.sink._backlog.waiting_bytes <= 500_000
        assert lost(one.sink) > (0, 0, 0)
        assert slowest < 1.0  # encoding takes some hundredths; the collector has not read at all yet
        collector.reading.set()
        wait_until(lambda: not one.sink._backlog.waiting_records and not one.sink._exporter._in_flight)
        with pytest.raises(SinkError) as error:
            one.sink.finish()
        one.sink.close()
        (session,) = collector.wait_for_end()
    missing = sorted(set(one.written) - set(flows(session)))
    assert lost(one.sink) == sums(missing)
    told = options(session, 166)
    assert (told[-1][0, 166], told[-1][0, 167], told[-1][0, 168]) == sums(missing)
    assert NOW_NS // 10**6 < told[-1][0, 152] <= told[-1][0, 153] <= time.time_ns() // 10**6
    assert [one[0, 166] for one in told] == sorted(one[0, 166] for one in told)
    assert str(error.value) == (
        f"tcp://{LOCALHOST}:{collector.port}: {len(missing)} records ({sum(missing)} packets) were not sent:"
        " it was away, or too slow; give --ipfix-spool DIR to keep them"
    )


def test_collector_that_takes_nothing_is_given_up(impatient: None) -> None:
    with Collector(receive_buffer=2304) as collector:
        collector.reading.clear()
        one = Writer(tcp(collector.port, profile=Profile(ALL_BY_DEFAULT, observation_domain_id=DOMAIN)))
        for _ in range(5):
            one.write(10_000)
        started = time.monotonic()
        with pytest.raises(SinkError, match="were not sent"):
            one.sink.finish()
        assert 0.3 <= time.monotonic() - started < 10
        one.sink.close()
        collector.reading.set()
        (session,) = collector.wait_for_end()
    arrived = flows(session)
    assert lost(one.sink) == sums(one.written[len(arrived) :])
    assert arrived == one.written[: len(arrived)]


def read_slowly(collector: Collector) -> Callable[[], None]:
    """Sets it to read, a hundredth of a second each time; what is returned ends that."""
    (stream,) = wait_until(lambda: collector.streams)
    read_some = stream._exactly

    def slowly(octets: int) -> bytes:
        time.sleep(0.01)
        return read_some(octets)

    def hurry() -> None:
        stream._exactly = read_some

    stream._exactly = slowly
    collector.reading.set()
    return hurry


def test_slow_collector_is_waited_for_as_long_as_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "PATIENCE_S", 0.5)
    with Collector(receive_buffer=4096) as collector:
        collector.reading.clear()
        one = Writer(tcp(collector.port))
        one.write(20_000)  # one block, most of which the kernel has at once
        read_slowly(collector)
        started = time.monotonic()
        one.sink.finish()
        assert time.monotonic() - started > 0.5
        one.sink.close()
        assert flows_of(collector.wait_for_end()) == one.written


def test_collector_that_is_away_is_given_up(impatient: None) -> None:
    port = free_port()
    one = Writer(tcp(port))
    one.write(3)
    with pytest.raises(SinkError) as error:
        one.sink.finish()
    one.sink.close()
    assert str(error.value) == (
        f"tcp://{LOCALHOST}:{port}: 3 records (6 packets) were not sent: Connection refused;"
        " give --ipfix-spool DIR to keep them"
    )


def test_nothing_to_send_is_not_waited_for() -> None:
    one = tcp(free_port())
    started = time.monotonic()
    one.finish()
    one.close()
    assert time.monotonic() - started < 5


def test_close_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with Collector(receive_buffer=2304) as collector:
        collector.reading.clear()
        one = Writer(tcp(collector.port, profile=Profile(ALL_BY_DEFAULT, observation_domain_id=DOMAIN)))
        one.write(30_000)
        wait_until(lambda: collector.streams)
        started = time.monotonic()
        one.sink.close()
        assert time.monotonic() - started < 2
        collector.reading.set()
        arrived = flows_of(collector.wait_for_end())
    assert lost(one.sink) == sums(one.written[len(arrived) :])
    assert any(
        f"{30_000 - len(arrived)} records were not sent: it ended before" in one for one in said(caplog)
    )


def test_end_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much moves: a service manager would kill it."""
    monkeypatch.setattr(ipfix, "LONGEST_END_S", 0.3)
    with Collector(receive_buffer=4096) as collector:
        collector.reading.clear()
        one = Writer(tcp(collector.port))
        one.write(200_000)
        hurry = read_slowly(collector)
        started = time.monotonic()
        with pytest.raises(SinkError, match="were not sent"):
            one.sink.finish()
        assert time.monotonic() - started < 5
        hurry()
        one.sink.close()


def test_whoever_reads_a_capture_waits_for_a_slow_collector() -> None:
    with Collector(receive_buffer=4096) as collector:
        collector.reading.clear()
        one = Writer(tcp(collector.port, memory_bytes=400_000, waits=True))
        threading.Timer(0.3, collector.reading.set).start()
        for _ in range(100):
            one.sink.reserve(1000)
            one.write(1000)
        assert collector.reading.is_set()
        one.sink.finish()
        one.sink.close()
        assert flows_of(collector.wait_for_end()) == one.written


def test_whoever_reads_a_capture_does_not_wait_for_nobody(impatient: None) -> None:
    one = Writer(tcp(free_port(), memory_bytes=100_000, waits=True))
    started = time.monotonic()
    for _ in range(10):
        one.sink.reserve(1000)
        one.write(1000)
    assert time.monotonic() - started < 5
    with pytest.raises(SinkError, match="were not sent"):
        one.sink.finish()
    one.sink.close()


# --- a spool ---


@pytest.mark.parametrize(
    "profile", [replace(OPTIONS.profile, version=9), replace(OPTIONS.profile, observation_domain_id=8)]
)
def test_spool_is_of_one_version_and_domain(profile: Profile, tmp_path: Path, impatient: None) -> None:
    """What waits there has them in its messages."""
    port = free_port()
    one = Writer(tcp(port, spool=tmp_path, memory_bytes=0))
    one.write(100)
    one.sink.finish()
    one.sink.close()
    with Collector(port) as collector:
        other = tcp(port, spool=tmp_path, profile=profile)
        other.finish()
        other.close()
        collector.wait_for_end()
    with Collector(port) as collector:
        again = tcp(port, spool=tmp_path)
        again.finish()
        again.close()
        assert flows_of(collector.wait_for_end()) == one.written


def test_spool_keeps_what_a_collector_was_not_there_for(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    how = {"spool": tmp_path, "memory_bytes": 10_000}
    one = Writer(tcp(port, **how))
    for _ in range(5):
        one.write(100)
    one.sink.finish()
    one.sink.close()
    assert said(caplog)[-1] == f"tcp://{LOCALHOST}:{port}: 500 records wait in the spool for the next run"

    two = Writer(tcp(port, **how), one.next)
    two.write(100)
    with Collector(port) as collector:
        wait_until(lambda: len(collector.flows) == 600)
    sessions = collector.sessions
    for _ in range(5):
        two.write(100)
    two.sink.close()

    three = Writer(tcp(port, **how), two.next)
    with Collector(port) as collector:
        three.write(100)
        three.sink.finish()
        three.sink.close()
        sessions += collector.wait_for_end()
    assert flows_of(sessions) == three.written
    assert list(tmp_path.glob("*/*.arrow")) == []


def test_spool_and_a_collector_that_closes_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipfix, "STREAM_MESSAGE", SMALL_MESSAGES)
    chosen = random.Random(5)
    port = free_port()
    sessions = []
    following = 1
    for _ in range(5):
        one = Writer(tcp(port, spool=tmp_path, memory_bytes=20_000), following)
        for _ in range(3):
            collector = Collector(port, dies_after=chosen.randrange(1, 40_000))
            while any(thread.is_alive() for thread in collector._threads):
                one.write(chosen.randrange(1, 300))
            sessions += collector.wait()
        one.sink.close()
        following = one.next
    last = Writer(tcp(port, spool=tmp_path, memory_bytes=20_000), following)
    with Collector(port) as collector:
        last.sink.finish()
        last.sink.close()
        sessions += collector.wait_for_end()
    assert flows_of(sessions) == last.written


def test_full_spool_loses_the_oldest_and_says_so(tmp_path: Path) -> None:
    port = free_port()
    one = Writer(tcp(port, spool=tmp_path, spool_bytes=30_000, memory_bytes=0))
    for _ in range(10):
        one.write(200)
    kept = one.sink._backlog.spooled_records
    assert 200 <= kept < 800
    with Collector(port) as collector:
        with pytest.raises(SinkError) as error:
            one.sink.finish()
        one.sink.close()
        (session,) = collector.wait_for_end()
    arrived = flows(session)
    missing = one.written[:-kept]
    assert arrived == one.written[-kept:]
    assert lost(one.sink) == sums(missing)
    told = options(session, 166)[-1]
    assert (told[0, 166], told[0, 167], told[0, 168]) == sums(missing)
    assert str(error.value).endswith("raise --ipfix-spool-size")
    assert f"{len(missing)} records ({sum(missing)} packets) were not sent" in str(error.value)


def test_spool_whose_disk_fails(tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    one = Writer(tcp(free_port(), spool=tmp_path, memory_bytes=0))
    monkeypatch.setattr(Spool, "_write_temporary", fail)
    one.write(3)
    with pytest.raises(SinkError, match=r"3 records \(6 packets\) were not sent"):
        one.sink.finish()
    one.sink.close()


# --- UDP ---


def udp(port: int, **how: Any) -> IpfixSink:
    return sink(f"udp://{LOCALHOST}:{port}", **how)


def test_udp_messages_fit_and_are_numbered() -> None:
    with UdpCollector() as collector:
        one = Writer(udp(collector.port, udp_message=600, refresh=Refresh(1e9, 20)))
        for _ in range(10):
            one.write(150)
        one.sink.finish()
        one.sink.close()
        wait_until(lambda: len(flows(collector.messages)) == 1500)
    assert flows(collector.messages) == one.written
    assert max(map(len, collector.messages)) <= 600
    assert min(map(len, collector.messages)) > 16
    starts = [number for number, message in enumerate(collector.messages) if message[16:18] == b"\0\3"]
    distances = [later - earlier for earlier, later in pairwise(starts)]
    # What explains is not counted: one message at the start, and another with the templates from then on.
    assert distances == [21] + [22] * (len(distances) - 1)
    assert len(distances) >= 1500 // 13 // 20


def test_udp_explains_itself_once_at_the_start() -> None:
    with UdpCollector() as collector:
        one = Writer(udp(collector.port))
        one.write(1)
        one.sink.finish()
        one.sink.close()
        wait_until(lambda: flows(collector.messages) == [1])
    assert sum(len(message.templates) > 1 for message in read(collector.messages)) == 1


@pytest.mark.parametrize("refresh", [Refresh(1e9, 50), Refresh(0.1, 10**9)])
def test_udp_collector_that_comes_late_reads_everything_after_the_next_refresh(refresh: Refresh) -> None:
    port = free_port(socket.SOCK_DGRAM)
    one = Writer(udp(port, refresh=refresh, udp_rate=1000.0, udp_message=200))
    one.write(200)
    wait_until(lambda: not one.sink._backlog.waiting_records and not one.sink._exporter._in_flight)
    with UdpCollector(port) as collector:
        one.write(600)  # one block, which takes longer than 0.1 s to send
        one.sink.finish()
        one.sink.close()
        wait_until(lambda: collector.messages)
    messages = collector.messages
    start = next(number for number, one in enumerate(messages) if one[16:18] == b"\0\3")
    reader = Reader(IPFIX, DOMAIN, sequence=int.from_bytes(messages[start][8:12], "big"))
    arrived = [flow[0, 2] for one in messages[start:] for flow in reader.read(one).flows]
    assert arrived == one.written[-len(arrived) :]
    assert len(arrived) >= 600 - 300


def test_udp_refused_is_said_when_it_doubles_and_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port(socket.SOCK_DGRAM)
    one = Writer(udp(port))
    for _ in range(20):
        one.write(60)
    one.sink.finish()
    one.sink.close()
    counts = [int(text.split(" datagrams")[0].split()[-1]) for text in said(caplog)]
    assert said(caplog)[0].startswith(f"udp://{LOCALHOST}:{port}: nobody listens there, ")
    assert all(later >= 2 * earlier for earlier, later in pairwise(counts))
    assert one.sink._transport.refused == one.sink._exporter._sent.exported_messages  # type: ignore[union-attr]
    assert one.sink._transport.refused > 40  # type: ignore[union-attr]


def test_udp_close_ends_at_once_however_low_the_rate() -> None:
    one = Writer(udp(free_port(socket.SOCK_DGRAM), udp_rate=1.0))
    one.write(1000)
    started = time.monotonic()
    one.sink.close()
    assert time.monotonic() - started < 2
    assert one.sink._backlog.not_sent.records > 900


# --- TLS ---

AUTHORITY = trustme.CA()


def server(authority: trustme.CA = AUTHORITY, clients: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(LOCALHOST).configure_cert(context)
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        AUTHORITY.configure_trust(context)
    return context


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    AUTHORITY.issue_cert("exporter").private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    return TlsFiles(tmp_path / "ca.pem")


def tls(port: int, files: TlsFiles, **how: Any) -> IpfixSink:
    return sink(f"tls://{LOCALHOST}:{port}", tls=files, **how)


def test_tls_refused_certificate_ends_the_start(files: TlsFiles) -> None:
    with Collector(tls=server(trustme.CA())) as collector:
        with pytest.raises(SinkError) as error:
            tls(collector.port, files)
    assert str(error.value).startswith(
        f"--ipfix tls://{LOCALHOST}:{collector.port}: its certificate was refused: "
    )
    assert "\n" not in str(error.value)


def test_tls_files_that_are_wrong_end_the_start(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=f"^{tmp_path}/missing.pem: No such file"):
        tls(free_port(), TlsFiles(tmp_path / "missing.pem"))


def test_tls_collector_that_swaps_its_certificate_gets_the_rest_later(
    files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    sessions = []
    with Collector(port, tls=server()) as collector:
        one = Writer(tls(port, files))
        one.write(100)
        wait_until(lambda: len(collector.flows) == 100)
    sessions += collector.sessions
    with Collector(port, tls=server(trustme.CA())) as collector:
        one.write(100)
        wait_until(lambda: any("its certificate was refused" in text for text in said(caplog)))
        wait_until(lambda: collector.errors)
    assert collector.sessions == []
    with Collector(port, tls=server()) as collector:
        one.write(100)
        one.sink.finish()
        one.sink.close()
        sessions += collector.wait_for_end()
    assert flows_of(sessions) == one.written


def test_tls_collector_that_does_not_take_us_gets_nothing_and_says_why(
    files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    with Collector(port, tls=server(clients=True)) as collector:
        one = Writer(tls(port, files))
        assert "certificate required; records wait, and it is tried again" in said(caplog)[0]
        one.write(100)
        wait_until(lambda: len(collector.errors) >= 3)
        assert len(said(caplog)) == 2  # at the start, and when it was tried again
    assert collector.sessions == []
    with Collector(port, tls=server()) as collector:
        one.sink.finish()
        one.sink.close()
        assert flows_of(collector.wait_for_end()) == one.written


def test_tls_with_a_certificate_of_ours(files: TlsFiles, tmp_path: Path) -> None:
    with Collector(tls=server(clients=True)) as collector:
        one = Writer(tls(collector.port, replace(files, certificate=tmp_path / "own.pem")))
        one.write(100)
        one.sink.finish()
        one.sink.close()
        assert flows_of(collector.wait_for_end()) == one.written


# --- a file ---


def sessions_in(path: Path) -> list[list[bytes]]:
    """The messages of a file, which are whole; a session begins where numbers do."""
    content, found = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[2:4], "big")
        assert len(content) >= length
        message, content = content[:length], content[length:]
        if int.from_bytes(message[8:12], "big") == 0 and message[16:18] == b"\0\3":
            found.append([])
        found[-1].append(message)
    return found


def test_file_of_two_runs(tmp_path: Path) -> None:
    path = tmp_path / "two words.ipfix"
    first = 1
    for _ in range(2):
        one = Writer(sink(f"file:{path}"), first)
        one.write(1000)
        one.sink.finish()
        one.sink.close()
        first = one.next
    assert len(sessions_in(path)) == 2
    assert flows_of(sessions_in(path)) == one.written


def test_file_that_grows_too_large_waits_for_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "flows.ipfix"
    one = Writer(sink(f"file:{path}"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        for _ in range(5):
            one.write(1000)
        wait_until(lambda: said(caplog))
        in_file = flows_of(sessions_in(path))
        assert path.stat().st_size <= 60_000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 0 < len(in_file) < 5000
    assert said(caplog)[0] == f"file:{path}: File too large; records wait, and it is tried again"
    one.sink.finish()
    one.sink.close()
    assert flows_of(sessions_in(path)) == one.written


def test_file_on_a_full_disk_is_given_up(impatient: None) -> None:
    one = Writer(sink("file:/dev/full"))
    one.write(3)
    with pytest.raises(
        SinkError, match=r"^file:/dev/full: 3 records .* were not sent: No space left on device"
    ):
        one.sink.finish()
    one.sink.close()


@pytest.mark.parametrize("path", ["/sys/a.ipfix", "/nowhere/a.ipfix", "/tmp"])
def test_file_that_cannot_be_written_ends_the_start(path: str) -> None:
    with pytest.raises(SinkError, match=f"^--ipfix file:{path}: .*: give another path$"):
        sink(f"file:{path}")


# --- what is said of the metering ---


def books(ignored: dict[str, int], evicted: int = 0) -> Books:
    names = [name for name in Books.__dataclass_fields__ if not name.startswith("ignored")]
    zeros: dict[str, Any] = dict.fromkeys(names, 0)
    zeros |= {"counted_packets": evicted, "counted_octets": 50 * evicted, "flows_inserted": 9}
    octets = {reason: 100 * number for reason, number in ignored.items()}
    return Books(**zeros, ignored_packets=ignored, ignored_octets=octets)


def test_metering_report() -> None:
    report = _MeteringReport()
    assert report.current().ignored_packets == 0

    def told(one: Books, at_ns: int) -> tuple[int, ...]:
        report.update(Metering(one, {1: ("lo", "")}, at_ns))
        now = report.current()
        assert now.observed_flows == 9
        assert now.interfaces == {1: ("lo", "")}
        return now.ignored_packets, now.ignored_octets, now.ignored_first_ns, now.ignored_last_ns

    assert told(books({"not_ip": 5}), 10) == (0, 0, 0, 0)
    assert told(books({"not_ip": 5, "truncated": 1, "no_room": 2}), 20) == (3, 300, 20, 20)
    assert told(books({"not_ip": 6, "truncated": 1, "no_room": 2}), 30) == (3, 300, 20, 20)
    assert told(books({"truncated": 1, "no_room": 2}, evicted=4), 40) == (7, 500, 20, 40)
    assert told(books({"truncated": 1, "no_room": 2}, evicted=2), 50) == (7, 500, 20, 40)
    assert told(books({"truncated": 2, "no_room": 2}, evicted=4), 60) == (8, 600, 20, 60)


def test_not_ip_is_the_name_of_a_reason() -> None:
    from flowmon.abi import Ignored

    assert ipfix.NOT_IP in {reason.name.lower() for reason in Ignored}


def test_metering_goes_out() -> None:
    with Collector() as collector:
        one = tcp(collector.port, refresh=Refresh(0.1))
        one.report(Metering(books({"truncated": 3}), {1: ("lo", "loopback")}, NOW_NS))
        wait_until(
            lambda: [3 for session in collector.sessions for one in options(session, 164) if one[0, 164] == 3]
        )
        one.report(Metering(books({"truncated": 4}), {1: ("lo", "loopback"), 2: ("e", "")}, NOW_NS))
        one.finish()
        one.close()
        (session,) = collector.wait_for_end()
    last = options(session, 164)[-1]
    assert (last[0, 164], last[0, 165]) == (4, 400)
    assert last[0, 152] == last[0, 153] == NOW_NS // 10**6
    assert options(session, 163)[-1][0, 163] == 9
    names = {record[0, 10]: (record[0, 82], record[0, 83]) for record in options(session, 82)}
    assert names == {1: ("lo", "loopback"), 2: ("e", "")}


# --- from the start, and beside each other ---


def test_message_too_short_for_a_record() -> None:
    with pytest.raises(ConfigError, match=r"^--ipfix-mtu 64: a message with one record"):
        udp(1, udp_message=64)


def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for scheme, port in (("udp", 4739), ("tcp", 4739), ("tls", 4740)):
        with pytest.raises(SinkError) as error:
            sink(f"{scheme}://collector.invalid")
        name = f"{scheme}://collector.invalid:{port}"
        assert str(error.value) == f"--ipfix {name}: no such host (Name or service not known)"


def test_name_that_cannot_be_resolved_yet(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resolve: Callable[..., Any] = socket.getaddrinfo

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with Collector() as collector:
        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", fail)
            one = Writer(sink(f"tcp://localhost:{collector.port}"))
            one.write(3)
            wait_until(lambda: len(said(caplog)) == 2)
        assert socket.getaddrinfo is resolve
        one.sink.finish()
        one.sink.close()
        assert flows_of(collector.wait_for_end()) == one.written


def test_two_at_once_do_not_disturb_each_other(impatient: None) -> None:
    with Collector() as collector:
        good, bad = Writer(tcp(collector.port)), Writer(tcp(free_port()))
        for _ in range(20):
            for one in (bad, good):
                one.write(100)
        with pytest.raises(SinkError, match="2000 records"):
            bad.sink.finish()
        good.sink.finish()
        for one in (bad, good):
            one.sink.close()
        assert flows_of(collector.wait_for_end()) == good.written


def test_nothing_is_opened_before_it_is_needed() -> None:
    with Collector() as collector:
        tcp(collector.port).close()
        assert collector.streams == []


def test_batch_without_records() -> None:
    with Collector() as collector:
        one = tcp(collector.port)
        one.write(batch(1, 0), NOW_NS)
        one.finish()
        one.close()
        assert flows_of(collector.wait_for_end()) == []


def test_records_are_as_long_as_the_tests_take_them_to_be() -> None:
    (block,) = Encoder(OPTIONS.profile, 16384).encode(batch(1, 1), NOW_NS)
    assert block.content.nbytes == 16 + 4 + RECORD
    assert OPTIONS.profile.chosen == FEW
