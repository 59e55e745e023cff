"""What every part of the bench gives, and what is made of it: rows, ratios, targets, the table, JSON.

Rules:
- Contenders of a row are measured in turn, round by round, and each round begins with another of
  them: what else the machine does meets all of them.
- A ratio is of two values of one round. What stands in the table is the median of the rounds'
  ratios, with the least and the most.
- A row's first contender is what is measured; the others are what it is compared with.
- All values of all rounds go into the JSON.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PROJECT = Path(__file__).resolve().parent.parent
BUILD = PROJECT / "build" / "bench"
FLOWMON, BEFORE = "flowmon", "before"  # contenders: this tree, and another commit's
PACKAGES = ("numpy", "pyarrow", "pyroute2", "click")


@dataclass(frozen=True)
class Target:
    """A bound of a row's first contender: of its median, or of its ratio to `over`."""

    bound: float
    is_most: bool  # at most; else at least
    over: str = ""

    def is_reached(self, value: float) -> bool:
        """Whether the value, or ratio, keeps to the bound."""
        return value <= self.bound if self.is_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.is_most else '≥'} {_number(self.bound)}"


def at_most(bound: float, over: str = "") -> Target:
    """A bound from above."""
    return Target(bound, True, over)


def at_least(bound: float, over: str = "") -> Target:
    """A bound from below."""
    return Target(bound, False, over)


@dataclass(frozen=True)
class Row:
    """One thing measured, of one size.

    values: of each contender by round, in step. less: a contender that is subtracted from the
    others, round by round, before anything else is made of them.
    """

    part: str
    name: str
    size: str
    unit: str
    values: dict[str, list[float]]
    less: str = ""
    targets: tuple[Target, ...] = ()

    def shown(self) -> dict[str, list[float]]:
        """By contender, what the table is made from: the values, less what is subtracted."""
        if not self.less:
            return self.values
        base = self.values[self.less]
        return {
            name: [value - nothing for value, nothing in zip(values, base, strict=True)]
            for name, values in self.values.items()
            if name != self.less
        }

    @property
    def subject(self) -> str:
        """The contender that is measured."""
        return next(iter(self.shown()))

    def ratios(self, other: str) -> list[float]:
        """The first contender over another, round by round."""
        shown = self.shown()
        return [
            one / two if two else float("nan")
            for one, two in zip(shown[self.subject], shown[other], strict=True)
        ]

    def of(self, target: Target) -> float:
        """What is held against a target."""
        return statistics.median(self.ratios(target.over) if target.over else self.shown()[self.subject])


@dataclass
class Bench:
    """What the parts are told, and where they say what is no figure.

    rounds: None leaves it to each part. trees: flowmon's by contender. scratch: a directory on a disk.
    """

    scratch: Path
    rounds: int | None = None
    trees: dict[str, Path] = field(default_factory=lambda: {FLOWMON: PROJECT})
    notes: list[str] = field(default_factory=list)

    def rounds_or(self, default: int) -> int:
        """As many as were asked for, or as the part takes by default."""
        return self.rounds or default

    def note(self, text: str) -> None:
        """Something to be said below the table, once."""
        if text not in self.notes:
            self.notes.append(text)


def environment(tree: Path) -> dict[str, str]:
    """For a Python that is to import the flowmon of a tree."""
    return {**os.environ, "PYTHONPATH": str(tree)}


def alternate(contenders: dict[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each gave in each round, in the contenders' order."""
    found: dict[str, list[T]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(contenders[name]())
    return found


def column(found: dict[str, list[dict[str, float]]], name: str) -> dict[str, list[float]]:
    """One of several figures that each round gave."""
    return {contender: [figures[name] for figures in rounds] for contender, rounds in found.items()}


WIDTHS = "{:<39}{:<21}{:<15}{:>11}{:>11}{:>11}  {:<10}{:>8} {:<13} {:<10}{}"
HEADINGS = ("", "size", "", "median", "least", "most", "unit", "ratio", "its spread", "target", "")


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table: one a contender, each ratio is that of the row's first to this one."""
    part = ""
    for row in rows:
        if row.part != part:
            part = row.part
            yield ""
            yield WIDTHS.format(part, *HEADINGS[1:]).rstrip()
        yield from _lines(row)


def _lines(row: Row) -> Iterator[str]:
    for name, values in row.shown().items():
        is_subject = name == row.subject
        head = (f"  {row.name}", row.size) if is_subject else ("", "")
        figures = [_number(figure) for figure in (statistics.median(values), min(values), max(values))]
        ratio = spread = ""
        if not is_subject:
            ratios = row.ratios(name)
            ratio = f"{statistics.median(ratios):.3f}"
            spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        targets = [target for target in row.targets if (target.over or row.subject) == name]
        bounds = ", ".join(map(str, targets))
        said = (
            "" if not targets else "reached" if all(_reached(row, one) for one in targets) else "NOT reached"
        )
        yield WIDTHS.format(*head, name, *figures, row.unit, ratio, spread, bounds, said).rstrip()


def _reached(row: Row, target: Target) -> bool:
    return target.is_reached(row.of(target))


def verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """The targets, each reached or not."""
    for row in rows:
        for target in row.targets:
            what = " ".join(filter(None, (row.part + ":", row.name, row.size)))
            value = f"{_number(row.of(target))} {f'times {target.over}' if target.over else row.unit}"
            said = "reached" if _reached(row, target) else "NOT reached"
            yield f"  {said:<13}{what}: {value}, target {target}"


def _number(value: float) -> str:
    """With as many digits as say something."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def as_json(rows: Sequence[Row], bench: Bench, started: datetime) -> str:
    """All of it."""
    content = {
        "machine": machine(),
        "commit": _commit(),
        "date": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
        "trees": {name: str(tree) for name, tree in bench.trees.items() if name != FLOWMON},
        "notes": bench.notes,
        "rows": [_row_as_json(row) for row in rows],
    }
    return json.dumps(content, indent=1)


def _row_as_json(row: Row) -> dict[str, Any]:
    shown = row.shown()
    return {
        "part": row.part,
        "name": row.name,
        "size": row.size,
        "unit": row.unit,
        "less": row.less,
        "values": row.values,
        "figures": {name: _figures(values) for name, values in shown.items()},
        "ratios": {name: _figures(row.ratios(name)) for name in shown if name != row.subject},
        "targets": [
            {
                "target": str(one),
                "over": one.over,
                "value": _finite(row.of(one)),
                "reached": _reached(row, one),
            }
            for one in row.targets
        ],
    }


def _figures(values: list[float]) -> dict[str, float | None]:
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: _finite(value) for name, value in found.items()}


def _finite(value: float) -> float | None:
    """JSON has no word for the others."""
    return value if math.isfinite(value) else None


def machine() -> dict[str, Any]:
    """What the figures are of."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _commit() -> str:
    """The commit that is checked out, and whether the tree differs from it."""
    said = subprocess.run(
        ["git", "-C", PROJECT, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
    )
    return said.stdout.strip()
