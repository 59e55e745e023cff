"""tshark (Wireshark 4.0) as a referee: it dissects the packets that dumpcap saw.

What it makes of IPFIX and NetFlow v9:
- Its default preferences take templates of up to 60 fields; EVERY_FIELD any.
- Reverse elements (PEN 29305) have their element's name and a remark, "(Reverse Type 1 BYTES)"; but for times.
- A field that it does not know is "Unknown(N)" in a template, and "Type N: Value (hex bytes)" in a
  record. Types that are told by options records (RFC 5610) change nothing.
- Sequence numbers are checked for each observation domain, and expert information tells of gaps.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from netns import Host, wait_for
from referees.expected import Flow

EVERY_FIELD = ("-o", "cflow.max_template_fields:0")
QUIET_S = 0.6  # dumpcap writes what it has at least every quarter of a second
BUFFER_MIB = 64

_DROPPED = re.compile(r"Packets received/dropped on interface '\w+': (\d+)/(\d+) ")
_UNNAMED = re.compile(r"(Enterprise Private entry: \(.*\) Type \d+|Type \d+): Value \(hex bytes\)")
_UNNAMED_IN_TEMPLATE = re.compile(r"Field \(\d+/\d+\)(?: \[Scope\])?: +(.*Unknown.*|\d+ \[pen: .*)")
_TIMES = ("StartTime", "EndTime")
_NEW_RECORD = re.compile(r"(Flow|Set|FlowSet|Frame) \d+\b")
_EXPERT = re.compile(r"^ +(\d+) +(\S+) +(\S+) +(.*)$")
_NOT_WRONG = ("Notes", "Chats", "Comments")
_NANOSECONDS = 1_000_000_000


@dataclass
class Reading:
    """What tshark shows of a capture. unnamed: fields that it has no name for, in templates and records."""

    flows: list[Flow] = field(default_factory=list)
    unnamed: Counter[str] = field(default_factory=Counter)


@contextlib.contextmanager
def capturing(host: Host, path: Path, port: int) -> Iterator[None]:
    """dumpcap writes what passes the host's interface to and from a port; nothing is dropped."""
    where = ("-i", host.interface, "-f", f"port {port}", "-w", str(path))
    process = subprocess.Popen(
        host.command("dumpcap", "-q", "-B", str(BUFFER_MIB), *where), stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: path.exists() or process.poll() is not None, "dumpcap to capture")
        yield
        _wait_until_still(path)
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    found = _DROPPED.search(said)
    assert found, said
    assert int(found[1]) > 0, said
    assert int(found[2]) == 0, said


def _wait_until_still(path: Path) -> None:
    size = -1
    while size != path.stat().st_size:
        size = path.stat().st_size
        time.sleep(QUIET_S)


def without_packet(path: Path, number: int, written: Path) -> Path:
    """A capture without one of its packets."""
    subprocess.run(["editcap", str(path), str(written), str(number)], check=True, capture_output=True)
    return written


def packet_numbers(path: Path, chosen: str) -> list[int]:
    """Of the packets that a display filter chooses."""
    printed = _run(path, "-Y", chosen, "-T", "fields", "-e", "frame.number")
    return [int(line) for line in printed.splitlines()]


def complaints(path: Path, *preferences: str) -> list[str]:
    """Expert information that means something is wrong, and all that is about IPFIX and NetFlow."""
    found, section = [], ""
    for line in _run(path, *preferences, "-q", "-z", "expert").splitlines():
        if line and line[0].isalpha():
            section = line.split()[0]
        elif (item := _EXPERT.match(line)) and (section not in _NOT_WRONG or item[3] == "CFLOW"):
            found.append(f"{section}: {item[4]} ({item[1]})")
    return found


def read(path: Path, chosen: str, *preferences: str) -> Reading:
    """Every flow record in the packets that a display filter chooses."""
    reading = Reading()
    facts: dict[str, str] = {}
    command = _command(path, *preferences, "-Y", f"cflow && ({chosen})", "-O", "cflow")
    with subprocess.Popen(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as tshark:
        assert tshark.stdout is not None
        for line in tshark.stdout:
            text = line.strip()
            name, _, value = text.partition(": ")
            if _NEW_RECORD.match(text):
                _add_flow(reading, facts)
                facts = {}
            elif value and "(Reverse Type " in value:
                facts.setdefault(f"reverse {name}", value.split(" (Reverse")[0])
            elif value and name in _TIMES:
                facts[name] = value  # those of the reverse direction come first, without a remark
            elif value:
                facts.setdefault(name, value)
            if unnamed := _UNNAMED.search(text) or _UNNAMED_IN_TEMPLATE.match(text):
                reading.unnamed[unnamed[1]] += 1
    assert tshark.returncode == 0
    _add_flow(reading, facts)
    return reading


def _add_flow(reading: Reading, facts: dict[str, str]) -> None:
    """If what was gathered since the last one is a flow, and no options record or template."""
    if "Octets" not in facts or "SrcPort" not in facts:
        return
    reading.flows.append(
        Flow(
            source=facts["SrcAddr"],
            destination=facts["DstAddr"],
            source_port=int(facts["SrcPort"]),
            destination_port=int(facts["DstPort"]),
            protocol=int(facts["Protocol"].rpartition("(")[2].rstrip(")")),
            packets=int(facts["Packets"]),
            octets=int(facts["Octets"]),
            reverse_packets=int(facts.get("reverse Packets", 0)),
            reverse_octets=int(facts.get("reverse Octets", 0)),
            start_ns=_time_ns(facts["StartTime"]),
            end_ns=_time_ns(facts["EndTime"]),
        )
    )


def _time_ns(text: str) -> int:
    """Of "Jan  1, 2026 00:00:00.022683000 UTC"; NetFlow v9 has seconds of uptime, which are no time of day."""
    if not text.endswith(" UTC"):
        return 0
    seconds, _, fraction = text.removesuffix(" UTC").partition(".")
    return _seconds(seconds) * _NANOSECONDS + int(fraction)


@cache
def _seconds(text: str) -> int:
    return int(datetime.strptime(text, "%b %d, %Y %H:%M:%S").replace(tzinfo=UTC).timestamp())


def _run(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        _command(path, *arguments), env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _command(path: Path, *arguments: str) -> list[str]:
    return ["tshark", "-n", "-r", str(path), *arguments]


def _environment() -> dict[str, str]:
    """No preferences of the user's."""
    return os.environ | {"WIRESHARK_CONFIG_DIR": "/nonexistent", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
