"""Real scanners and floods at an interface, among ordinary traffic: who is named, when, and who is not."""

import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from flowmon.analysers.port_fanout import PortFanoutParameters
from kernel.talkers import TALKERS
from netns import Host, Pair, monitor

pytestmark = pytest.mark.kernel

TALKERS_PY = str(Path(__file__).with_name("talkers.py"))
INTERVAL_S = 1.0
GRACE_S = 0.5  # before silence is an answer
SLACK_S = 0.5  # for the pass itself, and a busy machine


@dataclass(frozen=True)
class Scan:
    """One scanner: its address, and what it runs ({mac}, {me} are put in)."""

    source: str
    command: str
    is_horizontal: bool = False


NMAP = "nmap -n -Pn -e veth0 -S {me} "
SCANS = {
    "SYN": Scan("10.77.1.1", NMAP + "-sS -T4 -p 1-300 10.77.0.2"),
    "SYN, -T3": Scan("10.77.1.2", NMAP + "-sS -T3 -p 1-100 10.77.0.2"),
    "SYN, -T2": Scan("10.77.1.3", NMAP + "-sS -T2 -p 1-26 10.77.0.2"),
    "connect": Scan("10.77.0.1", "nmap -n -Pn -sT -p 1-100 10.77.0.2"),
    "FIN": Scan("10.77.1.4", NMAP + "-sF -p 1-60 10.77.0.2"),
    "NULL": Scan("10.77.1.5", NMAP + "-sN -p 1-60 10.77.0.2"),
    "Xmas": Scan("10.77.1.6", NMAP + "-sX -p 1-60 10.77.0.2"),
    "ACK": Scan("10.77.1.7", NMAP + "-sA -p 1-60 10.77.0.2"),
    "UDP": Scan("10.77.1.8", NMAP + "-sU --max-retries 0 -T4 -p 1000-1040 10.77.0.2"),
    "filtered": Scan("10.77.1.9", NMAP + "-sS -T4 --max-retries 0 -p 1-60 10.79.0.77"),
    "/24": Scan("10.77.1.10", NMAP + "-sS -T4 -p 81 10.78.0.0/24", is_horizontal=True),
    "/24, block": Scan("10.77.1.11", NMAP + "-sS -T4 -p 1-20 10.78.0.0/26"),
    "masscan": Scan(
        "10.77.1.12",
        "masscan 10.78.0.0/24 -p82 --rate 2000 --wait 0 -e veth0 --source-ip {me} --router-mac {mac}",
        is_horizontal=True,
    ),
    "SYN, IPv6": Scan("fd77::1:1", NMAP + "-6 -sS -T4 -p 1-100 fd77::2"),
    "/120, IPv6": Scan("fd77::1:2", NMAP + "-6 -sS -T4 -p 81 fd78::/120", is_horizontal=True),
}


@dataclass
class Tail:
    """Reads alerts as they are written, and notes when each came."""

    path: Path
    alerts: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        rest = ""
        with self.path.open() as file:
            while not self.stop.is_set():
                rest += file.read()
                *lines, rest = rest.split("\n")
                self.alerts += [(time.time(), json.loads(line)) for line in lines]
                time.sleep(0.02)

    def started(self, detector: str) -> dict[str, tuple[float, dict[str, Any]]]:
        """By the source (of a flood: the victim), the first alert."""
        first: dict[str, tuple[float, dict[str, Any]]] = {}
        for when, alert in self.alerts:
            if alert["detector"] == detector and alert["alertState"] == "started":
                first.setdefault(alert["sourceAddress"] or alert["destinationAddress"], (when, alert))
        return first


def prepare(pair: Pair) -> str:
    """Addresses and routes; the right host's hardware address."""
    left, right = pair.left, pair.right
    addresses = [scan.source for scan in SCANS.values() if scan.source != left.ipv4]
    for address in (*addresses, *TALKERS):
        nodad = ("nodad",) if ":" in address else ()
        left.run("ip", "address", "add", address, "dev", left.interface, *nodad)
    for network in ("10.77.1.0/24", "10.77.2.0/24"):
        right.run("ip", "route", "add", network, "dev", right.interface)
    for network in ("10.78.0.0/24", "fd78::/120"):
        right.run("ip", "route", "add", "local", network, "dev", "lo")
    for network in ("10.78.0.0/24", "10.79.0.0/24"):
        left.run("ip", "route", "add", network, "via", right.ipv4)
    left.run("ip", "route", "add", "fd78::/120", "via", right.ipv6)
    right.run("ip", "route", "add", "blackhole", "10.79.0.0/24")
    right.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    return json.loads(right.run("ip", "-j", "link", "show", "dev", right.interface))[0]["address"]


def crossed(records: pd.DataFrame, scan: Scan) -> float:
    """When the attempt that the threshold needs was made, and for silence, when it was one. Seconds since 1970."""
    parameters = PortFanoutParameters()
    own = records[records["sourceAddress"] == scan.source]
    contact = "destinationAddress" if scan.is_horizontal else "destinationTransportPort"
    silent = np.where(own["reversePacketDeltaCount"] > 0, 0.0, GRACE_S)
    failed_at = own["flowStartNanoseconds"].astype("int64") / 1e9 + silent
    first = failed_at.groupby(own[contact].astype(str)).min()
    needed = parameters.hosts if scan.is_horizontal else parameters.ports
    return float(first.sort_values().iloc[needed - 1])


def test_scanners_are_found_within_an_interval_and_nobody_else(pair: Pair, tmp_path: Path) -> None:
    left, right = pair.left, pair.right
    mac = prepare(pair)
    alerts = tmp_path / "alerts.json"
    options = (
        "-i",
        str(INTERVAL_S),
        "--analyse",
        "all",
        "--alerts",
        f"json:{alerts}",
        "--max-flows",
        "200000",
    )
    with (
        right.background(sys.executable, TALKERS_PY, "serve"),
        right.server(5201, "iperf3", "-s", "-1"),
        monitor(right, "--iface", right.interface, "-d", str(tmp_path / "flows"), *options) as running,
    ):
        tail = Tail(alerts)
        reader = threading.Thread(target=tail.run)
        reader.start()
        try:
            scan_among_talkers(left, right, mac)
            running.stop()
        finally:
            time.sleep(0.1)
            tail.stop.set()
            reader.join()
    found = tail.started("port-fanout")
    records = pd.read_parquet(tmp_path / "flows")
    late = {
        name: found[scan.source][0] - crossed(records, scan) if scan.source in found else None
        for name, scan in SCANS.items()
    }
    print({name: delay and round(delay, 2) for name, delay in late.items()})
    assert None not in late.values(), late
    assert max(late.values()) < INTERVAL_S + SLACK_S, late
    kinds = {name: found[scan.source][1]["alertKind"] for name, scan in SCANS.items()}
    expected = {name: "horizontal" if scan.is_horizontal else "vertical" for name, scan in SCANS.items()}
    assert kinds == expected | {"/24, block": kinds["/24, block"]}
    scanners = {scan.source for scan in SCANS.values()}
    assert set(found) == scanners
    assert set(tail.started("random-walk")) == scanners
    assert tail.started("syn-rate") == {}


def scan_among_talkers(left: Host, right: Host, mac: str) -> None:
    """All at once."""
    talkers = subprocess.Popen(left.command(sys.executable, TALKERS_PY, "talk", "12"))
    bulk = subprocess.Popen(
        left.command("iperf3", "-c", right.ipv4, "-t", "8", "-B", TALKERS[-1]), stdout=subprocess.DEVNULL
    )
    time.sleep(2)
    scanners = [
        subprocess.Popen(
            left.command(*scan.command.format(me=scan.source, mac=mac).split()),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for scan in SCANS.values()
    ]
    for process in (*scanners, talkers, bulk):
        assert process.wait(timeout=60) == 0, process.args
    time.sleep(2 * INTERVAL_S)


# --- a flood ---


@pytest.mark.parametrize(
    ("how", "kind", "named"),
    [((), "syn-flood-of-few", True), (("--rand-source",), "syn-flood", False)],
    ids=["one source", "random sources"],
)
def test_hping3_flood(pair: Pair, tmp_path: Path, how: tuple[str, ...], kind: str, named: bool) -> None:
    left, right = pair.left, pair.right
    alerts = tmp_path / "alerts.json"
    options = ("--analyse", "syn-rate", "--alerts", f"json:{alerts}", "-d", str(tmp_path / "flows"))
    with (
        right.server(8000, sys.executable, "-m", "http.server", "8000"),
        monitor(right, "--iface", right.interface, *options) as running,
    ):
        tail = Tail(alerts)
        reader = threading.Thread(target=tail.run)
        reader.start()
        began = time.time()
        command = left.command(
            "timeout", "5", "hping3", "-q", "-S", "-p", "8000", "--flood", *how, right.ipv4
        )
        subprocess.run(command, capture_output=True, check=False, timeout=30)
        running.stop()
        tail.stop.set()
        reader.join()
    when, alert = tail.started("syn-rate")[right.ipv4]
    print(how, round(when - began, 2), alert["attemptsPerSecond"], alert["distinctSources"])
    assert (alert["alertKind"], alert["sourceAddress"], alert["destinationTransportPort"]) == (
        kind,
        None,
        8000,
    )
    assert (left.ipv4 in alert["exampleSources"]) == named
    assert when - began < 2 * INTERVAL_S + GRACE_S + SLACK_S  # a second's window, after an interval at most


FLOOD_PACKETS = 1_000_000
PCAP_HEADER = np.array([(0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)], "u4,u2,u2,i4,u4,u4,u4")
PCAP_SYN = np.dtype(
    [("seconds", "u4"), ("fraction", "u4"), ("captured", "u4"), ("length", "u4"), ("frame", "u1", 54)]
)


def write_flood(path: Path, mac: str, victim: str, port: int, packets: int) -> None:
    """SYNs to one port, each from another address, as a spoofed flood sends them."""
    random = np.random.default_rng(1)
    syn = Ether(dst=mac) / IP(src="198.18.0.0", dst=victim, ttl=64) / TCP(sport=1024, dport=port, flags="S")
    rows = np.zeros(packets, PCAP_SYN)
    rows["captured"] = rows["length"] = 54
    rows["frame"] = np.frombuffer(bytes(syn)[:54], "u1")
    rows["frame"][:, 26:28] = (198, 18)
    rows["frame"][:, 28:30] = random.integers(0, 256, (packets, 2))
    rows["frame"][:, 34:36] = random.integers(4, 256, (packets, 2))
    rows["frame"][:, 24:26] = rows["frame"][:, 50:52] = 0  # nobody looks at the sums before they are counted
    path.write_bytes(PCAP_HEADER.tobytes() + rows.tobytes())


def resident_octets(process: int) -> int:
    """The peak of a process's memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_flood_is_named_by_its_victim_and_ordinary_flows_stay_whole(pair: Pair, tmp_path: Path) -> None:
    left, right = pair.left, pair.right
    mac = prepare(pair)
    flood, alerts = tmp_path / "flood.pcap", tmp_path / "alerts.json"
    write_flood(flood, mac, right.ipv4, 8000, FLOOD_PACKETS)
    options = ("--analyse", "all", "--alerts", f"json:{alerts}")
    with (
        right.background(sys.executable, TALKERS_PY, "serve"),
        monitor(right, "--iface", right.interface, "-d", str(tmp_path / "flows"), *options) as running,
    ):
        before = resident_octets(running.pid)
        conversing = subprocess.Popen(
            left.command(sys.executable, TALKERS_PY, "converse", "20", "8"), stdout=subprocess.PIPE, text=True
        )
        time.sleep(1)
        replayed = left.run("tcpreplay", "-q", "-K", "--topspeed", "-i", left.interface, str(flood))
        octets_of_port = dict(json.loads(conversing.communicate(timeout=60)[0]))
        assert conversing.returncode == 0
        time.sleep(3)
        grown = resident_octets(running.pid) - before
        books = json.loads(right.flowmon("status", "--json").stdout)["books"]
        running.stop()
    print(re.findall(r"Rated: .*", replayed), f"{grown / 1e6:.0f} MB", books)
    check_books(books)
    check_conversations(pd.read_parquet(tmp_path / "flows"), octets_of_port)
    said = [json.loads(line) for line in alerts.read_text().splitlines()]
    floods = [one for one in said if one["detector"] == "syn-rate" and one["alertState"] == "started"]
    assert [(one["destinationAddress"], one["sourceAddress"]) for one in floods] == [(right.ipv4, None)]
    assert {one["destinationAddress"] for one in said if one["detector"] != "syn-rate"} == set()
    assert grown < 600e6


def check_books(books: dict[str, Any]) -> None:
    assert books["seen_packets"] == books["counted_packets"] + sum(books["ignored_packets"].values())
    taken, resident, evicted = (books[f"{what}_packets"] for what in ("taken", "resident", "evicted"))
    assert books["counted_packets"] == taken + resident + evicted
    assert books["seen_packets"] > FLOOD_PACKETS / 2


def check_conversations(flows: pd.DataFrame, octets_of_port: dict[int, int]) -> None:
    """Every octet of each conversation is in its records, and its beginning and end."""
    assert len(octets_of_port) == 20
    own = flows[(flows["sourceAddress"] == TALKERS[-1]) & (flows["destinationTransportPort"] == 8001)]
    for port, octets in octets_of_port.items():
        records = own[own["sourceTransportPort"] == port]
        for way in ("{}", "reverse{}"):
            columns = ("packetDeltaCount", "tcpSynTotalCount", "octetDeltaCount")
            packets, syns, ip_octets = (records[column(way, name)].sum() for name in columns)
            # Every segment has 52 octets of headers, a SYN 8 more.
            payload = ip_octets - 52 * packets - 8 * syns
            again = records[column(way, "tcpRetransmittedOctetDeltaCount")].sum()
            assert octets <= payload <= octets + again, (port, way)
            assert records[column(way, "tcpFinTotalCount")].sum() >= 1


def column(way: str, name: str) -> str:
    return name if way == "{}" else way.format(name[0].upper() + name[1:])
