"""Fixtures for tests that need the kernel: they really run, or fail where they must not be skipped."""

import itertools
import os
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import settings

from flowmon.kernel.pins import BPFFS, PinSet, mount_bpffs
from netns import Pair, make_pair

# How long one example takes says something of the machine, not of the code.
settings.register_profile("flowmon", deadline=None)
settings.load_profile("flowmon")

REQUIRED = os.environ.get("FLOWMON_REQUIRE_KERNEL") == "1"

_numbers = itertools.count()


def _unavailable(reason: str) -> None:
    if REQUIRED:
        pytest.fail(f"FLOWMON_REQUIRE_KERNEL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def kernel() -> None:
    """Root, and bpffs mounted."""
    if os.geteuid() != 0:
        _unavailable("kernel tests need root")
    mount_bpffs()


@pytest.fixture
def pin_set(kernel: None) -> Iterator[PinSet]:
    """A pin set of this test's own; whatever is left of it goes at the end."""
    chosen = PinSet(BPFFS / f"flowmon-test-{os.getpid()}-{next(_numbers)}")
    yield chosen
    chosen.remove()
    assert not chosen.directory.exists()


@pytest.fixture
def pair(kernel: None) -> Iterator[Pair]:
    """Two network namespaces joined by a veth pair, with addresses of both versions."""
    with make_pair(f"flowmon-{os.getpid()}-{next(_numbers)}") as made:
        yield made


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """After the tests, namespaces, links and bpffs are as before."""

    def traces() -> list[str]:
        namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
        links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=False)
        names = [line.split()[0] for line in (namespaces.stdout + links.stdout).splitlines()]
        pins = [str(path) for path in BPFFS.glob("*flowmon*")] if os.geteuid() == 0 else []
        return sorted(pins + [name for name in names if "flowmon" in name])

    before = traces()
    yield
    assert traces() == before
