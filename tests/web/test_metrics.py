"""The metrics: lawful in both formats, of one View, and counters that never fall."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from flowmon.web import metrics
from flowmon.web.metrics import KEPT_S, OPENMETRICS, PLAIN, Expositions, accepted_format
from flowmon.web.view import Board, Point, View
from view_samples import books, empty, full

VIEWS = {"none": None, "empty": empty(), "full": full()}


def board(view: View | None) -> Board:
    made = Board()
    if view is not None:
        made.post(view)
    return made


def scraped(on: Board, accept: str = "") -> str:
    return Expositions(on).exposition(accept)[0].decode()


def values(text: str) -> dict[tuple[str, frozenset[Any]], float]:
    """By name and labels; no sample may be there twice."""
    found: dict[tuple[str, frozenset[Any]], float] = {}
    for family in parse_text(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    return values(text)[name, frozenset(labels.items())]


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_promtool_has_nothing_to_say(view: View | None) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=scraped(board(view)), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_both_formats_say_the_same(view: View | None) -> None:
    on = board(view)
    openmetrics = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_openmetrics(scraped(on, OPENMETRICS))
        for sample in family.samples
    }
    text = values(scraped(on))
    assert openmetrics.keys() == text.keys()
    moving = "process_"
    assert all(openmetrics[key] == text[key] for key in text if not key[0].startswith(moving))


def test_the_names_that_stand_as_they_are() -> None:
    lines = scraped(board(full())).splitlines()
    assert "network_new_connections_count 71.0" in lines
    assert 'active_users{ip="ipv4",port="443",proto="tcp"} 81.0' in lines
    assert 'active_users{ip="ipv6",port="53",proto="udp"} 82.0' in lines
    assert 'active_users{ip="ipv4",port="0",proto="47"} 83.0' in lines


def test_every_number_of_the_view_is_there() -> None:
    view = full()
    shown = set(values(scraped(board(view))).values())
    numbers = {v for v in vars(view.books).values() if isinstance(v, int)}
    numbers |= {*view.books.ignored_packets.values(), *view.books.ignored_octets.values(), *range(101, 105)}
    numbers |= {7, 70, 700, *range(11, 16), *range(21, 26), 31, 32, 33, 41, *range(51, 56), 61, 62, 63, 71}
    numbers |= {81, 82, 83, *range(91, 97), view.records, view.packets, view.duplicate_packets}
    numbers |= {view.unwritten_records, view.max_flows, view.at_ns / 1e9, view.started_at_ns / 1e9}
    assert numbers <= shown


def test_an_interface_that_was_made_anew_is_one() -> None:
    points = (Point("tap0", "ingress", 1, 2, 3, 4, 5), Point("tap0", "ingress", 10, 20, 30, 40, 50))
    text = scraped(board(empty(points=points)))
    assert value(text, "flowmon_interface_seen_packets_total", interface="tap0", direction="ingress") == 11
    assert value(text, "flowmon_interface_dropped_packets_total", interface="tap0", direction="ingress") == 55


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 3), min_size=1, max_size=8))
def test_evictions_never_fall(readings: list[tuple[int, int, int]]) -> None:
    on = Board()
    highest = 0
    for inserted, taken, resident in readings:
        on.post(empty(books=books(flows_inserted=inserted, taken_flows=taken, resident_flows=resident)))
        highest = max(highest, inserted - taken - resident)
        assert on.latest.evicted.flows == highest
    (evicted,) = [line for line in scraped(on).splitlines() if line.startswith("flowmon_evicted_flows_total")]
    assert float(evicted.split()[1]) == highest


def test_what_is_off_is_not_there() -> None:
    names = {name for name, _ in values(scraped(board(empty())))}
    assert not [name for name in names if name.startswith(("flowmon_deny", "flowmon_guard", "active_users"))]
    assert "network_new_connections_count" in names


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("application/openmetrics-text", OPENMETRICS),
        # Prometheus 2.42, and 3.
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,*/*;q=0.1", OPENMETRICS),
        ("text/plain;version=0.0.4,application/openmetrics-text;version=0.0.1", PLAIN),
        ("application/openmetrics-text;version=abc", PLAIN),
        ("text/plain;version=x.y;escaping=values", PLAIN),
        (";,;=,version=", PLAIN),
    ],
)
def test_the_format_is_one_of_two_whatever_is_accepted(accept: str, expected: str) -> None:
    assert accepted_format(accept) == expected
    assert Expositions(board(full())).exposition(accept)[1].startswith(expected)


def test_who_asks_at_the_same_time_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    encode = metrics.choose_encoder(PLAIN)[0]
    monkeypatch.setattr(metrics, "choose_encoder", lambda _: (lambda of: made.append(1) or encode(of), ""))
    now_s = [0.0]
    on = Board(lambda: now_s[0])
    expositions = Expositions(on)
    for at_s, does_post, expected in (
        (1, True, 1),
        (1.5, False, 1),
        (1.6, True, 2),
        (1.6 + 2 * KEPT_S, False, 3),
    ):
        now_s[0] = at_s
        if does_post:
            on.post(full())
        expositions.exposition("")
        expositions.exposition("")
        assert len(made) == expected
