"""The capture that every referee hears of, the hosts, and the run that most of them read."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from many_flows import write_many_flows
from netns import Pair, make_pair
from referees import receiver, wireshark
from referees.expected import Captured
from referees.receiver import PORT

BIFLOWS = 10_000


@dataclass(frozen=True)
class Sent:
    """One run, over each transport. packets: a capture of UDP and TCP; the others are streams of messages."""

    packets: Path
    udp: Path
    tcp: Path
    file: Path


@pytest.fixture(scope="session")
def captured(tmp_path_factory) -> Captured:
    path = tmp_path_factory.mktemp("referees") / "many.pcap"
    return Captured(path, write_many_flows(path, BIFLOWS))


@pytest.fixture(scope="session")
def hosts(kernel) -> Iterator[Pair]:
    """flowmon runs on the left, collectors on the right."""
    with make_pair(f"flowmon-{os.getpid()}-referees") as made:
        yield made


@pytest.fixture(scope="session")
def sent(hosts, captured, tmp_path_factory) -> Sent:
    """With the options as they are by default."""
    directory = tmp_path_factory.mktemp("sent")
    made = Sent(*(directory / name for name in ("sent.pcapng", "udp.ipfix", "tcp.ipfix", "file.ipfix")))
    remote = f"{hosts.right.ipv4}:{PORT}"
    with (
        receiver.udp(hosts.right, PORT) as datagrams,
        receiver.tcp(hosts.right, PORT) as octets,
        wireshark.capturing(hosts.right, made.packets, PORT),
    ):
        urls = (f"udp://{remote}", f"tcp://{remote}", f"file:{made.file}")
        captured.export(hosts.left, *(word for url in urls for word in ("--ipfix", url)))
    made.udp.write_bytes(b"".join(datagrams))
    made.tcp.write_bytes(octets)
    return made
