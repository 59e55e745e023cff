"""Captured packets for tests, with only what a test cares about said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from flowmon import abi
from flowmon.features.packets import feature_batch
from samples import NS, key, turned

Array = np.ndarray[Any, np.dtype[Any]]

OFFSET = 1_700_000_000 * NS
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58


def packet(of_key: Array | None = None, **fields: int) -> Array:
    """FEATURE_PACKET[1], by default the first of a session: a segment of TCP with 100 octets of payload."""
    made = np.zeros(1, abi.FEATURE_PACKET)
    made["key"] = key() if of_key is None else of_key
    made["time_mono_ns"], made["began_utc_ns"] = NS, OFFSET + NS
    made["segments"] = made["kept"] = 1
    made["last_ip_length"], made["headers_length"] = 140, 40
    made["time_to_live"] = 64
    for name, value in fields.items():
        made[name] = value
    return made


def session(of_key: Array, packets: int, began_ns: int = NS, **fields: int) -> Array:
    """FEATURE_PACKET[packets], one a millisecond, every second one in reverse. began_ns: monotonic."""
    rows = np.repeat(packet(of_key, began_utc_ns=OFFSET + began_ns, **fields), packets)
    rows["index"] = np.arange(packets)
    rows["time_mono_ns"] = began_ns + np.arange(packets) * 1_000_000
    rows["interval_ns"][1:] = 1_000_000
    rows["key"][1::2], rows["is_reverse"][1::2] = turned(of_key), 1
    return rows


def random_packets(seed: int, number: int) -> Array:
    """Random in every field, with the values that decide common; of few sessions, so that they have many packets."""
    random = np.random.default_rng(seed)
    rows = np.frombuffer(random.bytes(abi.FEATURE_PACKET.itemsize * number), abi.FEATURE_PACKET).copy()
    version = random.choice([4, 6], number)
    rows["key"]["ip_version"] = version
    for side in ("source_address", "destination_address"):
        rows["key"][side] = [0x20, *[0] * 15]
        rows["key"][side][:, 15] = random.integers(0, 3, number)
        rows["key"][side][version == 4, :12] = [0] * 10 + [255] * 2
    rows["key"]["protocol"] = random.choice([TCP, UDP, ICMP, ICMPV6], number)
    for name in ("source_port", "destination_port"):
        rows["key"][name] = random.choice([1, 2048, 65535], number)
    for name in ("is_reverse", "unread"):
        rows[name] = random.choice([0, 0, 1], number)
    rows["began_utc_ns"] = OFFSET + random.choice([NS, 2 * NS], number)
    rows["round"] = random.choice([0, 1], number)
    rows["time_mono_ns"] >>= 4
    rows["index"] >>= 1
    rows["segments"] = random.choice([1, 1, 2, 45], number)
    rows["kept"] = random.integers(1, rows["segments"] + 1)
    rows["headers_length"] = random.choice([20, 28, 40, 60], number)
    for name in ("last_ip_length", "segment_ip_length"):
        rows[name] = rows["headers_length"] + random.integers(0, 65000, number).astype("u4")
    rows["sequence"] = random.choice([0, 1, 2**31, 2**32 - 1000], number)
    return rows


def rows_of(*packets: Array) -> pa.RecordBatch:
    """The rows of all these."""
    return feature_batch(np.concatenate(packets), OFFSET)


def plain(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """Plain values, times as nanoseconds since the epoch."""
    columns = {
        field.name: column.cast(pa.int64()) if pa.types.is_timestamp(field.type) else column
        for field, column in zip(batch.schema, batch.columns, strict=True)
    }
    return pa.table(columns).to_pylist()
