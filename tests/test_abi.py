"""abi.py against the BTF of the built object, and of kern/flowmon.h for what no program's BTF holds."""

from __future__ import annotations

import os
import shutil
import subprocess
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest

from btf import Btf, Layout
from flowmon import abi

KERN = Path(__file__).parent.parent / "kern"

STRUCTS = {
    "flow_key": abi.FLOW_KEY,
    "flow_counters": abi.FLOW_COUNTERS,
    "first_packets": abi.FIRST_PACKETS,
    "totals_in_use": abi.TOTALS_IN_USE,
    "interface_totals": abi.INTERFACE_TOTALS,
    "take_request": abi.TAKE_REQUEST,
    "take_books": abi.TAKE_BOOKS,
    "loaded_info": abi.LOADED_INFO,
    "attachment": abi.ATTACHMENT,
    "captured_packet": abi.CAPTURED_PACKET,
    "replay_chunk": abi.REPLAY_CHUNK,
    "replay_state": abi.REPLAY_STATE,
    "settings": abi.SETTINGS,
    "deny_key": abi.DENY_KEY,
    "deny_entry": abi.DENY_ENTRY,
    "guard_source": abi.GUARD_SOURCE,
    "guard_entry": abi.GUARD_ENTRY,
    "guard_books": abi.GUARD_BOOKS,
    "scan_state": abi.SCAN_STATE,
    "scan_row": abi.SCAN_ROW,
    "session_side": abi.SESSION_SIDE,
    "session": abi.SESSION,
    "session_gate": abi.SESSION_GATE,
    "feature_packet": abi.FEATURE_PACKET,
    "feature_books": abi.FEATURE_BOOKS,
}
IN_NO_MAP = ("feature_packet",)
OBJECTS = ("flowmon.bpf.o", "scan.bpf.o")

# The enum in C, what its names begin with, and one that counts the others.
ENUMS = {
    abi.Direction: ("flow_direction", "FLOW_", None),
    abi.FlowState: ("flow_state", "FLOW_", None),
    abi.Closing: ("tcp_closing", "TCP_CLOSING_", None),
    abi.Ignored: ("ignored_reason", "IGNORED_", "IGNORED_REASONS"),
    abi.Tunnel: ("tunnel_type", "TUNNEL_", None),
    abi.TimeSource: ("time_source", "TIME_", None),
    abi.DenyKind: ("deny_kind", "DENY_", None),
    abi.FeaturesProtocol: ("features_protocol", "FEATURES_", None),
    abi.ReplayStop: ("replay_stop", "REPLAY_", None),
}

CONSTANTS = {
    "FLOWMON_ABI_VERSION": abi.ABI_VERSION,
    "FLOWMON_SIZE_BINS": abi.SIZE_BINS,
    "FLOWMON_TTL_BINS": abi.TTL_BINS,
    "CAPTURED_MOST": abi.CAPTURED_MOST,
    "REPLAY_CHUNK_OCTETS": abi.REPLAY_CHUNK_OCTETS,
    "REPLAY_RECORD_MOST": abi.REPLAY_RECORD_MOST,
    "TOTALS_SLOTS": abi.TOTALS_SLOTS,
    "TCP_NO_WINDOW_SCALE": abi.NO_WINDOW_SCALE,
    "DENY_REASON_MOST": abi.DENY_REASON_MOST,
    "GUARD_PORTS_MOST": abi.GUARD_PORTS_MOST,
    "FIRST_PACKETS_MOST": abi.FIRST_PACKETS_MOST,
    "FIRST_PACKETS_LOST": abi.FIRST_PACKETS_LOST,
}


def unavailable(reason: str) -> None:
    if os.environ.get("FLOWMON_REQUIRE_KERNEL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def built() -> list[Btf]:
    if not all((KERN / name).exists() for name in OBJECTS):
        unavailable("the objects of kern/ are not built: make object")
    return [Btf(KERN / name) for name in OBJECTS]


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Btf:
    """All enums of the header, and its macros as `enum constants`: compilers leave out what a program does not use."""
    if shutil.which("clang") is None:
        unavailable("clang is not installed (Debian: apt install clang)")
    directory = tmp_path_factory.mktemp("header")
    lines = ["#include <linux/types.h>", '#include "flowmon.h"']
    lines += [f"enum {name} a_{name};" for name, _, _ in ENUMS.values()]
    lines += [f"struct {name} a_{name};" for name in IN_NO_MAP]
    lines += ["enum constants {", *(f"VALUE_{name} = {name}," for name in CONSTANTS), "} constants;"]
    (directory / "header.c").write_text("\n".join(lines))
    includes = [f"-I{path}" for path in (KERN, *Path("/usr/include").glob("*-linux-gnu"))]
    command = ["clang", "-g", "-target", "bpf", *includes, "-c", "header.c", "-o", "header.o"]
    subprocess.run(command, cwd=directory, check=True)
    return Btf(directory / "header.o")


def layout_of(dtype: np.dtype) -> Layout:
    return {
        name: (offset, field.base.itemsize, field.itemsize // field.base.itemsize)
        for name, (field, offset, *_) in (dtype.fields or {}).items()
    }


@pytest.mark.parametrize("name", STRUCTS)
def test_struct_is_that_of_the_objects(built: list[Btf], header: Btf, name: str) -> None:
    having = [one for one in (*built, header) if name in one]
    assert having
    for one in having:
        assert layout_of(STRUCTS[name]) == one.layout(name)
        assert STRUCTS[name].itemsize == one.size(name)


@pytest.mark.parametrize("ours", ENUMS)
def test_enum_is_that_of_the_header(header: Btf, ours: type[IntEnum]) -> None:
    name, prefix, count = ENUMS[ours]
    theirs = header.enum(name)
    if count:
        assert theirs.pop(count) == len(ours)
    assert {prefix + member.name: member.value for member in ours} == theirs


def test_constants_are_those_of_the_header(header: Btf) -> None:
    assert {f"VALUE_{name}": value for name, value in CONSTANTS.items()} == header.enum("constants")


def test_every_dtype_is_compared() -> None:
    dtypes = {name for name, value in vars(abi).items() if isinstance(value, np.dtype)}
    assert dtypes == {name.upper() for name in STRUCTS}
