"""A slow reader of IPFIX and NetFlow v9, that forgives nothing: RFC 7011, RFC 5103, RFC 3954.

One Reader is one session. It is written from the RFCs with nothing of the
encoder's, and knows of no element more than its number. A basicList (RFC 6313) is told by what it is a list
of: (LISTED, element).
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field
from typing import Any

IPFIX, NETFLOW9 = 10, 9
HEADER = {IPFIX: 16, NETFLOW9: 20}
TEMPLATES = {IPFIX: 2, NETFLOW9: 0}
OPTIONS_TEMPLATES = {IPFIX: 3, NETFLOW9: 1}
VARIABLE = 65535
IANA, REVERSE, NTOP, SCOPE, LISTED = 0, 29305, 35632, -1, -2
BASIC_LIST = (IANA, 291)
ORDERED = 4
PEN = 32473  # for examples (RFC 5612)
NS = 1_000_000_000
Number = tuple[int, int]  # enterprise and element; SCOPE and scope type in NetFlow v9; LISTED and element

IPV4 = {(IANA, 8), (IANA, 12), (PEN, 4), (PEN, 5)}
IPV6 = {(IANA, 27), (IANA, 28), (PEN, 6), (PEN, 7)}
TEXT = {(IANA, 82), (IANA, 83), (IANA, 340), (IANA, 341)}
MICROSECONDS = {(pen, number) for pen in (IANA, REVERSE) for number in (154, 155)}
NANOSECONDS = (
    {(pen, number) for pen in (IANA, REVERSE) for number in (156, 157)}
    | {(PEN, number | bit) for number in (13, 14) for bit in (0, 0x4000)}
    | {(IANA, 325)}
)
FLOATS = {(PEN, 11), (PEN, 11 | 0x4000)}


@dataclass(frozen=True)
class Layout:
    """A template: elements with their widths, and how many of them are the scope."""

    fields: tuple[tuple[Number, int], ...]
    scopes: int = 0

    @property
    def shortest(self) -> int:
        return sum(1 if octets == VARIABLE else octets for _, octets in self.fields)


@dataclass(frozen=True)
class Message:
    """What one message says. flows and options: records of the sets in their order."""

    length: int
    header: dict[str, int]
    flows: list[dict[Number, Any]] = field(default_factory=list)
    flow_templates: list[int] = field(default_factory=list)
    options: list[dict[Number, Any]] = field(default_factory=list)
    raw: list[dict[Number, bytes]] = field(default_factory=list)
    templates: list[int] = field(default_factory=list)


class Reader:
    """Reads message after message; what is against the rules is an AssertionError."""

    def __init__(self, version: int, domain: int, longest: int = 65535, sequence: int = 0) -> None:
        self.version = version
        self.layouts: dict[int, Layout] = {}
        self.sequence = sequence
        self._domain = domain
        self._longest = longest

    def read(self, message: bytes) -> Message:
        assert len(message) <= self._longest
        start = HEADER[self.version]
        found = Message(len(message), self._header(message))
        counted = 0
        assert len(message) > start, "a message without a set"
        while start < len(message):
            set_id, length = struct.unpack_from(">HH", message, start)
            assert length > 4, "a set without a record"
            assert self.version == IPFIX or length % 4 == 0  # RFC 3954 section 5
            assert start + length <= len(message)
            counted += self._set(set_id, message[start + 4 : start + length], found)
            start += length
        records = len(found.flows) + len(found.options)
        if self.version == IPFIX:
            self.sequence = (self.sequence + records) % 2**32
        else:
            assert found.header["count"] == counted
            self.sequence = (self.sequence + 1) % 2**32
        return found

    def _header(self, message: bytes) -> dict[str, int]:
        if self.version == IPFIX:
            names = ("version", "length", "time", "sequence", "domain")
            header = dict(zip(names, struct.unpack_from(">HHIII", message), strict=True))
            assert header["length"] == len(message)
        else:
            names = ("version", "count", "uptime", "time", "sequence", "domain")
            header = dict(zip(names, struct.unpack_from(">HHIIII", message), strict=True))
        assert header["version"] == self.version
        assert header["domain"] == self._domain
        assert header["sequence"] == self.sequence
        return header

    def _set(self, set_id: int, content: bytes, found: Message) -> int:
        """Records in it, templates among them."""
        if set_id == TEMPLATES[self.version]:
            return self._templates(content, found)
        if set_id == OPTIONS_TEMPLATES[self.version]:
            return self._options_templates(content, found)
        assert set_id >= 256
        assert set_id in self.layouts, "data before its template"
        return self._data(set_id, content, found)

    def _templates(self, content: bytes, found: Message) -> int:
        at = number = 0
        while at < len(content):
            identifier, count = struct.unpack_from(">HH", content, at)
            fields, at = self._specifiers(content, at + 4, count)
            self._learn(identifier, Layout(fields), found)
            number += 1
        assert at == len(content)
        return number

    def _options_templates(self, content: bytes, found: Message) -> int:
        at = number = 0
        while len(content) - at > 3:
            identifier, one, other = struct.unpack_from(">HHH", content, at)
            if self.version == IPFIX:
                fields, at = self._specifiers(content, at + 6, one)
                layout = Layout(fields, other)
            else:
                assert one % 4 == other % 4 == 0
                scopes, at = self._specifiers(content, at + 6, one // 4)
                others, at = self._specifiers(content, at, other // 4)
                layout = Layout(
                    (*(((SCOPE, number), octets) for (_, number), octets in scopes), *others), len(scopes)
                )
            assert 0 < layout.scopes < len(layout.fields)
            self._learn(identifier, layout, found)
            number += 1
        self._check_padding(content[at:])
        return number

    def _specifiers(self, content: bytes, at: int, count: int) -> tuple[tuple[tuple[Number, int], ...], int]:
        assert count
        fields = []
        for _ in range(count):
            number, octets = struct.unpack_from(">HH", content, at)
            at += 4
            enterprise = IANA
            if self.version == IPFIX and number & 0x8000:
                (enterprise,) = struct.unpack_from(">I", content, at)
                assert enterprise != IANA
                number &= 0x7FFF
                at += 4
            assert octets
            fields.append(((enterprise, number), octets))
        once = [one for one, _ in fields if one != BASIC_LIST]
        assert len(set(once)) == len(once), "an element stands twice"
        return tuple(fields), at

    def _learn(self, identifier: int, layout: Layout, found: Message) -> None:
        assert identifier >= 256
        assert self.layouts.setdefault(identifier, layout) == layout, "one identifier, two templates"
        found.templates.append(identifier)

    def _data(self, set_id: int, content: bytes, found: Message) -> int:
        layout = self.layouts[set_id]
        at = number = 0
        while len(content) - at >= layout.shortest:
            raw: dict[Number, bytes] = {}
            record: dict[Number, Any] = {}
            for one, octets in layout.fields:
                start, long = _length(content, at, octets)
                at = start + long
                assert at <= len(content)
                if one == BASIC_LIST:
                    assert octets == VARIABLE
                    of, values = basic_list(content[start:at])
                    assert of not in record, "a list stands twice"
                    record[of] = values
                else:
                    raw[one] = content[start:at]
                    record[one] = decoded(one, raw[one])
            if layout.scopes:
                found.options.append(record)
            else:
                found.flows.append(record)
                found.flow_templates.append(set_id)
            found.raw.append(raw)
            number += 1
        assert number
        self._check_padding(content[at:])
        return number

    def _check_padding(self, padding: bytes) -> None:
        assert not any(padding)
        assert len(padding) <= (0 if self.version == IPFIX else 3)


def _length(content: bytes, at: int, octets: int) -> tuple[int, int]:
    """Where a field begins and how long it is (RFC 7011 section 7)."""
    if octets != VARIABLE:
        return at, octets
    if content[at] < 255:
        return at + 1, content[at]
    (long,) = struct.unpack_from(">H", content, at + 1)
    assert long >= 255, "a short text with a long length"
    return at + 3, long


def basic_list(content: bytes) -> tuple[Number, list[Any]]:
    """RFC 6313 section 4.5.1, of an element of IANA's with a fixed length."""
    semantics, number, octets = struct.unpack_from(">BHH", content)
    assert semantics == ORDERED
    assert not number & 0x8000
    values = content[5:]
    assert len(values) % octets == 0
    parts = [values[at : at + octets] for at in range(0, len(values), octets)]
    return (LISTED, number), [decoded((IANA, number), part) for part in parts]


def decoded(one: Number, raw: bytes) -> Any:
    if one in IPV4:
        return str(ipaddress.IPv4Address(raw))
    if one in IPV6:
        return ipaddress.IPv6Address(raw).packed.hex()
    if one in TEXT:
        return raw.rstrip(b"\0").decode()
    if one in FLOATS:
        return struct.unpack(">d", raw)[0]
    if one in NANOSECONDS or one in MICROSECONDS:
        return ntp_ns(raw, NS if one in NANOSECONDS else 1_000_000)
    return int.from_bytes(raw, "big")


def ntp_ns(raw: bytes, parts: int) -> int:
    """Nanoseconds since 1970, of a reader that knows `parts` of a second and cuts off the rest."""
    seconds, fraction = struct.unpack(">II", raw)
    if seconds == fraction == 0:
        return 0
    if parts < NS:
        assert fraction & 0x7FF == 0  # RFC 7011 section 6.1.9
    era = 0 if seconds >= 1 << 31 else 1 << 32  # RFC 4330 section 3: up to 2036 and from there on
    return (seconds + era - 2_208_988_800) * NS + fraction * parts // 2**32 * (NS // parts)
