"""Captures of smallest frames, all of one length, to be sent as fast as they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

OCTETS = 60  # of a frame, without the checksum at its end
# To a host that is not there: the receiver looks at a frame, and drops it before its IP layer.
NOBODY, SENDER = b"\x02\0\0\0\0\x99", b"\x02\0\0\0\0\x01"
IP_OCTETS, UDP_OCTETS, PAYLOAD = 20, 8, 18
FIRST_CLIENT, SERVER = 10 << 24, 192 << 24 | 2 << 8 | 1  # 10.0.0.0, 192.0.2.1
CLIENT_PORT, SERVER_PORT = 4000, 53

RECORD = np.dtype(
    [
        ("seconds", "<u4"), ("nanoseconds", "<u4"), ("captured", "<u4"), ("wire", "<u4"),
        ("destination_mac", "S6"), ("source_mac", "S6"), ("ethertype", ">u2"),
        ("version_ihl", "u1"), ("tos", "u1"), ("total_length", ">u2"), ("id", ">u2"), ("fragment", ">u2"),
        ("ttl", "u1"), ("protocol", "u1"), ("checksum", ">u2"), ("source", ">u4"), ("destination", ">u4"),
        ("source_port", ">u2"), ("destination_port", ">u2"), ("length", ">u2"), ("udp_checksum", ">u2"),
        ("payload", "u1", PAYLOAD),
    ]
)  # fmt: skip


def existing(biflows: int) -> Array:
    """The flow of each packet of a capture that meets all directions of so many biflows once, to be sent in a loop."""
    return np.arange(2 * biflows)


def beginning(packets: int, share: float, biflows: int) -> Array:
    """The flow of each packet, where a share begins a new one and the others are of so many biflows in turn.

    The new ones are spread evenly, and each is met once.
    """
    position = np.arange(packets)
    begins = np.floor((position + 1) * share) > np.floor(position * share)
    known = 2 * biflows
    return np.where(begins, known + np.cumsum(begins) - 1, position % known)


def write(path: Path, flows: Array) -> None:
    """A capture in which each packet is of that flow. Flows 2n and 2n + 1 are the directions of a biflow.

    UDP over IPv4; at most 2^25 flows.
    """
    frames = np.zeros(len(flows), RECORD)
    frames["nanoseconds"] = np.arange(len(flows)) % 1_000_000_000
    frames["captured"] = frames["wire"] = OCTETS
    frames["destination_mac"], frames["source_mac"], frames["ethertype"] = NOBODY, SENDER, 0x0800
    frames["version_ihl"], frames["ttl"], frames["protocol"] = 0x45, 64, 17
    frames["total_length"], frames["length"] = IP_OCTETS + UDP_OCTETS + PAYLOAD, UDP_OCTETS + PAYLOAD
    client, is_back = FIRST_CLIENT + flows // 2, flows % 2 == 1
    frames["source"], frames["destination"] = (
        np.where(is_back, SERVER, client),
        np.where(is_back, client, SERVER),
    )
    frames["source_port"] = np.where(is_back, SERVER_PORT, CLIENT_PORT)
    frames["destination_port"] = np.where(is_back, CLIENT_PORT, SERVER_PORT)
    header = np.array((0xA1B23C4D, 2, 4, 0, 0, 262_144, 1), dtype="<u4, <u2, <u2, <i4, <u4, <u4, <u4")
    with path.open("wb") as capture:
        capture.write(header.tobytes())
        frames.tofile(capture)
