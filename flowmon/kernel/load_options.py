"""What is decided when the programs are loaded."""

import mmap
import platform
from dataclasses import dataclass
from pathlib import Path

from flowmon import abi

SOURCES = Path(__file__).resolve().parent.parent / "kern"
SOURCE = SOURCES / "flowmon.bpf.c"
OBJECT = SOURCES / "flowmon.bpf.o"
DEFAULT_MAX_FLOWS = 65536

# These keep stores in order (total store order): a plain store releases a lock.
_ORDERED_STORES = ("x86_64", "i686", "s390x")


@dataclass(frozen=True)
class Guard:
    """The rule that the programs enforce by themselves: more ports than that in a window, and the source is dropped.

    ports: 1 to abi.GUARD_PORTS_MOST.
    """

    ports: int
    window_s: int = 60
    block_s: int = 600

    def settings(self) -> dict[str, int]:
        """As the programs call them."""
        return {"guard_ports": self.ports, "guard_window_s": self.window_s, "guard_block_s": self.block_s}


NO_GUARD = Guard(ports=0)
ALL_PROTOCOLS = abi.FeaturesProtocol(7)


@dataclass(frozen=True)
class Features:
    """Which packets are captured one by one: the first of each session.

    packets: of a session. sessions: at a time. restart_ns: a session that is at its limit
    for so long and goes on is captured again. ring_octets: a power of two, a page at least.
    """

    packets: int = 100
    sessions: int = 1024
    protocols: abi.FeaturesProtocol = ALL_PROTOCOLS
    restart_ns: int = 5_000_000_000
    ring_octets: int = 16 << 20

    def settings(self) -> dict[str, int]:
        """As the programs call them."""
        return {
            "features_packets": self.packets,
            "features_sessions": self.sessions,
            "features_protocols": int(self.protocols),
            "features_restart_ns": self.restart_ns,
        }


NO_FEATURES = Features(packets=0, sessions=1, ring_octets=mmap.PAGESIZE)


@dataclass(frozen=True)
class LoadOptions:
    """What is decided at load."""

    loader: str = "auto"  # auto, libbpf, bcc
    max_flows: int = DEFAULT_MAX_FLOWS  # directed flows in the table
    time_source: abi.TimeSource = abi.TimeSource.MONOTONIC
    object_path: Path = OBJECT
    section: str = "tc"
    decap: bool = False  # flows are those inside tunnels
    first_packets: int = 0  # so many of a record are listed, at most abi.FIRST_PACKETS_MOST
    deny: bool = False  # the deny-list is looked at
    guard: Guard | None = None
    features: Features | None = None
    owner_pid: int = 0  # the process that takes it all away when it ends; 0: it stays

    def settings(self) -> dict[str, int]:
        """The programs' settings by name."""
        return {
            "time_source": int(self.time_source),
            "plain_unlock": int(platform.machine() in _ORDERED_STORES),
            "decap": int(self.decap),
            "deny": int(self.deny),
            **(self.guard or NO_GUARD).settings(),
            "first_packets": self.first_packets,
            **(self.features or NO_FEATURES).settings(),
        }
