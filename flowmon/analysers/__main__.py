"""`python -m flowmon.analysers`: the tables of docs/analysers.md."""

from collections.abc import Iterator
from dataclasses import fields

from flowmon.analysers.parameters import KINDS


def markdown() -> str:
    """Every analyser, and what can be said of it."""
    lines = [
        "# Analysers",
        "",
        "Generated from `flowmon/analysers/` (`make docs`). `--analyse NAME` runs one of these beside the export, with",
        "the parameters below as they stand; `--analyse NAME:key=value,key=value` changes some; `--analyse all` runs",
        "every one. Times are in seconds, and of the packets: a capture that is replayed gives what it gave live.",
    ]
    for name in KINDS:
        lines += ["", *_section(name)]
    return "\n".join(lines) + "\n"


def _section(name: str) -> Iterator[str]:
    kind = KINDS[name]
    yield f"## {name}"
    yield ""
    yield (kind.analyser_class().__doc__ or "").partition("\n")[0]
    yield ""
    yield "| parameter | default | what it is |"
    yield "|---|---|---|"
    for one in fields(kind.parameters_class()):
        yield f"| `{one.name}` | `{one.default}` | {one.metadata['meaning']} |"


if __name__ == "__main__":
    print(markdown(), end="")
