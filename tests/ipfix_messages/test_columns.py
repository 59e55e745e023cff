"""Columns as the encoder sees them, against Arrow's own conversion to Python."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flowmon.elements import ELEMENTS, RECORD_SCHEMA
from flowmon.ipfix.columns import Addresses, Columns, Forward, Turned
from flowmon.records import record_batch
from ipfix_oracle import CONTEXT, batches, reverse, rows_of, some_more_flows
from ipfix_reader import NS, ntp_ns
from samples import turned

NTP_1970 = 2_208_988_800
START_OF_ERA_1 = 2_085_978_496  # 2036-02-07 06:28:16 UTC
times = st.integers(1, 2**62)
NUMERIC = [field.name for field in RECORD_SCHEMA if not pa.types.is_nested(field.type)]
NUMERIC = [name for name in NUMERIC if not pa.types.is_dictionary(RECORD_SCHEMA.field(name).type)]
ADDRESSES = ("sourceAddress", "destinationAddress", "tunnelSourceAddress", "tunnelDestinationAddress")


def columns(batch: pa.RecordBatch, boot_ms: int = 0) -> Columns:
    return Columns(batch, Addresses(batch), boot_ms)


def stamps(values: list[int | None]) -> Columns:
    return columns(pa.record_batch({"t": pa.array(values, pa.timestamp("ns", tz="UTC"))}))


def encoded(ns: int, unit: str) -> int:
    (found,) = stamps([ns]).times("t", unit)
    return int(found)


# --- times ---


@given(times)
@example(START_OF_ERA_1 * NS - 1)
@example(START_OF_ERA_1 * NS)
@example(NS - 1)
def test_nanoseconds_are_read_back_exactly(ns: int) -> None:
    stamp = encoded(ns, "ns")
    assert stamp >> 32 == (ns // NS + NTP_1970) % 2**32
    assert (stamp & 0xFFFFFFFF) * NS >> 32 == ns % NS
    if stamp and ns < (START_OF_ERA_1 + 2**31) * NS:  # a reader's guess of the era holds until 2104
        assert ntp_ns(stamp.to_bytes(8, "big"), NS) == ns


@given(times)
@example(START_OF_ERA_1 * NS - 1)
@example(999_999_999)
@example(999_999)
def test_microseconds_are_read_back_exactly_and_leave_11_bits(ns: int) -> None:
    stamp = encoded(ns, "us")
    assert stamp & 0x7FF == 0
    assert stamp >> 32 == (ns // NS + NTP_1970) % 2**32
    assert (stamp & 0xFFFFFFFF) * 1_000_000 >> 32 == ns % NS // 1000


@given(times)
def test_milliseconds_are_cut_off(ns: int) -> None:
    assert encoded(ns, "ms") == ns // 1_000_000


def test_ntp_counts_from_1900_and_wraps_in_2036() -> None:
    assert encoded(NS, "ns") == (NTP_1970 + 1) << 32
    assert encoded(START_OF_ERA_1 * NS - NS, "us") == 0xFFFFFFFF << 32
    assert encoded(START_OF_ERA_1 * NS + NS // 2, "ns") == 1 << 31


@given(times, st.integers(0, 2**43))
def test_uptime_stops_at_both_ends(ns: int, boot_ms: int) -> None:
    batch = pa.record_batch({"t": pa.array([ns], pa.timestamp("ns"))})
    (found,) = columns(batch, boot_ms).times("t", "uptime")
    assert found == min(max(ns // 10**6 - boot_ms, 0), 2**32 - 1)


@pytest.mark.parametrize("unit", ["ms", "us", "ns", "uptime"])
def test_no_time_is_0(unit: str) -> None:
    assert stamps([None, NS]).times("t", unit)[0] == 0


@given(st.lists(st.none() | times, min_size=2, max_size=2))
def test_between_is_0_where_there_is_no_time(ends: list[int | None]) -> None:
    batch = pa.record_batch(
        {name: pa.array([ns], pa.timestamp("ns")) for name, ns in zip("ab", ends, strict=True)}
    )
    first, last = ends
    wanted = last - first if first is not None and last is not None and last > first else 0
    assert columns(batch).between("a", "b").tolist() == [wanted]


# --- numbers, texts and histograms, of any part of a batch ---


@st.composite
def parts(draw: st.DrawFn) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """A batch, and some rows of it."""
    batch = draw(batches)
    first = draw(st.integers(0, batch.num_rows))
    return batch, batch.slice(first, draw(st.integers(0, batch.num_rows)))


@given(parts())
def test_every_number_is_the_columns_and_null_is_0(both: tuple[pa.RecordBatch, pa.RecordBatch]) -> None:
    whole, part = both
    view = Columns(part, Addresses(whole))
    assert len(view) == part.num_rows
    plain = rows_of(part)
    for name in NUMERIC:
        assert view.numbers(name).tolist() == [row[name] or 0 for row in plain]
        assert view.is_null(name).tolist() == [row[name] is None for row in plain]
    for element in ELEMENTS:
        if element.reversible and element.name in NUMERIC:
            found = view.reversed().numbers(element.name)
            assert found.tolist() == [row[reverse(element.name)] or 0 for row in plain]


@given(parts())
def test_every_address_is_the_columns_and_none_is_0(both: tuple[pa.RecordBatch, pa.RecordBatch]) -> None:
    whole, part = both
    view = Columns(part, Addresses(whole))
    for name in ADDRESSES:
        texts = part.column(name).to_pylist()
        assert view.are_ipv6(name).tolist() == [":" in (text or "") for text in texts]
        for octets in (4, 16):
            assert [bytes(raw) for raw in view.addresses(name, octets)] == [
                packed_or_0(text, octets) for text in texts
            ]


def packed_or_0(text: str | None, octets: int) -> bytes:
    packed = ipaddress.ip_address(text).packed if text else b""
    return packed if len(packed) == octets else bytes(octets)


@given(parts())
def test_every_histogram_is_the_columns(both: tuple[pa.RecordBatch, pa.RecordBatch]) -> None:
    whole, part = both
    addresses = Addresses(whole)
    for name, bins in (("packetSizeHistogram", 6), ("ttlHistogram", 10)):
        one, other = part.column(name).to_pylist(), part.column(reverse(name)).to_pylist()
        for position in range(bins):
            apart = [bins[position] for bins in one], [bins[position] for bins in other]
            together = [sum(pair) for pair in zip(*apart, strict=True)]
            assert Columns(part, addresses).bin_of_both(name, position).tolist() == together
            assert Forward(part, addresses).bin_of_both(name, position).tolist() == apart[0]
            assert Turned(part, addresses).bin_of_both(name, position).tolist() == apart[1]


@given(parts())
def test_last_octets_are_in_network_order(both: tuple[pa.RecordBatch, pa.RecordBatch]) -> None:
    whole, part = both
    view = Columns(part, Addresses(whole))
    for one, name in (
        (view, "mplsTopLabelStackSection"),
        (view.reversed(), "reverseMplsTopLabelStackSection"),
    ):
        found = one.last_octets("mplsTopLabelStackSection", 3)
        assert [bytes(raw) for raw in found] == [
            (value or 0).to_bytes(3, "big") for value in part.column(name).to_pylist()
        ]


@given(
    st.lists(
        st.none() | st.ip_addresses().map(str) | st.just("::ffff:1.2.3.4") | st.just("::ffff:0:0"), max_size=8
    ),
    st.randoms(),
)
def test_dictionaries_in_any_order_with_unused_texts(texts: list[str | None], random: Any) -> None:
    distinct = [*{text for text in texts if text}, "192.0.2.99", "2001:db8::99"]
    random.shuffle(distinct)
    places = pa.array([None if text is None else distinct.index(text) for text in texts], pa.int32())
    column = pa.DictionaryArray.from_arrays(places, pa.array(distinct, pa.string()))
    view = columns(pa.record_batch({"a": column}))
    for octets in (4, 16):
        wanted = [
            socket.inet_pton(socket.AF_INET6 if octets == 16 else socket.AF_INET, text)
            if text and (":" in text) == (octets == 16)
            else bytes(octets)
            for text in texts
        ]
        assert [bytes(raw) for raw in view.addresses("a", octets)] == wanted


@pytest.mark.parametrize("texts", [[], [None], [None, None]])
def test_empty_dictionaries(texts: list[None]) -> None:
    places = pa.array(texts, pa.int32())
    column = pa.DictionaryArray.from_arrays(places, pa.array([], pa.string()))
    view = columns(pa.record_batch({"tunnelType": column}))
    assert [bytes(raw) for raw in view.addresses("tunnelType", 4)] == [bytes(4)] * len(texts)
    assert view.are_ipv6("tunnelType").tolist() == [False] * len(texts)
    assert view.tunnel_types().tolist() == [0] * len(texts)


def test_tunnel_types_are_numbered_as_declared() -> None:
    names = ["gre", "ipip", "6in4", "4in6", "6in6", "vxlan", "geneve", "gtp-u"]
    column = pa.array([*names, None], pa.string()).dictionary_encode()
    assert columns(pa.record_batch({"tunnelType": column})).tunnel_types().tolist() == [*range(1, 9), 0]


# --- one direction ---


@given(some_more_flows())
def test_turned_is_what_the_other_side_would_have_recorded(flows: Any) -> None:
    """But for the hook, which is another, and for what the record has of the key."""
    whole = record_batch(flows, CONTEXT)
    swapped = type(flows)(turned(flows.keys), flows.reverse, flows.forward, flows.flow_id, flows.reasons)
    other = record_batch(swapped, CONTEXT)
    here, there = Turned(whole, Addresses(whole)), columns(other)
    for element in ELEMENTS:
        if element.reversible and element.name in NUMERIC:
            assert here.numbers(element.name).tolist() == there.numbers(element.name).tolist()
    for name in ("sourceTransportPort", "destinationTransportPort"):
        no_ports = np.isin(flows.keys["protocol"], (50, 51))
        assert (here.numbers(name) == there.numbers(name))[~no_ports].all()
    for name in ("sourceAddress", "destinationAddress"):
        for octets in (4, 16):
            assert here.addresses(name, octets).tolist() == there.addresses(name, octets).tolist()
    for one, two in (("ingressInterface", "egressInterface"), ("egressInterface", "ingressInterface")):
        assert here.numbers(one).tolist() == columns(whole).numbers(two).tolist()


@given(batches)
def test_forward_has_all_but_its_times_from_the_columns(batch: pa.RecordBatch) -> None:
    own, both = Forward(batch, Addresses(batch)), columns(batch)
    for name in set(NUMERIC) - {"flowStartNanoseconds", "flowEndNanoseconds"}:
        assert own.numbers(name).tolist() == both.numbers(name).tolist()
    has_packets = both.numbers("packetDeltaCount") > 0
    start, end = (own.numbers(f"flow{which}Nanoseconds")[has_packets] for which in ("Start", "End"))
    assert (start >= both.numbers("flowStartNanoseconds")[has_packets]).all()
    assert (end <= both.numbers("flowEndNanoseconds")[has_packets]).all()
    lasted = both.numbers("interArrivalSumNanoseconds")[has_packets]
    assert (end - start).tolist() == lasted.tolist()
