"""Capture files, made here octet by octet: every form of them, every place to be cut at, every complaint."""

from __future__ import annotations

import ctypes
import io
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowmon.captures import pcapng, reader
from flowmon.captures.link_types import LINK_TYPES
from flowmon.captures.reader import Capture, CaptureError

NS = 1_000_000_000
AT = 1_700_000_000  # seconds, 2023-11-14
LAST_NS = 2**62 - 1
ETHERNET, RAW, RADIOTAP, USER0 = 1, 101, 127, 147
NO_OPTIONS = b""

Read = tuple[int, bytes, int, int]
"""time_ns, octets, wire length, link type."""


def pcap(*records: bytes, order: str = "<", magic: int = 0xA1B2C3D4, link_type: int = 1, snap: int = 65535):
    return struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snap, link_type) + b"".join(records)


def record(
    data: bytes, seconds: int = AT, fraction: int = 0, order: str = "<", wire: int | None = None
) -> bytes:
    lengths = len(data), len(data) if wire is None else wire
    return struct.pack(order + "IIII", seconds, fraction, *lengths) + data


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + padded(value)


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(
    link_type: int = ETHERNET, snap: int = 65535, options: bytes = NO_OPTIONS, order: str = "<"
) -> bytes:
    return block(1, struct.pack(order + "HHI", link_type, 0, snap) + options, order)


def resolution(value: int, order: str = "<") -> bytes:
    return option(9, bytes([value]), order)


def offset(seconds: int, order: str = "<") -> bytes:
    return option(14, struct.pack(order + "q", seconds), order)


def packet(
    data: bytes, number: int = 0, units: int = AT * 1_000_000, order: str = "<", wire: int | None = None
):
    """An Enhanced Packet Block."""
    head = struct.pack(
        order + "5I", number, units >> 32, units & 0xFFFFFFFF, len(data), len(data) if wire is None else wire
    )
    return block(6, head + padded(data), order)


def simple(data: bytes, wire: int | None = None, order: str = "<") -> bytes:
    return block(3, struct.pack(order + "I", len(data) if wire is None else wire) + padded(data), order)


def obsolete(data: bytes, number: int = 0, units: int = AT * 1_000_000, order: str = "<") -> bytes:
    head = struct.pack(order + "HHIIII", number, 0, units >> 32, units & 0xFFFFFFFF, len(data), len(data))
    return block(2, head + padded(data), order)


def taken(capture: Capture) -> list[Read]:
    """All frames, each copied out while it may be."""
    return [
        (time_ns, ctypes.string_at(address, captured), wire, link_type)
        for time_ns, address, captured, wire, link_type in capture.frames()
    ]


@pytest.fixture
def made(tmp_path: Path) -> Callable[[bytes], str]:
    def make(content: bytes) -> str:
        path = tmp_path / "x.pcap"
        path.write_bytes(content)
        return str(path)

    return make


def read(path: str) -> list[Read]:
    with Capture(path) as capture:
        frames = taken(capture)
        assert not capture.cut_short
        assert not capture.skipped_packets
        return frames


# pcap


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "factor"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap_of_both_byte_orders_and_resolutions(made, order, magic, factor) -> None:
    records = [
        record(b"abcd", AT, 5, order),
        record(b"", AT, 6, order, 9),
        record(b"xyz", AT + 1, 0, order, 1500),
    ]
    expected = [
        (AT * NS + 5 * factor, b"abcd", 4, 1),
        (AT * NS + 6 * factor, b"", 9, 1),
        ((AT + 1) * NS, b"xyz", 1500, 1),
    ]
    assert expected == read(made(pcap(*records, order=order, magic=magic)))


def test_capture_without_packets_gives_none(made) -> None:
    assert read(made(pcap())) == []


def test_more_captured_than_on_the_wire_counts_as_on_the_wire(made) -> None:
    assert read(made(pcap(record(b"abcd", wire=2)))) == [(AT * NS, b"abcd", 4, 1)]


@pytest.mark.parametrize(
    ("seconds", "fraction", "expected"),
    [
        (0, 0, 0),
        (2**31, 0, 2**31 * NS),  # 2038: libpcap takes the seconds as signed
        (2**32 - 1, 999_999, (2**32 - 1) * NS + 999_999_000),
        (0, 2**32 - 1, 0),  # and the microseconds
    ],
)
def test_times_from_1970_to_2106(made, seconds, fraction, expected) -> None:
    assert [expected] == [frame[0] for frame in read(made(pcap(record(b"a", seconds, fraction))))]


def test_link_type_is_libpcaps_on_this_system(made) -> None:
    assert [read(made(pcap(record(b"E"), link_type=number)))[0][3] for number in (RAW, 276)] == [12, 276]


def test_frames_beyond_the_snapshot_length_are_cut_to_it(made) -> None:
    whole = record(bytes(70_000)), record(b"next")
    assert [len(frame[1]) for frame in read(made(pcap(*whole)))] == [65535, 4]


def test_position_and_size_are_in_octets(made) -> None:
    content = pcap(*[record(bytes(1000))] * 1000)
    with Capture(made(content)) as capture:
        assert len(content) == capture.size
        positions = [capture.position() for _ in capture.frames()]
        assert sorted(positions) == positions
        assert positions[0] < len(content) / 2
        assert positions[-1] == len(content)
    assert capture.position() == 0


def test_closing_ends_the_frames(made) -> None:
    capture = Capture(made(pcap(*[record(b"a")] * 9)))
    frames = capture.frames()
    next(frames)
    capture.close()
    capture.close()
    assert list(frames) == []
    assert list(capture.frames()) == []


def test_no_descriptor_stays_open(made) -> None:
    contents = [pcap(record(b"a")), b"not a capture", MIXED, section(), pcap(link_type=RADIOTAP)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    for content in contents:
        try:
            with Capture(made(content)) as capture:
                next(capture.frames(), None)
        except CaptureError:
            pass
    assert before == len(list(Path("/proc/self/fd").iterdir()))


# pcapng as libpcap reads it


RESOLUTIONS = [
    pytest.param(NO_OPTIONS, 1_000_000, id="default"),
    pytest.param(6, 1_000_000, id="micro"),
    pytest.param(9, NS, id="nano"),
    pytest.param(3, 1000, id="milli"),
    pytest.param(0, 1, id="seconds"),
    pytest.param(12, 10**12, id="pico"),
    pytest.param(0x80 | 10, 1 << 10, id="2^-10"),
    pytest.param(0x80 | 20, 1 << 20, id="2^-20"),
    pytest.param(0x80 | 32, 1 << 32, id="2^-32"),
]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("code", "per_second"), RESOLUTIONS)
@pytest.mark.parametrize("second_type", [ETHERNET, RAW], ids=["libpcap", "scapy"])
def test_pcapng_of_both_byte_orders_and_all_resolutions(made, order, code, per_second, second_type) -> None:
    options = resolution(code, order) if code != NO_OPTIONS else NO_OPTIONS
    units = 3600 * per_second + per_second // 3
    content = (
        section(order)
        + interface(ETHERNET, 65535, options + offset(-60, order), order)
        + interface(second_type, 65535, offset(7, order), order)
        + packet(b"abcde", 0, units, order, 1500)
        + packet(b"", 1, 1_000_001, order)
        + obsolete(b"xy", 0, units, order)
    )
    time_ns = 3540 * NS + (per_second // 3) * NS // per_second
    expected = [
        (time_ns, b"abcde", 1500, ETHERNET),
        (8 * NS + 1000, b"", 0, second_type),
        (time_ns, b"xy", 2, ETHERNET),
    ]
    assert expected == read(made(content))


@pytest.mark.parametrize("second_type", [ETHERNET, RAW], ids=["libpcap", "scapy"])
@pytest.mark.parametrize("snap", [0, 3, 65535])
def test_simple_packets_are_of_the_first_interface_and_have_no_time(made, second_type, snap) -> None:
    data = b"abcde"[: snap or None]
    content = section() + interface(ETHERNET, snap) + interface(second_type, snap) + simple(data, 5)
    assert [(0, data, 5, ETHERNET)] == read(made(content))


@pytest.mark.parametrize("second_type", [ETHERNET, RAW], ids=["libpcap", "scapy"])
def test_each_section_numbers_its_interfaces_from_0(made, second_type) -> None:
    content = (
        section()
        + interface(options=resolution(9))
        + packet(b"one", 0, 5)
        + section()
        + interface(second_type, options=resolution(6))
        + packet(b"two", 0, 5)
        + simple(b"three")
    )
    expected = [(5, b"one", 3, ETHERNET), (5000, b"two", 3, second_type), (0, b"three", 5, second_type)]
    assert expected == read(made(content))


@pytest.mark.parametrize("second_type", [ETHERNET, RAW], ids=["libpcap", "scapy"])
def test_pcapng_times_are_clamped(made, second_type) -> None:
    content = (
        section()
        + interface(options=offset(-AT))
        + interface(second_type, options=resolution(0))
        + packet(b"a", 0, (AT - 1) * 1_000_000)
        + packet(b"b", 1, 2**34)
        + packet(b"c", 1, LAST_NS // NS)
    )
    assert [frame[0] for frame in read(made(content))] == [0, LAST_NS, LAST_NS // NS * NS]


def test_other_blocks_are_passed_over(made) -> None:
    content = (
        section() + interface() + block(5, bytes(8)) + packet(b"a") + block(0x0BAD, bytes(40)) + packet(b"b")
    )
    assert [frame[1] for frame in read(made(content))] == [b"a", b"b"]


@pytest.mark.parametrize("content", [section(), section() + interface(), section() + block(5, bytes(8))])
def test_pcapng_without_packets_gives_none(made, content) -> None:
    assert read(made(content)) == []


# pcapng that libpcap refuses


MIXED = (
    section()
    + interface(ETHERNET, options=resolution(9))
    + packet(b"first", 0, 1)
    + packet(b"second", 0, 2, wire=99)
    + interface(RAW, options=resolution(9))
    + packet(b"third", 1, 3)
    + packet(b"fourth", 0, 4)
)
MIXED_FRAMES = [(1, b"first", 5, 1), (2, b"second", 99, 1), (3, b"third", 5, RAW), (4, b"fourth", 6, 1)]


def test_interface_of_another_type_in_the_middle(made) -> None:
    assert read(made(MIXED)) == MIXED_FRAMES


def test_interface_of_another_snapshot_length(made) -> None:
    content = section() + interface() + packet(b"a") + interface(snap=96) + packet(b"b", 1, wire=99)
    assert read(made(content)) == [(AT * NS, b"a", 1, 1), (AT * NS, b"b", 99, 1)]


def test_sections_of_different_byte_orders(made) -> None:
    content = (
        section() + interface() + packet(b"a") + section(">") + interface(order=">") + packet(b"b", order=">")
    )
    assert read(made(content)) == [(AT * NS, b"a", 1, 1), (AT * NS, b"b", 1, 1)]


@pytest.mark.parametrize("types", [(ETHERNET, RADIOTAP), (RADIOTAP, ETHERNET)])
def test_packets_of_unknown_link_types_are_counted(made, types) -> None:
    content = section() + interface(types[0]) + interface(types[1])
    content += b"".join(packet(bytes([65 + n]), n % 2) for n in range(5))
    known = types.index(ETHERNET)
    with Capture(made(content)) as capture:
        assert [frame[1] for frame in taken(capture)] == [bytes([65 + n]) for n in range(5) if n % 2 == known]
        assert capture.skipped_packets == (2 if known == 0 else 3)
        assert capture.cut_short == ""


def test_packets_of_no_interface_are_counted(made) -> None:
    content = section() + interface() + interface(RAW) + packet(b"a") + packet(b"b", 7) + packet(b"c", 1)
    with Capture(made(content)) as capture:
        assert [frame[1] for frame in taken(capture)] == [b"a", b"c"]
        assert capture.skipped_packets == 1


def test_without_scapy_the_error_says_so(made, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "scapy.utils", None)
    with Capture(made(MIXED)) as capture, pytest.raises(CaptureError, match="install scapy"):
        list(capture.frames())


# Cut and damaged


PLAIN = pcap(record(b"first"), record(b"second", wire=99), record(b""))
UNIFORM = section() + interface() + packet(b"first") + simple(b"second") + packet(b"")


@pytest.mark.parametrize(
    ("content", "header", "ends"),
    [
        pytest.param(PLAIN, 24, [24, 45, 67, 83], id="pcap"),
        pytest.param(UNIFORM, 28, [48, 88, 112, 144], id="pcapng"),
        pytest.param(MIXED, 28, [56, 96, 136, 204, 244], id="scapy"),
    ],
)
def test_cut_at_every_octet(made, content, header, ends) -> None:
    """What is whole is read; cut between two packets or blocks, nothing is missed."""
    whole = read(made(content))
    clean = {header, *ends}
    if content is MIXED:
        clean.add(164)  # behind the second interface
    for length in range(header, len(content) + 1):
        path = made(content[:length])
        with Capture(path) as capture:
            assert whole[: sum(end <= length for end in ends[1:])] == taken(capture)
            assert (capture.cut_short == "") == (length in clean), length
            if capture.cut_short:
                assert capture.cut_short.startswith(f"{path} ends in the middle of ")
                assert capture.cut_short.endswith(": what came before is reported")
            assert not capture.skipped_packets


@pytest.mark.parametrize("content", [PLAIN[:24], UNIFORM[:28]], ids=["pcap", "pcapng"])
def test_cut_within_the_file_header_is_no_capture(made, content) -> None:
    for length in range(1, len(content)):
        with pytest.raises(CaptureError, match="ends in the middle of its file header"):
            Capture(made(content[:length]))


def test_cut_short_names_the_packet(made) -> None:
    path = made(PLAIN[:60])
    with Capture(path) as capture:
        assert len(taken(capture)) == 1
        assert capture.cut_short == f"{path} ends in the middle of packet 2: what came before is reported"


@pytest.mark.parametrize("content", [UNIFORM, MIXED], ids=["libpcap", "scapy"])
def test_cut_short_names_the_packet_before_the_block(made, content) -> None:
    path = made(content[:-1])
    with Capture(path) as capture:
        before = len(taken(capture))
        expected = f"{path} ends in the middle of a block after packet {before}: what came before is reported"
        assert expected == capture.cut_short


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(pcap(record(b"a"), struct.pack("<IIII", 0, 0, 2**31, 9)), "capture length", id="pcap"),
        pytest.param(UNIFORM[:88] + block(6, bytes(4)), "too short", id="pcapng"),
        pytest.param(UNIFORM[:88] + packet(b"a", 5), "interface 5", id="no-interface"),
        pytest.param(UNIFORM[:88] + struct.pack("<II", 6, 1 << 30), "maximum", id="huge-block"),
        pytest.param(UNIFORM[:88] + interface(RAW) + block(6, bytes(4)), "malformed", id="scapy"),
        pytest.param(UNIFORM[:88] + interface(RAW) + block(1, bytes(4)), "malformed", id="scapy-interface"),
        pytest.param(
            UNIFORM[:88] + interface(RAW) + struct.pack("<II", 6, 8), "malformed", id="scapy-length"
        ),
        pytest.param(
            UNIFORM[:88] + interface(RAW) + struct.pack("<II", 6, 1 << 30), "block of", id="scapy-huge-block"
        ),
    ],
)
def test_damage_ends_the_frames_and_is_told(made, content, said) -> None:
    path = made(content)
    with Capture(path) as capture:
        assert len(taken(capture)) == 1
        assert capture.cut_short.startswith(f"{path} cannot be read beyond packet 1 (")
        assert said in capture.cut_short
        assert "\n" not in capture.cut_short


def test_interfaces_without_end_are_not_kept(made, monkeypatch) -> None:
    monkeypatch.setattr(pcapng, "_MOST_INTERFACES", 3)
    with Capture(made(MIXED + interface() * 9 + packet(b"a"))) as capture:
        assert taken(capture) == MIXED_FRAMES
        assert "more than 3 interfaces" in capture.cut_short


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.sampled_from([PLAIN, UNIFORM, MIXED]),
    damage=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=4),
    rest=st.binary(max_size=60),
)
def test_whatever_the_octets_there_are_frames_and_a_line_or_a_capture_error(
    made, content, damage, rest
) -> None:
    octets = bytearray(content + rest)
    for where, value in damage:
        octets[where % len(octets)] = value
    refused = ""
    try:
        with Capture(made(bytes(octets))) as capture:
            for time_ns, address, captured, wire, link_type in capture.frames():
                assert 0 <= time_ns <= LAST_NS
                assert 0 <= captured <= wire
                assert len(ctypes.string_at(address, captured)) == captured
                assert link_type in LINK_TYPES
            assert "\n" not in capture.cut_short
    except CaptureError as error:
        refused = str(error)
    assert "\n" not in refused


# What is no capture


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"", "is empty: not a capture", id="empty"),
        pytest.param(b"\x1f\x8b\x08\x00\x00\x00", "is compressed (gzip): zcat {} | flowmon -r -", id="gzip"),
        pytest.param(
            b"\x28\xb5\x2f\xfd\x00\x00", "is compressed (zstd): zstdcat {} | flowmon -r -", id="zstd"
        ),
        pytest.param(b"\xfd7zXZ\x00\x00", "is compressed (xz): xzcat {} | flowmon -r -", id="xz"),
        pytest.param(b"BZh91AY", "is compressed (bzip2): bzcat {} | flowmon -r -", id="bzip2"),
        pytest.param(b"\x04\x22\x4d\x18aa", "is compressed (lz4): lz4cat {} | flowmon -r -", id="lz4"),
        pytest.param(
            b"GET / HTTP/1.1",
            "is not a capture: expected pcap or pcapng, as tcpdump -w and Wireshark write them"
            " (editcap makes them of many other formats)",
            id="text",
        ),
        pytest.param(
            section() + packet(b"a"),
            "is not a capture that libpcap can read (the capture file has a packet block before any Interface"
            " Description Blocks): is it whole and undamaged?",
            id="packet-first",
        ),
    ],
)
def test_what_is_no_capture(made, content, expected) -> None:
    path = made(content)
    with pytest.raises(CaptureError) as error:
        Capture(path)
    assert str(error.value) == f"{path} {expected.format(path)}"
    assert error.value.exit_status == 1


def test_the_name_of_a_compressed_file_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a b.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00\x00\x00")
    with pytest.raises(CaptureError, match=r"zcat '.*a b\.gz' \| flowmon -r -"):
        Capture(str(path))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(pcap(record(b"a"), link_type=RADIOTAP), id="pcap"),
        pytest.param(section() + interface(RADIOTAP) + packet(b"a"), id="pcapng"),
        pytest.param(section() + interface(RADIOTAP), id="pcapng-without-packets"),
    ],
)
def test_unknown_link_type(made, content) -> None:
    path = made(content)
    with pytest.raises(CaptureError) as error:
        Capture(path)
    message = str(error.value)
    assert message.startswith(
        f"{path} has frames of link type IEEE802_11_RADIO (802.11 plus radiotap header, 127): expected one of "
    )
    assert all(name in message for name in LINK_TYPES.values())


def test_unknown_link_types_of_all_interfaces(made) -> None:
    content = section() + interface(RADIOTAP) + interface(4095) + packet(b"a") + packet(b"b", 1)
    with (
        Capture(made(content)) as capture,
        pytest.raises(CaptureError, match=r"link type IEEE.*127\), 4095: "),
    ):
        list(capture.frames())


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"none\.pcap does not exist: expected a capture file"):
        Capture(str(tmp_path / "none.pcap"))


def test_a_name_that_is_no_text_is_told_in_one_line() -> None:
    with pytest.raises(CaptureError) as error:
        Capture("/nowhere/a\nb\udcff")
    assert str(error.value).startswith(r"'/nowhere/a\nb\udcff' does not exist")


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="is a directory: expected a capture file"):
        Capture(str(tmp_path))


def test_file_that_may_not_be_read(made, monkeypatch) -> None:
    """Root may read everything: the refusal is open's own, but not the kernel's."""

    def refuse(*_arguments: object) -> io.FileIO:
        raise PermissionError(13, "Permission denied")

    path = made(PLAIN)
    monkeypatch.setattr(reader.io, "FileIO", refuse)
    with pytest.raises(CaptureError, match="may not be read"):
        Capture(path)


def test_other_trouble_of_opening(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(CaptureError, match="cannot be opened: Too many levels of symbolic links"):
        Capture(str(loop))


# Standard input and pipes


PRINT = """
import ctypes, sys
from flowmon.captures.reader import Capture, CaptureError
try:
    with Capture(sys.argv[1]) as capture:
        frames = [ctypes.string_at(f[1], f[2]).decode() for f in capture.frames()]
        print(*frames, capture.size, capture.position(), capture.cut_short, sep=",")
except CaptureError as error:
    print(error)
"""


def printed(stdin: bytes | io.BufferedReader) -> str:
    piped = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    done = subprocess.run([sys.executable, "-c", PRINT, "-"], stdout=subprocess.PIPE, check=True, **piped)  # type: ignore[call-overload]
    return done.stdout.decode().rstrip("\n")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(PLAIN, "first,second,,0,0,", id="pcap"),
        pytest.param(UNIFORM, "first,second,,144,144,", id="pcapng"),
        pytest.param(MIXED, "first,second,third,fourth,244,244,", id="scapy"),
        pytest.param(b"", "standard input is empty: not a capture", id="empty"),
        pytest.param(
            PLAIN[:60],
            "first,0,0,standard input ends in the middle of packet 2: what came before is reported",
            id="cut",
        ),
        pytest.param(
            b"\x1f\x8b\x08\0\0\0",
            "standard input is compressed (gzip): zcat FILE | flowmon -r -",
            id="gzip",
        ),
    ],
)
def test_pipe(content, expected) -> None:
    assert expected == printed(content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(PLAIN, "first,second,,83,83,", id="pcap"),
        pytest.param(MIXED, "first,second,third,fourth,244,244,", id="scapy"),
    ],
)
def test_standard_input_from_a_file_begins_where_the_file_is_at(tmp_path, content, expected) -> None:
    path = tmp_path / "two"
    path.write_bytes(b"before" + content)
    with path.open("rb", buffering=0) as file:
        file.seek(6)
        assert expected == printed(file)  # type: ignore[arg-type]


def test_pcap_of_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received = threading.Event()
    in_time = []

    def write() -> None:
        with fifo.open("wb", buffering=0) as stream:
            for octets in (PLAIN[:3], PLAIN[3:45]):
                stream.write(octets)
            in_time.append(received.wait(10))
            stream.write(PLAIN[45:])

    writer = threading.Thread(target=write)
    writer.start()
    with Capture(str(fifo)) as capture:
        frames = capture.frames()
        next(frames)
        received.set()
        assert len(list(frames)) == 2
    writer.join()
    assert in_time == [True]


def test_stream_that_cannot_be_copied(tmp_path: Path, monkeypatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr(reader.tempfile, "tempdir", str(tmp_path / "none"))
    writer = threading.Thread(target=fifo.write_bytes, args=(UNIFORM,))
    writer.start()
    with pytest.raises(CaptureError, match=r"cannot be copied to a temporary file \(No such file"):
        Capture(str(fifo))
    writer.join()
