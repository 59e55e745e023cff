"""`flowmon -r`, as a user runs it: what is refused, whose clock counts, where every packet went."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pty
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from craft import (
    CLIENT,
    SERVER,
    START_NS,
    Frame,
    pcap,
    pcapng,
    write_pcap,
)
from flowmon.elements import RECORD_SCHEMA
from flowmon.sinks.json_lines import json_lines
from kernel.offline import (
    ACTIVE,
    CONNECTION,
    ENDED,
    EPOCH,
    FORCED,
    FORMS,
    IDLE,
    LACK,
    MIXED,
    MIXED_PACKETS,
    MIXED_RECORDS,
    NS,
    PACKETS,
    REPLY,
    REQUEST,
    REQUEST6,
    Summary,
    by_start,
    command,
    flowmon,
    in_order,
    in_parquet,
    in_shell,
    later,
    packets_in,
    packets_of,
    read,
    reasons_and_packets,
    summary_of,
    text_of,
)
from oracle import ignored_of
from refusal import assert_refused

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("kernel")]

CASES = Path(__file__).parent.parent / "pcaps"

# --- what cannot be read ---


NO_CAPTURES = {
    "text": (b"GET / HTTP/1.1\r\n\r\n", "not a capture", "pcap"),
    "random": (np.random.default_rng(7).bytes(5000), "not a capture", "pcap"),
    "gzip": (gzip.compress(FORMS["pcapng"]), "gzip", "zcat"),
    "802.11": (pcap(MIXED, link_type=105), "105", "IEEE802_11", "Ethernet"),
    "cut-pcap-header": (FORMS["little-endian-ns"][:20], "file header"),
    "nothing": (b"", "empty"),
}


@pytest.mark.parametrize("kind", NO_CAPTURES)
def test_file_that_is_no_capture_is_refused_and_nothing_made(kind, tmp_path):
    content, *words = NO_CAPTURES[kind]
    path = tmp_path / "some file.pcap"
    path.write_bytes(content)
    assert_refused(flowmon(path, "-d", tmp_path / "records"), 1, str(path), *words)
    assert list(tmp_path.iterdir()) == [path]


def test_standard_input_that_is_no_capture_is_refused():
    assert_refused(flowmon("-", input="no capture"), 1, "standard input is not a capture")
    assert_refused(flowmon("-", stdin=subprocess.DEVNULL), 1, "standard input is empty")
    assert_refused(in_shell('"$@" <&-', "-"), 1, "standard input", "Bad file descriptor")


def test_directory_and_missing_file_are_refused(tmp_path):
    assert_refused(flowmon(tmp_path), 1, str(tmp_path), "is a directory", "expected a capture file")
    missing = tmp_path / "missing"
    assert_refused(flowmon(missing), 1, str(missing), "does not exist", "expected a capture file")


@pytest.mark.parametrize("name", ["line\nfeed", "\udcff\udcfe", "escape\x1b[31m"])
def test_hostile_names(name, tmp_path, mixed, mixed_lines):
    path = tmp_path / name
    done = flowmon(path)
    assert_refused(done, 1, "does not exist")
    assert done.stderr[:-1].isprintable()
    shutil.copy(mixed, path)
    done = flowmon(path, "-j")
    assert (done.returncode, done.stdout) == (0, mixed_lines)
    (line,) = done.stderr.splitlines()
    assert line.isprintable()


def test_empty_name_is_wrong_usage():
    assert_refused(flowmon(""), 2, "-r", "standard input")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--iface", "lo"),
        ("--all",),
        ("-p", "table"),
        ("--direction", "both"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_options_of_interfaces_are_wrong_usage(arguments, mixed):
    assert_refused(flowmon(mixed, *arguments), 2, "-r", arguments[0] if arguments[0] != "--all" else "-a")


@pytest.mark.parametrize("name", ["load", "status"])
def test_capture_with_a_command_is_wrong_usage(name, mixed):
    """Rather than a command that forgets the capture: `flowmon -r x purge` would purge."""
    assert_refused(flowmon(mixed, name), 2, "-r", name)


def test_directory_that_cannot_be_written(mixed):
    for directory in (mixed, Path("/proc/self/fd")):
        assert_refused(flowmon(mixed, "-d", directory), 1, f"{directory} cannot be written", "-d")


# --- what can be read in part ---


@pytest.mark.parametrize("content", [pcap([]), pcapng([1], [])], ids=["pcap", "pcapng"])
def test_capture_without_packets_has_no_records(content, tmp_path):
    path = tmp_path / "empty.pcap"
    path.write_bytes(content)
    done = flowmon(path, "-d", tmp_path / "records")
    assert (done.returncode, done.stdout) == (0, "")
    assert summary_of(done) == Summary(0, 0, 0, {}, 0)
    assert list((tmp_path / "records").iterdir()) == []


def test_capture_that_ends_in_mid_packet_is_told_and_what_came_before_is_reported(tmp_path):
    path, directory = tmp_path / "cut.pcap", tmp_path / "records"
    path.write_bytes(pcap(MIXED)[:-5])
    done = flowmon(path, "-q", "-j", "-d", directory)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"flowmon: {path} ends in the middle of packet {len(MIXED)}: ")
    assert packets_in(by_start(done.stdout)) == MIXED_PACKETS - 1
    assert in_parquet(directory, PACKETS) == MIXED_PACKETS - 1


# --- one capture, whatever its form and where it comes from ---


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_a_capture_makes_no_difference(form, tmp_path, mixed_lines):
    path = tmp_path / "capture"
    path.write_bytes(FORMS[form])
    done = flowmon(path, "-j")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == mixed_lines.splitlines()


@pytest.mark.parametrize("form", ["big-endian-us", "pcapng-two-interfaces"])
def test_standard_input_makes_no_difference(form, tmp_path, mixed_lines):
    path = tmp_path / "capture"
    path.write_bytes(FORMS[form])
    done = in_shell(f'cat {path} | "$@"', "-", "-j")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == mixed_lines.splitlines()
    assert "standard input: " in done.stderr


def test_standard_input_from_a_file_and_a_named_pipe(tmp_path, mixed, mixed_lines):
    with mixed.open("rb") as file:
        assert flowmon("-", "-j", stdin=file).stdout == mixed_lines
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", 'exec cat "$1" >"$2"', "sh", str(mixed), str(pipe)]):
        assert flowmon(pipe, "-j").stdout == mixed_lines


def test_columns_of_interfaces_are_null(mixed_lines):
    for record in by_start(mixed_lines):
        assert list(record) == RECORD_SCHEMA.names
        for name in ("flowDirection", "ingressInterface", "egressInterface", "interfaceName", "tunnelType"):
            assert record[name] is None


@pytest.mark.parametrize("loader", ["libbpf", "bcc"])
def test_both_loaders_without_a_network_and_with_nothing_left_in_bpffs(loader, tmp_path, mixed, mixed_lines):
    """In a network namespace whose only interface is down, with a bpffs of its own."""
    script = 'mount -t bpf bpf /sys/fs/bpf; ls -A /sys/fs/bpf >"$0"; "$@"; s=$?; ls -A /sys/fs/bpf >"$0.after"; exit $s'
    isolated = ["unshare", "--net", "--mount", "sh", "-c", script, tmp_path / "pins"]
    done = subprocess.run(
        [*isolated, *command("-q", "-j", "--loader", loader, "-r", mixed)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    assert done.stdout.splitlines() == mixed_lines.splitlines()
    assert (tmp_path / "pins").read_text() == (tmp_path / "pins.after").read_text()


def test_decapsulated_flows_are_those_inside_the_tunnel():
    case = CASES / "tunnel_vxlan"
    records = read(case / "tunnel_vxlan.pcap", "--decap")
    expected = json.loads((case / "expected_decap.json").read_text())
    assert [
        {name: record[name] for name in flow} for record, flow in zip(records, expected, strict=True)
    ] == (expected)
    outer = read(case / "tunnel_vxlan.pcap")
    assert packets_in(outer) == 6
    assert {record["tunnelType"] for record in outer} == {None}
    assert {record["destinationTransportPort"] for record in outer} == {4789, 8472}


# --- standard streams that are not as usual ---


def test_without_standard_output_there_must_be_a_directory(tmp_path, mixed):
    assert_refused(in_shell('"$@" >&-', mixed), 2, "standard output is closed", "-d")
    done = in_shell('"$@" <&- >&-', mixed, "-d", tmp_path)
    assert done.returncode == 0, done.stderr
    assert in_parquet(tmp_path, "count(*)") == MIXED_RECORDS


def test_without_standard_error_records_are_printed(mixed, mixed_lines):
    done = in_shell('"$@" 2>&-', mixed, "-j")
    assert (done.returncode, done.stdout) == (0, mixed_lines)


def test_without_standard_error_a_complaint_is_not_printed_among_the_records(tmp_path):
    done = in_shell('"$@" 2>&-', tmp_path / "missing", "-j")
    assert (done.returncode, done.stdout) == (1, "")


def test_full_disk_behind_standard_output(mixed):
    with Path("/dev/full").open("w") as full:
        done = flowmon(mixed, "-q", stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["flowmon: standard output cannot be written: No space left on device"]


def test_reader_that_goes_away_is_nothing_to_complain_of(many):
    with subprocess.Popen(
        command("-r", many.path, "-q"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert json.loads(process.stdout.readline())["flowEndReason"] == ENDED
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0


# --- the capture's clock ---


def test_flow_that_falls_silent_is_two_records_to_the_nanosecond(tmp_path):
    path = tmp_path / "x.pcap"
    at = [START_NS + add for add in (123_456_789, 900_000_001, 40 * NS + 1)]
    write_pcap(path, [Frame(time_ns, REQUEST.octets) for time_ns in at])
    first, second = read(path)
    assert reasons_and_packets([first, second]) == [(IDLE, 2), (FORCED, 1)]
    assert [first["flowStartNanoseconds"], first["flowEndNanoseconds"]] == [text_of(at[0]), text_of(at[1])]
    assert [second["flowStartNanoseconds"], second["flowEndNanoseconds"]] == [text_of(at[2])] * 2
    assert first["flowId"] == second["flowId"]
    assert reasons_and_packets(read(path, "--idle-timeout", "50")) == [(FORCED, 3)]
    assert reasons_and_packets(read(path, "-i", "0")) == [(FORCED, 3)]


def test_long_flow_is_cut_by_the_active_timeout(tmp_path):
    """A packet a second, from 0 to 150 s: the pass at the minute comes before its packet."""
    path = tmp_path / "x.pcap"
    write_pcap(path, [later(at, REQUEST if at % 3 else REPLY)[0] for at in range(151)])
    records = read(path)
    assert reasons_and_packets(records) == [(ACTIVE, 60), (ACTIVE, 60), (FORCED, 31)]
    assert [record["flowStartNanoseconds"] for record in records] == [
        text_of(START_NS + at * NS) for at in (0, 60, 120)
    ]
    assert [record["flowEndNanoseconds"] for record in records] == [
        text_of(START_NS + at * NS) for at in (59, 119, 150)
    ]
    assert {record["sourceAddress"] for record in records} == {SERVER}  # who sent the first packet of all
    assert reasons_and_packets(read(path, "--active-timeout", "200")) == [(FORCED, 151)]


@pytest.mark.parametrize(("linger", "expected"), [("1", [8, 1]), ("3", [9])])
def test_connection_ends_with_its_fins_and_lingers(linger, expected, tmp_path):
    """Another flow's packets make the clock go on; the last ACK comes again after two seconds."""
    path = tmp_path / "x.pcap"
    others = [frame for at in range(1, 80) for frame in later(at / 10, REQUEST)]
    write_pcap(path, in_order([*CONNECTION, *later(2, CONNECTION[-1]), *others]))
    records = [record for record in read(path, "--linger", linger) if record["protocolIdentifier"] == 6]
    assert [packets_of(record) for record in records] == expected
    assert records[0]["flowEndReason"] == ENDED


def test_capture_without_times(tmp_path):
    path = tmp_path / "x.pcap"
    write_pcap(path, [Frame(0, each.octets) for each in MIXED[:-1]])
    records = read(path)
    assert packets_in(records) == MIXED_PACKETS - 1
    assert len(records) == 3
    for record in records:
        assert (record["flowStartNanoseconds"], record["flowEndNanoseconds"]) == (EPOCH, EPOCH)


@pytest.mark.parametrize("packets", [(REQUEST, REPLY), (REPLY, REQUEST)], ids=["low-first", "high-first"])
def test_of_two_packets_at_one_time_the_first_in_the_file_is_forward(packets, tmp_path):
    """As the clocks of some capturing hosts tick in milliseconds."""
    path = tmp_path / "x.pcap"
    write_pcap(path, packets)
    (record,) = read(path)
    assert record["sourceAddress"] == (CLIENT if packets[0] is REQUEST else SERVER)


def test_times_that_go_backwards(tmp_path):
    """Whatever the order of the packets, none is lost, and no flow ends before it began."""
    path = tmp_path / "x.pcap"
    times = np.random.default_rng(3).permutation(600) / 5
    made = [later(at, (REQUEST, REPLY, REQUEST6)[int(at * 5) % 3])[0] for at in times]
    write_pcap(path, made)
    records = read(path)
    assert packets_in(records) == 600
    for record in records:
        assert record["flowStartNanoseconds"] <= record["flowEndNanoseconds"]


def test_times_as_far_as_a_capture_can_tell(tmp_path):
    path = tmp_path / "x.pcap"
    last = (2**32 - 1) * NS + 999_999_999
    write_pcap(path, [Frame(0, MIXED[0].octets), Frame(last, MIXED[0].octets)])
    records = read(path, "-d", tmp_path / "records", "-j")
    assert [record["flowEndNanoseconds"] for record in records] == [EPOCH, text_of(last)]
    assert sorted(part.name for part in (tmp_path / "records").iterdir()) == ["date=2106-02-07"]


def test_reading_twice_gives_the_same_lines(many):
    first, second = (flowmon(many.path, "-q").stdout.splitlines() for _ in range(2))
    assert len(first) == many.biflows
    assert first == second


def test_three_at_once_do_not_disturb_each_other(tmp_path, mixed, mixed_lines):
    runs = [
        subprocess.Popen(
            command("-r", mixed, "-q"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(3)
    ]
    assert [run.communicate(timeout=60)[0] for run in runs] == [mixed_lines] * 3
    assert [run.returncode for run in runs] == [0] * 3


# --- the books ---


@pytest.mark.parametrize("name", ["malformed_frames", "arp_only"])
def test_every_packet_is_in_a_record_or_ignored_for_its_reason(name):
    path = CASES / name / f"{name}.pcap"
    done = flowmon(path)
    books = summary_of(done)
    records = by_start(done.stdout)
    expected = {reason: count for reason, count in ignored_of(path).items() if count}
    assert books.ignored == expected
    assert (books.records, books.in_records) == (len(records), packets_in(records))
    assert books.packets == packets_in(records) + sum(expected.values())


def test_fragments_without_their_first_are_told():
    path = CASES / "ipv4_fragments_first_missing" / "ipv4_fragments_first_missing.pcap"
    done = flowmon(path)
    assert packets_in(by_start(done.stdout)) == summary_of(done).packets
    assert "fragments without their first" in done.stderr


def test_packets_that_cannot_be_read_are_told(tmp_path):
    """Every other one of a link type that nobody reads."""
    path = tmp_path / "x.pcapng"
    path.write_bytes(pcapng([1, 105], [(at % 2, REQUEST) for at in range(10)]))
    done = flowmon(path)
    assert done.returncode == 0
    assert packets_in(by_start(done.stdout)) == 5
    assert summary_of(done).packets == 10
    assert "5 skipped" in done.stderr


@pytest.fixture(scope="module")
def crowded(tmp_path_factory) -> Path:
    """1000 flows of three packets each, round and round within a second."""
    path = tmp_path_factory.mktemp("crowded") / "crowded.pcap"
    octets = [REQUEST.octets[:26] + client.to_bytes(4) + REQUEST.octets[30:] for client in range(1000)]
    write_pcap(path, [Frame(START_NS + at * 300_000, octets[at % 1000]) for at in range(3000)])
    return path


@pytest.mark.parametrize("size", ["1", "64", "1024"])
def test_of_a_table_that_is_too_small_no_packet_is_lost_silently(size, crowded):
    done = flowmon(crowded, "--max-flows", size)
    assert done.returncode == 0
    records = by_start(done.stdout)
    books = summary_of(done)
    assert books.packets == 3000
    assert packets_in(records) + books.evicted == 3000
    assert books.records == len(records)
    assert {record["flowEndReason"] for record in records} <= {FORCED, LACK}
    if books.evicted:
        assert "--max-flows" in done.stderr
    else:
        assert LACK in {record["flowEndReason"] for record in records}


def test_packets_of_evicted_flows_are_not_said_to_be_in_records(crowded):
    done = flowmon(crowded, "--max-flows", "64")
    assert summary_of(done).in_records == packets_in(by_start(done.stdout))


def test_warnings_of_evictions_are_few(crowded):
    assert len(flowmon(crowded, "--max-flows", "64").stderr.splitlines()) < 10


def test_with_the_default_table_nothing_of_100000_flows_is_evicted(tmp_path):
    """All of one packet, within a second: as a scan."""
    one = pcap([REQUEST])[24:]
    flows = np.tile(np.frombuffer(one, "u1"), (100_000, 1))
    at = np.arange(100_000)
    flows[:, 4:8] = (at * 10_000).astype("<u4").view("u1").reshape(-1, 4)  # nanoseconds
    flows[:, 16 + 14 + 12 : 16 + 14 + 16] = (at + 0x0A000000).astype(">u4").view("u1").reshape(-1, 4)
    path = tmp_path / "scan.pcap"
    path.write_bytes(pcap([]) + flows.tobytes())
    done = flowmon(path, "-d", tmp_path / "records")
    assert summary_of(done) == Summary(100_000, 100_000, 100_000, {}, 0)
    assert in_parquet(tmp_path / "records", "count(DISTINCT sourceAddress)") == 100_000


# --- Parquet ---


def test_each_hour_of_a_capture_is_a_partition_of_one_file_and_no_record_is_missing(tmp_path):
    """From 22:30 to 01:30: each minute a connection, and one that goes on all the time."""
    path, records = tmp_path / "x.pcap", tmp_path / "records"
    begin = 22.5 * 3600
    made = [frame for at in range(180) for frame in later(begin + 60 * at, *CONNECTION)]
    made += [frame for at in range(0, 3 * 3600, 5) for frame in later(begin + at, REQUEST)]
    write_pcap(path, in_order(made))
    done = flowmon(path, "-d", records, "-j")
    assert done.returncode == 0
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert packets_in(printed) == len(made) == summary_of(done).packets
    files = [file.relative_to(records) for file in records.rglob("*") if file.is_file()]
    assert sorted(str(file.parent) for file in files) == [
        f"date=2026-01-0{day}/hour={hour:02}" for day, hour in ((1, 22), (1, 23), (2, 0), (2, 1))
    ]
    dataset = ds.dataset(records, partitioning="hive")
    stored = dataset.to_table(columns=RECORD_SCHEMA.names).cast(RECORD_SCHEMA)
    lines = [
        line
        for part in stored.unify_dictionaries().combine_chunks().to_batches()
        for line in json_lines(pa.RecordBatch.from_arrays(part.columns, schema=RECORD_SCHEMA)).to_pylist()
    ]
    assert sorted(lines) == sorted(done.stdout.splitlines(keepends=True))
    assert in_parquet(records, PACKETS) == len(made)
    hours = Counter(record["flowEndNanoseconds"][11:13] for record in printed)
    for hour, ended in hours.items():  # a few end in the hour and are written in the next
        assert abs(in_parquet(records, f"count(*) FILTER (hour::INT = {int(hour)})") - ended) <= 2


# --- the bar ---


@pytest.mark.parametrize(("quiet", "shown"), [((), True), (("-q",), False)], ids=["", "quiet"])
def test_progress_is_shown_on_a_terminal(quiet, shown, mixed, mixed_lines):
    keyboard, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        command("-r", mixed, *quiet), stdout=subprocess.PIPE, stderr=terminal, env=environment, text=True
    ) as process:
        os.close(terminal)
        said = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while more := os.read(keyboard, 4096):
                said += more
        assert process.stdout.read() == mixed_lines
    os.close(keyboard)
    assert (b"\x1b[" in said) == shown
    assert (mixed.name.encode() in said) == shown


def test_elsewhere_there_is_one_line_and_without_an_option_json_lines(mixed, mixed_lines):
    done = flowmon(mixed)
    assert done.stdout == mixed_lines
    (line,) = done.stderr.splitlines()
    assert "\x1b" not in line
    assert f"{mixed}: {len(MIXED)} packets: " in line
    assert flowmon(mixed, "-q").stderr == ""
