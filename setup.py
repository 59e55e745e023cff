"""Builds the BPF object and puts it, with its sources, inside the package."""

import shutil
import subprocess

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithObject(build_py):
    """Compiles kern/ first, where it is not compiled yet."""

    def run(self) -> None:
        """As build_py, with the objects of flowmon/kern made."""
        if shutil.which("clang") is None:
            raise SystemExit(
                "flowmon: clang is needed to build the BPF object: install clang, llvm and libbpf-dev"
            )
        subprocess.run(["make", "-C", "kern"], check=True)
        super().run()


setup(cmdclass={"build_py": BuildWithObject})
