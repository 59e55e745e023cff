"""The default observationDomainId."""

import zlib
from pathlib import Path

import pytest

from flowmon import domain


def domain_id(monkeypatch: pytest.MonkeyPatch, machine_id: Path) -> int:
    monkeypatch.setattr(domain, "MACHINE_ID", machine_id)
    return domain.default_observation_domain_id()


def test_is_of_the_machine_and_stable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in "abc")
    one.write_text("0123456789abcdef0123456789abcdef\n")
    same.write_text("0123456789abcdef0123456789abcdef")
    other.write_text("0123456789abcdef0123456789abcdee\n")
    found = domain_id(monkeypatch, one)
    assert found == domain_id(monkeypatch, same) == zlib.crc32(b"0123456789abcdef0123456789abcdef")
    assert found != domain_id(monkeypatch, other)


def test_is_of_the_host_name_where_the_machine_has_no_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host_name = Path("/proc/sys/kernel/hostname").read_text().strip()
    (tmp_path / "empty").write_text("\n")
    for machine_id in (tmp_path / "empty", tmp_path / "absent"):
        assert domain_id(monkeypatch, machine_id) == (zlib.crc32(host_name.encode()) or 1)


def test_is_never_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "id").write_text("any")
    monkeypatch.setattr(domain.zlib, "crc32", lambda _: 0)
    assert domain_id(monkeypatch, tmp_path / "id") == 1
