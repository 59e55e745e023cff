"""Layouts and their identifiers."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given, settings

from flowmon.ipfix.encoder import Encoder, Profile
from flowmon.ipfix.fields import NOT_BY_DEFAULT, REVERSE_PEN, Trait, fields
from flowmon.ipfix.session import Dictionary
from flowmon.ipfix.templates import (
    FIRST_ID,
    LAST_ID,
    Register,
    Template,
    possible_traits,
)
from ipfix_oracle import DEFAULT, EVERY, profiles
from ipfix_reader import IANA, IPFIX, NETFLOW9, NTOP, PEN, Message, Reader

WIRESHARKS_MOST = 60  # fields of a template, unless it is told to take more
PROFILE = Profile(DEFAULT)


def of(profile: Profile) -> dict[Trait, Template]:
    return Encoder(profile, 65535).templates


def dictionary(profile: Profile) -> Dictionary:
    register = Register()
    return Dictionary(Encoder(profile, 65535, register), register)


# --- what is in them ---


@pytest.mark.parametrize("version", [IPFIX, NETFLOW9])
@pytest.mark.parametrize("biflows", [True, False])
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_wireshark_takes_templates_of_the_default_elements(version: int, biflows: bool, unit: str) -> None:
    """Tagged or not; in tunnels, whose elements need a --ipfix-pen; not with IP options, labels or drops."""
    profile = replace(PROFILE, version=version, biflows=biflows, time_unit=unit)
    rare = Trait.OPTIONS | Trait.LABELLED | Trait.DROPPED
    longest = max(len(template.fields) for traits, template in of(profile).items() if not traits & rare)
    assert longest <= WIRESHARKS_MOST


def test_default_leaves_out_no_more_than_it_must() -> None:
    for name in NOT_BY_DEFAULT:
        more = of(replace(PROFILE, chosen=DEFAULT | NOT_BY_DEFAULT - {name}))
        assert max(len(template.fields) for template in more.values()) > WIRESHARKS_MOST


def test_each_field_stands_where_the_record_has_its_traits() -> None:
    every = fields(EVERY, "ms", PEN)
    for traits, template in of(Profile(EVERY, pen=PEN)).items():
        wanted = [field.name for field in every if field.traits & traits == field.traits]
        assert [field.name for field in template.fields] == wanted


def test_biflow_direction_stands_in_biflows_only() -> None:
    for traits, template in of(PROFILE).items():
        numbers = {(field.enterprise, field.number) for field in template.fields}
        assert ((IANA, 239) in numbers) == (Trait.REVERSE in traits)
    for template in of(replace(PROFILE, biflows=False)).values():
        assert (IANA, 239) not in {(field.enterprise, field.number) for field in template.fields}


def test_every_combination_of_traits_has_a_template() -> None:
    both = set(possible_traits(biflows=True))
    assert len(both) == len(list(possible_traits(biflows=True))) == 2 * 4 * 2 * 2 * 2 * 2 * 3 * 3
    assert {traits for traits in both if Trait.REVERSE not in traits} == set(possible_traits(biflows=False))
    assert set(of(PROFILE)) == both


@pytest.mark.parametrize("version", [IPFIX, NETFLOW9])
@pytest.mark.parametrize("pen", [None, PEN])
def test_template_record_says_what_a_record_is(version: int, pen: int | None) -> None:
    for template in of(Profile(EVERY, version, pen=pen)).values():
        reader, found = Reader(version, 0), Message(0, {})
        assert reader._templates(template.record, found) == 1
        assert found.templates == [template.identifier]
        layout = reader.layouts[template.identifier]
        assert layout.shortest == template.dtype.itemsize
        assert [octets for _, octets in layout.fields] == [field.octets for field in template.fields]
        if version == IPFIX:
            wanted = [(field.enterprise, field.number) for field in template.fields]
        else:
            base = {IANA: 0, NTOP: 57472}
            wanted = [(IANA, field.number + base[field.enterprise]) for field in template.fields]
        assert [one for one, _ in layout.fields] == wanted


def test_netflow9_has_neither_own_elements_nor_reverse_ones() -> None:
    for template in of(Profile(EVERY, NETFLOW9, pen=PEN)).values():
        assert {field.enterprise for field in template.fields} <= {IANA, NTOP}
        assert not [field.name for field in template.fields if Trait.REVERSE in field.traits]


# --- flow keys ---


def named_keys(template: Template) -> set[str]:
    return {field.name for place, field in enumerate(template.fields) if template.key_bits >> place & 1}


def test_flow_keys_are_named() -> None:
    of_traits = of(Profile(EVERY, pen=PEN))
    plain = {"sourceIPv4Address", "destinationIPv4Address"} | {
        "sourceTransportPort",
        "destinationTransportPort",
        "protocolIdentifier",
    }
    assert named_keys(of_traits[Trait.IPV4 | Trait.TCP | Trait.REVERSE]) == plain
    in_tunnel = Trait.IPV6 | Trait.ICMP | Trait.REVERSE | Trait.TAGGED | Trait.TUNNEL | Trait.TUNNEL_IPV4
    assert named_keys(of_traits[in_tunnel]) == {name.replace("IPv4", "IPv6") for name in plain} | {
        "icmpIdentifier",
        "vlanId",
        "dot1qCustomerVlanId",
        "tunnelType",
        "tunnelIdentifier",
        "tunnelSourceIPv4Address",
        "tunnelDestinationIPv4Address",
    }
    assert named_keys(of_traits[Trait.IPV4 | Trait.IPSEC]) == plain | {"IPSecSPI"}


def test_flow_keys_are_among_the_first_64_fields() -> None:
    """RFC 7011 section 4.4: there are no more bits."""
    for template in of(Profile(EVERY, pen=PEN)).values():
        assert not [field.name for field in template.fields[64:] if field.is_key]
        assert template.key_bits < 1 << 64


# --- identifiers ---


def test_identifiers_are_kept() -> None:
    """Who changes a layout changes these with open eyes: collectors may have stored them."""
    some = of(Profile(frozenset({"flowEndReason", "tcpControlBits", "vlanId"})))
    known = {
        Trait.IPV4: 9765,
        Trait.IPV4 | Trait.REVERSE: 4556,
        Trait.IPV4 | Trait.TCP: 45597,
        Trait.IPV4 | Trait.TCP | Trait.REVERSE: 7986,
        Trait.IPV4 | Trait.TCP | Trait.REVERSE | Trait.TAGGED: 13743,
        Trait.IPV6: 33341,
        Trait.IPV6 | Trait.TCP | Trait.REVERSE: 20186,
    }
    assert {traits: some[traits].identifier for traits in known} == known


def test_same_profile_same_identifiers() -> None:
    for profile in (PROFILE, Profile(EVERY, pen=PEN), Profile(DEFAULT, NETFLOW9)):
        one, other = dictionary(profile), dictionary(profile)
        assert {n: of_it.record for n, of_it in one.by_identifier.items()} == {
            n: of_it.record for n, of_it in other.by_identifier.items()
        }
        assert [kind.record for kind in one.options.values()] == [
            kind.record for kind in other.options.values()
        ]


@pytest.mark.parametrize(
    "other",
    [
        replace(PROFILE, chosen=DEFAULT - {"flowEndReason"}),
        replace(PROFILE, time_unit="us"),
        replace(PROFILE, version=NETFLOW9),
    ],
)
def test_another_layout_another_identifier(other: Profile) -> None:
    ours = of(PROFILE)
    for traits, template in of(other).items():
        assert template.identifier != ours[traits].identifier


@settings(max_examples=40)
@given(profiles)
def test_identifiers_do_not_meet(profile: Profile) -> None:
    known = dictionary(profile)
    layouts = {template.specifiers for template in known.by_identifier.values()}
    assert len(layouts) == len(known.by_identifier)
    options = [kind.identifier for kind in known.options.values()]
    assert len(set(options)) == len(options)
    assert not set(options) & set(known.by_identifier)
    assert all(FIRST_ID <= number <= LAST_ID for number in [*options, *known.by_identifier])


@pytest.mark.parametrize("checksum", [0, LAST_ID - FIRST_ID, LAST_ID - FIRST_ID - 2])
@pytest.mark.parametrize("version", [IPFIX, NETFLOW9])
def test_same_checksum_next_identifier(monkeypatch: pytest.MonkeyPatch, checksum: int, version: int) -> None:
    monkeypatch.setattr(zlib, "crc32", lambda content: checksum)
    known = dictionary(Profile(frozenset(), version))
    numbers = [*known.by_identifier, *(kind.identifier for kind in known.options.values())]
    span = LAST_ID - FIRST_ID + 1
    assert numbers == [FIRST_ID + (checksum + place) % span for place in range(len(numbers))]
    assert len({kind.record[2:] for kind in known.options.values()}) == len(known.options)
    for number, template in known.by_identifier.items():
        assert struct.unpack_from(">H", template.record) == (number,)


def test_checksum_decides() -> None:
    register = Register()
    for content in (b"one", b"two", b"one"):
        assert register.identifier(content) == 256 + zlib.crc32(content) % 65280


def test_reverse_elements_come_first() -> None:
    """To a collector that takes them for the forward ones, the last one of a record counts."""
    for template in of(Profile(EVERY, pen=PEN)).values():
        are_reverse = [field.enterprise == REVERSE_PEN for field in template.fields]
        assert are_reverse == sorted(are_reverse, reverse=True)


def test_netflow9_has_no_flow_id() -> None:
    """Element 148 makes an event of a firewall of a record."""
    assert 148 in {field.number for template in of(Profile(EVERY)).values() for field in template.fields}
    netflow9 = of(Profile(EVERY, version=9))
    assert 148 not in {field.number for template in netflow9.values() for field in template.fields}
