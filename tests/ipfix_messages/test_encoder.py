"""Messages against a slow reader and a slow oracle, in every mode."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmon.elements import RECORD_SCHEMA
from flowmon.errors import ConfigError
from flowmon.ipfix.encoder import ROWS, Encoder, Profile
from flowmon.records import record_batch
from ipfix_oracle import (
    CONTEXT,
    DEFAULT,
    EVERY,
    EXPORTED_NS,
    FEW,
    batches,
    expected,
    flows_of,
    least,
    messages,
    profiles,
    read_all,
    rows_of,
    some_more_flows,
)
from ipfix_reader import IANA, NTOP, PEN, REVERSE
from samples import NS, counters, ended, key, packed

DOMAIN = CONTEXT.observation_domain_id
ALL = Profile(EVERY, pen=PEN, observation_domain_id=DOMAIN)
ONE_WAY = replace(ALL, biflows=False)
NETFLOW9 = replace(ALL, version=9)


def in_order(records: list[dict[Any, Any]]) -> list[Any]:
    return sorted(sorted(record.items()) for record in records)


def one_batch(one: Any, forward: Any, reverse: Any = None) -> pa.RecordBatch:
    return record_batch(ended(one, forward, counters(0) if reverse is None else reverse), CONTEXT)


def only(batch: pa.RecordBatch, profile: Profile = ALL) -> dict[Any, Any]:
    (record,) = flows_of(batch, profile)
    return record


# --- every value ---


@settings(max_examples=200)
@given(batches, profiles)
def test_every_field_of_every_record_is_the_oracles(batch: pa.RecordBatch, profile: Profile) -> None:
    wanted = [record for row in rows_of(batch) for record in expected(row, profile)]
    assert in_order(flows_of(batch, profile)) == in_order(wanted)


@pytest.mark.parametrize("version", [10, 9])
@pytest.mark.parametrize("biflows", [True, False])
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("chosen", [DEFAULT, EVERY, FEW], ids=["default", "all", "few"])
@pytest.mark.parametrize("pen", [None, PEN])
@settings(max_examples=5)
@given(batch=batches)
def test_in_every_combination(
    batch: pa.RecordBatch, version: int, biflows: bool, unit: str, chosen: frozenset[str], pen: int | None
) -> None:
    profile = Profile(chosen, version, biflows, unit, pen, DOMAIN)
    wanted = [record for row in rows_of(batch) for record in expected(row, profile)]
    assert in_order(flows_of(batch, profile)) == in_order(wanted)


@given(batches, st.sampled_from([ONE_WAY, NETFLOW9]))
def test_one_way_records_conserve_packets_and_octets(batch: pa.RecordBatch, profile: Profile) -> None:
    records = flows_of(batch, profile)
    for name, number in (("packetDeltaCount", 2), ("octetDeltaCount", 1), ("layer2OctetDeltaCount", 352)):
        columns = (name, f"reverse{name[0].upper()}{name[1:]}")
        total = sum(sum(batch.column(column).to_pylist()) for column in columns)
        assert sum(record[IANA, number] for record in records) == total
    assert all(record[IANA, 2] for record in records)
    assert not [one for record in records for one in record if one[0] == REVERSE or one == (IANA, 239)]


@given(some_more_flows())
def test_one_way_times_are_the_directions_own(flows: Any) -> None:
    """Exactly, but for a forward direction between the first and the last packet of the reverse one."""
    profile = replace(ONE_WAY, time_unit="ns", chosen=frozenset({"flowId"}))
    batch = record_batch(flows, CONTEXT)
    found = {
        (record[IANA, 148], record.get((IANA, 8)) or record[IANA, 27], record[IANA, 2]): record
        for record in flows_of(batch, profile)
    }
    for number, row in enumerate(rows_of(batch)):
        for side, other, source in (
            (flows.forward[number], flows.reverse[number], "sourceAddress"),
            (flows.reverse[number], flows.forward[number], "destinationAddress"),
        ):
            if not side["packets"]:
                continue
            address = row[source]
            if ":" in address:
                address = bytes(packed(address)).hex()
            record = found[row["flowId"], address, int(side["packets"])]
            first, last = (int(side[name]) for name in ("first_seen_mono_ns", "last_seen_mono_ns"))
            assert record[IANA, 157] - record[IANA, 156] == last - first
            is_inside = (
                source == "sourceAddress"
                and other["packets"] > 0
                and other["first_seen_mono_ns"] <= first
                and other["last_seen_mono_ns"] >= last
            )
            if not is_inside:
                assert record[IANA, 156] == first + CONTEXT.utc_offset_ns
            assert row["flowStartNanoseconds"] <= record[IANA, 156]
            assert record[IANA, 157] <= row["flowEndNanoseconds"]


# --- examples ---


@pytest.mark.parametrize("profile", [ALL, ONE_WAY, NETFLOW9], ids=["biflow", "uniflow", "netflow9"])
def test_no_rows_are_no_block(profile: Profile) -> None:
    nothing = RECORD_SCHEMA.empty_table().to_batches() or [
        pa.RecordBatch.from_pylist([], schema=RECORD_SCHEMA)
    ]
    assert list(Encoder(profile, 1400).encode(nothing[0], EXPORTED_NS)) == []
    flows = ended(*(np.repeat(one, 0) for one in (key(), counters(), counters())))
    assert list(Encoder(profile, 1400).encode(record_batch(flows, CONTEXT), EXPORTED_NS)) == []


def test_rows_without_packets_are_no_block_where_directions_go_apart() -> None:
    assert list(Encoder(ONE_WAY, 1400).encode(one_batch(key(), counters(0)), EXPORTED_NS)) == []


def test_reverse_packets_alone_are_a_biflow() -> None:
    """After an active timeout, forward may have had none."""
    record = only(one_batch(key(), counters(0), counters(7)))
    assert (record[IANA, 2], record[REVERSE, 2], record[IANA, 239]) == (0, 7, 1)
    turned = only(one_batch(key(), counters(0), counters(7)), ONE_WAY)
    assert (turned[IANA, 8], turned[IANA, 12]) == ("198.51.100.2", "192.0.2.1")
    assert (turned[IANA, 7], turned[IANA, 11], turned[IANA, 2]) == (443, 40000, 7)
    assert (turned[IANA, 10], turned[IANA, 14], turned[IANA, 61]) == (0, 2, 1)


def test_counters_keep_64_bits() -> None:
    large = counters(2**40 + 1, octets=2**61 + 3, layer2_octets=2**63 + 5)
    record = only(one_batch(key(), large, large))
    for enterprise in (IANA, REVERSE):
        found = [record[enterprise, number] for number in (2, 1, 352)]
        assert found == [2**40 + 1, 2**61 + 3, 2**63 + 5]


def test_narrow_fields_stop_at_their_largest_value() -> None:
    large = counters(
        3,
        syn_packets=2**32,
        fin_packets=2**64 - 1,
        rst_packets=2**32 - 1,
        retransmitted_packets=2**32 + 7,
        retransmitted_octets=2**40,
        out_of_order_packets=2**33,
        size_histogram=2**32 - 1,
        ttl_histogram=2**31,
    )
    record = only(one_batch(key(), large, large))
    most = 2**32 - 1
    assert [record[IANA, number] for number in (218, 219, 220)] == [most] * 3
    assert [record[REVERSE, number] for number in (218, 219, 220)] == [most] * 3
    assert {record[NTOP, number] for number in (109, 110, 127, 128, 111, 112)} == {most}
    assert {record[NTOP, number] for number in (*range(88, 94), *range(334, 342), 346, 347)} == {most}


def test_latency_is_half_of_each_round_trip() -> None:
    forward = counters(syn_mono_ns=NS, first_ack_mono_ns=NS + 50_000_000)
    record = only(one_batch(key(), forward, counters(syn_mono_ns=NS + 30_999_999)))
    assert (record[NTOP, 124], record[NTOP, 123]) == (15, 9)
    long = counters(syn_mono_ns=NS, first_ack_mono_ns=NS * 2**25)
    record = only(one_batch(key(), long, counters(syn_mono_ns=2 * NS)))
    assert record[NTOP, 123] == 2**32 - 1


@pytest.mark.parametrize(
    ("forward", "reverse"),
    [
        (counters(), counters()),
        (counters(syn_mono_ns=NS), counters()),
        (counters(), counters(syn_mono_ns=NS)),
    ],
)
def test_latency_is_0_without_the_handshake(forward: Any, reverse: Any) -> None:
    record = only(one_batch(key(), forward, reverse))
    assert (record[NTOP, 124], record[NTOP, 123]) == (0, 0)


def test_window_scale_that_was_not_offered_is_0() -> None:
    record = only(one_batch(key(), counters(syn_mono_ns=NS, window_scale=255), counters()))
    assert (record[IANA, 238], record[REVERSE, 238]) == (0, 0)


def test_identifier_in_the_second_tag_alone() -> None:
    """Behind a priority tag, whose identifier is 0."""
    record = only(one_batch(key(customer_vlan_id=100), counters()))
    assert (record[IANA, 58], record[IANA, 245]) == (0, 100)


def test_captures_have_no_interface() -> None:
    record = only(one_batch(key(ifindex=0), counters()))
    assert not {(IANA, 10), (IANA, 14), (IANA, 61)} & set(record)


def test_one_way_record_says_nothing_of_labels_and_options_of_the_other_way() -> None:
    other = counters(mpls_top_label=0x1234AB, ipv4_options=1 << 7)
    forward, reverse = sorted(
        flows_of(one_batch(key(), counters(), other), ONE_WAY), key=lambda r: r[IANA, 11]
    )
    assert forward[IANA, 11] == 443
    assert not {(IANA, 70), (IANA, 208)} & set(forward)
    assert (reverse[IANA, 70], reverse[IANA, 208]) == (0x1234AB, 1 << 7)
    both = only(one_batch(key(), counters(), other))
    assert (both[IANA, 70], both[REVERSE, 70], both[REVERSE, 208]) == (0, 0x1234AB, 1 << 7)


def test_label_of_a_direction_without_packets_is_not_said() -> None:
    remembered = counters(0, mpls_top_label=5)
    assert (IANA, 70) not in only(one_batch(key(), counters(), remembered))


def test_mapped_address_stays_ipv6() -> None:
    one = key("2001:db8::1", "2001:db8::2")
    one["destination_address"] = [0] * 10 + [255, 255, 1, 2, 3, 4]
    batch = one_batch(one, counters())
    assert batch.column("destinationAddress").to_pylist() == ["::ffff:1.2.3.4"]
    assert only(batch)[IANA, 28] == "00000000000000000000ffff01020304"


def test_tunnel_without_known_outer_addresses() -> None:
    """record_batch makes none, but the encoder would not take another flow's."""
    flows = ended(
        np.repeat(key(in_tunnel=1), 2), np.repeat(counters(tunnel_type=1), 2), np.repeat(counters(0), 2)
    )
    flows.forward["tunnel_source"] = packed("203.0.113.9")
    batch = record_batch(flows, CONTEXT)
    known = batch.column("tunnelSourceAddress")
    unknown = pa.DictionaryArray.from_arrays(pa.array([None, 0], pa.int32()), known.dictionary)
    batch = batch.set_column(
        batch.schema.get_field_index("tunnelSourceAddress"), "tunnelSourceAddress", unknown
    )
    assert [record[PEN, 4] for record in flows_of(batch, ALL)] == ["0.0.0.0", "203.0.113.9"]


def test_netflow9_times_count_from_24_days_before() -> None:
    exported = CONTEXT.utc_offset_ns // NS * NS + 100 * NS
    batch = one_batch(key(), counters(1, 3 * NS, 5 * NS))
    (message,) = read_all(batch, NETFLOW9, exported_at_ns=exported + 999_999_999)
    (record,) = message.flows
    assert message.header["time"] == exported // NS
    assert message.header["uptime"] == 2**31
    age_ms = [message.header["uptime"] - record[IANA, number] for number in (22, 21)]
    assert age_ms == [97_000, 95_000]


def test_netflow9_times_outside_of_the_clock_stop_at_its_ends() -> None:
    days = 86400 * NS
    batch = one_batch(key(), counters(1, 0 * days + 1, 60 * days))
    exported = CONTEXT.utc_offset_ns + 30 * days
    ((record,),) = [message.flows for message in read_all(batch, NETFLOW9, exported_at_ns=exported)]
    assert (record[IANA, 22], record[IANA, 21]) == (0, 2**32 - 1)


# --- slices and blocks ---


@given(batches, st.data())
def test_slices_are_as_the_whole(batch: pa.RecordBatch, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, batch.num_rows))
    profile = data.draw(st.sampled_from([ALL, ONE_WAY, NETFLOW9]))
    parts = flows_of(batch.slice(0, cut), profile) + flows_of(batch.slice(cut), profile)
    assert in_order(parts) == in_order(flows_of(batch, profile))


@pytest.mark.parametrize("profile", [ALL, ONE_WAY, NETFLOW9], ids=["biflow", "uniflow", "netflow9"])
def test_more_rows_than_a_block_has(profile: Profile) -> None:
    profile = replace(profile, chosen=frozenset({"flowId", "packetSizeHistogram", "vlanId"}))
    rows = ROWS + 100
    keys = np.repeat(key(), rows)
    keys["source_address"][:, 12:] = np.arange(rows, dtype=">u4").view("u1").reshape(-1, 4)
    keys["vlan_id"] = np.arange(rows) % 3
    forward = np.repeat(counters(), rows)
    forward["packets"] = np.arange(rows) + 1
    forward["size_histogram"][:, 3] = np.arange(rows)
    batch = record_batch(ended(keys, forward, np.repeat(counters(0), rows)), CONTEXT)
    sizes = [len(block) for block in Encoder(profile, 9000).encode(batch, EXPORTED_NS)]
    assert len(sizes) == 2
    number = (IANA, 57472 + 91) if profile.version == 9 else (NTOP, 91)
    found = sorted(
        (
            flow[IANA, 2],
            flow.get((IANA, 148), flow[IANA, 2] - 1),
            flow[IANA, 8],
            flow[number],
            flow.get((IANA, 58), 0),
        )
        for flow in flows_of(batch, profile, 9000)
    )
    addresses = [f"0.{row >> 16}.{row >> 8 & 255}.{row & 255}" for row in range(rows)]
    assert found == [(row + 1, row, addresses[row], row, row % 3) for row in range(rows)]


@settings(max_examples=50)
@given(batches, profiles)
def test_after_any_number_of_messages(batch: pa.RecordBatch, profile: Profile) -> None:
    for block in Encoder(profile, least(profile)).encode(batch, EXPORTED_NS):
        every = messages(block.content, block.ends)
        for count in range(len(block) + 1):
            rest = block.after(count)
            assert messages(rest.content, rest.ends) == every[count:]
            for name in ("records", "packets", "octets"):
                assert getattr(rest, name).tolist() == getattr(block, name).tolist()[count:]
            assert rest.templates == block.templates


# --- limits ---


@given(batches, profiles, st.one_of(st.integers(0, 3), st.integers(0, 3000), st.just(65535)))
def test_no_message_is_longer_than_the_limit(batch: pa.RecordBatch, profile: Profile, more: int) -> None:
    """The reader refuses what is longer, and messages without a record."""
    limit = min(least(profile) + more, 65535)
    wanted = [record for row in rows_of(batch) for record in expected(row, profile)]
    assert len(flows_of(batch, profile, limit)) == len(wanted)


@pytest.mark.parametrize("version", [10, 9])
def test_limit_holds_whatever_is_left_over(version: int) -> None:
    """Full messages, and rests of several templates together, at many limits."""
    profile = Profile(frozenset({"flowEndReason", "tcpControlBits"}), version, observation_domain_id=DOMAIN)
    kinds = [key(), key(protocol=17), key("2001:db8::1", "2001:db8::2"), key("::1", "::2", protocol=17)]
    keys = np.concatenate([np.repeat(one, 7 + 3 * place) for place, one in enumerate(kinds)])
    forward, reverse = (np.repeat(counters(), len(keys)) for _ in range(2))
    reverse[::3] = counters(0)
    batch = record_batch(ended(keys, forward, reverse), CONTEXT)
    shortest = least(profile)
    unfilled = set()
    for limit in range(shortest, shortest + 40):
        read = read_all(batch, profile, limit)
        unfilled |= {limit - message.length for message in read}
    assert min(unfilled) == 0


@settings(max_examples=30)
@given(profiles, st.integers(0, 2000))
def test_shorter_limits_are_refused_in_one_line(profile: Profile, less: int) -> None:
    shortest = least(profile)
    limit = max(shortest - 1 - less, 0)
    with pytest.raises(ConfigError) as raised:
        Encoder(profile, limit)
    assert "\n" not in str(raised.value)
    assert f"--ipfix-mtu {limit}:" in str(raised.value)
    assert f"up to {shortest} octets" in str(raised.value)


@pytest.mark.parametrize("profile", [ALL, ONE_WAY, NETFLOW9], ids=["biflow", "uniflow", "netflow9"])
def test_no_message_is_longer_than_a_header_can_say(profile: Profile) -> None:
    rows = 3000
    flows = ended(*(np.repeat(one, rows) for one in (key(), counters(), counters())))
    read = read_all(record_batch(flows, CONTEXT), profile, 1 << 20)
    assert max(message.length for message in read) > 65000


@pytest.mark.parametrize("profile", [ALL, ONE_WAY, NETFLOW9], ids=["biflow", "uniflow", "netflow9"])
def test_messages_are_full(profile: Profile) -> None:
    """As few as it takes for records of one kind."""
    rows = 1000
    flows = ended(*(np.repeat(one, rows) for one in (key(), counters(), counters(0))))
    read = read_all(record_batch(flows, CONTEXT), profile, 1400)
    widest = max(len(b"".join(raw.values())) for message in read for raw in message.raw)
    assert all(message.length > 1400 - widest - 3 for message in read[:-1])


def test_records_of_several_kinds_share_messages() -> None:
    keys = np.concatenate([key(), key(protocol=17), key("2001:db8::1", "2001:db8::2"), key(vlan_id=5)])
    batch = record_batch(ended(keys, np.repeat(counters(), 4), np.repeat(counters(0), 4)), CONTEXT)
    (message,) = read_all(batch, ALL)
    assert len(set(message.flow_templates)) == 4
    (only_one,) = Encoder(ALL, 1400).encode(batch, EXPORTED_NS)
    assert math.isclose(only_one.octets[0], 400)


def test_padding_of_netflow9_is_of_zeros_up_to_4_octets() -> None:
    profile = replace(NETFLOW9, chosen=frozenset({"flowEndReason"}))
    batch = one_batch(key(protocol=17), counters())
    (block,) = Encoder(profile, 1400).encode(batch, EXPORTED_NS)
    (template,) = block.templates.values()
    width = sum(int.from_bytes(template[at + 2 : at + 4], "big") for at in range(4, len(template), 4))
    assert width % 4
    assert len(block.content) % 4 == 0
    assert len(block.content) == 24 + width + -width % 4
