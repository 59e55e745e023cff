"""What a user reads where flowmon refuses."""

from __future__ import annotations

import subprocess


def assert_refused(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One line on standard error with these words, the exit status, and nothing on standard output."""
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("flowmon: ")
    for word in words:
        assert word in line
    assert done.stdout == ""
