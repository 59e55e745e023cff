"""How good the detectors are: seeded scenarios through `flowmon -r`, and scores against their truth.

For each scenario its capture is written, read once, and shown to every detector at its default and at other
thresholds. What is printed is Markdown, for docs/detection.md.

    bench/detection.py [--scenarios N] [--first-seed N] [--quick] [--json FILE] [--figure FILE.svg]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from detection_scores import AGAIN, BENIGN, HARD, OTHER, Said, Score, score
from scenario_truth import FANOUT, SYN_RATE, WALK
from scenarios import scenario, write_pcap

from flowmon.analysers import Analyser
from flowmon.analysers.activity import Activity
from flowmon.analysers.alerts import Alert
from flowmon.analysers.parameters import KINDS
from flowmon.blocker import BlockOptions
from flowmon.collector import CollectorOptions
from flowmon.kernel.loader import LoadOptions
from flowmon.offline import read_capture
from flowmon.outputs import Watching
from flowmon.sinks import Metering, SinkState

QUICK_SCENARIOS = 20
DEFAULT = "default"

# By detector the thresholds of its curve: what is printed, and the parameters that differ from the default.
Settings = Mapping[str, Mapping[str, Any]]
SWEPT: Mapping[str, Settings] = {
    FANOUT: {
        f"{ports} ports, {hosts} hosts": {"ports": ports, "hosts": hosts}
        for ports, hosts in ((4, 5), (8, 10), (12, 15), (16, 20), (30, 38), (50, 60), (100, 120))
    }
    | {f"a share of {ratio}": {"ratio": ratio} for ratio in (0.02, 0.05, 0.1, 0.25, 0.75, 0.9)},
    WALK: {
        # (1 - alpha) / alpha is a little less than so many steps of 4, of 0.8 and 0.2.
        f"{failures} failures": {"alpha": 4.0**-failures, "beta": 1 - 4.0**-failures}
        for failures in (1, 2, 3, 4, 5, 6, 8, 10)
    },
    SYN_RATE: {
        f"{least} a second": {"minimum": float(least), "threshold": 10.0 * least}
        for least in (5, 10, 25, 50, 200, 400, 800)
    },
}


def run_detectors(pcap: Path, analysers: Sequence[Analyser]) -> list[Alert]:
    """What the analysers say of a capture, read as `flowmon -r` reads it."""
    kept = _Kept()
    watching = Watching(
        list(analysers), [kept], BlockOptions(), None, is_listening_asked=False, serve_ip_list=False
    )
    read_capture(str(pcap), lambda: [_Nowhere()], LoadOptions(), None, CollectorOptions(), watching)
    return kept.alerts


class _Kept:
    """An alert sink."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []

    def write(self, alerts: list[Alert]) -> None:
        self.alerts += alerts

    def close(self) -> None:
        pass


class _Nowhere:
    """A sink for records that nobody wants."""

    def reserve(self, rows: int) -> None:
        pass

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        pass

    def report(self, metering: Metering) -> None:
        pass

    def state(self) -> SinkState:
        return SinkState("nowhere", "none")

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Variant:
    """A detector with some parameters other than its defaults."""

    detector: str
    label: str
    parameters: Mapping[str, Any]

    def analyser(self) -> Analyser:
        """A new one."""
        kind = KINDS[self.detector]
        analyser: Analyser = kind.analyser_class()(replace(kind.parameters_class()(), **self.parameters))
        return analyser


class Recorder:
    """An analyser that notes when it said what."""

    def __init__(self, analyser: Analyser) -> None:
        self.name = analyser.name
        self.said: list[Said] = []
        self._analyser = analyser

    def observe(self, activity: Activity) -> None:
        """As the analyser does."""
        self._analyser.observe(activity)

    def assess(self, now_ns: int) -> list[Alert]:
        """As the analyser does."""
        return self._noted(now_ns, self._analyser.assess(now_ns))

    def finish(self, now_ns: int) -> list[Alert]:
        """As the analyser does."""
        return self._noted(now_ns, self._analyser.finish(now_ns))

    def gauges(self) -> Mapping[str, int]:
        """As the analyser does."""
        return self._analyser.gauges()

    def _noted(self, now_ns: int, alerts: list[Alert]) -> list[Alert]:
        self.said += [Said(now_ns, alert) for alert in alerts]
        return alerts


def variants(*, quick: bool) -> list[Variant]:
    """Each detector by default and, unless quick, at its other thresholds."""
    found = []
    for detector, settings in SWEPT.items():
        found.append(Variant(detector, DEFAULT, {}))
        found += [Variant(detector, label, chosen) for label, chosen in settings.items() if not quick]
    return found


def evaluate(seeds: Sequence[int], chosen: Sequence[Variant]) -> dict[tuple[str, str], Score]:
    """The scores over the scenarios of those seeds, by detector and label."""
    totals = {(one.detector, one.label): Score() for one in chosen}
    with tempfile.TemporaryDirectory() as directory:
        for seed in seeds:
            truth = scenario(seed)
            capture = Path(directory) / "scenario.pcap"
            write_pcap(truth, capture)
            recorders = [Recorder(one.analyser()) for one in chosen]
            run_detectors(capture, recorders)
            for one, recorder in zip(chosen, recorders, strict=True):
                totals[one.detector, one.label] += score(one.detector, recorder.said, truth)
            if sys.stderr.isatty():
                print(f"\r{seed}", end="", file=sys.stderr, flush=True)
    return totals


def markdown(totals: Mapping[tuple[str, str], Score]) -> Iterator[str]:
    """Lines: the detectors by default, by kind of attack, and at other thresholds."""
    defaults = {detector: one for (detector, label), one in totals.items() if label == DEFAULT}
    yield from _table(
        ["detector", "attacks", "found", "recall", "alerts", "again", "precision", "with hard", "wrong: benign",
         "hard", "other", "would block: benign", "hard", "to detection, s", "95 %", "efficiency", "effectiveness"],
        [[detector, *_default_row(one)] for detector, one in defaults.items()],
    )  # fmt: skip
    yield ""
    kinds = sorted({kind for one in defaults.values() for kind in one.expected})
    rows = [
        [kind, *(f"{one.found[kind]} of {one.expected[kind]}" if one.expected[kind] else "" for one in defaults.values())]
        for kind in kinds
    ]  # fmt: skip
    yield from _table(["found, by kind", *defaults], rows)
    yield ""
    curves = [[*name, *_curve_row(one)] for name, one in totals.items()]
    yield from _table(["detector", "threshold", "recall", "hosts accused", "with hard", "precision"], curves)


def _default_row(one: Score) -> list[str]:
    median, late = one.delay_s or (None, None)
    return [
        str(one.expected.total()),
        str(one.found.total()),
        _percent(one.recall),
        str(one.events.total()),
        str(one.events[AGAIN]),
        _percent(one.precision),
        _percent(one.precision_with_hard),
        *(str(one.events[verdict]) for verdict in (BENIGN, HARD, OTHER)),
        str(one.blocked),
        str(one.hard_blocked),
        *("–" if value is None else f"{value:.1f}" for value in (median, late)),
        *("–" if value is None else f"{value:.3f}" for value in (one.efficiency, one.effectiveness)),
    ]


def _curve_row(one: Score) -> list[str]:
    rates = one.false_positive_rate, one.false_positive_rate_with_hard
    return [_percent(one.recall), *(_percent(rate, 3) for rate in rates), _percent(one.precision)]


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def as_json(totals: Mapping[tuple[str, str], Score]) -> list[dict[str, Any]]:
    """One object a variant."""
    shares = ("recall", "precision", "precision_with_hard", "efficiency", "effectiveness", "false_positive_rate",
              "false_positive_rate_with_hard")  # fmt: skip
    return [
        {
            "detector": detector,
            "threshold": label,
            **vars(one),
            **{name: getattr(one, name) for name in shares},
        }
        for (detector, label), one in totals.items()
    ]


def draw(totals: Mapping[tuple[str, str], Score], path: Path) -> None:
    """The curves, where matplotlib is installed."""
    try:
        from matplotlib import pyplot
    except ImportError:
        sys.exit("--figure needs matplotlib: pip install matplotlib")
    curves = defaultdict(list)
    for (detector, _), one in totals.items():
        if one.recall is not None and one.false_positive_rate is not None:
            curves[detector].append((one.false_positive_rate, one.recall))
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for detector, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=detector)
    axes.set(xlabel="ordinary hosts accused", ylabel="attacks found", ylim=(0, 1.02))
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    """Evaluates and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenarios", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SCENARIOS} scenarios, default thresholds only"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="curves as .png or .svg; needs matplotlib"
    )
    options = parser.parse_args()
    count = min(options.scenarios, QUICK_SCENARIOS) if options.quick else options.scenarios
    begun = time.perf_counter()
    seeds = range(options.first_seed, options.first_seed + count)
    totals = evaluate(seeds, variants(quick=options.quick))
    print("\n".join(markdown(totals)))
    print(f"\nSeeds {seeds[0]} to {seeds[-1]}, {time.perf_counter() - begun:.0f} s.")
    if options.json:
        options.json.write_text(json.dumps(as_json(totals), indent=1) + "\n")
    if options.figure:
        draw(totals, options.figure)


if __name__ == "__main__":
    main()
