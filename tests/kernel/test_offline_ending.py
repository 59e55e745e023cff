"""`flowmon -r` leaves nothing behind, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowmon.kernel.pins import BPFFS
from kernel.offline import (
    FORMS,
    MIXED_RECORDS,
    command,
    flowmon,
    in_parquet,
)
from netns import wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("kernel")]


class Running:
    """A `flowmon -r` whose programs are loaded, in the middle of a capture."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        wait_for(self._has_programs, "the programs to be loaded")
        self.objects = self._objects()

    def _has_programs(self) -> bool:
        assert self.process.poll() is None, self.process.stderr.read()
        return any(kind == "prog_id" for kind, _ in self._objects())

    def _objects(self) -> set[tuple[str, int]]:
        """Programs and maps that the process holds, by their ids."""
        found = set()
        for info in Path(f"/proc/{self.process.pid}/fdinfo").iterdir():
            with contextlib.suppress(OSError):
                for line in info.read_text().splitlines():
                    if line.startswith(("prog_id:", "map_id:")):
                        kind, identifier = line.split(":")
                        found.add((kind, int(identifier)))
        return found

    def waits(self) -> bool:
        return "pipe_read" in Path(f"/proc/{self.process.pid}/wchan").read_text()

    def end(self, how: signal.Signals | None) -> None:
        """By a signal, or by the end of standard input."""
        if how is None:
            self.process.stdin.close()
        else:
            self.process.send_signal(how)
        said = self.process.stderr.read()
        self.process.wait(timeout=60)
        assert b"Traceback" not in said
        assert how is not None or self.process.returncode == 0

    def assert_gone(self) -> None:
        """Programs and maps leave with the last grace period, not with the process."""
        wait_for(lambda: not self.objects & loaded_objects(), "programs and maps to go")
        assert list(BPFFS.glob(f"*{self.process.pid}*")) == []


def loaded_objects() -> set[tuple[str, int]]:
    """All programs and maps of the kernel.

    By their numbers alone. Who opens them, as bpftool does, can keep them for ever: where the last descriptor of a map of
    programs closes a second time before the kernel has emptied it, Linux 6.18 loses count of its users.
    """
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    found = set()
    for kind in ("prog", "map"):
        identifier = ctypes.c_uint32(0)
        while getattr(lib, f"bpf_{kind}_get_next_id")(identifier, ctypes.byref(identifier)) == 0:
            found.add((f"{kind}_id", identifier.value))
    return found


@contextlib.contextmanager
def reading(*arguments: str | Path) -> Iterator[Running]:
    process = subprocess.Popen(command("-r", *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield Running(process)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def waiting(*arguments: str | Path) -> Iterator[Running]:
    """One that has read MIXED from standard input, and waits for more."""
    process = subprocess.Popen(
        command("-r", "-", *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        process.stdin.write(FORMS["little-endian-ns"])
        process.stdin.flush()
        running = Running(process)
        wait_for(running.waits, "it to wait for packets")
        yield running
    finally:
        process.kill()
        process.wait()


def temporary_files(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file() and path.suffix != ".parquet"]


@pytest.mark.parametrize("how", [None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_when_it_ends_while_it_waits_for_packets(how, tmp_path):
    with waiting("-d", tmp_path) as running:
        running.end(how)
    running.assert_gone()
    if how is not signal.SIGKILL:
        assert temporary_files(tmp_path) == []
    if how is None:
        assert in_parquet(tmp_path, "count(*)") == MIXED_RECORDS


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_when_it_ends_in_the_middle(how, tmp_path, many):
    capture = tmp_path / "long.pcap"
    content = many.path.read_bytes()
    capture.write_bytes(content + content[24:] * 9)
    with reading(capture, "-d", tmp_path / "records") as running:
        wait_for(lambda: temporary_files(tmp_path / "records"), "the reading to begin")
        running.end(how)
        assert running.process.returncode != 0
    running.assert_gone()
    if how is not signal.SIGKILL:
        assert temporary_files(tmp_path / "records") == []


def test_what_a_killed_one_left_is_removed_by_the_next(tmp_path, mixed):
    with waiting("-d", tmp_path) as running:
        wait_for(lambda: temporary_files(tmp_path), "the reading to begin")
        running.end(signal.SIGKILL)
    assert temporary_files(tmp_path) != []
    assert flowmon(mixed, "-d", tmp_path).returncode == 0
    assert temporary_files(tmp_path) == []


def test_nothing_stays_in_bpffs_when_it_is_ended_while_bcc_compiles(mixed):
    """BCC shares maps by their pins: those are there for as long as it compiles."""
    process = subprocess.Popen(
        command("-r", mixed, "--loader", "bcc"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: list(BPFFS.glob(f"flowmon-private-{process.pid}")), "BCC to begin")
        process.terminate()
        process.wait(timeout=60)
        assert list(BPFFS.glob(f"flowmon-private-{process.pid}")) == []
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(BPFFS / f"flowmon-private-{process.pid}", ignore_errors=True)
