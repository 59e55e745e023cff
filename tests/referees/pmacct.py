"""nfacctd (pmacct 1.7.7) as a referee: it collects over UDP, and prints sums by key when it ends.

What it makes of IPFIX and NetFlow v9:
- It knows no reverse elements; `PRIMITIVES` declares those of a biflow.
- It reads times in milliseconds, and those of NetFlow v9. With --ipfix-time us or ns a flow starts when
  its message came, and has no end.
- Of several options templates in one set it reads the first alone: each has a set of its own.
- Options records that it knows are accounted under the key of a flow without addresses, if it is told to
  (nfacctd_account_options). In NetFlow v9, it takes the scope "system" (1) for octets (1).
"""

import csv
import signal
from contextlib import AbstractContextManager
from decimal import Decimal
from pathlib import Path

from netns import Host
from referees import receiver
from referees.expected import Flow

PORT = 9996
BUFFER = 8_000_000
"""Octets."""
KEY = "src_host, dst_host, src_port, dst_port, proto, timestamp_start, timestamp_end"
PRIMITIVES = {"reverse_octets": 1, "reverse_packets": 2}
"""Name → element of PEN 29305."""
PROTOCOLS = {"tcp": 6, "udp": 17}
_NANOSECONDS = 1_000_000_000

_CONFIGURATION = """
daemonize: false
logfile: {directory}/log
nfacctd_ip: {address}
nfacctd_port: {port}
nfacctd_pipe_size: {buffer}
nfacctd_account_options: true
aggregate_primitives: {directory}/primitives
aggregate: {aggregate}
timestamps_since_epoch: true
plugins: print
plugin_pipe_size: {buffer}
plugin_buffer_size: 65536
print_cache_entries: 40009
print_refresh_time: 3600
print_output: csv
print_output_file: {directory}/flows.csv
"""


def collecting(host: Host, directory: Path, *, biflows: bool) -> AbstractContextManager[None]:
    """nfacctd sums what arrives in the block, and writes the sums."""
    primitives = [
        f"name={name} field_type=29305:{number} len=8 semantics=u_int" for name, number in PRIMITIVES.items()
    ]
    (directory / "primitives").write_text("\n".join(primitives) + "\n")
    configuration = directory / "nfacctd.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            directory=directory,
            address=host.ipv4,
            port=PORT,
            buffer=BUFFER,
            aggregate=", ".join([KEY, *PRIMITIVES] if biflows else [KEY]),
        )
    )
    return receiver.collector(host, PORT, signal.SIGINT, "nfacctd", "-f", str(configuration))


def flows(directory: Path) -> list[Flow]:
    """Every key with its sums; the one of options records left out."""
    return [
        Flow(
            source=row["SRC_IP"],
            destination=row["DST_IP"],
            source_port=int(row["SRC_PORT"]),
            destination_port=int(row["DST_PORT"]),
            protocol=PROTOCOLS[row["PROTOCOL"]],
            packets=int(row["PACKETS"]),
            octets=int(row["BYTES"]),
            reverse_packets=int(row.get("reverse_packets", 0)),
            reverse_octets=int(row.get("reverse_octets", 0)),
            start_ns=_time_ns(row["TIMESTAMP_START"]),
            end_ns=_time_ns(row["TIMESTAMP_END"]),
        )
        for row in _rows(directory)
        if row["SRC_IP"]
    ]


def packets_of_options_records(directory: Path) -> list[int]:
    """What it accounted without addresses."""
    return [int(row["PACKETS"]) for row in _rows(directory) if not row["SRC_IP"]]


def complaints(directory: Path) -> list[str]:
    """Of its log, what is not for information, and what is about messages."""
    return [
        text.partition(": ")[2].partition(": nfacctd=")[0]
        for line in (directory / "log").read_text().splitlines()
        if not (text := line.partition(" ")[2]).startswith("INFO") or "agent=" in text
    ]


def _rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "flows.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def _time_ns(text: str) -> int:
    return int(Decimal(text) * _NANOSECONDS)
