"""Structs and enums of an object file, from its BTF section.

Source: Documentation/bpf/btf.rst of the kernel; ELF-64 as in elf.h. Little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INT, ARRAY, STRUCT, UNION, ENUM = 1, 3, 4, 5, 6
MODIFIERS = {8, 9, 10, 11}  # typedef, volatile, const, restrict
# Bytes that follow struct btf_type: once, and for each of its `vlen` members.
ONCE = {INT: 4, ARRAY: 12, 14: 4, 17: 4}
EACH = {STRUCT: 12, UNION: 12, ENUM: 8, 13: 8, 15: 12, 19: 12}


@dataclass(frozen=True)
class Type:
    """struct btf_type with its members: (name, type, offset in bits), or (name, value) of an enum."""

    kind: int
    size_or_type: int
    members: tuple[tuple, ...] = ()


Layout = dict[str, tuple[int, int, int]]
"""Name of a field: offset in bytes, size of an element, number of elements."""


class Btf:
    """The structs and enums of an object file, by name."""

    def __init__(self, object_file: Path) -> None:
        section = _section(object_file.read_bytes(), ".BTF")
        header, types, types_length, strings = struct.unpack_from("<4xIIII", section)
        self._strings = section[header + strings :]
        self._types = [Type(0, 0)]
        self._named: dict[str, Type] = {}
        at, end = header + types, header + types + types_length
        while at < end:
            name, info, size_or_type = struct.unpack_from("<III", section, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            start, at = at + 12, at + 12 + ONCE.get(kind, 0) + EACH.get(kind, 0) * count
            self._types.append(Type(kind, size_or_type, self._members(kind, section[start:at])))
            if kind in (STRUCT, ENUM):
                self._named[_text(self._strings, name)] = self._types[-1]

    def __contains__(self, name: str) -> bool:
        return name in self._named

    def size(self, name: str) -> int:
        return self._named[name].size_or_type

    def layout(self, name: str) -> Layout:
        return dict(self._fields(self._named[name], 0))

    def _fields(self, of: Type, start: int) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """Fields with their place; of an unnamed union the first of its views."""
        for field, number, bits in of.members[:1] if of.kind == UNION else of.members:
            member, place = self._types[number], start + bits // 8
            if field:
                yield field, (place, *self._element(member))
            else:
                yield from self._fields(member, place)

    def enum(self, name: str) -> dict[str, int]:
        return dict(self._named[name].members)

    def _members(self, kind: int, trailer: bytes) -> tuple[tuple, ...]:
        if kind == ARRAY:
            return tuple(struct.iter_unpack("<III", trailer))
        layout = {STRUCT: "<III", UNION: "<III", ENUM: "<Ii"}.get(kind)
        return (
            tuple((_text(self._strings, name), *rest) for name, *rest in struct.iter_unpack(layout, trailer))
            if layout
            else ()
        )

    def _element(self, of: Type) -> tuple[int, int]:
        """(size of an element, number of elements)."""
        if of.kind in MODIFIERS:
            return self._element(self._types[of.size_or_type])
        if of.kind == ARRAY:
            ((element, _, count),) = of.members
            size, inner = self._element(self._types[element])
            return size, count * inner
        return of.size_or_type, 1


def _section(elf: bytes, name: str) -> bytes:
    """The bytes of one section of an ELF-64 file."""
    (table,), (each, count, names) = struct.unpack_from("<Q", elf, 40), struct.unpack_from("<HHH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + number * each) for number in range(count)]
    texts = elf[sections[names][4] :]
    (found,) = (entry for entry in sections if _text(texts, entry[0]) == name)
    return elf[found[4] : found[4] + found[5]]


def _text(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(0, offset)].decode()
