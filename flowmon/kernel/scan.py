"""Asks the kernel which entries of the table belong to conversations that may be over.

Rules:
- The programs of kern/scan.bpf.c look and change nothing. They are this process's own
  and pinned nowhere.
- A conversation comes whole, with its entries of every point, while nothing is evicted.
- An entry that moves in the table while it is walked may be met twice; it is handed on once.
- Much that is due at once comes in slices, so that memory is bounded.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flowmon import abi
from flowmon.biflow import hash_rows
from flowmon.errors import KernelError
from flowmon.expiry import Timeouts
from flowmon.kernel import libbpf

Array = np.ndarray[Any, np.dtype[Any]]

OBJECT = Path(__file__).resolve().parent.parent / "kern" / "scan.bpf.o"
MARK_WORDS = 65536
LEAST_ROWS, MOST_ROWS = 1 << 14, 1 << 20
ROWS_SHARE = 0.75  # of the table's entries; it is seldom fuller, and what fits is walked once
FILLED = 0.9  # of the rows, by the due entries of a slice

_MAPS = ("scan_rows", "scan_marks", "scan_state")
_PROGRAMS = ("find", "fetch")


class Scan:
    """The two programs, on the table that is open as `flows`. Close it after use.

    Raises KernelError where they cannot be loaded.
    """

    def __init__(self, flows: int, max_flows: int) -> None:
        self._room = min(MOST_ROWS, max(LEAST_ROWS, int(max_flows * ROWS_SHARE)))
        said: list[str] = []
        libbpf.set_print(said.append)
        try:
            self._load(flows, said)
        except OSError as error:
            raise KernelError(f"{OBJECT} cannot be loaded: {error.strerror} ({error.filename})") from None
        finally:
            libbpf.set_print(None)
        self._state["seed"] = int.from_bytes(os.urandom(8))

    def _load(self, flows: int, said: list[str]) -> None:
        lib = libbpf.library()
        opened = lib.bpf_object__open_file(os.fsencode(OBJECT), None)
        if not opened:
            raise KernelError(f"{OBJECT} is not a BPF object that libbpf can open: build it (make object)")
        try:
            maps = {name: lib.bpf_object__find_map_by_name(opened, name.encode()) for name in _MAPS}
            table = lib.bpf_object__find_map_by_name(opened, b"flows")
            libbpf.check(lib.bpf_map__reuse_fd(table, flows), "flows")
            libbpf.check(lib.bpf_map__set_max_entries(maps["scan_rows"], self._room), "scan_rows")
            if lib.bpf_object__load(opened) < 0:
                reason = next((line for line in said if "fail" in line.lower()), "no reason given")
                raise KernelError(f"{OBJECT} cannot be loaded: {reason[:200]}")
            self._find, self._fetch = (
                os.dup(lib.bpf_program__fd(lib.bpf_object__find_program_by_name(opened, name.encode())))
                for name in _PROGRAMS
            )
            fds = {name: lib.bpf_map__fd(handle) for name, handle in maps.items()}
            self._rows = libbpf.into_memory(fds["scan_rows"], abi.SCAN_ROW, self._room)
            self._marks = libbpf.into_memory(fds["scan_marks"], np.dtype("u8"), MARK_WORDS)
            self._state = libbpf.into_memory(fds["scan_state"], abi.SCAN_STATE, 1)
        finally:
            lib.bpf_object__close(opened)

    def close(self) -> None:
        """Closes the programs: the kernel frees them and their maps."""
        os.close(self._find)
        os.close(self._fetch)

    def find(self, timeouts: Timeouts, now_mono_ns: int) -> np.void:
        """Marks what is due; SCAN_STATE, with the sums over all entries."""
        state = self._state
        state["now_mono_ns"] = now_mono_ns
        for name in ("idle_ns", "active_ns", "linger_ns"):
            state[name] = getattr(timeouts, name)
        for name in ("entries", "flows", "packets", "layer2_octets", "due_entries"):
            state[name] = 0
        self._marks[:] = 0
        libbpf.run_syscall_program(self._find)
        return state[0]

    def fetch(self) -> Iterator[Array]:
        """SCAN_ROW[n] of the marked conversations, in parts; each is good until the next is asked for."""
        due = int(self._state["due_entries"][0])
        number, slices = 0, math.ceil(due / (self._room * FILLED))
        while number < slices:
            rows = self._fetch_slice(number, slices)
            if rows is None:
                # Ends: a conversation has fewer points than there are rows.
                number, slices = 2 * number, 2 * slices
                continue
            number += 1
            if len(rows):
                yield _each_once(rows)

    def _fetch_slice(self, number: int, slices: int) -> Array | None:
        """None where it does not fit."""
        state = self._state
        state["slice"], state["slices"] = number, slices
        state["rows"] = state["overflow"] = 0
        libbpf.run_syscall_program(self._fetch)
        return None if state["overflow"][0] else self._rows[: int(state["rows"][0])]


def _each_once(rows: Array) -> Array:
    """The rows without those whose key came before."""
    words = abi.words(rows)[:, : abi.FLOW_KEY.itemsize // 8]  # the key comes first
    hashes = hash_rows(words, seed=0)
    in_order = np.sort(hashes)
    if not (in_order[1:] == in_order[:-1]).any():
        return rows
    _, first = np.unique(words, axis=0, return_index=True)
    return rows.take(np.sort(first))
