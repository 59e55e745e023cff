"""What a snapshot makes of what the kernel hands over, batch by batch."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmon import abi
from flowmon.kernel import flow_table
from flowmon.kernel.flow_table import FLOW_STATE, WATCHED_STATE, FlowTable, Snapshot

Array = np.ndarray[Any, np.dtype[Any]]

NUMBERS = st.integers(0, 3)
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {
            "born_mono_ns": st.just(5),
            "first_seen_mono_ns": st.sampled_from([0, 7]),
            "last_seen_mono_ns": st.sampled_from([7, 9]),
            "packets": NUMBERS,
            "layer2_octets": NUMBERS,
            "syn_packets": NUMBERS,
            "tcp_control_bits": st.integers(0, 0x1FF),
            "late_packets": NUMBERS,
            "late_layer2_octets": NUMBERS,
            "late_tcp_control_bits": st.integers(0, 0x1FF),
        }
    ),
    max_size=9,
)


class FakeMap:
    """Hands its entries over in batches of `most`, and says first that one of them does not fit."""

    def __init__(self, entries: list[dict[str, int]], most: int) -> None:
        self.counters = np.zeros(len(entries), abi.FLOW_COUNTERS)
        for row, entry in zip(self.counters, entries, strict=True):
            for name, value in entry.items():
                row[name] = value
        self.most, self.refusals = most, 1

    def lookup_batch(
        self, _: int, cursor: Array, keys: Array, values: Array, *, first: bool
    ) -> tuple[int, bool]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOSPC, "no space left")
        begin = 0 if first else int(cursor[0])
        part = self.counters[begin : begin + min(self.most, len(keys))]
        keys[: len(part)]["source_port"] = np.arange(begin, begin + len(part))
        values[: len(part)] = part
        cursor[0] = begin + len(part)
        return len(part), cursor[0] < len(self.counters)


def snapshot(found: FakeMap, state: np.dtype[Any]) -> Snapshot:
    source: Any = SimpleNamespace(open_map=lambda _: -1, open_program=lambda _: -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_table, "map_into_memory", lambda *_: np.zeros(abi.TOTALS_SLOTS))
        patch.setattr(flow_table.libbpf, "map_info", lambda _: SimpleNamespace(id=1, max_entries=1))
        patch.setattr(flow_table.libbpf, "lookup_batch", found.lookup_batch)
        return FlowTable(source, state).snapshot()


@given(ENTRIES, st.integers(1, 4), st.sampled_from([FLOW_STATE, WATCHED_STATE]))
@settings(max_examples=60, deadline=None)
def test_what_came_late_is_in_it(entries: list[dict[str, int]], most: int, state: np.dtype[Any]) -> None:
    """Packets, octets and flags; and a record has a beginning."""
    found = snapshot(FakeMap(entries, most), state)
    assert found.keys["source_port"].tolist() == list(range(len(entries)))
    for row, entry in zip(found.states, entries, strict=True):
        expected = entry | {
            "packets": entry["packets"] + entry["late_packets"],
            "layer2_octets": entry["layer2_octets"] + entry["late_layer2_octets"],
            "tcp_control_bits": entry["tcp_control_bits"] | entry["late_tcp_control_bits"],
            "first_seen_mono_ns": entry["first_seen_mono_ns"] or entry["last_seen_mono_ns"],
        }
        assert {name: row[name] for name in state.names or ()} == {
            name: expected.get(name, 0) for name in state.names or ()
        }
