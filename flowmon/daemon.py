"""The collector in the background: start it, find it, stop it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from flowmon.errors import KernelError, SinkError
from flowmon.kernel.pins import RUN_DIRECTORY, PinSet

START_SECONDS = 15.0
STOP_SECONDS = 60.0


def pid_file(pin_set: PinSet) -> Path:
    """Where the collector of this table leaves its process id."""
    return RUN_DIRECTORY / (str(pin_set.table_path).strip("/").replace("/", "-") + ".pid")


def running(pin_set: PinSet) -> int | None:
    """The process id of the collector in the background, or None."""
    try:
        process = int(pid_file(pin_set).read_text())
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return process if os.fsencode(pid_file(pin_set)) in command else None


def check_log(log_file: Path) -> None:
    """Raises SinkError where the log cannot be written."""
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_file.open("ab").close()
    except OSError as error:
        raise SinkError(
            f"{log_file} cannot be written ({error.strerror}): give another log file (-l)"
        ) from None


def start(pin_set: PinSet, arguments: list[str], log_file: Path) -> int:
    """Runs `flowmon ARGUMENTS` in the background, logging to a file; its process id.

    Returns when it collects. Raises KernelError with what it said where it ends before that.
    """
    pid_file(pin_set).unlink(missing_ok=True)
    check_log(log_file)
    with log_file.open("ab") as log:
        place = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "flowmon", *arguments, "--pid-file", str(pid_file(pin_set))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if pid_file(pin_set).exists():
            return process.pid
        if process.poll() is not None:
            break
        time.sleep(0.02)
    else:
        process.terminate()
    said = log_file.read_bytes()[place:].decode(errors="replace").strip().splitlines()
    raise KernelError(f"the collector did not start: {said[-1] if said else 'it said nothing'}")


def stop(pin_set: PinSet) -> bool:
    """Ends the collector in the background after its last pass; False where none runs."""
    process = running(pin_set)
    if process is None:
        pid_file(pin_set).unlink(missing_ok=True)
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _is_alive(process):
        if time.monotonic() > deadline:
            raise KernelError(f"the collector (process {process}) does not end: see its log, or kill it")
        time.sleep(0.02)
    return True


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
