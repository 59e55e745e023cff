"""Loads flowmon's programs and hands over their descriptors: a process, so that each tree uses its own loader.

holder.py SOCKET '{"max_flows": 65536, "denied": 0, "deny": false, "guard_ports": 0, "features_packets": 0,
    "first_packets": 0}'
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

import numpy as np

from flowmon import abi
from flowmon.kernel import libbpf, loader
from flowmon.kernel.loader import Guard, LoadOptions, PrivateSet


def load(
    max_flows: int = 65536,
    guard_ports: int = 0,
    features_packets: int = 0,
    first_packets: int = 0,
    *,
    deny: bool = False,
) -> PrivateSet:
    """As at an interface: a packet's time is the clock's."""
    options: dict[str, Any] = {"max_flows": max_flows}
    if first_packets:
        options["first_packets"] = first_packets
    if deny:
        options["deny"] = True
    if guard_ports:
        options["guard"] = Guard(guard_ports)
    if features_packets:
        options["features"] = loader.Features(features_packets)
    return PrivateSet(LoadOptions(**options))


def fill_deny_list(deny_map: int, denied: int) -> None:
    """Blocks so many addresses of 10.0.0.0/8."""
    key, value = np.zeros(1, abi.DENY_KEY), np.zeros(1, abi.DENY_ENTRY)
    key["prefix_length"] = value["prefix_length"] = 128
    value["kind"] = abi.DenyKind.DROP
    for number in range(denied):
        address = b"\0" * 10 + b"\xff\xff" + (10 << 24 | number * 1021).to_bytes(4)
        key["address"] = np.frombuffer(address, "u1")
        libbpf.update(deny_map, key, value)


def main() -> None:
    """Sends the descriptors of the program and of the table, and ends."""
    options = json.loads(sys.argv[2])
    denied = options.pop("denied", 0)
    source = load(**options)
    if denied:
        fill_deny_list(source.open_map("deny"), denied)
    with socket.socket(fileno=int(sys.argv[1])) as asker:
        socket.send_fds(asker, [b"here"], [source.open_program("ingress_ethernet"), source.open_map("flows")])


if __name__ == "__main__":
    main()
