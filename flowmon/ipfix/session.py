"""One transport session: what a collector has been told, and the numbers of messages.

Rules (RFC 7011 sections 3.1 and 8; RFC 3954 section 5.1 for NetFlow v9):
- The sequence number of an IPFIX message is that of its first data record, options
  records among them; templates do not count. NetFlow v9 counts messages.
- A template goes out before the first record that needs it, and again when the
  transport may have lost it.
- A message that was given a number keeps it, sent or not: a gap tells the collector.
"""

import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flowmon.ipfix import options_records
from flowmon.ipfix.block import Block
from flowmon.ipfix.encoder import HEADER, PADDING_MOST, SET_HEADER, Encoder
from flowmon.ipfix.options_records import KINDS, Kind, OptionsTemplate, Report, Value
from flowmon.ipfix.templates import IPFIX, OPTIONS_TEMPLATE_SET, TEMPLATE_SET, Register, Template

UPTIME_MS = 1 << 31  # NetFlow v9: see encoder.netflow9_clock


@dataclass(frozen=True)
class _Item:
    """A record on its way into a set."""

    set_id: int
    content: bytes
    is_data: bool


class Dictionary:
    """Every template of a profile, of flows and of options, under identifiers that do not meet."""

    def __init__(self, encoder: Encoder, register: Register) -> None:
        profile = encoder.profile
        self.by_identifier = {template.identifier: template for template in encoder.templates.values()}
        self.options = {
            kind: OptionsTemplate(kind, profile.version, register)
            for kind in KINDS
            if profile.version == IPFIX or kind.in_netflow9
        }
        self.fields = list({one: None for template in encoder.templates.values() for one in template.fields})


class Session:
    """Numbers messages and says when which template goes out. Sends nothing itself."""

    def __init__(self, encoder: Encoder, dictionary: Dictionary) -> None:
        self._profile = encoder.profile
        self._room = encoder.longest - HEADER[self._profile.version]
        self._dictionary = dictionary
        self._announced: dict[int, bytes] = {}
        self._interfaces: dict[int, tuple[str, str]] = {}
        self._sequence = 0

    def announce(self, block: Block) -> list[bytes]:
        """Messages with the templates of a block that were not sent before."""
        new = {number: record for number, record in block.templates.items() if number not in self._announced}
        self._announced |= new
        return self._templates(new)

    def refresh(self, report: Report) -> list[bytes]:
        """Messages with everything that explains others: at the start, and again where they may get lost."""
        self._interfaces = dict(report.interfaces)
        rows = [*options_records.interfaces(report), *options_records.element_types(self._dictionary.fields)]
        kinds = self._dictionary.options.values()
        templates = [
            _Item(OPTIONS_TEMPLATE_SET[self._profile.version], kind.record, is_data=False) for kind in kinds
        ]
        return self._messages([*templates, *self._options(rows)]) + self._templates(self._announced)

    def statistics(self, report: Report) -> list[bytes]:
        """Messages with what has been counted, and interfaces if they are others than before."""
        rows = [*options_records.statistics(report, self._profile.observation_domain_id)]
        if report.interfaces != self._interfaces:
            self._interfaces = dict(report.interfaces)
            rows += options_records.interfaces(report)
        return self._messages(self._options(rows))

    def stamp(self, block: Block, first: int, last: int) -> None:
        """Numbers some messages of a block, `first` up to `last`, the next to go, with the time of now."""
        count = last - first
        starts = np.concatenate([np.zeros(1, np.int64), block.ends])[first:last]
        if self._profile.version == IPFIX:
            records = block.records[first:last]
            numbers = self._sequence + np.cumsum(records) - records
            self._sequence = (self._sequence + int(records.sum())) % (1 << 32)
            stamps = np.column_stack([np.full(count, int(time.time())), numbers]).astype(">u4")
            at = 4
        else:
            stamps = (self._sequence + np.arange(count)).astype(">u4").reshape(-1, 1)
            self._sequence = (self._sequence + count) % (1 << 32)
            at = 12
        width = 4 * stamps.shape[1]
        where = starts[:, np.newaxis] + np.arange(at, at + width)
        block.content[where] = np.ascontiguousarray(stamps).view("u1").reshape(count, width)

    def _templates(self, records: dict[int, bytes]) -> list[bytes]:
        """Template records, and which of their fields are keys."""
        set_id = TEMPLATE_SET[self._profile.version]
        items = [_Item(set_id, record, is_data=False) for record in records.values()]
        known: list[Template] = [
            self._dictionary.by_identifier[number]
            for number in records
            if number in self._dictionary.by_identifier
        ]
        return self._messages([*items, *self._options(options_records.flow_keys(known))])

    def _options(self, rows: Iterable[tuple[Kind, Sequence[Value]]]) -> Iterator[_Item]:
        for kind, values in rows:
            template = self._dictionary.options.get(kind)
            if template is not None:
                longest = self._room - SET_HEADER - PADDING_MOST[self._profile.version]
                yield _Item(template.identifier, template.encode(values, longest), is_data=True)

    def _messages(self, items: Iterable[_Item]) -> list[bytes]:
        """As few as the limit allows; neighbours of the same set are in one."""
        messages: list[bytes] = []
        sets: list[list[_Item]] = []
        used = 0
        set_most = SET_HEADER + PADDING_MOST[self._profile.version]
        for item in items:
            before = sets[-1][0].set_id if sets else None
            # An options template has a set of its own: nfacctd loses its place behind the first.
            opens_set = item.set_id != before or item.set_id in OPTIONS_TEMPLATE_SET.values()
            needed = len(item.content) + (set_most if opens_set else 0)
            if sets and used + needed > self._room:
                messages.append(self._message(sets))
                sets, used, opens_set = [], 0, True
                needed = len(item.content) + set_most
            if opens_set:
                sets.append([])
            sets[-1].append(item)
            used += needed
        if sets:
            messages.append(self._message(sets))
        return messages

    def _message(self, sets: list[list[_Item]]) -> bytes:
        body = b"".join(self._set(items) for items in sets)
        items = [item for items in sets for item in items]
        domain, now = self._profile.observation_domain_id, int(time.time())
        if self._profile.version == IPFIX:
            header = struct.pack(">HHIII", IPFIX, HEADER[IPFIX] + len(body), now, self._sequence, domain)
            self._sequence = (self._sequence + sum(item.is_data for item in items)) % (1 << 32)
        else:
            version = self._profile.version
            header = struct.pack(">HHIIII", version, len(items), UPTIME_MS, now, self._sequence, domain)
            self._sequence = (self._sequence + 1) % (1 << 32)
        return header + body

    def _set(self, items: list[_Item]) -> bytes:
        content = b"".join(item.content for item in items)
        if self._profile.version != IPFIX:
            content += bytes(-len(content) % 4)
        return struct.pack(">HH", items[0].set_id, SET_HEADER + len(content)) + content
