"""The columns of a record batch as the encoder wants them: plain arrays, no nulls.

Rules:
- Each column is converted once, when a field asks for it. Null becomes 0.
- Lists keep their values one after the other, in memory as Arrow has them; `places` finds a record's.
- One record may go out as two (uniflow): `Turned` shows the batch as the other
  direction would have recorded it, so that the fields are the same for both.
"""

import socket
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowmon.arrow import from_numpy, to_numpy
from flowmon.elements import ELEMENTS
from flowmon.first_packets import FORWARD, REVERSE
from flowmon.records import TUNNEL_NAMES

Array = np.ndarray[Any, np.dtype[Any]]

NTP_EPOCH_S = 2_208_988_800  # 1970 as seconds since 1900
NTP_MICROSECOND_BITS = np.uint64(
    0x7FF
)  # of the fraction, that say nothing where the unit is 1 us (RFC 7011 section 6.1.9)
IPV6_OCTETS = 16
NS, US = 1_000_000_000, 1_000_000

_REVERSIBLE = frozenset(element.name for element in ELEMENTS if element.reversible)
_EXCHANGED = {
    one: other
    for pair in (
        ("sourceAddress", "destinationAddress"),
        ("sourceTransportPort", "destinationTransportPort"),
        ("tunnelSourceAddress", "tunnelDestinationAddress"),
        ("ingressInterface", "egressInterface"),
    )
    for one, other in (pair, pair[::-1])
}
_TIMES = {
    "flowStartNanoseconds": "reverseFlowStartNanoseconds",
    "flowEndNanoseconds": "reverseFlowEndNanoseconds",
}
_TUNNEL_NUMBERS = {text: int(number) for number, text in TUNNEL_NAMES.items()}


def reverse_name(name: str) -> str:
    """The column of the other direction."""
    return "reverse" + name[0].upper() + name[1:]


class Columns:
    """Some biflows. addresses: of the whole batch, if the rows are a part of it."""

    def __init__(self, batch: pa.RecordBatch, addresses: "Addresses", boot_ms: int = 0) -> None:
        self._batch = batch
        self._packed = addresses
        self._boot_ms = boot_ms
        self._numbers: dict[str, Array] = {}

    def __len__(self) -> int:
        return self._batch.num_rows

    def is_null(self, name: str) -> Array:
        """bool[n]."""
        return to_numpy(self._batch.column(name).is_null())

    def numbers(self, name: str) -> Array:
        """The values of a numeric column; a timestamp as nanoseconds since 1970."""
        if name not in self._numbers:
            self._numbers[name] = _plain(self._batch.column(name))
        return self._numbers[name]

    def times(self, name: str, unit: str) -> Array:
        """Milliseconds since 1970 ("ms") or since `boot_ms` ("uptime"), or NTP timestamps ("us", "ns")."""
        if unit == "uptime":
            return np.clip(self.numbers(name) // 1_000_000 - self._boot_ms, 0, 0xFFFFFFFF)
        return _encoded_time(self.numbers(name), unit)

    def between(self, start: str, end: str) -> Array:
        """int64[n]: nanoseconds, 0 where one of them is not there or they are the wrong way round."""
        first, last = self.numbers(start), self.numbers(end)
        return np.where((first > 0) & (last > first), last - first, 0)

    def bin_of_both(self, name: str, position: int) -> Array:
        """uint64[n]: one bin of a histogram, both directions together."""
        return self._bin(name, position) + self._bin(reverse_name(name), position)

    def last_octets(self, name: str, octets: int) -> Array:
        """The lower octets of a number, in network order."""
        raw = self.numbers(name).astype(">u4").view("u1").reshape(-1, 4)
        return np.ascontiguousarray(raw[:, 4 - octets :]).view(f"V{octets}").reshape(-1)

    def addresses(self, name: str, octets: int) -> Array:
        """V{octets}[n], in network order; all zero where the address is of the other version."""
        return self._packed.table(name, octets)[self._places(name)]

    def are_ipv6(self, name: str) -> Array:
        """bool[n]: whether the addresses of a column are; False where there is none."""
        return self._packed.are_ipv6(name)[self._places(name)]

    def tunnel_types(self) -> Array:
        """uint8[n]: abi.Tunnel."""
        texts = self._batch.column("tunnelType").dictionary.to_pylist()
        numbers = np.array([*(_TUNNEL_NUMBERS[text] for text in texts), 0], "u1")
        return numbers[self._places("tunnelType")]

    def of_packets(self, name: str) -> Array:
        """The values of all records' lists, as they go out; times are NTP timestamps."""
        if name not in self._numbers:
            values = _plain(self._batch.column(name).values)
            self._numbers[name] = _encoded_time(values, "ns") if name == "packetTimes" else values
        return self._numbers[name]

    def listed(self) -> Array:
        """int64[n]: how many packets each record lists."""
        return np.diff(self._lists[0])

    def places(self, rows: Array, packets: int) -> Array:
        """int64[rows, packets]: where in `of_packets` those of some rows are, that list so many each."""
        offsets, places = self._lists
        return places[offsets[rows][:, np.newaxis] + np.arange(packets)]

    @cached_property
    def _lists(self) -> tuple[Array, Array]:
        """(int64[n + 1], int64[...]): where each record's packets begin among the places of all that count here."""
        column = self._batch.column("packetDirections")
        places = np.flatnonzero(self._are_listed(to_numpy(column.values)))
        return np.searchsorted(places, to_numpy(column.offsets)), places

    def _are_listed(self, directions: Array) -> Array:
        return np.ones(len(directions), bool)

    def reversed(self) -> "Columns":
        """The same for reversible elements of the other direction."""
        return self._other

    @cached_property
    def _other(self) -> "Columns":
        return Reversed(self)

    def _places(self, name: str) -> Array:
        """int32[n]: where in its dictionary each text is; one behind the last where there is none."""
        column = self._batch.column(name)
        return _plain(column.indices, null=len(column.dictionary))

    def _bin(self, name: str, position: int) -> Array:
        column = self._batch.column(name)
        size = column.type.list_size
        flat = _plain(column.flatten())
        return flat.reshape(-1, size)[:, position]


class Reversed(Columns):
    """Reversible elements, read from the columns of the other direction."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns)

    def numbers(self, name: str) -> Array:
        """Of the other direction."""
        return self._columns.numbers(reverse_name(name))


class Forward(Columns):
    """The forward direction alone: its own times and histograms.

    A record has the times of both directions together, those of the reverse one, and
    how long the forward one lasted. Where a record that goes on from an earlier one
    (active timeout) begins and ends with a packet of the reverse direction, the
    forward one lies somewhere between: then it is said to begin with the record.
    """

    def numbers(self, name: str) -> Array:
        """Times are the direction's own."""
        if name not in _TIMES:
            return super().numbers(name)
        start, end = super().numbers("flowStartNanoseconds"), super().numbers("flowEndNanoseconds")
        lasted = super().numbers("interArrivalSumNanoseconds").astype(np.int64)
        ends_last = (super().numbers("reverseFlowStartNanoseconds") == start) & (
            super().numbers("reverseFlowEndNanoseconds") < end
        )
        own_start = np.where(ends_last, end - lasted, start)
        return own_start if name == "flowStartNanoseconds" else own_start + lasted

    def _are_listed(self, directions: Array) -> Array:
        return directions == FORWARD

    def bin_of_both(self, name: str, position: int) -> Array:
        """Of this direction alone."""
        return self._bin(name, position)


class Turned(Columns):
    """The reverse direction alone, as a flow of its own."""

    def numbers(self, name: str) -> Array:
        """What was the reverse direction's, and the two ends exchanged."""
        if name in _REVERSIBLE:
            return super().numbers(reverse_name(name))
        if name == "flowDirection":
            return 1 - super().numbers(name)
        return super().numbers(_TIMES.get(name) or _EXCHANGED.get(name, name))

    def addresses(self, name: str, octets: int) -> Array:
        """Of the other end."""
        return super().addresses(_EXCHANGED[name], octets)

    def _are_listed(self, directions: Array) -> Array:
        return directions == REVERSE

    def bin_of_both(self, name: str, position: int) -> Array:
        """Of this direction alone."""
        return self._bin(reverse_name(name), position)


def _plain(column: pa.Array, null: int = 0) -> Array:
    if pa.types.is_timestamp(column.type):
        column = column.view(pa.int64())
    if column.null_count:
        column = pc.fill_null(column, null)
    return to_numpy(column)


def _encoded_time(ns: Array, unit: str) -> Array:
    if unit == "ms":
        return (ns // 1_000_000).astype("u8")
    seconds, rest = np.divmod(ns, NS)
    # Rounded up: who cuts off when reading gets the same number back.
    if unit == "ns":
        fraction = ((rest.astype("u8") << np.uint64(32)) + np.uint64(NS - 1)) // np.uint64(NS)
    else:
        microseconds = rest.astype("u8") // np.uint64(1000)
        fraction = ((microseconds << np.uint64(32)) + np.uint64(US - 1)) // np.uint64(US)
        fraction = (fraction + NTP_MICROSECOND_BITS) & ~NTP_MICROSECOND_BITS
    since_1900 = (seconds + NTP_EPOCH_S).astype("u8") & np.uint64(0xFFFFFFFF)  # the era is the reader's guess
    return np.where(ns == 0, np.uint64(0), since_1900 << np.uint64(32) | fraction)


class Addresses:
    """The addresses of a batch in binary, each distinct one converted once; behind the last stands "none"."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._tables: dict[tuple[str, int], Array] = {}
        self._are_ipv6: dict[str, Array] = {}

    def table(self, name: str, octets: int) -> Array:
        """V{octets}[distinct + 1]; zero for those of the other version."""
        if (name, octets) not in self._tables:
            texts, are_ipv6 = self._texts(name), self.are_ipv6(name)
            rows = np.flatnonzero(are_ipv6[: len(texts)] == (octets == IPV6_OCTETS))
            table = np.zeros((len(texts) + 1, octets), "u1")
            chosen = texts.take(from_numpy(rows))
            table[rows] = _ipv6(chosen) if octets == IPV6_OCTETS else _ipv4(chosen)
            self._tables[name, octets] = table.view(f"V{octets}").reshape(-1)
        return self._tables[name, octets]

    def are_ipv6(self, name: str) -> Array:
        """bool[distinct + 1]."""
        if name not in self._are_ipv6:
            found = to_numpy(pc.match_substring(self._texts(name), ":"))
            self._are_ipv6[name] = np.append(found, False)
        return self._are_ipv6[name]

    def _texts(self, name: str) -> pa.StringArray:
        return self._batch.column(name).dictionary


def _ipv4(texts: pa.StringArray) -> Array:
    """uint8[n, 4] of dotted decimals."""
    octets = pc.split_pattern(texts, ".").flatten()
    return to_numpy(pc.cast(octets, pa.uint8())).reshape(-1, 4)


def _ipv6(texts: pa.StringArray) -> Array:
    """uint8[n, 16]."""
    packed = b"".join([socket.inet_pton(socket.AF_INET6, text) for text in texts.to_pylist()])
    return np.frombuffer(packed, "u1").reshape(-1, IPV6_OCTETS)
