"""Rows against the packets they are made from: one at a time, in plain Python."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_samples import ICMP, ICMPV6, OFFSET, TCP, UDP, packet, plain, random_packets, rows_of
from flowmon import abi, biflow
from flowmon.elements import ELEMENTS
from flowmon.features.__main__ import markdown
from flowmon.features.packets import FEATURES, FEATURES_SCHEMA, feature_batch
from samples import key, turned

DOCUMENT = Path(__file__).parents[2] / "docs" / "packet-feature-columns.md"
FIN, SYN, PSH, ACK, CWR = 0x01, 0x02, 0x08, 0x10, 0x80


# --- against the slow oracle ---


def text(raw: np.ndarray, version: int) -> str:
    return str(
        ipaddress.IPv4Address(raw[12:].tobytes()) if version == 4 else ipaddress.IPv6Address(raw.tobytes())
    )


def session_of(one: np.void) -> dict[str, Any]:
    """The columns that all packets of a session share."""
    found = one["key"]
    here, there = ("destination", "source") if one["is_reverse"] else ("source", "destination")
    has_ports = found["protocol"] in {TCP, UDP}
    return {
        "sourceAddress": text(found[f"{here}_address"], found["ip_version"]),
        "destinationAddress": text(found[f"{there}_address"], found["ip_version"]),
        "sourceTransportPort": int(found[f"{here}_port"]) if has_ports else 0,
        "destinationTransportPort": int(found[f"{there}_port"]) if has_ports else 0,
        "protocolIdentifier": int(found["protocol"]),
        "captureStartNanoseconds": int(one["began_utc_ns"]),
        "captureRound": int(one["round"]),
    }


def slow_row(one: np.void, place: int) -> dict[str, Any]:
    """One segment of what was captured; without flowId."""
    last = place == int(one["segments"]) - 1
    ip_length = int(one["last_ip_length"] if last else one["segment_ip_length"])
    payload = ip_length - int(one["headers_length"])
    bits = int(one["tcp_control_bits"])
    if not last:
        bits &= ~(FIN | PSH)
    if place > 0:
        bits &= ~CWR
    before = place * (int(one["segment_ip_length"]) - int(one["headers_length"]))
    protocol = 0 if one["unread"] else int(one["key"]["protocol"])
    row = session_of(one) | {
        "packetIndex": int(one["index"]) + place,
        "observationTimeNanoseconds": int(one["time_mono_ns"]) + OFFSET,
        "biflowDirection": 2 if one["is_reverse"] else 1,
        "interArrivalNanoseconds": int(one["interval_ns"]) if place == 0 else 0,
        "ipTotalLength": ip_length,
        "fragmentFlags": int(one["fragment"]) >> 13 << 5,
        "fragmentOffset": int(one["fragment"]) % 8192,
        "ipTTL": int(one["time_to_live"]),
        "ipClassOfService": int(one["class_of_service"]),
        "transportPayloadLength": payload,
        "tcpControlBits": bits,
        "tcpWindowSize": int(one["window"]),
        "tcpRelativeSequenceNumber": (int(one["sequence"]) + before) % 2**32,
        "tcpRelativeAcknowledgementNumber": int(one["acknowledgement"]),
        "udpMessageLength": payload + 8 if one["segments"] > 1 else int(one["udp_length"]),
        "icmpType": int(one["icmp_type"]),
        "icmpCode": int(one["icmp_code"]),
    }
    for prefix, of in (("tcp", (TCP,)), ("udp", (UDP,)), ("icmp", (ICMP, ICMPV6))):
        if protocol not in of:
            row |= {name: None for name in row if name.startswith(prefix)}
    return row


@given(st.integers(0, 2**32), st.integers(0, 12))
def test_every_column_is_the_oracles(seed: int, number: int) -> None:
    packets = random_packets(seed, number)
    batch = feature_batch(packets, OFFSET)
    batch.validate(full=True)
    assert batch.schema.equals(FEATURES_SCHEMA, check_metadata=True)
    expected = [slow_row(one, place) for one in packets for place in range(one["kept"])]
    found = plain(batch.drop_columns(["flowId"]))
    assert found == expected


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_flow_id_is_the_flow_records(seed: int, number: int) -> None:
    """Of both directions, and at every point."""
    packets = random_packets(seed, number)
    packets["kept"] = 1
    keys = packets["key"].copy()
    biflows = biflow.pair(keys, np.arange(number, dtype="u8") + np.uint64(1), every_interface=False)
    expected = biflows.flow_id[biflows.conversation_of].tolist()
    assert feature_batch(packets, OFFSET).column("flowId").to_pylist() == expected


def test_both_directions_have_one_flow_id() -> None:
    for protocol in (TCP, UDP):
        here = key(protocol=protocol)
        there, back = rows_of(packet(here), packet(turned(here), is_reverse=1)).column("flowId").to_pylist()
        assert there == back


# --- where the rows lie in memory ---


def test_no_packets_are_no_rows() -> None:
    batch = feature_batch(np.empty(0, abi.FEATURE_PACKET), OFFSET)
    batch.validate(full=True)
    assert batch.num_rows == 0
    assert batch.schema.equals(FEATURES_SCHEMA, check_metadata=True)


def test_packets_may_lie_anywhere_and_are_not_changed() -> None:
    packets = random_packets(1, 40)
    expected = feature_batch(packets[::-2].copy(), OFFSET)
    kept = packets.copy()
    assert plain(feature_batch(packets[::-2], OFFSET)) == plain(expected)
    assert packets.tobytes() == kept.tobytes()


def test_rows_outlive_the_packets() -> None:
    """The ring's memory is written over after it was read."""
    packets = random_packets(2, 40)
    packets["kept"] = 1
    batch = feature_batch(packets, OFFSET)
    before = plain(batch)
    packets.view("u1")[:] = 0
    assert plain(batch) == before


def test_session_keeps_its_start_where_the_clock_is_set() -> None:
    """What UTC was at its first packet: with a later one's, the session would have two names."""
    one = packet()
    starts = [feature_batch(one, offset).column("captureStartNanoseconds") for offset in (OFFSET, OFFSET + 5)]
    assert starts[0].equals(starts[1])


# --- super-packets ---


def segments(**fields: int) -> dict[str, list[Any]]:
    """Rows of four segments with 100 octets, and a last one with 7."""
    given_fields = {
        "segments": 5,
        "kept": 5,
        "segment_ip_length": 140,
        "last_ip_length": 47,
        "interval_ns": 9,
    }
    return rows_of(packet(**given_fields | fields)).to_pydict()


def test_segments_of_a_super_packet() -> None:
    found = segments(index=3, tcp_control_bits=ACK | PSH | FIN | CWR, sequence=1)
    assert found["packetIndex"] == [3, 4, 5, 6, 7]
    assert found["ipTotalLength"] == [140, 140, 140, 140, 47]
    assert found["transportPayloadLength"] == [100, 100, 100, 100, 7]
    assert found["tcpRelativeSequenceNumber"] == [1, 101, 201, 301, 401]
    assert found["tcpControlBits"] == [ACK | CWR, ACK, ACK, ACK, ACK | PSH | FIN]
    assert found["interArrivalNanoseconds"] == [9, 0, 0, 0, 0]


def test_sequence_numbers_wrap() -> None:
    found = segments(sequence=2**32 - 150)
    assert found["tcpRelativeSequenceNumber"] == [2**32 - 150, 2**32 - 50, 50, 150, 250]


def test_what_is_beyond_the_limit_is_left_out() -> None:
    found = segments(kept=2, tcp_control_bits=ACK | PSH)
    assert found["ipTotalLength"] == [140, 140]
    assert found["tcpControlBits"] == [ACK, ACK]


def test_datagrams_of_a_super_packet_have_lengths_of_their_own() -> None:
    udp = key(protocol=UDP)
    batch = rows_of(
        packet(udp, segments=3, kept=3, segment_ip_length=128, last_ip_length=38, headers_length=28),
        packet(udp, last_ip_length=38, headers_length=28, udp_length=18),
    )
    assert batch.column("udpMessageLength").to_pylist() == [108, 108, 18, 18]


@pytest.mark.parametrize(
    ("field", "flags", "offset"),
    [(0x4000, 0x40, 0), (0x2000, 0x20, 0), (0x2001, 0x20, 1), (0x1FFF, 0, 8191), (0x8000, 0x80, 0)],
)
def test_fragment(field: int, flags: int, offset: int) -> None:
    (row,) = rows_of(packet(fragment=field)).to_pylist()
    assert (row["fragmentFlags"], row["fragmentOffset"]) == (flags, offset)


def test_header_that_was_not_read_leaves_the_lengths() -> None:
    (row,) = rows_of(
        packet(unread=1, fragment=0x2001, last_ip_length=1500, headers_length=20, tcp_control_bits=SYN)
    ).to_pylist()
    assert row["transportPayloadLength"] == 1480
    assert {value for name, value in row.items() if name.startswith("tcp")} == {None}


# --- what is declared ---


def test_names_are_those_of_records() -> None:
    """Where both have a column, they mean the same by it."""
    records = {element.name: (element.number, element.type) for element in ELEMENTS}
    shared = [feature for feature in FEATURES if feature.name in records]
    assert len(shared) == 9
    for feature in shared:
        assert (feature.number, feature.type) == records[feature.name]


def test_no_field_of_the_kernels_is_cut_short() -> None:
    """Those that are a column as they stand."""
    for field, column in (
        ("interval_ns", "interArrivalNanoseconds"),
        ("index", "packetIndex"),
        ("round", "captureRound"),
        ("acknowledgement", "tcpRelativeAcknowledgementNumber"),
        ("window", "tcpWindowSize"),
        ("udp_length", "udpMessageLength"),
    ):
        assert abi.FEATURE_PACKET[field].itemsize * 8 == FEATURES_SCHEMA.field(column).type.bit_width


def test_document_is_generated_from_the_columns() -> None:
    assert DOCUMENT.read_text() == markdown(), "run `make docs`"


def test_document_has_every_column() -> None:
    rows = [line.split("|")[1].strip(" `") for line in markdown().splitlines() if line.startswith("| `")]
    assert rows == FEATURES_SCHEMA.names


def test_texts_are_dictionaries() -> None:
    """So that a batch has each address once."""
    column = rows_of(*[packet()] * 5).column("sourceAddress")
    assert isinstance(column, pa.DictionaryArray)
    assert len(column.dictionary) == 1
