"""BPF programs to measure: the bench's own, and flowmon's as each tree's own loader makes them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from measure import BUILD, PROJECT, environment

from flowmon.kernel import libbpf

SOURCE = PROJECT / "bench" / "bench.bpf.c"
OBJECT = BUILD / "bench.bpf.o"
HOLDER = PROJECT / "bench" / "holder.py"
OWN_PROGRAMS = ("empty", "look_up", "learn", "walk", "advance")
OWN_MAPS = ("floor_flows", "walk_state", "target")
WALK_STATE = np.dtype([("step", "u8"), ("mask", "u4"), ("octets", "u4")])
FLOOR_FLOWS = 65536


def build() -> None:
    """Compiles the bench's own programs, if they are newer than what is there."""
    if OBJECT.exists() and OBJECT.stat().st_mtime > SOURCE.stat().st_mtime:
        return
    OBJECT.parent.mkdir(parents=True, exist_ok=True)
    headers = Path("/usr/include", f"{os.uname().machine}-linux-gnu")
    command = ["clang", "-O2", "-g", "-Wall", "-target", "bpf", "-mcpu=v3", f"-I{headers}", "-c", SOURCE]
    subprocess.run([*command, "-o", OBJECT], check=True)


class OwnPrograms:
    """bench.bpf.c, loaded for as long as the object lives. floor_flows: how many the floor's table holds."""

    def __init__(self, floor_flows: int = FLOOR_FLOWS) -> None:
        build()
        lib = libbpf.library()
        said: list[str] = []
        libbpf.set_print(said.append)
        opened = lib.bpf_object__open_file(os.fsencode(OBJECT), None)
        maps = {name: lib.bpf_object__find_map_by_name(opened, name.encode()) for name in OWN_MAPS}
        libbpf.check(lib.bpf_map__set_max_entries(maps["floor_flows"], floor_flows), "the floor's table")
        if lib.bpf_object__load(opened) < 0:
            sys.exit(
                f"a BPF program cannot be loaded: run as root ({said[-1] if said else 'no reason given'})"
            )
        self._maps = {name: os.dup(lib.bpf_map__fd(handle)) for name, handle in maps.items()}
        handles = {name: lib.bpf_object__find_program_by_name(opened, name.encode()) for name in OWN_PROGRAMS}
        self.programs = {name: os.dup(lib.bpf_program__fd(handle)) for name, handle in handles.items()}
        lib.bpf_object__close(opened)
        libbpf.set_print(None)

    def close(self) -> None:
        """The kernel frees it."""
        for fd in (*self._maps.values(), *self.programs.values()):
            os.close(fd)

    def walk(self, target: int, frame: bytes, flows: int, times: int, first: int = 0) -> float:
        """Nanoseconds a run of a program on a frame of IPv4 and TCP that is of another of `flows` each time.

        flows: a power of two, at most 2^32. first: the number of the first frame; a run that
        goes on where another ended meets the flows that follow. The walk itself is in the figure.
        """
        return self._go("walk", target, frame, times, (first, flows - 1, 0))

    def advance(self, target: int, frame: bytes, octets: int, times: int, first: int = 0) -> float:
        """The same, where each frame is the TCP segment that follows, of so many octets, over IPv4 or IPv6."""
        return self._go("advance", target, frame, times, (first, 0, octets))

    def _go(self, how: str, target: int, frame: bytes, times: int, state: tuple[int, int, int]) -> float:
        zero = np.zeros(1, "u4")
        libbpf.update(self._maps["target"], zero, np.array([target], "u4"))
        libbpf.update(self._maps["walk_state"], zero, np.array([state], WALK_STATE))
        took = libbpf.timed_run(self.programs[how], np.frombuffer(frame, "u1"), times)
        after = np.zeros(1, WALK_STATE)
        libbpf.lookup(self._maps["walk_state"], zero, after)
        if int(after["step"][0]) != state[0] + times:
            sys.exit(f"a measurement ({how}) was cut short")
        return took

    @contextmanager
    def pinned_empty(self, name: str) -> Iterator[Path]:
        """The empty program's place in bpffs, for tc; what is attached stays when it goes."""
        path = Path("/sys/fs/bpf") / name
        libbpf.pin(self.programs["empty"], path)
        try:
            yield path
        finally:
            path.unlink()


class Flowmon:
    """The program for ingress on Ethernet and its table, as the loader of a tree makes them."""

    def __init__(self, tree: Path, denied: int = 0, **options: Any) -> None:
        """denied: so many prefixes on the deny-list. options: as the holder takes them."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, HOLDER, str(theirs.fileno()), json.dumps(options | {"denied": denied})]
            started = subprocess.Popen(command, env=environment(tree), pass_fds=[theirs.fileno()])
            theirs.close()
            _, fds, _, _ = socket.recv_fds(ours, 16, 2)
        if started.wait() or len(fds) != 2:
            sys.exit(f"the programs of {tree} cannot be loaded")
        self.program, self.flows = fds

    def close(self) -> None:
        """The kernel frees it."""
        os.close(self.program)
        os.close(self.flows)

    def has_flows(self) -> bool:
        """Whether the program counted anything."""
        info = libbpf.map_info(self.flows)
        key = np.zeros(info.key_size, "u1")
        return libbpf.library().bpf_map_get_next_key(self.flows, None, key.ctypes.data) == 0


def nanoseconds(program: int, frame: bytes, times: int) -> float:
    """Of one run, the mean of many. The kernel gives whole nanoseconds."""
    return libbpf.timed_run(program, np.frombuffer(frame, "u1"), times)
