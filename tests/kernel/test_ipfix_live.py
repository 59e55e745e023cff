"""IPFIX of live traffic: what reaches a collector is what Parquet has, though the collector dies meanwhile."""

import sys
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from collector_process import CollectorProcess
from ipfix_reader import IANA, IPFIX, REVERSE, Message, Reader
from netns import Pair, monitor, wait_for

pytestmark = pytest.mark.kernel

PORT = 4739
DOMAIN = 7
PEER_PORT = 9
SEND = """
import socket, sys
for port in range(int(sys.argv[2]), int(sys.argv[3])):
    with socket.socket(type=socket.SOCK_DGRAM) as one:
        one.bind(("", port))
        for _ in range(port % 3 + 1):
            one.sendto(b"x" * (port % 1000), (sys.argv[1], 9))
"""
SOURCE_PORT, PACKETS, OCTETS = (IANA, 7), (IANA, 2), (IANA, 1)


def send(pair: Pair, first: int, last: int) -> None:
    """One UDP flow from each port, of one to three packets."""
    pair.left.run(sys.executable, "-c", SEND, pair.right.ipv4, str(first), str(last))


def read(sessions: list[list[bytes]]) -> list[Message]:
    """Every message, each session by a reader of its own: it holds the rules and the sequence numbers."""
    found = []
    for messages in sessions:
        reader = Reader(IPFIX, DOMAIN)
        found += [reader.read(message) for message in messages]
    return found


def flows(sessions: list[list[bytes]]) -> Counter[tuple[int, ...]]:
    """Source port, packets, octets, reverse packets of each UDP record to the peer's port."""
    return Counter(
        (flow[SOURCE_PORT], flow[PACKETS], flow[OCTETS], flow.get((REVERSE, 2), 0))
        for message in read(sessions)
        for flow in message.flows
        if flow[IANA, 11] == PEER_PORT
    )


def in_parquet(directory: Path) -> Counter[tuple[int, ...]]:
    columns = "sourceTransportPort, packetDeltaCount, octetDeltaCount, reversePacketDeltaCount"
    where = f"destinationTransportPort = {PEER_PORT}"
    return Counter(duckdb.sql(f"select {columns} from '{directory}/**/*.parquet' where {where}").fetchall())


def arrived(process: CollectorProcess, number: int) -> bool:
    return flows(process.sessions).total() >= number


def options_of(pair: Pair, directory: Path) -> list[str]:
    return [
        *("--iface", "veth0", "-f", "/sys/fs/bpf/flowmon-ipfix/flows", "-i", "0.2", "--idle-timeout", "0.3"),
        *("-d", str(directory), "--ipfix", f"tcp://127.0.0.1:{PORT}", "--observation-domain", str(DOMAIN)),
    ]


def test_a_collector_that_dies_and_comes_back_has_every_record_once(kernel, pair, tmp_path):
    """Killed when it has read what was sent: what its kernel holds unread, nobody knows of."""
    pair.right.run("ip", "link", "set", "lo", "up")
    first = CollectorProcess(PORT, *pair.right.command())
    with monitor(pair.right, *options_of(pair, tmp_path)) as flowmon:
        send(pair, 20_000, 20_500)
        wait_for(lambda: arrived(first, 500), "the first records")
        before = first.kill()
        send(pair, 21_000, 21_500)
        wait_for(lambda: in_parquet(tmp_path).total() >= 1000, "records while nobody collects")
        second = CollectorProcess(PORT, *pair.right.command())
        send(pair, 22_000, 22_500)
        wait_for(lambda: arrived(second, 1000), "the records that waited")
        flowmon.stop()
    after = second.kill()
    assert flows(before) + flows(after) == in_parquet(tmp_path)
    assert {port for port, *_ in flows(before)} == set(range(20_000, 20_500))
    assert in_parquet(tmp_path).total() == 1500
    assert "connected again" in flowmon.said


def test_interfaces_and_losses_are_told(kernel, pair, tmp_path):
    pair.right.run("ip", "link", "set", "lo", "up")
    pair.right.run("ip", "link", "set", "veth0", "alias", "to the left")
    process = CollectorProcess(PORT, *pair.right.command())
    with monitor(pair.right, *options_of(pair, tmp_path)) as flowmon:
        wait_for(lambda: process.sessions and len(process.sessions[0]) >= 2, "the first statistics")
        send(pair, 20_000, 20_010)
        pair.left.run(sys.executable, "-c", BAD_PACKETS, pair.left.interface)
        wait_for(lambda: arrived(process, 10), "the records")
        flowmon.stop()
    messages = read(process.kill())
    records = [record for message in messages for record in message.options]
    index = int(pair.right.run(sys.executable, "-c", "import socket; print(socket.if_nametoindex('veth0'))"))
    names = {(record[IANA, 82], record[IANA, 83]) for record in records if record.get((IANA, 10)) == index}
    assert names == {("veth0", "to the left")}
    ignored = [record[IANA, 164] for record in records if (IANA, 164) in record]
    assert (ignored[0], ignored[-1]) == (0, 3)
    exported = [record for record in records if (IANA, 42) in record][-1]
    assert exported[IANA, 42] == sum(len(message.flows) for message in messages)
    assert exported[IANA, 163] >= 10


# IPv4 whose total length is more than the frame.
BAD_PACKETS = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as one:
    one.bind((sys.argv[1], 0))
    for _ in range(3):
        one.send(b"\\xff" * 6 + b"\\x02" + bytes(5) + b"\\x08\\x00" + b"\\x45\\x00\\x10\\x00" + bytes(60))
"""
