"""A session as its collector sees it: numbers, templates before data, options."""

from __future__ import annotations

import struct
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmon.ipfix.block import Block
from flowmon.ipfix.encoder import Encoder, Profile
from flowmon.ipfix.options_records import Report
from flowmon.ipfix.session import Dictionary, Session
from flowmon.ipfix.templates import Register
from flowmon.records import record_batch
from ipfix_oracle import (
    CONTEXT,
    DEFAULT,
    EVERY,
    EXPORTED_NS,
    FEW,
    batches,
    least,
    messages,
    opened,
    profiles,
)
from ipfix_reader import IANA, IPFIX, NETFLOW9, PEN, SCOPE, Message, Reader
from samples import counters, ended, key

DOMAIN = CONTEXT.observation_domain_id
PROFILE = Profile(DEFAULT, pen=PEN, observation_domain_id=DOMAIN)
BOTH = pytest.mark.parametrize("version", [IPFIX, NETFLOW9])
INTERFACES = {index: (f"eth{index}", f"of rack {index}, " * (index % 40)) for index in range(1, 200)}
# What an interface may be called: a description has up to 255 octets of any kind.
reports = st.builds(
    Report,
    exported_records=st.integers(0, 2**64 - 1),
    not_sent_last_ns=st.integers(0, 2**62),
    interfaces=st.dictionaries(
        st.integers(1, 2**32 - 1),
        st.tuples(
            st.text(max_size=15), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300)
        ),
        max_size=12,
    ),
)


def batch(rows: int = 50, **fields: int) -> pa.RecordBatch:
    return record_batch(
        ended(*(np.repeat(one, rows) for one in (key(**fields), counters(), counters()))), CONTEXT
    )


def blocks(encoder: Encoder, *batches: pa.RecordBatch) -> list[Block]:
    return [block for one in batches for block in encoder.encode(one, EXPORTED_NS)]


def content(session: Session, block: Block) -> list[bytes]:
    session.stamp(block, 0, len(block))
    return messages(block.content, block.ends)


def read(reader: Reader, sent: list[bytes]) -> list[Message]:
    return [reader.read(message) for message in sent]


def options(found: list[Message]) -> list[dict[Any, Any]]:
    return [record for message in found for record in message.options]


# --- sequence numbers ---


@BOTH
def test_new_session_starts_at_0(version: int) -> None:
    profile = replace(PROFILE, version=version)
    for _ in range(2):
        session, encoder = opened(profile)
        reader = Reader(version, DOMAIN)
        read(reader, session.refresh(Report()))
        for block in blocks(encoder, batch(), batch(vlan_id=5)):
            read(reader, session.announce(block) + content(session, block))
        read(reader, session.statistics(Report()))
        assert reader.sequence


@settings(max_examples=60)
@given(
    batches,
    profiles,
    reports,
    st.lists(st.sampled_from(["refresh", "statistics", "records", "records"]), max_size=12),
)
def test_numbers_and_templates_in_any_order(
    one: pa.RecordBatch, profile: Profile, report: Report, calls: list[str]
) -> None:
    """The reader refuses a wrong number, and data before its template."""
    session, encoder = opened(profile, max(400, least(profile)))
    reader = Reader(profile.version, DOMAIN, encoder.longest)
    read(reader, session.refresh(report))
    found = expected = 0
    for call in calls:
        if call == "refresh":
            read(reader, session.refresh(report))
        elif call == "statistics":
            read(reader, session.statistics(report))
        else:
            for block in blocks(encoder, one):
                read(reader, session.announce(block))
                cut = len(block) // 2
                session.stamp(block, 0, cut)
                session.stamp(block, cut, len(block))
                expected += int(block.records.sum())
                read_now = read(reader, messages(block.content, block.ends))
                found += sum(len(message.flows) for message in read_now)
    assert found == expected


@pytest.mark.parametrize("before", [2**32 - 1, 2**32 - 20, 2**32 - 60])
@BOTH
def test_numbers_wrap(version: int, before: int) -> None:
    profile = replace(PROFILE, version=version)
    session, encoder = opened(profile, least(profile))
    reader = Reader(version, DOMAIN, encoder.longest, before)
    session._sequence = before
    read(reader, session.refresh(Report()))
    for block in blocks(encoder, batch(300)):
        read(reader, session.announce(block) + content(session, block))
    assert reader.sequence < before
    read(reader, session.statistics(Report()))


def test_templates_count_nothing_but_options_do() -> None:
    session, _ = opened(PROFILE)
    own = options(read(Reader(IPFIX, DOMAIN), session.refresh(Report())))
    assert session._sequence == len(own) == 22
    session.statistics(Report())
    assert session._sequence == len(own) + 3


def test_netflow9_counts_messages() -> None:
    profile = replace(PROFILE, version=NETFLOW9)
    session, encoder = opened(profile)
    (block,) = blocks(encoder, batch(40))
    sent = session.refresh(Report()) + session.announce(block) + content(session, block)
    numbers = [struct.unpack_from(">I", message, 12)[0] for message in sent]
    assert numbers == list(range(len(sent)))
    assert len(sent) > 4


@BOTH
def test_messages_have_the_time_they_go_out(version: int) -> None:
    session, encoder = opened(replace(PROFILE, version=version))
    now = int(time.time())
    reader = Reader(version, DOMAIN)
    found = read(reader, session.refresh(Report()) + session.statistics(Report()))
    if version == IPFIX:  # NetFlow v9's times of flows count from the header's, which is when they were taken
        (block,) = blocks(encoder, batch(1))
        found += read(reader, session.announce(block) + content(session, block))
    assert {message.header["time"] for message in found} <= set(range(now, now + 60))
    if version == NETFLOW9:
        assert {message.header["uptime"] for message in found} == {2**31}


# --- templates ---


@BOTH
def test_template_goes_out_once_before_its_first_data(version: int) -> None:
    session, encoder = opened(replace(PROFILE, version=version))
    reader = Reader(version, DOMAIN)
    read(reader, session.refresh(Report()))
    first, again, other = blocks(encoder, batch(), batch(), batch(vlan_id=7))
    (said,) = read(reader, session.announce(first))
    assert set(said.templates) == set(first.templates)
    assert session.announce(first) == session.announce(again) == []
    (said,) = read(reader, session.announce(other))
    assert set(said.templates) == set(other.templates) != set(first.templates)


@BOTH
def test_refresh_says_all_that_was_said(version: int) -> None:
    session, encoder = opened(replace(PROFILE, version=version))
    reader = Reader(version, DOMAIN)
    at_first = read(reader, session.refresh(Report()))
    every = blocks(encoder, batch(), batch(vlan_id=7), batch(protocol=17))
    said = [message for block in every for message in read(reader, session.announce(block))]
    again = read(Reader(version, DOMAIN, sequence=reader.sequence), session.refresh(Report()))
    templates = [number for message in at_first + said for number in message.templates]
    assert sorted(number for message in again for number in message.templates) == sorted(templates)
    assert len(set(templates)) == len(templates) == 3 + (6 if version == IPFIX else 4)
    assert options(again) == options(at_first) + options(said)


def test_new_session_says_all_again() -> None:
    session, encoder = opened(PROFILE)
    (block,) = blocks(encoder, batch())
    session.refresh(Report())
    assert session.announce(block)
    other, _ = opened(PROFILE)
    reader = Reader(IPFIX, DOMAIN)
    read(reader, other.refresh(Report()))
    read(reader, other.announce(block) + content(other, block))


def test_templates_of_another_run_are_announced_as_they_are() -> None:
    """A spooled block may have templates that this run's elements do not make."""
    session, _ = opened(PROFILE)
    _, earlier = opened(replace(PROFILE, chosen=FEW))
    (block,) = blocks(earlier, batch())
    reader = Reader(IPFIX, DOMAIN)
    read(reader, session.refresh(Report()))
    (said,) = read(reader, session.announce(block))
    assert set(said.templates) == set(block.templates)
    assert said.options == []
    assert sum(len(message.flows) for message in read(reader, content(session, block))) == 50


def test_flow_keys_name_the_right_fields() -> None:
    session, encoder = opened(PROFILE)
    reader = Reader(IPFIX, DOMAIN)
    read(reader, session.refresh(Report()))
    for one, numbers in (
        (batch(), {8, 12, 7, 11, 4}),
        (batch(vlan_id=7), {8, 12, 7, 11, 4, 58, 245}),
    ):
        (block,) = blocks(encoder, one)
        (row,) = options(read(reader, session.announce(block)))
        (identifier,) = block.templates
        assert row[IANA, 145] == identifier
        layout = reader.layouts[identifier].fields
        keys = {layout[place][0] for place in range(64) if row[IANA, 173] >> place & 1}
        assert keys == {(IANA, number) for number in numbers}


def test_dictionary_knows_every_template() -> None:
    register = Register()
    encoder = Encoder(PROFILE, 1400, register)
    known = Dictionary(encoder, register)
    assert {template.identifier for template in encoder.templates.values()} == set(known.by_identifier)
    assert len({kind.identifier for kind in known.options.values()}) == 6
    numbers = [(field.enterprise, field.number) for field in known.fields]
    assert len(numbers) == len(set(numbers))


# --- statistics and interfaces ---


@BOTH
def test_statistics_come_with_interfaces_that_changed(version: int) -> None:
    session, _ = opened(replace(PROFILE, version=version))
    reader = Reader(version, DOMAIN)
    scope = (IANA, 10) if version == IPFIX else (SCOPE, 2)

    def said(sent: list[bytes]) -> dict[int, tuple[str, str]]:
        found = [row for row in options(read(reader, sent)) if scope in row]
        return {row[scope]: (row[IANA, 82], row[IANA, 83]) for row in found}

    eth0, wlan0 = {2: ("eth0", "")}, {3: ("wlan0", "guests")}
    assert said(session.refresh(Report(interfaces=eth0))) == eth0
    assert said(session.statistics(Report(interfaces=eth0))) == {}
    assert said(session.statistics(Report(interfaces=eth0 | wlan0))) == eth0 | wlan0
    assert said(session.statistics(Report(interfaces=eth0 | wlan0))) == {}
    assert said(session.refresh(Report(interfaces=wlan0))) == wlan0
    assert said(session.statistics(Report(interfaces=wlan0))) == {}


def test_statistics_tell_the_values() -> None:
    session, _ = opened(PROFILE)
    reader = Reader(IPFIX, DOMAIN)
    read(reader, session.refresh(Report()))
    report = Report(observed_flows=5, ignored_packets=6, not_sent_records=2**63, exported_messages=9)
    metering, ignored, not_sent = options(read(reader, session.statistics(report)))
    assert (metering[IANA, 149], metering[IANA, 163], metering[IANA, 41]) == (DOMAIN, 5, 9)
    assert ignored[IANA, 164] == 6
    assert (not_sent[IANA, 144], not_sent[IANA, 166]) == (DOMAIN, 2**63)


@pytest.mark.parametrize("more", [0, 1, 2, 3, 25, 50, 1000])
@pytest.mark.parametrize("chosen", [frozenset(), FEW, EVERY, frozenset({"tcpFirstAckNanoseconds"})])
@pytest.mark.parametrize("pen", [None, PEN])
@BOTH
def test_many_interfaces_keep_to_the_limit(
    version: int, pen: int | None, chosen: frozenset[str], more: int
) -> None:
    """The reader refuses longer messages."""
    profile = Profile(chosen, version, pen=pen, observation_domain_id=DOMAIN)
    longest = least(profile) + more
    session, _ = opened(profile, longest)
    reader = Reader(version, DOMAIN, longest)
    rows = options(read(reader, session.refresh(Report(interfaces=INTERFACES))))
    scope = (IANA, 10) if version == IPFIX else (SCOPE, 2)
    found = {row[scope]: (row[IANA, 82], row[IANA, 83]) for row in rows if scope in row}
    assert set(found) == set(INTERFACES)
    for index, (name, description) in found.items():
        assert name == INTERFACES[index][0]
        assert INTERFACES[index][1].startswith(description)
    read(reader, session.statistics(Report()))


@settings(max_examples=50)
@given(profiles, reports, st.integers(0, 300))
def test_no_options_are_longer_than_the_limit(profile: Profile, report: Report, more: int) -> None:
    longest = least(profile) + more
    session, encoder = opened(profile, longest)
    reader = Reader(profile.version, DOMAIN, longest)
    rows = options(read(reader, session.refresh(report)))
    scope = (IANA, 10) if profile.version == IPFIX else (SCOPE, 2)
    assert [row[scope] for row in rows if scope in row] == sorted(report.interfaces)
    for block in blocks(encoder, batch(3), batch(3, protocol=17)):
        read(reader, session.announce(block))
    read(reader, session.refresh(report) + session.statistics(report))


def test_long_descriptions_are_whole_where_there_is_room() -> None:
    session, _ = opened(PROFILE)
    long = {7: ("eth7", "ü" * 127 + "."), 8: ("eth8", "x" * 254)}
    rows = options(read(Reader(IPFIX, DOMAIN), session.refresh(Report(interfaces=long))))
    assert {row[IANA, 10]: row[IANA, 83] for row in rows if (IANA, 83) in row} == {
        index: description for index, (_, description) in long.items()
    }


def test_options_go_out_in_few_messages() -> None:
    session, _ = opened(PROFILE, 65535)
    assert len(session.refresh(Report(interfaces=INTERFACES))) == 1
