"""Numbers, names and widths against what others know of IANA's and nProbe's elements."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from ipfix import ie
from scapy.layers import netflow

from flowmon.elements import ELEMENTS, LISTS
from flowmon.ipfix.fields import (
    ALWAYS,
    CHOICES,
    IANA_ONLY,
    KEYS,
    NOT_BY_DEFAULT,
    NOT_SENT,
    Field,
    Trait,
    fields,
)
from ipfix_reader import IANA, NTOP, PEN, REVERSE

EVERY = frozenset(CHOICES)
UNITS = ("ms", "us", "ns")
# RFC 5103 section 6.1, with RFC 5102's numbers: identifiers, configuration, statistics of processes, padding.
NOT_REVERSIBLE = {
    *(
        148,
        145,
        137,
        138,
        141,
        142,
        143,
        144,
        149,
        210,
        239,
    ),  # and flowId, templateId, ids of points and ports
    *(130, 131, 213, 214, 215, 216, 217, 173),  # of the exporter, the collector, and flowKeyIndicator
    *(40, 41, 42, 163, 164, 165, 166, 167, 168),  # totals of the processes
}
INTEGERS = {"u1": 1, "u2": 2, "u4": 4, "u8": 8}


@pytest.fixture(scope="module", autouse=True)
def information_model() -> None:
    ie.use_iana_default()
    ie.use_5103_default()


def every_field() -> dict[str, Field]:
    return {field.name: field for unit in UNITS for field in fields(EVERY, unit, PEN)}


def iana_name(field: Field) -> str:
    return field.name if field.enterprise != REVERSE else field.name[7].lower() + field.name[8:]


@pytest.mark.parametrize("unit", UNITS)
def test_iana_elements_are_named_and_numbered_as_in_the_registry(unit: str) -> None:
    found = [field for field in fields(EVERY, unit, PEN) if field.enterprise in {IANA, REVERSE}]
    assert len(found) > 50
    for field in found:
        element = ie.for_spec(iana_name(field))
        assert (element.pen, element.num) == (IANA, field.number), field.name


@pytest.mark.parametrize("unit", UNITS)
def test_iana_elements_are_as_wide_as_their_type_or_narrower_integers(unit: str) -> None:
    for field in fields(EVERY, unit, PEN):
        if field.enterprise not in {IANA, REVERSE}:
            continue
        element = ie.for_spec(iana_name(field))
        if element.name == "mplsTopLabelStackSection":
            assert (field.octets, field.dtype) == (3, "V3")
        elif element.type.name.startswith("unsigned"):
            assert np.dtype(field.dtype).kind == "u"
            assert field.octets <= element.length
        else:  # RFC 7011 section 6.2: no other type may be reduced
            assert field.octets == element.length, field.name


def test_numbers_are_in_network_order() -> None:
    for field in every_field().values():
        assert field.dtype[-2:] == "u1" or field.dtype[0] in ">V", field.name


def test_counts_of_packets_and_octets_are_not_reduced() -> None:
    for name in ("packetDeltaCount", "octetDeltaCount", "layer2OctetDeltaCount"):
        for one in (name, f"reverse{name[0].upper()}{name[1:]}"):
            assert every_field()[one].octets == 8


def test_nprobe_elements_have_scapys_numbers_and_names() -> None:
    found = {field.name: field.number for field in every_field().values() if field.enterprise == NTOP}
    assert len(found) == 30
    known = {
        name: number - netflow.NTOP_BASE for number, name in netflow.NetflowV910TemplateFieldTypes.items()
    }
    assert found == {name: known[name] for name in found}


def test_nprobe_elements_have_no_reverse() -> None:
    assert not [
        field.name
        for field in every_field().values()
        if field.enterprise == NTOP and field.name.lower().startswith("reverse")
    ]
    numbers = [field.number for field in fields(EVERY, "ms", PEN) if field.enterprise == NTOP]
    assert len(numbers) == len(set(numbers))


def test_identifiers_and_the_processes_own_are_not_reversed() -> None:
    reversed_numbers = {field.number for field in every_field().values() if field.enterprise == REVERSE}
    assert reversed_numbers
    assert not reversed_numbers & NOT_REVERSIBLE


def test_keys_that_both_directions_share_are_not_reversed() -> None:
    reverse = {field.column for field in every_field().values() if Trait.REVERSE in field.traits}
    shared = {element.name for element in ELEMENTS if not element.reversible}
    assert reverse & shared <= {"", "reverseFlowStartNanoseconds", "reverseFlowEndNanoseconds"}


def test_every_reversible_element_has_its_reverse() -> None:
    every = fields(EVERY, "ms", PEN)
    numbers = {(field.enterprise, field.number) for field in every}
    reversible = {element.name for element in ELEMENTS if element.reversible}
    for field in every:
        if field.column in reversible and field.enterprise == IANA:
            assert (REVERSE, field.number) in numbers
        if field.column in reversible and field.enterprise == PEN:
            assert (PEN, field.number | 0x4000) in numbers


@pytest.mark.parametrize("unit", UNITS)
def test_reverse_fields_stand_in_biflows_only(unit: str) -> None:
    for field in fields(EVERY, unit, PEN):
        is_reverse = (
            field.enterprise == REVERSE
            or (field.enterprise == PEN and bool(field.number & 0x4000))
            or (field.enterprise == IANA and field.number == 239)
            or (field.enterprise == NTOP and ("_OUT" in field.name or "LATENCY" in field.name))
        )
        assert (Trait.REVERSE in field.traits) == is_reverse, field.name
        assert field.name.startswith("reverse") == (field.enterprise == REVERSE or field.number >= 0x4000)


@pytest.mark.parametrize("unit", [*UNITS, "uptime"])
@pytest.mark.parametrize("pen", [None, PEN])
def test_no_element_stands_twice(unit: str, pen: int | None) -> None:
    numbers = [(field.enterprise, field.number) for field in fields(EVERY, unit, pen)]
    assert len(numbers) == len(set(numbers))


def test_own_elements_need_a_number() -> None:
    own = {field.name: field.number & 0x3FFF for field in every_field().values() if field.enterprise == PEN}
    assert sorted(set(own.values())) == list(range(1, 15))
    without = fields(EVERY, "ms", None)
    assert {field.enterprise for field in without} == {IANA, REVERSE, NTOP}
    assert [field.name for field in without] == [
        field.name for field in fields(EVERY, "ms", PEN) if field.enterprise != PEN
    ]


def test_own_numbers_are_kept() -> None:
    """A collector knows them by number: none may ever mean something else."""
    found = {field.number: field.name for field in every_field().values() if field.enterprise == PEN}
    assert {number: name for number, name in found.items() if number < 0x4000} == {
        1: "icmpIdentifier",
        2: "tunnelType",
        3: "tunnelIdentifier",
        4: "tunnelSourceIPv4Address",
        5: "tunnelDestinationIPv4Address",
        6: "tunnelSourceIPv6Address",
        7: "tunnelDestinationIPv6Address",
        8: "minimumInterArrivalNanoseconds",
        9: "maximumInterArrivalNanoseconds",
        10: "interArrivalSumNanoseconds",
        11: "interArrivalSquareSum",
        12: "tcpOutOfOrderOctetDeltaCount",
        13: "tcpSynNanoseconds",
        14: "tcpFirstAckNanoseconds",
    }
    reversed_numbers = {number - 0x4000 for number in found if number >= 0x4000}
    assert reversed_numbers == {3, 8, 9, 10, 11, 12, 13, 14}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_adds_fields(name: str) -> None:
    nothing = fields(frozenset(), "ms", PEN, lists=True)
    alone = fields(frozenset({name}), "ms", PEN, lists=True)
    added = len(alone) - len(nothing)
    assert added == 0 if name in ALWAYS else added > 0
    assert {field.column for field in alone} >= {name}
    without = fields(EVERY - {name}, "ms", PEN, lists=True)
    assert len(without) < len(fields(EVERY, "ms", PEN, lists=True)) or name in ALWAYS


def test_tables_name_columns_that_there_are() -> None:
    columns = {element.name for element in (*ELEMENTS, *LISTS)}
    for names in (KEYS, ALWAYS, NOT_BY_DEFAULT, NOT_SENT, CHOICES):
        assert columns >= set(names)
    assert set(CHOICES) >= NOT_BY_DEFAULT
    assert not set(CHOICES) & NOT_SENT


@pytest.mark.parametrize(
    ("unit", "numbers", "octets"),
    [("ms", (152, 153), 8), ("us", (154, 155), 8), ("ns", (156, 157), 8), ("uptime", (22, 21), 4)],
)
def test_times_by_unit(unit: str, numbers: tuple[int, int], octets: int) -> None:
    found = {field.number: field for field in fields(frozenset(), unit, None) if field.enterprise == IANA}
    for number, name in zip(numbers, ("Start", "End"), strict=True):
        assert found[number].name.startswith(f"flow{name}")
        assert found[number].octets == octets


def test_fields_are_as_wide_as_their_columns_or_narrower() -> None:
    types = {element.name: element.type for element in ELEMENTS}
    for field in every_field().values():
        type_ = types.get(field.column)
        if type_ is not None and pa.types.is_integer(type_):
            assert field.octets * 8 <= type_.bit_width


@pytest.mark.parametrize("unit", UNITS)
def test_of_iana_alone_there_is_no_enterprise(unit: str) -> None:
    """And everything is there that IANA has."""
    chosen = fields(IANA_ONLY, unit, PEN)
    assert {field.enterprise for field in chosen} == {IANA, REVERSE}
    every = [field.name for field in fields(EVERY, unit, PEN) if field.enterprise in {IANA, REVERSE}]
    assert [field.name for field in chosen] == every
