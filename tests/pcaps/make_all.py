"""Remake the captures under this directory, or with ``--check`` say which differ from what their scripts make.

    python tests/pcaps/make_all.py [--check] [CASE ...]

A case is a directory with ``make.py`` (its ``frames()`` gives the packets, or its ``capture()`` the whole file), ``<case>.pcap``
or ``<case>.pcapng``, and ``expected.json``.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))  # so that this file, and every make.py, finds craft from wherever it is run

from craft import pcap  # noqa: E402  (needs the line above)

PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"


def cases(directory: Path = HERE) -> list[str]:
    """The names of all cases, sorted."""
    return sorted(script.parent.name for script in directory.glob("*/make.py"))


def made(case: str, directory: Path = HERE) -> bytes:
    """The capture that a case's script makes now."""
    script = runpy.run_path(str(directory / case / "make.py"))
    content: bytes = script["capture"]() if "capture" in script else pcap(script["frames"]())
    return content


def capture_path(case: str, content: bytes, directory: Path = HERE) -> Path:
    """Where the capture of a case is kept; its name ends as its content is."""
    suffix = "pcapng" if content[:4] == PCAPNG_MAGIC else "pcap"
    return directory / case / f"{case}.{suffix}"


def differing(names: list[str], directory: Path = HERE) -> list[str]:
    """Those of the cases whose stored capture is missing or not what its script makes."""
    return [case for case in names if not _is_stored(case, made(case, directory), directory)]


def _is_stored(case: str, content: bytes, directory: Path) -> bool:
    capture = capture_path(case, content, directory)
    return capture.exists() and capture.read_bytes() == content


def main(arguments: list[str] | None = None, directory: Path = HERE) -> int:
    parser = argparse.ArgumentParser(
        description="Remake the captures, or check that they are what their scripts make."
    )
    parser.add_argument("case", nargs="*", help="only these (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a capture differs")
    options = parser.parse_args(arguments)
    names = options.case or cases(directory)
    if unknown := sorted(set(names) - set(cases(directory))):
        parser.error(f"no such case: {', '.join(unknown)}")
    if options.check:
        different = differing(names, directory)
        for case in different:
            print(f"{case}: the capture is not what make.py makes; run make_all.py {case}", file=sys.stderr)
        return 1 if different else 0
    for case in names:
        content = made(case, directory)
        capture_path(case, content, directory).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
