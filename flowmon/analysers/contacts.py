"""Contacts: which source tried which service of which host, each once a pass.

Rules:
- A contact is (source, destination, protocol, destination port); of ICMP the port is 0.
- A source is an address, and of IPv6 also its /64: who holds one of its addresses can have all
  of them, and one a packet.
- Several biflows of a pass may be one contact. Contacts are told apart by a 64-bit hash.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowmon.analysers.activity import identity
from flowmon.analysers.table import opaque
from flowmon.biflow import hash_rows

Array = np.ndarray[Any, np.dtype[Any]]

ADDRESS_BITS = 128
PREFIX_BITS = 64

CONTACT = np.dtype(
    [
        ("source", "u1", 16),  # beyond prefix_length zero
        ("destination", "u1", 16),
        ("port", "u2"),
        ("protocol", "u1"),
        ("ip_version", "u1"),
        ("prefix_length", "u1"),  # of the source: ADDRESS_BITS or PREFIX_BITS
    ]
)


@dataclass(frozen=True)
class Contacts:
    """Contacts of one pass, no two alike, in ascending order of `hash`.

    rows: CONTACT[n]. hash, source: uint64[n], of the contact and of its source. to_host, to_service:
    uint64[n], of (source, destination) and of (source, protocol, port).
    """

    rows: Array
    hash: Array
    source: Array
    to_host: Array
    to_service: Array
    _activity_rows: Array
    _starts: Array

    def __len__(self) -> int:
        return len(self.rows)

    def any(self, values: Array) -> Array:
        """bool[n]: whether of a contact's rows of the activity one has `values` (bool, one a row)."""
        return np.logical_or.reduceat(values[self._activity_rows], self._starts)

    def total(self, values: Array) -> Array:
        """The sum of `values` (one a row of the activity) over each contact's rows."""
        return np.add.reduceat(values[self._activity_rows], self._starts)


def contacts_of(rows: Array) -> Contacts:
    """The contacts in ACTIVITY[n]."""
    contacts, activity_rows = _by_address_and_prefix(rows)
    source = identity(contacts, "source", "prefix_length")
    destination = identity(contacts, "destination")
    service = identity(contacts, "protocol", "port")
    hashes = hash_rows(np.column_stack([source, destination, service]), seed=0)
    order, starts = grouped(hashes)
    first = order[starts]
    source = source[first]
    return Contacts(
        opaque(contacts)[first].view(CONTACT),
        hashes[first],
        source,
        hash_rows(np.column_stack([source, destination[first]]), seed=1),
        hash_rows(np.column_stack([source, service[first]]), seed=2),
        activity_rows[order],
        starts,
    )


def grouped(hashes: Array) -> tuple[Array, Array]:
    """(order, starts): int64[n] that sorts uint64[n], and where in it each distinct value starts."""
    order = np.argsort(hashes)
    in_order = hashes[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = in_order[1:] != in_order[:-1]
    return order, np.flatnonzero(is_first)


def parts(hashes: Array, size: int) -> Iterator[Any]:
    """Indices of parts of about this size at most, in which all of a hash (uint64[n]) are together."""
    count = -(-len(hashes) // size)
    if count <= 1:
        yield slice(None)
        return
    part_of = hashes % np.uint64(count)
    for one in range(count):
        yield part_of == one


def _by_address_and_prefix(rows: Array) -> tuple[Array, Array]:
    """(CONTACT[m], int64[m] the rows they are of): every row, and those of IPv6 once more with the /64."""
    is_ipv6 = np.flatnonzero(rows["ip_version"] == 6)
    numbers = np.concatenate([np.arange(len(rows)), is_ipv6])
    contacts = np.zeros(len(numbers), CONTACT)
    contacts["source"] = rows["source_address"][numbers]
    contacts["destination"] = rows["destination_address"][numbers]
    contacts["port"] = rows["destination_port"][numbers]
    contacts["protocol"] = rows["protocol"][numbers]
    contacts["ip_version"] = rows["ip_version"][numbers]
    contacts["prefix_length"] = ADDRESS_BITS
    contacts["prefix_length"][len(rows) :] = PREFIX_BITS
    contacts["source"][len(rows) :, PREFIX_BITS // 8 :] = 0
    return contacts, numbers
