"""JSON lines say what the records say, whatever the values."""

from __future__ import annotations

import io
import json
import math
import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmon.elements import RECORD_SCHEMA
from flowmon.errors import SinkError
from flowmon.sinks.json_lines import JsonLinesSink
from samples import batch


def printed(records: pa.RecordBatch) -> str:
    stream = io.BytesIO()
    JsonLinesSink(stream).write(records, 0)
    return stream.getvalue().decode()


def column_of(field: pa.Field, values: list[Any]) -> pa.Array:
    if pa.types.is_dictionary(field.type):
        return pa.array(values, pa.string()).dictionary_encode()
    return pa.array(values, field.type)


def with_column(records: pa.RecordBatch, name: str, values: list[Any]) -> pa.RecordBatch:
    position = RECORD_SCHEMA.get_field_index(name)
    return records.set_column(
        position, RECORD_SCHEMA.field(name), column_of(RECORD_SCHEMA.field(name), values)
    )


def values_of(field: pa.Field) -> st.SearchStrategy[Any]:
    """Any value of a column, now and then null."""
    if pa.types.is_dictionary(field.type):
        return st.none() | st.text(max_size=5)
    if pa.types.is_timestamp(field.type):
        return st.none() | st.integers(0, 2**62)
    if pa.types.is_fixed_size_list(field.type):
        size = field.type.list_size
        return st.lists(st.integers(0, 2**64 - 1), min_size=size, max_size=size)
    if pa.types.is_floating(field.type):
        return st.none() | st.floats(0, 1e40)
    return st.none() | st.integers(0, 2**field.type.bit_width - 1)


def plain(name: str, value: Any) -> Any:
    """A value of to_pylist() as JSON has it."""
    if value is not None and pa.types.is_timestamp(RECORD_SCHEMA.field(name).type):
        return f"{value.strftime('%Y-%m-%dT%H:%M:%S')}.{value.value % 1_000_000_000:09d}Z"
    return value


one_of_each_type = {field.type: field for field in RECORD_SCHEMA}.values()


@pytest.mark.parametrize("field", list(one_of_each_type), ids=lambda field: field.name)
@given(data=st.data())
def test_values_are_those_of_the_records(field: pa.Field, data: st.DataObject) -> None:
    values = data.draw(st.lists(values_of(field), min_size=1, max_size=4))
    records = pa.RecordBatch.from_arrays([column_of(field, values)], schema=pa.schema([field]))
    expected = [{field.name: plain(field.name, value)} for value in records.column(0).to_pylist()]
    assert [json.loads(line) for line in printed(records).splitlines()] == expected


def test_record_is_its_to_pylist() -> None:
    records = batch(3, names={2: "eth0"})
    expected = [
        {name: plain(name, value) for name, value in record.items()} for record in records.to_pylist()
    ]
    assert [json.loads(line) for line in printed(records).splitlines()] == expected


def test_every_line_is_one_object_with_the_columns_in_order() -> None:
    text = printed(batch(3))
    assert text.endswith("}\n")
    assert [list(json.loads(line)) for line in text.splitlines()] == [RECORD_SCHEMA.names] * 3


@pytest.mark.parametrize("name", ['"', "\\", "a,b", "ü", "\n", "\x01", "\u2028", "null", "{}", ""])
def test_odd_interface_names_are_quoted(name: str) -> None:
    text = printed(batch(3, names={1: name, 2: "eth0"}))
    assert text.count("\n") == 3
    assert [json.loads(line)["interfaceName"] for line in text.splitlines()] == [name, "eth0", None]


def test_times_are_iso_8601_with_nanoseconds() -> None:
    starts = [0, 1, 1_699_999_999_999_999_999]
    lines = printed(with_column(batch(3), "flowStartNanoseconds", starts)).splitlines()
    assert [json.loads(line)["flowStartNanoseconds"] for line in lines] == [
        "1970-01-01T00:00:00.000000000Z",
        "1970-01-01T00:00:00.000000001Z",
        "2023-11-14T22:13:19.999999999Z",
    ]


def test_large_numbers_are_exact() -> None:
    lines = printed(with_column(batch(1), "flowId", [2**64 - 1])).splitlines()
    assert re.search(r'"flowId":18446744073709551615[,}]', lines[0])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e22, 1.7976931348623157e308])
def test_floats_round_trip(value: float) -> None:
    (line,) = printed(with_column(batch(1), "interArrivalSquareSum", [value])).splitlines()
    assert math.isclose(json.loads(line)["interArrivalSquareSum"], value, rel_tol=0)


def test_part_of_a_batch() -> None:
    whole = with_column(batch(4), "packetSizeHistogram", [[row] * 6 for row in range(4)])
    assert printed(whole.slice(1, 2)).splitlines() == printed(whole).splitlines()[1:3]


def test_empty_batch_prints_nothing() -> None:
    assert printed(batch().slice(0, 0)) == ""


class FullOnce(io.RawIOBase):
    """A disk that is full after so many octets, until room is made."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.text = b""

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        part = bytes(data)[: self.room]
        self.text += part
        self.room -= len(part)
        return len(part)


@pytest.mark.parametrize("room", [0, 5000])
def test_records_that_could_not_be_written_come_once_when_repeated(room: int) -> None:
    disk = FullOnce(room)
    sink = JsonLinesSink(io.BufferedWriter(disk))
    with pytest.raises(SinkError, match=r"^standard output cannot be written: No space left on device$"):
        sink.write(batch(3), 0)
    disk.room = 1 << 20
    sink.write(batch(3), 0)
    assert [json.loads(line)["flowId"] for line in disk.text.splitlines()] == [0, 1, 2]
