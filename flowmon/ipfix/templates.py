"""Templates: one for each set of traits that records have.

Rules:
- A template's identifier comes from its layout (a checksum of the template record),
  so it is the same after a restart and another where the layout is another.
- Of two templates with the same checksum the one later in the order of traits
  takes the next identifier that is free.
- IPFIX: RFC 7011 sections 3.4.1 and 3.4.2. NetFlow v9: RFC 3954 sections 5.2 and 6.1;
  it knows no enterprises, so nProbe's elements stand at 57472 and above, where
  nProbe puts them, and our own are not there. It knows no lists either.
- Lists have the same element, 291; what each is of stands in the records.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from flowmon.ipfix.fields import BASIC_LIST, IANA, NTOP_PEN, Field, Trait

FIRST_ID, LAST_ID = 256, 65535
ENTERPRISE_BIT = 0x8000
NETFLOW9_NTOP_BASE = 57472
NETFLOW9, IPFIX = 9, 10
FIREWALL_CONNECTION = 148  # flowId in IPFIX: to who reads NetFlow v9 it makes a record an event of a firewall
TEMPLATE_SET = {NETFLOW9: 0, IPFIX: 2}
OPTIONS_TEMPLATE_SET = {NETFLOW9: 1, IPFIX: 3}


@dataclass(frozen=True)
class Template:
    """The layout of a record. identifier: 0 until a `Register` gave it one."""

    fields: tuple[Field, ...]
    version: int
    identifier: int = 0

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Of a record whose lists are empty: big-endian, without holes; the fields are f0, f1 and so on."""
        return self.layout(0)

    def layout(self, packets: int) -> np.dtype[Any]:
        """Of a record that lists so many packets."""
        return np.dtype(
            [(f"f{position}", field.layout(packets)) for position, field in enumerate(self.fields)]
        )

    @cached_property
    def specifiers(self) -> bytes:
        """What the template record says of the fields (RFC 7011 section 3.2)."""
        return b"".join(field_specifier(field, field.octets, self.version) for field in self.fields)

    @cached_property
    def record(self) -> bytes:
        """The template record."""
        return struct.pack(">HH", self.identifier, len(self.fields)) + self.specifiers

    @property
    def key_bits(self) -> int:
        """The flow key: bit n is field n (flowKeyIndicator, element 173)."""
        return sum(
            1 << position for position, field in enumerate(self.fields) if field.is_key and position < 64
        )


def field_specifier(field: Field, octets: int, version: int) -> bytes:
    """A field's number, width and enterprise."""
    if version == NETFLOW9:
        return struct.pack(">HH", _netflow9_number(field), octets)
    if field.enterprise == IANA:
        return struct.pack(">HH", field.number, octets)
    return struct.pack(">HHI", field.number | ENTERPRISE_BIT, octets, field.enterprise)


def _is_of_netflow9(field: Field) -> bool:
    return field.enterprise in (IANA, NTOP_PEN) and field.number not in (FIREWALL_CONNECTION, BASIC_LIST)


def _netflow9_number(field: Field) -> int:
    return field.number + (NETFLOW9_NTOP_BASE if field.enterprise == NTOP_PEN else 0)


class Register:
    """Gives identifiers to layouts."""

    def __init__(self) -> None:
        self._taken: dict[int, bytes] = {}

    def identifier(self, specifiers: bytes) -> int:
        """That of this layout."""
        identifier = FIRST_ID + zlib.crc32(specifiers) % (LAST_ID - FIRST_ID + 1)
        while self._taken.setdefault(identifier, specifiers) != specifiers:
            identifier = identifier + 1 if identifier < LAST_ID else FIRST_ID
        return identifier


def templates(
    fields: Sequence[Field], version: int, register: Register, *, biflows: bool
) -> dict[Trait, Template]:
    """Those that records may need, by what these have."""
    usable = [field for field in fields if version == IPFIX or _is_of_netflow9(field)]
    found = {}
    for traits in possible_traits(biflows=biflows):
        chosen = tuple(field for field in usable if field.traits in traits)
        unnamed = Template(chosen, version)
        found[traits] = Template(chosen, version, register.identifier(unnamed.specifiers))
    return found


def possible_traits(*, biflows: bool) -> Iterator[Trait]:
    """Every combination that a record can have."""
    tunnels = (Trait.ANY, Trait.TUNNEL | Trait.TUNNEL_IPV4, Trait.TUNNEL | Trait.TUNNEL_IPV6)
    for parts in product(
        (Trait.IPV4, Trait.IPV6),
        (Trait.ANY, Trait.TCP, Trait.ICMP, Trait.IPSEC),
        (Trait.ANY, Trait.REVERSE) if biflows else (Trait.ANY,),
        (Trait.ANY, Trait.TAGGED),
        (Trait.ANY, Trait.LABELLED),
        (Trait.ANY, Trait.OPTIONS),
        (Trait.ANY, Trait.OBSERVED, Trait.OBSERVED | Trait.DROPPED),
        tunnels,
    ):
        combined = Trait.ANY
        for part in parts:
            combined |= part
        yield combined
