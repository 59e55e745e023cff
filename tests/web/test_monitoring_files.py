"""The dashboard and the alert rules: of metrics that exist, and rules that fire when they shall and only then."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowmon.web.metrics import Expositions
from flowmon.web.view import Board
from view_samples import full

MONITORING = Path(__file__).parent.parent.parent / "monitoring"
RULES = MONITORING / "prometheus-alerts.yml"
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
NAME = re.compile(r"\b(?:flowmon|network|active|process)_[a-z_]+")
OF_PROMETHEUS = {"le", "instance", "job"}


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """The labels of each metric, by its name, of a View in which everything has a value."""
    board = Board()
    board.post(full())
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(Expositions(board).exposition("")[0].decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def targets() -> Iterator[tuple[str, str]]:
    """Expression and legend of each line in the dashboard."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"], target["legendFormat"]


def promtool(*arguments: str | Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_name_is_a_metric(labels: dict[str, set[str]]) -> None:
    expressions = [expression for expression, _ in targets()]
    queries = [variable.get("query") for variable in DASHBOARD["templating"]["list"]]
    said = json.dumps([expressions, queries]) + RULES.read_text()
    assert set(NAME.findall(said)) <= labels.keys()
    assert len(set(NAME.findall(said))) > 30


@pytest.mark.parametrize(("expression", "legend"), list(targets()))
def test_every_label_is_one_of_the_metric(labels: dict[str, set[str]], expression: str, legend: str) -> None:
    known = set.union(OF_PROMETHEUS, *(labels[name] for name in NAME.findall(expression)))
    grouped = re.findall(r"by \(([^)]*)\)", expression)
    used = {label.strip() for group in grouped for label in group.split(",")}
    used |= set(re.findall(r"{{(\w+)}}", legend)) | set(re.findall(r"(\w+)(?:=~|!=|=)\"", expression))
    assert used <= known


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_panel_asks_the_chosen_data_source() -> None:
    for panel in DASHBOARD["panels"]:
        for source in [panel, *panel.get("targets", [])]:
            assert source.get("datasource", {}).get("uid", "${datasource}") == "${datasource}"


def test_every_expression_of_the_dashboard_can_be_read(tmp_path: Path) -> None:
    expressions = {expression.replace("$__rate_interval", "5m") for expression, _ in targets()}
    rules = [{"record": f"panel:{n}", "expr": one} for n, one in enumerate(sorted(expressions))]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", path)


def test_the_rules_can_be_read() -> None:
    promtool("check", "rules", "--lint-fatal", RULES)


HEALTHY = {
    'up{job="flowmon"}': "1x40",
    "flowmon_view_timestamp_seconds": "0+60x40",
    "flowmon_table_occupancy_ratio": "0.7x40",
    "flowmon_evicted_flows_total": "5x40",
    "flowmon_seen_packets_total": "0+60000x40",
    'flowmon_ignored_packets_total{reason="not_ip"}': "0+30000x40",
    'flowmon_ignored_packets_total{reason="truncated"}': "0+100x40",
    'flowmon_ignored_packets_total{reason="table_full"}': "0+100x40",
    "flowmon_writing_refused": "0x40",
    "flowmon_unwritten_records": "0x40",
    'flowmon_sink_connected{sink="a"}': "1x40",
    'flowmon_sink_waiting_records{sink="a"}': "0+500x15 8000-500x24",
    'flowmon_sink_waiting_records{sink="high"}': "50000-10x40",
    'flowmon_sink_waiting_records{sink="low"}': "0+50x40",
    'flowmon_sink_lost_records_total{sink="a"}': "7x40",
    'flowmon_alerts_going_on{detector="syn-rate", kind="syn-flood"}': "0x40",
    "flowmon_guard_blocked_sources": "0x40",
}
# What is other than healthy, and the alerts that fire after half an hour.
CASES: dict[str, tuple[dict[str, str], str]] = {
    "healthy": ({}, ""),
    "filling": ({"flowmon_table_occupancy_ratio": "0.81x40"}, "FlowmonTableFilling"),
    "evicted": ({"flowmon_evicted_flows_total": "5x27 9x12"}, "FlowmonFlowsEvicted"),
    "evicted long ago": ({"flowmon_evicted_flows_total": "5x10 9x30"}, ""),
    "ignored": (
        {'flowmon_ignored_packets_total{reason="table_full"}': "0+700x40"},
        "FlowmonPacketsIgnored",
    ),
    "down": ({'up{job="flowmon"}': "0x40"}, "FlowmonDown"),
    "silent": ({"flowmon_view_timestamp_seconds": "0+60x20 1200x20"}, "FlowmonCollectorSilent"),
    "refused": ({"flowmon_writing_refused": "1x40"}, "FlowmonWritingRefused"),
    "unwritten": ({"flowmon_unwritten_records": "3x40"}, "FlowmonWritingRefused"),
    "away": ({'flowmon_sink_connected{sink="a"}': "0x40"}, "FlowmonSinkAway"),
    "growing": ({'flowmon_sink_waiting_records{sink="a"}': "0+1000x40"}, "FlowmonSinkQueueGrowing"),
    "lost": ({'flowmon_sink_lost_records_total{sink="a"}': "7+1x40"}, "FlowmonSinkRecordsLost"),
    "flood": (
        {'flowmon_alerts_going_on{detector="syn-rate", kind="syn-flood"}': "0x29 2x10"},
        "FlowmonSynFlood",
    ),
    "scan": (
        {'flowmon_alerts_going_on{detector="port-fanout", kind="vertical"}': "0x29 1x10"},
        "FlowmonScan",
    ),
    "guard": ({"flowmon_guard_blocked_sources": "0x25 4x14"}, "FlowmonGuardBlocks"),
}


def rule_test(name: str, other: dict[str, str], alert: str) -> dict[str, Any]:
    series = HEALTHY | other
    firing = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "30m",
        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else [],
    }
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "promql_expr_test": [firing],
    }


def test_the_rules_fire_when_they_shall(tmp_path: Path) -> None:
    path = tmp_path / "rule_tests.yml"
    tests = [rule_test(name, *case) for name, case in CASES.items()]
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", path)
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    assert {alert for _, alert in CASES.values()} - {""} == alerts


def test_an_alert_says_where_and_what_to_do(tmp_path: Path) -> None:
    where = 'flowmon_table_occupancy_ratio{instance="gate"}'
    expected = {
        "exp_labels": {"severity": "warning", "instance": "gate"},
        "exp_annotations": {
            "summary": "The flow table of gate is 91% full",
            "description": "Flows end early (lack_of_resources), and are evicted where that is not enough:"
            " raise --max-flows.",
        },
    }
    one = {
        "interval": "1m",
        "input_series": [{"series": where, "values": "0.91x10"}],
        "alert_rule_test": [
            {"eval_time": "5m", "alertname": "FlowmonTableFilling", "exp_alerts": [expected]}
        ],
    }
    path = tmp_path / "rule_tests.yml"
    path.write_text(json.dumps({"rule_files": [str(RULES)], "tests": [one]}))
    promtool("test", "rules", path)
