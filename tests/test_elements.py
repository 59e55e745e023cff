"""The information elements are IANA's where IANA has them, and all that is made from them agrees."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest

from flowmon import abi
from flowmon.elements import ELEMENTS, LISTS, RECORD_SCHEMA, SCHEMA_VERSION, Element, columns, markdown

DOCUMENT = Path(__file__).parent.parent / "docs" / "information-elements.md"

ARROW_TYPES = {
    "unsigned8": pa.uint8(),
    "unsigned16": pa.uint16(),
    "unsigned32": pa.uint32(),
    "unsigned64": pa.uint64(),
    "dateTimeNanoseconds": pa.timestamp("ns", tz="UTC"),
    "octetArray": pa.uint32(),  # of three octets: as a number, a label can be queried
    "string": pa.dictionary(pa.int32(), pa.string()),
}


@pytest.fixture(scope="module")
def iana() -> ModuleType:
    """The information model of the package ipfix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ipfix.ie
    ipfix.ie.use_iana_default()
    return ipfix.ie


def forward_name(name: str) -> str:
    """RFC 5103: a reverse element is named after its forward one."""
    stem = name.removeprefix("reverse")
    return name if stem == name else stem[0].lower() + stem[1:]


def test_columns_and_numbers_are_used_once() -> None:
    assert [name for name, times in Counter(name for name, *_ in columns()).items() if times > 1] == []
    numbers = Counter(
        element.number for element in ELEMENTS if element.number and not element.name.startswith("reverse")
    )
    assert max(numbers.values()) == 1


def test_numbers_names_and_types_are_ianas(iana: ModuleType) -> None:
    ours = [
        (element.number, forward_name(element.name), element.type) for element in ELEMENTS if element.number
    ]
    known = [iana.for_spec(f"({number})") for number, *_ in ours]
    theirs = [(element.num, element.name, ARROW_TYPES[element.type.name]) for element in known]
    assert ours == theirs
    assert len(ours) > 20


@pytest.mark.parametrize("name", [element.name for element in (*ELEMENTS, *LISTS) if element.number is None])
def test_element_of_our_own_has_no_name_of_ianas(iana: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        iana.for_spec(name)


def test_schema_is_the_columns() -> None:
    assert [(field.name, field.type) for field in RECORD_SCHEMA] == [
        (name, element.type) for name, element, _ in columns()
    ]
    assert RECORD_SCHEMA.metadata == {b"flowmon.schema_version": str(SCHEMA_VERSION).encode()}


def test_reverse_columns_follow_the_forward_ones() -> None:
    listed = list(columns())
    forward = [name for name, _, is_reverse in listed if not is_reverse]
    assert [name for name, *_ in listed][: len(forward)] == forward == [element.name for element in ELEMENTS]
    assert [forward_name(name) for name, _, is_reverse in listed if is_reverse] == [
        element.name for element in ELEMENTS if element.reversible
    ]


def test_counters_are_fields_of_the_kernels() -> None:
    used = {element.counter for element in ELEMENTS if element.counter}
    assert used <= set(abi.FLOW_COUNTERS.names or ())


def test_document_is_generated_from_the_elements() -> None:
    assert DOCUMENT.read_text() == markdown(), "run `make docs`"


def test_document_has_every_element() -> None:
    rows = [
        line.split("|")[1].strip().strip("`") for line in markdown().splitlines() if line.startswith("| `")
    ]
    assert rows == [element.name for element in (*ELEMENTS, *LISTS)]


@pytest.mark.parametrize("element", [of for of in ELEMENTS if of.counter], ids=lambda of: of.name)
def test_no_value_of_a_counter_is_cut_short(element: Element) -> None:
    field = abi.FLOW_COUNTERS[element.counter]
    if pa.types.is_fixed_size_list(element.type):
        assert field.shape == (element.type.list_size,)
        assert field.base.itemsize * 8 <= element.type.value_type.bit_width
    else:
        assert field.shape == ()
        assert field.itemsize * 8 <= element.type.bit_width
