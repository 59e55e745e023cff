"""Which files are for the kernel to walk, and how libpcap goes on from them."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from flowmon.captures.reader import Capture
from flowmon.captures.records import pcap_records

FIELDS = {
    "magic": 0xA1B2C3D4,
    "major": 2,
    "minor": 4,
    "zone": 0,
    "accuracy": 0,
    "snap": 65535,
    "link_type": 1,
}


def header(order: str = "=", **fields: int) -> bytes:
    return struct.pack(order + "IHHiIII", *(FIELDS | fields).values())


def record(octets: bytes, time: int) -> bytes:
    return struct.pack("=IIII", time, 0, len(octets), len(octets)) + octets


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (1000, 65535)),
        ({"magic": 0xA1B23C4D}, (1, 65535)),
        ({"snap": 1 << 30}, (1000, 262_144)),
        ({"zone": -3600, "accuracy": 6}, (1000, 65535)),
    ],
)
def test_the_usual_file_is_for_the_kernel(fields, expected) -> None:
    found = pcap_records(-1, header(**fields))
    assert found is not None
    assert (found.fraction_ns, found.longest) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"magic": 0xA1B2CD34},
        {"minor": 3},
        {"major": 1},
        {"snap": 0},
        {"snap": 1 << 31},
        {"link_type": 101},
        {"link_type": 1 | 1 << 26 | 4 << 28},
    ],
    ids="-".join,
)
def test_every_other_is_for_libpcap(fields) -> None:
    assert pcap_records(-1, header(**fields)) is None


@pytest.mark.parametrize("octets", [header(">"), header()[:-1], b""], ids=["big-endian", "cut", "empty"])
def test_a_header_that_is_swapped_or_not_whole_is_for_libpcap(octets) -> None:
    assert pcap_records(-1, octets) is None


def test_libpcap_goes_on_from_what_is_given_back(tmp_path: Path) -> None:
    records = [record(bytes(length), time=length) for length in range(1, 6)]
    path = tmp_path / "capture"
    path.write_bytes(header() + b"".join(records))
    memory = np.zeros(60, "u1")  # the first two, and a bit of the third
    with Capture(str(path)) as capture:
        assert capture.records is not None
        assert capture.records.read_into(memory.ctypes.data, 60) == 60
        assert capture.position() == 84
        taken = len(records[0]) + len(records[1])
        assert memory[:taken].tobytes() == records[0] + records[1]
        capture.records.count = 2
        capture.records.give_back(memory[taken:].tobytes())
        assert [frame[2] for frame in capture.frames()] == [3, 4, 5]


def test_what_cannot_be_read_is_told_in_the_words_of_libpcap(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(header() + record(b"a", 1))
    memory = np.zeros(60, "u1")
    with Capture(str(path)) as capture, path.open("wb") as only_written:
        assert capture.records is not None
        os.dup2(only_written.fileno(), capture.records._fd)
        assert capture.records.read_into(memory.ctypes.data, 60) == 0
        assert list(capture.frames()) == []
        assert capture.cut_short == (
            f"{path} cannot be read beyond packet 0 (error reading dump file: Bad file descriptor):"
            " what came before is reported"
        )
