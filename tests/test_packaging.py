"""`pip install .` gives a flowmon with its objects inside."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_wheel_holds_the_objects_and_their_sources(tmp_path):
    copy = tmp_path / "source"
    shutil.copytree(
        ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".venv", ".git", "*.o", "demo-flows", "build", "*.egg-info")
    )  # fmt: skip
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, copy]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("flowmon-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if name.startswith("flowmon/kern/")} == {
        f"flowmon/kern/{path.name}" for path in (ROOT / "kern").iterdir() if path.suffix in (".c", ".h")
    } | {"flowmon/kern/flowmon.bpf.o", "flowmon/kern/scan.bpf.o"}
    assert not any(name.startswith("tests/") for name in names)
