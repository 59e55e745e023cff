"""Records a second as IPFIX: encoding, and encoding with sending, beside two others that take the same records.

In one process: the encoder; the encoder and a UDP or TCP socket on the loopback; Parquet; and the package `ipfix`,
which makes a message of Python objects (on a part of the records, and where it is installed).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from measure import Bench, Row, alternate

from flowmon import abi
from flowmon.ipfix.encoder import Encoder, Profile
from flowmon.ipfix.fields import CHOICES, NOT_BY_DEFAULT
from flowmon.ipfix.session import Dictionary, Session
from flowmon.ipfix.templates import Register
from flowmon.records import Context, EndedFlows, record_batch

PART = "encode"
ROUNDS = 3
RECORDS = (10_000, 100_000, 500_000)
PACKAGE = "package ipfix"
DEFAULT = frozenset(CHOICES) - NOT_BY_DEFAULT
HOSTS, SERVERS = 100_000, 1_000
PACKAGE_RECORDS = 5_000
UDP_MESSAGE, STREAM_MESSAGE = 1400, 16384
NS = 1_000_000_000
START = 1_800_000_000 * NS

Array = np.ndarray[Any, np.dtype[Any]]


def flows(number: int) -> EndedFlows:
    """TCP and UDP biflows of IPv4 and IPv6, each column with something in it."""
    random = np.random.default_rng(1)
    keys = np.zeros(number, abi.FLOW_KEY)
    is_ipv4 = random.random(number) < 0.8
    keys["ip_version"] = np.where(is_ipv4, 4, 6)
    for side, hosts in (("source_address", HOSTS), ("destination_address", SERVERS)):
        host = random.integers(0, hosts, number)
        keys[side][:, 12:] = host.astype(">u4").view("u1").reshape(-1, 4)
        keys[side][is_ipv4, 10:12] = 255
        keys[side][is_ipv4, 12] = 10
        keys[side][~is_ipv4, 0] = 0x20
    keys["protocol"] = random.choice([6, 17], number, p=[0.6, 0.4])
    keys["source_port"] = random.integers(1024, 65536, number)
    keys["destination_port"] = 443
    keys["ifindex"] = 2
    sides = []
    for _ in range(2):
        side = np.zeros(number, abi.FLOW_COUNTERS)
        side["packets"] = random.integers(1, 100, number)
        side["octets"] = side["packets"] * np.uint64(600)
        side["layer2_octets"] = side["octets"] + side["packets"] * np.uint64(14)
        side["first_seen_mono_ns"] = START + random.integers(0, 10 * NS, number)
        side["last_seen_mono_ns"] = side["first_seen_mono_ns"] + np.uint64(NS)
        side["size_histogram"][:, 2] = side["packets"]
        sides.append(side)
    flow_id = random.integers(0, 1 << 63, number).astype("u8")
    return EndedFlows(keys, sides[0], sides[1], flow_id, np.full(number, 3, "u1"))


class Sender:
    """Encodes and sends. The other side reads what it can, and counts nothing."""

    def __init__(self, kind: socket.SocketKind, message: int) -> None:
        register = Register()
        self._encoder = Encoder(Profile(DEFAULT), message, register)
        self._dictionary = Dictionary(self._encoder, register)
        self._kind = kind

    def __call__(self, batch: pa.RecordBatch) -> None:
        """One transport session."""
        listener = socket.socket(socket.AF_INET, self._kind)
        listener.bind(("127.0.0.1", 0))
        is_stream = self._kind == socket.SOCK_STREAM
        if is_stream:
            listener.listen()
        sender = socket.socket(socket.AF_INET, self._kind)
        sender.connect(listener.getsockname())
        reader = threading.Thread(target=_read_all, args=(listener,)) if is_stream else None
        if reader:
            reader.start()
        session = Session(self._encoder, self._dictionary)
        for block in self._encoder.encode(batch, START):
            for message in session.announce(block):
                sender.send(message)
            session.stamp(block, 0, len(block))
            content, start = block.content.data, 0
            for end in block.ends.tolist():
                sender.sendall(content[start:end])
                start = end
        sender.close()
        if reader:
            reader.join()
        listener.close()


def _read_all(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    buffer = bytearray(1 << 20)
    while connection.recv_into(buffer):
        pass
    connection.close()


class Package:
    """The package `ipfix`: the same records, TCP over IPv4, from tuples of Python's own numbers."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ipfix.ie
            import ipfix.message
            import ipfix.template
        ipfix.ie.use_iana_default()
        ipfix.ie.use_5103_default()
        self._ipfix = ipfix
        encoder = Encoder(Profile(DEFAULT), UDP_MESSAGE)
        is_alike = pc.and_(pc.equal(batch["protocolIdentifier"], 6), pc.equal(batch["ipVersion"], 4))
        stream = io.BytesIO(_messages(encoder, batch.filter(is_alike).slice(0, PACKAGE_RECORDS)))
        message = ipfix.message.MessageBuffer()

        def decode(template: Any, octets: Any, offset: int, recinf: Any) -> Any:  # noqa: ARG001
            return template.decode_from(octets, offset)

        self._records: list[Any] = []
        with contextlib.suppress(EOFError):
            while True:
                message.read_message(stream)
                self._records += message.record_iterator(decode)
        (self._template,) = message.templates.values()

    def __call__(self) -> None:
        """Full messages, one after the other."""
        message = self._ipfix.message.MessageBuffer()
        message.mtu = UDP_MESSAGE
        encode = self._ipfix.template.Template.encode_to
        message.begin_export(1)
        message.add_template(self._template)
        message.export_ensure_set(self._template.tid)
        for record in self._records:
            try:
                message.export_record(record, encode)
            except self._ipfix.message.EndOfMessage:
                message.to_bytes()
                message.begin_export(1)
                message.export_ensure_set(self._template.tid)
                message.export_record(record, encode)
        message.to_bytes()

    def __len__(self) -> int:
        return len(self._records)


def _messages(encoder: Encoder, batch: pa.RecordBatch) -> bytes:
    """Templates and records."""
    session = Session(encoder, Dictionary(encoder, Register()))
    messages = []
    for block in encoder.encode(batch, START):
        messages += session.announce(block)
        session.stamp(block, 0, len(block))
        messages.append(block.content.tobytes())
    return b"".join(messages)


def _parquet(batch: pa.RecordBatch) -> None:
    with tempfile.TemporaryDirectory() as directory:
        pq.write_table(pa.Table.from_batches([batch]), Path(directory, "flows.parquet"), compression="zstd")


def _encode(encoder: Encoder, batch: pa.RecordBatch) -> None:
    for _ in encoder.encode(batch, START):
        pass


def _rate(number: int, work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return number / (time.perf_counter() - start)


def measure(bench: Bench) -> Iterator[Row]:
    """Rows by number of records."""
    encoder = Encoder(Profile(DEFAULT), UDP_MESSAGE)
    udp, tcp = Sender(socket.SOCK_DGRAM, UDP_MESSAGE), Sender(socket.SOCK_STREAM, STREAM_MESSAGE)
    has_package = importlib.util.find_spec("ipfix") is not None
    if not has_package:
        bench.note("encode: the package ipfix is not installed, and left out")
    for number in RECORDS:
        batch = record_batch(flows(number), Context(0, {2: "eth0"}, 1))
        work: dict[str, Callable[[], None]] = {
            "encoded": partial(_encode, encoder, batch),
            "and sent, UDP": partial(udp, batch),
            "and sent, TCP": partial(tcp, batch),
            "as Parquet": partial(_parquet, batch),
        }
        runs = {name: partial(_rate, number, run) for name, run in work.items()}
        if has_package:
            package = Package(batch)
            runs[PACKAGE] = partial(_rate, len(package), package)
        found = alternate(runs, bench.rounds_or(ROUNDS))
        yield Row(PART, "biflow records", f"{number:,} records", "records/s", found)
