"""The package `ipfix` of PyPI decodes every record that flowmon writes, to the same counts and times."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from referees import pypi_ipfix
from referees.expected import MS, assert_same

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("kernel")]

TRANSPORTS = ["udp", "tcp", "file"]
UNITS = {"us": "Microseconds", "ns": "Nanoseconds"}
TIMES = ["flowStart", "flowEnd", "reverseFlowStart", "reverseFlowEnd"]
NTOP = "_ipfix_35632_"


@dataclass(frozen=True)
class Timed:
    """The records of one run, by flowId: as it printed them, and as the package decoded what it sent."""

    unit: str
    printed: dict[int, dict[str, Any]]
    decoded: dict[int, dict[str, Any]]

    def printed_ns(self, name: str) -> dict[int, int]:
        return {
            key: int(np.datetime64(text.removesuffix("Z"), "ns").astype("i8"))
            for key, record in self.printed.items()
            if (text := record[f"{name}Nanoseconds"]) is not None
        }

    def decoded_us(self, name: str) -> dict[int, int]:
        element = name + UNITS[self.unit]
        return {
            key: pypi_ipfix.ntp_microseconds(record[element])
            for key, record in self.decoded.items()
            if element in record
        }


@pytest.fixture(scope="module", params=TRANSPORTS)
def reading(request, sent) -> pypi_ipfix.Reading:
    return pypi_ipfix.read(getattr(sent, request.param))


@pytest.fixture(scope="module", params=UNITS)
def timed(request, hosts, captured, tmp_path_factory) -> Timed:
    path = tmp_path_factory.mktemp("pypi") / "timed.ipfix"
    lines = captured.export(hosts.left, "-j", "--ipfix", f"file:{path}", "--ipfix-time", request.param)
    printed = map(json.loads, lines.splitlines())
    decoded = (record for record in pypi_ipfix.read(path).records if "flowId" in record)
    return Timed(
        request.param,
        {record["flowId"]: record for record in printed},
        {record["flowId"]: record for record in decoded},
    )


def test_every_biflow_is_decoded(reading, captured):
    found = [pypi_ipfix.flow(record) for record in reading.records if "octetDeltaCount" in record]
    assert_same(found, captured.biflows(MS))


def test_sequence_numbers_count_data_records(reading):
    assert reading.announced == reading.counted
    assert len(reading.announced) > 100


def test_every_element_but_nprobes_is_named(reading):
    unnamed = {name for record in reading.records for name in record if name.startswith(pypi_ipfix.UNNAMED)}
    assert unnamed
    assert all(name.startswith(NTOP) for name in unnamed)


def test_each_record_is_decoded_once(timed, captured):
    assert timed.printed.keys() == timed.decoded.keys()
    assert len(timed.printed) == len(captured.truth)


@pytest.mark.parametrize("name", TIMES)
def test_times_are_those_of_the_records(name, timed):
    """Microseconds are exact; nanoseconds are rounded by a package that can say no more than microseconds."""
    printed, decoded = timed.printed_ns(name), timed.decoded_us(name)
    assert printed.keys() == decoded.keys()
    if timed.unit == "us":
        assert decoded == {key: time_ns // 1000 for key, time_ns in printed.items()}
    else:
        off_by_ns = [abs(decoded[key] * 1000 - time_ns) for key, time_ns in printed.items()]
        assert max(off_by_ns) < 1000
