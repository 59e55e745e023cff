"""Record batches into blocks of messages, by arrays: no Python object a record.

Rules:
- Records of one template fill messages of their own; what is left of each
  template goes together into as few messages as it takes.
- No message is longer than the limit, and none is without a record.
- Sets are padded with zeros to 4 octets in NetFlow v9, and not at all in IPFIX.
- A biflow is one record (RFC 5103), or one for each direction that has packets.
- Records that list as many packets are as long as each other, and are written together.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flowmon.errors import ConfigError
from flowmon.ipfix.block import Block
from flowmon.ipfix.columns import Addresses, Columns, Forward, Turned
from flowmon.ipfix.fields import Trait, fields
from flowmon.ipfix.templates import IPFIX, NETFLOW9, Register, Template, templates

Array = np.ndarray[Any, np.dtype[Any]]

SET_HEADER = 4
HEADER = {IPFIX: 16, NETFLOW9: 20}
PADDING_MOST = {IPFIX: 0, NETFLOW9: 3}
LONGEST = 65535  # octets: what a header can say
ROWS = 32768  # of a block: what is written stays in the cache
KIND_SHIFT = 16  # traits below, packets listed above


@dataclass(frozen=True)
class Profile:
    """How records go out. chosen: columns. pen: for elements of our own, or None. first_packets: most that are listed."""

    chosen: frozenset[str]
    version: int = IPFIX
    biflows: bool = True
    time_unit: str = "ms"
    pen: int | None = None
    observation_domain_id: int = 0
    first_packets: int = 0


class Encoder:
    """Encodes for one limit of message length. Raises ConfigError where that is too short for a record."""

    def __init__(self, profile: Profile, longest_message: int, register: Register | None = None) -> None:
        self.profile = profile
        self.longest = min(longest_message, LONGEST)
        biflows = profile.biflows and profile.version == IPFIX
        time_unit = "uptime" if profile.version == NETFLOW9 else profile.time_unit
        every = fields(profile.chosen, time_unit, profile.pen, lists=profile.first_packets > 0)
        self._has_lists = profile.version == IPFIX and any(field.of_each for field in every)
        self.templates = templates(every, profile.version, register or Register(), biflows=biflows)
        self._split = not biflows
        self._check_longest()

    def encode(self, batch: pa.RecordBatch, exported_at_ns: int) -> Iterator[Block]:
        """The messages of a batch; exported_at_ns: UTC, from which NetFlow v9 counts back."""
        addresses = Addresses(batch)
        for start in range(0, batch.num_rows, ROWS):
            pieces = _Pieces(self.profile, self.longest, exported_at_ns)
            for columns, rows, traits in self._parts(batch.slice(start, ROWS), addresses, pieces.boot_ms):
                listed = columns.listed()[rows] if self._has_lists else np.zeros(len(rows), np.int64)
                kinds = listed << KIND_SHIFT | traits
                for kind in np.unique(kinds):
                    packets, value = divmod(int(kind), 1 << KIND_SHIFT)
                    pieces.add(self.templates[Trait(value)], columns, rows[kinds == kind], packets)
            block = pieces.block()
            if len(block):
                yield block

    def _parts(
        self, batch: pa.RecordBatch, addresses: Addresses, boot_ms: int
    ) -> Iterator[tuple[Columns, Array, Array]]:
        """(columns, rows of them that make a record, traits of those records)."""
        if not self._split:
            columns = Columns(batch, addresses)
            is_biflow = columns.numbers("reversePacketDeltaCount") > 0
            yield columns, np.arange(len(columns)), self._traits(columns, is_biflow)
            return
        for direction in (Forward(batch, addresses, boot_ms), Turned(batch, addresses, boot_ms)):
            rows = np.flatnonzero(direction.numbers("packetDeltaCount"))
            yield direction, rows, self._traits(direction, np.zeros(len(direction), bool))[rows]

    def _traits(self, columns: Columns, is_biflow: Array) -> Array:
        """uint16[n]."""
        numbers = columns.numbers

        def in_record(name: str) -> Array:
            return (numbers(name) > 0) | (is_biflow & (columns.reversed().numbers(name) > 0))

        protocol = numbers("protocolIdentifier")
        in_tunnel = ~columns.is_null("tunnelType")
        outer_ipv6 = columns.are_ipv6("tunnelSourceAddress")
        is_of = {
            Trait.IPV4: numbers("ipVersion") == 4,
            Trait.IPV6: numbers("ipVersion") == 6,
            Trait.TCP: protocol == 6,
            Trait.ICMP: (protocol == 1) | (protocol == 58),
            Trait.IPSEC: (protocol == 50) | (protocol == 51),
            Trait.REVERSE: is_biflow,
            # A frame may have an identifier in its second tag alone: a priority tag goes before it.
            Trait.TAGGED: (numbers("vlanId") > 0) | (numbers("dot1qCustomerVlanId") > 0),
            Trait.LABELLED: in_record("mplsTopLabelStackSection"),
            Trait.OPTIONS: in_record("ipv4Options") | in_record("ipv6ExtensionHeaders"),
            Trait.OBSERVED: ~columns.is_null("flowDirection"),
            Trait.TUNNEL: in_tunnel,
            Trait.TUNNEL_IPV4: in_tunnel & ~outer_ipv6,
            Trait.TUNNEL_IPV6: in_tunnel & outer_ipv6,
            Trait.DROPPED: in_record("droppedPacketDeltaCount") & ~columns.is_null("flowDirection"),
        }
        traits = np.zeros(len(columns), "u2")
        for trait, has_it in is_of.items():
            traits |= has_it.astype("u2") * np.uint16(trait)
        return traits

    def _check_longest(self) -> None:
        version = self.profile.version
        layouts = [template.layout(self.profile.first_packets) for template in self.templates.values()]
        widest = max(layout.itemsize for layout in layouts) + PADDING_MOST[version]
        longest_template = max(len(template.record) for template in self.templates.values())
        needed = HEADER[version] + SET_HEADER + max(widest, longest_template)
        if needed > self.longest:
            raise ConfigError(
                f"--ipfix-mtu {self.longest}: a message with one record has up to {needed} octets;"
                " give more, or fewer elements (--ipfix-elements)"
            )


def records(template: Template, columns: Columns, rows: Array, packets: int = 0) -> Array:
    """The data records of some rows, that list so many packets each: template.layout(packets)[rows]."""
    encoded = np.empty(len(rows), template.layout(packets))
    for name, field in zip(encoded.dtype.names or (), template.fields, strict=True):
        if field.of_each:
            encoded[name]["head"] = np.void(field.head(packets))
            encoded[name]["values"] = field.value(columns)[columns.places(rows, packets)]
        else:
            encoded[name] = _fitting(field.value(columns)[rows], field.dtype)
    return encoded


def _fitting(values: Array, dtype: str) -> Array:
    """What is too large for a shorter field stops at the largest value that it has."""
    wire = np.dtype(dtype)
    if values.dtype.kind not in "iu" or wire.itemsize >= values.dtype.itemsize:
        return values
    return np.minimum(values, np.iinfo(wire).max)


@dataclass
class _Tail:
    """Records that fill no message."""

    template: Template
    content: bytes
    records: int
    packets: int
    octets: int


class _Pieces:
    """Messages of several templates on their way into one block."""

    def __init__(self, profile: Profile, longest: int, exported_at_ns: int) -> None:
        self._profile = profile
        self._room = longest - HEADER[profile.version]
        self._exported_at_s, self.boot_ms = netflow9_clock(exported_at_ns)
        self._content: list[Array] = []
        self._lengths: list[Array] = []
        self._sums: list[Array] = []  # int64[m, 3]: records, packets, octets
        self._tails: list[_Tail] = []
        self._templates: dict[int, bytes] = {}

    def add(self, template: Template, columns: Columns, rows: Array, packets: int) -> None:
        encoded = records(template, columns, rows, packets)
        sums = np.stack([np.ones(len(rows), np.int64), *_counts(columns, template, rows)], axis=1)
        self._templates[template.identifier] = template.record
        room = self._room - SET_HEADER - PADDING_MOST[self._profile.version]
        each = room // encoded.dtype.itemsize
        full = len(rows) // each * each
        if full:
            self._add_full(template, encoded[:full], sums[:full], each)
        if full < len(rows):
            rest = [int(number) for number in sums[full:].sum(axis=0)]
            self._tails.append(_Tail(template, encoded[full:].tobytes(), *rest))

    def block(self) -> Block:
        self._add_tails()
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, np.int64)
        sums = np.concatenate(self._sums) if self._sums else np.zeros((0, 3), np.int64)
        content = np.concatenate(self._content) if self._content else np.zeros(0, "u1")
        by_record, packets, octets = (np.ascontiguousarray(sums[:, number]) for number in range(3))
        return Block(content, np.cumsum(lengths), by_record, packets, octets, self._templates)

    def _pad(self, octets: int) -> int:
        return -octets % 4 if self._profile.version == NETFLOW9 else 0

    def _header(self, octets: int, count: int) -> bytes:
        """Of a message, without what the session knows."""
        profile = self._profile
        if profile.version == IPFIX:
            return struct.pack(">HHIII", IPFIX, octets, 0, 0, profile.observation_domain_id)
        return struct.pack(
            ">HHIIII",
            NETFLOW9,
            count,
            self._exported_at_s * 1000 - self.boot_ms,
            self._exported_at_s,
            0,
            profile.observation_domain_id,
        )

    def _add_full(self, template: Template, encoded: Array, sums: Array, each: int) -> None:
        """Messages with `each` records, side by side as the rows of a matrix."""
        number = len(encoded) // each
        body = each * encoded.dtype.itemsize
        padding = self._pad(body)
        header = HEADER[self._profile.version]
        length = header + SET_HEADER + body + padding
        messages = np.zeros((number, length), "u1")
        set_header = struct.pack(">HH", template.identifier, SET_HEADER + body + padding)
        start = self._header(length, each) + set_header
        messages[:, : len(start)] = np.frombuffer(start, "u1")
        messages[:, len(start) : len(start) + body] = encoded.view("u1").reshape(number, body)
        self._content.append(messages.reshape(-1))
        self._lengths.append(np.full(number, length, np.int64))
        self._sums.append(sums.reshape(number, each, 3).sum(axis=1))

    def _add_tails(self) -> None:
        sets: list[bytes] = []
        sums = np.zeros(3, np.int64)
        used = 0
        for tail in self._tails:
            padding = self._pad(len(tail.content))
            octets = SET_HEADER + len(tail.content) + padding
            if used + octets > self._room:
                self._add_message(sets, sums)
                sets, sums, used = [], np.zeros(3, np.int64), 0
            sets.append(struct.pack(">HH", tail.template.identifier, octets) + tail.content + bytes(padding))
            sums += (tail.records, tail.packets, tail.octets)
            used += octets
        if sets:
            self._add_message(sets, sums)

    def _add_message(self, sets: list[bytes], sums: Array) -> None:
        body = b"".join(sets)
        length = HEADER[self._profile.version] + len(body)
        message = self._header(length, int(sums[0])) + body
        self._content.append(np.frombuffer(message, "u1"))
        self._lengths.append(np.array([length], np.int64))
        self._sums.append(sums[np.newaxis])


def _counts(columns: Columns, template: Template, rows: Array) -> Iterator[Array]:
    """int64[rows] twice: packets and IP octets of each record."""
    has_reverse = any(Trait.REVERSE in field.traits for field in template.fields)
    for name in ("packetDeltaCount", "octetDeltaCount"):
        total = columns.numbers(name)[rows].astype(np.int64)
        yield total + columns.reversed().numbers(name)[rows].astype(np.int64) if has_reverse else total


def netflow9_clock(exported_at_ns: int) -> tuple[int, int]:
    """(seconds, milliseconds of the boot that times count from), UTC.

    The boot is always as far back as that a flow may have begun 24 days before or
    after: what the device's real one was says nothing, and overflows after 49.
    """
    seconds = exported_at_ns // 1_000_000_000
    return seconds, seconds * 1000 - (1 << 31)
