"""The programs' source as BCC wants it: one text, in BCC's dialect of C.

kern/compat.h holds the difference that macros can express. Two things are
edited here: our own includes are put in place, and map calls become methods,
which BCC refuses to take from a macro.
"""

import re
from pathlib import Path

_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)
_MAP_CALL = re.compile(r"\bmap_(lookup|insert|update|delete|call)\((\w+), ")


def bcc_source(main: Path) -> str:
    """The text of `main` (flowmon.bpf.c) for bcc.BPF(text=…), to be compiled with -DFLOWMON_BCC."""
    return _MAP_CALL.sub(r"\2.\1(", _flatten(main, set()))


def _flatten(path: Path, seen: set[str]) -> str:
    if path.name in seen:
        return ""
    seen.add(path.name)
    return _INCLUDE.sub(lambda match: _flatten(path.parent / match[1], seen), path.read_text())
