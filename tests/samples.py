"""Keys, counters and records for tests, with only what a test cares about said."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np
import pyarrow as pa

from flowmon import abi
from flowmon.first_packets import FirstPackets
from flowmon.records import Context, EndedFlows, record_batch

Array = np.ndarray[Any, np.dtype[Any]]

NS = 1_000_000_000
CLIENT, SERVER = "192.0.2.1", "198.51.100.2"


def packed(address: str) -> list[int]:
    """16 bytes in network order; IPv4 as IPv4-mapped."""
    parsed = ipaddress.ip_address(address)
    return list((b"" if parsed.version == 6 else bytes(10) + b"\xff\xff") + parsed.packed)


def key(
    source: str = CLIENT,
    destination: str = SERVER,
    ports: tuple[int, int] = (40000, 443),
    protocol: int = 6,
    **fields: int,
) -> Array:
    """FLOW_KEY[1], by default of an ingress hook on interface 2."""
    made = np.zeros(1, abi.FLOW_KEY)
    made["source_address"], made["destination_address"] = packed(source), packed(destination)
    made["source_port"], made["destination_port"] = ports
    made["protocol"] = protocol
    made["ip_version"] = ipaddress.ip_address(source).version
    made["ifindex"] = 2
    for name, value in fields.items():
        made[name] = value
    return made


def turned(one: Array) -> Array:
    """The keys of the other direction, at the same points."""
    other = one.copy()
    for of_source, of_destination in (
        ("source_address", "destination_address"),
        ("source_port", "destination_port"),
    ):
        other[of_source], other[of_destination] = one[of_destination], one[of_source]
    return other


def counters(packets: int = 1, first_ns: int = NS, last_ns: int = 2 * NS, **fields: Any) -> Array:
    """FLOW_COUNTERS[1] of a direction with packets, or all zero without."""
    made = np.zeros(1, abi.FLOW_COUNTERS)
    if packets:
        made["packets"], made["octets"] = packets, 100 * packets
        made["first_seen_mono_ns"], made["last_seen_mono_ns"] = first_ns, last_ns
        made["minimum_interval_ns"] = 2**64 - 1
        made["window_scale"] = abi.NO_WINDOW_SCALE
    for name, value in fields.items():
        made[name] = value
    return made


def ended(keys: Array, forward: Array, reverse: Array, reason: int = 1) -> EndedFlows:
    """Biflows with their row's number as flowId."""
    return EndedFlows(
        keys, forward, reverse, np.arange(len(keys), dtype="u8"), np.full(len(keys), reason, "u1")
    )


def batch(rows: int = 3, names: dict[int, str] | None = None) -> pa.RecordBatch:
    """Records of `rows` one-way TCP flows on interfaces 1, 2, …, all with a name unless `names` says less."""
    keys = np.repeat(key(), rows)
    keys["ifindex"] = np.arange(rows) + 1
    flows = ended(keys, np.repeat(counters(), rows), np.repeat(counters(0), rows))
    if names is None:
        names = {index: f"eth{index}" for index in range(1, rows + 1)}
    return record_batch(flows, Context(1_700_000_000 * NS, names, 7))


def arrivals(*listed: tuple[int, int, int, int]) -> Array:
    """FIRST_PACKETS[1] of arrivals: (time, packets, length of all but the last, length of the last)."""
    made = np.zeros(1, abi.FIRST_PACKETS)
    made["arrivals"], made["packets"] = len(listed), sum(one[1] for one in listed)
    names = ("times_mono_ns", "segments", "segment_lengths", "last_lengths")
    for at, values in enumerate(listed):
        for name, value in zip(names, values, strict=True):
            made[name][0, at] = value
    return made


def lost() -> Array:
    """FIRST_PACKETS[1] that was evicted."""
    made = np.zeros(1, abi.FIRST_PACKETS)
    made["arrivals"] = abi.FIRST_PACKETS_LOST
    return made


def some_lists(rows: int, most: int, seed: int = 0) -> FirstPackets:
    """Random ones, some of them lost; in each direction times never go back."""
    random = np.random.default_rng(seed)
    sides = []
    for _ in range(2):
        side = np.frombuffer(random.bytes(rows * abi.FIRST_PACKETS.itemsize), abi.FIRST_PACKETS).copy()
        side["arrivals"] = random.choice([0, 1, 2, abi.FIRST_PACKETS_MOST], rows)
        side["arrivals"][random.random(rows) < 0.1] = abi.FIRST_PACKETS_LOST
        side["segments"] = random.choice([1, 1, 1, 2, 40], side["segments"].shape)
        side["times_mono_ns"] = np.cumsum(random.integers(0, 3, side["times_mono_ns"].shape), axis=1) + NS
        sides.append(side)
    return FirstPackets(*sides, most)
