"""The captures are what their scripts make, and the check of it can fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import make_all


def copied_case(directory: Path) -> Path:
    """A copy of one case in ``directory``; gives the copy's capture."""
    shutil.copytree(make_all.HERE / "tcp_reset", directory / "tcp_reset")
    return directory / "tcp_reset" / "tcp_reset.pcap"


@pytest.mark.parametrize("case", make_all.cases())
def test_capture_is_what_its_script_makes(case: str) -> None:
    content = make_all.made(case)
    capture = make_all.capture_path(case, content)
    assert capture.read_bytes() == content
    assert capture.stat().st_size < 20_000


def test_check_passes_what_is_unchanged(tmp_path: Path) -> None:
    copied_case(tmp_path)
    assert make_all.main(["--check"], tmp_path) == 0


def test_check_finds_one_changed_octet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture = copied_case(tmp_path)
    content = bytearray(capture.read_bytes())
    content[-1] ^= 1
    capture.write_bytes(content)
    assert make_all.main(["--check"], tmp_path) == 1
    assert "tcp_reset" in capsys.readouterr().err
    assert capture.read_bytes() == bytes(content)


def test_check_finds_a_missing_capture(tmp_path: Path) -> None:
    copied_case(tmp_path).unlink()
    assert make_all.main(["--check"], tmp_path) == 1


def test_remakes_a_missing_capture(tmp_path: Path) -> None:
    capture = copied_case(tmp_path)
    before = capture.read_bytes()
    capture.unlink()
    assert make_all.main(["tcp_reset"], tmp_path) == 0
    assert capture.read_bytes() == before


def test_unknown_case_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        make_all.main(["no_such_case"], tmp_path)
    assert stop.value.code == 2
