"""Records as IPFIX or NetFlow v9, to a collector or into a file.

A sink encodes and puts: an Exporter sends in a thread of its own. So `reserve`
never refuses; what a collector does not take waits, and is lost by a bound only,
which is counted, told to the collector, and reported.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from flowmon.errors import SinkError
from flowmon.ipfix.encoder import Encoder, Profile
from flowmon.ipfix.options_records import Report
from flowmon.ipfix.session import Dictionary
from flowmon.ipfix.templates import Register
from flowmon.sinks import Metering, SinkState
from flowmon.sinks.backlog import Backlog
from flowmon.sinks.destination import FILE, Destination
from flowmon.sinks.exporter import Exporter, Refresh
from flowmon.sinks.spool import Spool
from flowmon.sinks.transports import transport
from flowmon.sinks.transports.base import GoneError
from flowmon.sinks.transports.sockets import NoSuchHostError, resolved
from flowmon.sinks.transports.tls import CertificateError, TlsFiles

log = logging.getLogger("flowmon")

NOT_IP = "not_ip"
STREAM_MESSAGE = 16384  # octets: few headers, and no collector's buffer is too small
MEMORY_BYTES = 128 << 20
MEMORY_BYTES_BEFORE_SPOOL = 16 << 20  # two blocks: what is in memory, a crash loses
LONGEST_END_S = 45.0  # before `flowmon stop` and service managers lose patience
LOOK_S = 0.02  # between two looks at how much waits


@dataclass(frozen=True)
class IpfixOptions:
    """How to send.

    spool: directory for what waits, None: memory only. waits: whether whoever writes
    may be held up (a capture), instead of losing the oldest.
    """

    profile: Profile
    udp_message: int = 1400
    udp_rate: float = 20_000.0
    refresh: Refresh = field(default_factory=Refresh)
    tls: TlsFiles = field(default_factory=TlsFiles)
    spool: Path | None = None
    spool_bytes: int = 1 << 30
    memory_bytes: int = MEMORY_BYTES
    waits: bool = False


class IpfixSink:
    """Sends to one destination.

    Raises ConfigError where a message has no room for a record, SinkError where the
    host has no address, a file cannot be written, or a certificate is refused. A
    collector that is away now is waited for.
    """

    def __init__(self, destination: Destination, options: IpfixOptions) -> None:
        self._name = str(destination)
        register = Register()
        longest = options.udp_message if destination.scheme == "udp" else STREAM_MESSAGE
        self._encoder = Encoder(options.profile, longest, register)
        dictionary = Dictionary(self._encoder, register)
        self._report = _MeteringReport()
        _try(destination, options)
        self._waits = options.waits
        self._backlog = _backlog(destination, options)
        self._exporter = Exporter(
            self._name,
            self._encoder,
            dictionary,
            self._backlog,
            options.refresh,
            self._report.current,
            longest_end_s=math.inf if options.waits else LONGEST_END_S,
        )
        self._transport = transport(destination, self._exporter.is_stopped, options.tls, options.udp_rate)

    def reserve(self, rows: int, *, more: bool = False) -> None:  # noqa: ARG002
        """There is room, or the oldest goes; where `waits`, there is room as long as the collector takes anything."""
        while self._waits and self._backlog.is_filled and self._exporter.is_moving:
            time.sleep(LOOK_S)

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        """Encodes the records, and leaves them to the exporter."""
        self._start()
        for block in self._encoder.encode(batch, exported_at_ns):
            self._backlog.put(block)

    def report(self, metering: Metering) -> None:
        """What options records tell of the metering."""
        self._report.update(metering)
        self._start()

    def state(self) -> SinkState:
        """The queue, and the connection. What is under way to the collector has been sent."""
        return SinkState(
            self._name,
            "ipfix",
            waiting_records=self._backlog.waiting_records,
            waiting_octets=self._backlog.waiting_bytes,
            spooled_records=self._backlog.spooled_records,
            sent_records=self._exporter.sent_records,
            lost_records=self._backlog.not_sent.records,
            connected=self._exporter.is_connected,
            complaint=self._exporter.complaint,
        )

    def finish(self) -> None:
        """Waits until all has arrived. Raises SinkError with the number of records that did not."""
        self._start()
        self._exporter.finish()
        self._backlog.close()
        lost, kept = self._backlog.not_sent, self._backlog.spooled_records
        if kept:
            log.warning("%s: %d records wait in the spool for the next run", self._name, kept)
        if lost.records:
            why = self._exporter.complaint or "it was away, or too slow"
            advice = (
                "raise --ipfix-spool-size"
                if self._backlog.has_spool
                else "give --ipfix-spool DIR to keep them"
            )
            raise SinkError(
                f"{self._name}: {lost.records} records ({lost.packets} packets) were not sent: {why}; {advice}"
            )
        if self._exporter.failure:
            raise SinkError(f"{self._name}: {self._exporter.failure}: see the log, and report it")

    def close(self) -> None:
        """Ends at once; what waits is kept if there is a spool."""
        if self._exporter.is_started:
            self._exporter.give_up()
        lost = self._backlog.close()
        if lost:
            log.warning("%s: %d records were not sent: it ended before", self._name, lost)

    def _start(self) -> None:
        if not self._exporter.is_started:
            self._exporter.start(self._transport)


def _backlog(destination: Destination, options: IpfixOptions) -> Backlog:
    """Its spool is of one profile: messages are put there with version and domain in them."""
    if options.spool is None:
        return Backlog(options.memory_bytes)
    profile = options.profile
    name = f"{destination.directory_name}-v{profile.version}-{profile.observation_domain_id}"
    spool = Spool(options.spool / name, options.spool_bytes)
    return Backlog(min(options.memory_bytes, MEMORY_BYTES_BEFORE_SPOOL), spool)


class _MeteringReport:
    """What a Report says of the metering, put together as it is heard of.

    Ignored are IP packets that are in no record: those that could not be read or
    had no room, and those that the table evicted. When: to the second.
    """

    def __init__(self) -> None:
        self._report = Report()

    def current(self) -> Report:
        """As it stands. Any thread may ask."""
        return self._report

    def update(self, metering: Metering) -> None:
        """With what is known now; what was lost never gets less."""
        books, before = metering.books, self._report
        ignored = sum(number for reason, number in books.ignored_packets.items() if reason != NOT_IP)
        octets = sum(number for reason, number in books.ignored_octets.items() if reason != NOT_IP)
        packets = max(before.ignored_packets, ignored + books.evicted_packets)
        is_more = packets > before.ignored_packets
        self._report = Report(
            observed_flows=books.flows_inserted,
            ignored_packets=packets,
            ignored_octets=max(before.ignored_octets, octets + books.evicted_octets),
            ignored_first_ns=before.ignored_first_ns or (metering.at_ns if is_more else 0),
            ignored_last_ns=metering.at_ns if is_more else before.ignored_last_ns,
            interfaces=dict(metering.interfaces),
        )


def _try(destination: Destination, options: IpfixOptions) -> None:
    """What is wrong for good is found before anything is collected; who is only away may come."""
    one = transport(destination, lambda: False, options.tls, options.udp_rate)
    try:
        if destination.scheme == "tcp":  # some collectors take one connection, and that is not for trying
            resolved(destination, socket.SOCK_STREAM)
        else:
            one.open()
    except (NoSuchHostError, CertificateError) as error:
        raise SinkError(f"--ipfix {destination}: {error}") from None
    except GoneError as error:
        if destination.scheme == FILE:
            raise SinkError(f"--ipfix {destination}: {error}: give another path") from None
        log.warning("%s: %s; records wait, and it is tried again", destination, error)
    else:
        with suppress(GoneError):
            one.finish()
    finally:
        one.close()
