"""Options records: what a collector is to know besides flows.

Source: RFC 7011 section 4 (metering and exporting process, flow keys), RFC 5610
(types of our own elements), RFC 3954 section 6.1 for NetFlow v9, whose strings
have a fixed width and whose scope is "system" or "interface".

Kinds and when they go out:
- What explains other records (flow keys, interfaces, types): with the templates.
- Statistics and reliability: from time to time, and at the end.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa

from flowmon.elements import ELEMENTS, Element
from flowmon.ipfix.fields import (
    IANA,
    NTOP_PEN,
    OWN_REVERSE_BIT,
    REVERSE_PEN,
    REVERSED,
    SHORT,
    VARIABLE,
    Field,
)
from flowmon.ipfix.templates import IPFIX, NETFLOW9, Register, Template

SCOPE_SYSTEM, SCOPE_INTERFACE = 1, 2
MS = 1_000_000


@dataclass
class Report:
    """What there is to say of metering and exporting; totals since the start, times UTC (0: never)."""

    observed_flows: int = 0
    ignored_packets: int = 0
    ignored_octets: int = 0
    ignored_first_ns: int = 0
    ignored_last_ns: int = 0
    exported_messages: int = 0
    exported_records: int = 0
    exported_octets: int = 0
    not_sent_records: int = 0
    not_sent_packets: int = 0
    not_sent_octets: int = 0
    not_sent_first_ns: int = 0
    not_sent_last_ns: int = 0
    interfaces: dict[int, tuple[str, str]] = field(default_factory=dict)  # index → name, description


@dataclass(frozen=True)
class Part:
    """One field of an options record. octets: VARIABLE for a string, which in NetFlow v9 is as wide as said there."""

    name: str
    number: int
    octets: int
    netflow9_scope: int = 0
    netflow9_octets: int = 0


@dataclass(frozen=True)
class Kind:
    """One kind of options record; the first `scopes` parts are the scope."""

    name: str
    parts: tuple[Part, ...]
    scopes: int = 1
    in_netflow9: bool = True


_TIMES = (Part("flowStartMilliseconds", 152, 8), Part("flowEndMilliseconds", 153, 8))
_DOMAIN = Part("observationDomainId", 149, 4, SCOPE_SYSTEM)
STATISTICS = Kind(
    "metering process statistics",
    (
        _DOMAIN,
        Part("exportedMessageTotalCount", 41, 8),
        Part("exportedFlowRecordTotalCount", 42, 8),
        Part("exportedOctetTotalCount", 40, 8),
        Part("observedFlowTotalCount", 163, 8),
    ),
)
METERING_RELIABILITY = Kind(
    "metering process reliability",
    (_DOMAIN, Part("ignoredPacketTotalCount", 164, 8), Part("ignoredOctetTotalCount", 165, 8), *_TIMES),
)
EXPORTING_RELIABILITY = Kind(
    "exporting process reliability",
    (
        Part("exportingProcessId", 144, 4, SCOPE_SYSTEM),
        Part("notSentFlowTotalCount", 166, 8),
        Part("notSentPacketTotalCount", 167, 8),
        Part("notSentOctetTotalCount", 168, 8),
        *_TIMES,
    ),
)
FLOW_KEYS = Kind(
    "flow keys", (Part("templateId", 145, 2), Part("flowKeyIndicator", 173, 8)), in_netflow9=False
)
INTERFACES = Kind(
    "interfaces",
    (
        Part("ingressInterface", 10, 4, SCOPE_INTERFACE),
        Part("interfaceName", 82, VARIABLE, netflow9_octets=16),  # the kernel's are not longer
        Part("interfaceDescription", 83, VARIABLE, netflow9_octets=32),
    ),
)
TYPES = Kind(
    "element types",
    (
        Part("privateEnterpriseNumber", 346, 4),
        Part("informationElementId", 303, 2),
        Part("informationElementDataType", 339, 1),
        Part("informationElementSemantics", 344, 1),
        Part("informationElementUnits", 345, 2),
        Part("informationElementRangeBegin", 342, 8),
        Part("informationElementRangeEnd", 343, 8),
        Part("informationElementName", 341, VARIABLE),
        Part("informationElementDescription", 340, VARIABLE),
    ),
    scopes=2,
    in_netflow9=False,
)
KINDS = (STATISTICS, METERING_RELIABILITY, EXPORTING_RELIABILITY, FLOW_KEYS, INTERFACES, TYPES)
Value = int | str


class OptionsTemplate:
    """The options template of a kind, and its records."""

    def __init__(self, kind: Kind, version: int, register: Register) -> None:
        self.kind = kind
        self._version = version
        self.identifier = register.identifier(self._specifiers)

    @cached_property
    def _specifiers(self) -> bytes:
        """With the counts before them, so that no template of flows has the same."""
        kind = self.kind
        if self._version == IPFIX:
            specifiers = b"".join(struct.pack(">HH", part.number, part.octets) for part in kind.parts)
            return struct.pack(">HH", len(kind.parts), kind.scopes) + specifiers
        scope, rest = kind.parts[: kind.scopes], kind.parts[kind.scopes :]
        specifiers = b"".join(
            struct.pack(">HH", part.netflow9_scope or part.number, _netflow9_octets(part))
            for part in kind.parts
        )
        return struct.pack(">HH", 4 * len(scope), 4 * len(rest)) + specifiers

    @property
    def record(self) -> bytes:
        """The options template record."""
        return struct.pack(">H", self.identifier) + self._specifiers

    def encode(self, values: Sequence[Value], longest: int) -> bytes:
        """One options record; texts are cut, the last one first, where it had more octets than `longest`."""
        encoded = [self._encoded(part, value) for part, value in zip(self.kind.parts, values, strict=True)]
        for position in reversed(range(len(values))):
            value, excess = values[position], sum(map(len, encoded)) - longest
            if excess > 0 and isinstance(value, str):
                shorter = _cut(value, max(len(_utf8(value)) - excess, 0))
                encoded[position] = self._encoded(self.kind.parts[position], shorter)
        return b"".join(encoded)

    def _encoded(self, part: Part, value: Value) -> bytes:
        if isinstance(value, int):
            return value.to_bytes(part.octets, "big")
        if self._version == NETFLOW9:
            return _utf8(_cut(value, part.netflow9_octets)).ljust(part.netflow9_octets, b"\0")
        text = _utf8(value)
        if len(text) < SHORT:
            return bytes((len(text),)) + text
        return struct.pack(">BH", SHORT, len(text)) + text


def _netflow9_octets(part: Part) -> int:
    return part.netflow9_octets or part.octets


def _utf8(text: str) -> bytes:
    """A name may have octets that are no text (surrogates): these become question marks."""
    return text.encode(errors="replace")


def _cut(text: str, octets: int) -> str:
    """As many whole characters as there is room for."""
    return _utf8(text)[:octets].decode(errors="ignore")


def statistics(report: Report, domain: int) -> Iterator[tuple[Kind, list[Value]]]:
    """What has been counted so far."""
    yield (
        STATISTICS,
        [
            domain,
            report.exported_messages,
            report.exported_records,
            report.exported_octets,
            report.observed_flows,
        ],
    )
    ignored_times = (report.ignored_first_ns // MS, report.ignored_last_ns // MS)
    yield METERING_RELIABILITY, [domain, report.ignored_packets, report.ignored_octets, *ignored_times]
    not_sent_times = (report.not_sent_first_ns // MS, report.not_sent_last_ns // MS)
    yield (
        EXPORTING_RELIABILITY,
        [domain, report.not_sent_records, report.not_sent_packets, report.not_sent_octets, *not_sent_times],
    )


def interfaces(report: Report) -> Iterator[tuple[Kind, list[Value]]]:
    """Names and descriptions."""
    for index, (name, description) in sorted(report.interfaces.items()):
        yield INTERFACES, [index, name, description]


def flow_keys(templates: Iterable[Template]) -> Iterator[tuple[Kind, list[Value]]]:
    """Which fields of each template make the flow."""
    for template in templates:
        yield FLOW_KEYS, [template.identifier, template.key_bits]


# Data types, semantics and units: IANA's registries "IPFIX Information Element …".
_DATA_TYPES = {"u1": 1, ">u2": 2, ">u4": 3, ">u8": 4, ">f8": 10, "V4": 18, "V16": 19}
_DATE_TIME_NANOSECONDS = 17
_QUANTITY, _DELTA_COUNTER, _IDENTIFIER = 1, 3, 4
_NO_UNIT, _OCTETS, _NANOSECONDS = 0, 2, 8
_NO_RANGE = (0, 0)  # without these fields libfixbuf takes no type record
_IS_NUMBER_OF = {"tunnelType": "1 gre, 2 ipip, 3 6in4, 4 4in6, 5 6in6, 6 vxlan, 7 geneve, 8 gtp-u"}


def element_types(fields: Iterable[Field]) -> Iterator[tuple[Kind, list[Value]]]:
    """What our own elements are."""
    elements = {element.name: element for element in ELEMENTS}
    for one in fields:
        if one.enterprise in (IANA, REVERSE_PEN, NTOP_PEN):
            continue
        element = elements[one.column]
        is_time = pa.types.is_timestamp(element.type)
        data_type = _DATE_TIME_NANOSECONDS if is_time else _DATA_TYPES[one.dtype]
        meaning = _IS_NUMBER_OF.get(element.name, element.meaning)
        if one.number & OWN_REVERSE_BIT:
            meaning = f"{REVERSED}: {meaning}"
        yield (
            TYPES,
            [one.enterprise, one.number, data_type, *_semantics(element), *_NO_RANGE, one.name, meaning],
        )


def _semantics(element: Element) -> tuple[int, int]:
    """(semantics, units)."""
    name = element.name
    if "OctetDelta" in name:
        return _DELTA_COUNTER, _OCTETS
    if name.endswith("Nanoseconds"):
        return 0 if pa.types.is_timestamp(element.type) else _QUANTITY, _NANOSECONDS
    if name in {"icmpIdentifier", "tunnelType", "tunnelIdentifier"}:
        return _IDENTIFIER, _NO_UNIT
    return _QUANTITY if name == "interArrivalSquareSum" else 0, _NO_UNIT
