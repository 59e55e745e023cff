"""Which analysers, alert sinks and blocks the options ask for, and what is said of options that cannot be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from flowmon import cli
from flowmon.analysers.active_peers import ActivePeers
from flowmon.blocker import BlockOptions
from flowmon.errors import ConfigError, SinkError
from flowmon.outputs import Watching, watching
from flowmon.sinks.alerts.files import JsonAlerts
from flowmon.sinks.alerts.logs import StandardErrorAlerts

SCAN_DETECTORS = ["port-fanout", "random-walk"]
ALL = ["active-peers", "port-fanout", "random-walk", "syn-rate"]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FLOWMON_")]:
        monkeypatch.delenv(name)


def options(*arguments: str) -> dict[str, Any]:
    """As the command line gives them."""
    return cli.start.make_context("start", list(arguments)).params


def opened(*arguments: str) -> Watching:
    """What is asked for; its sinks are closed again."""
    found = watching(options(*arguments))
    found.close()
    return found


def names(*arguments: str) -> list[str]:
    return [one.name for one in opened(*arguments).analysers]


def refused(*arguments: str) -> str:
    """What is said, in one line."""
    with pytest.raises(ConfigError) as error:
        opened(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def peers(*arguments: str) -> Any:
    """The parameters of active-peers, of which there is one."""
    (one,) = (one for one in opened(*arguments).analysers if isinstance(one, ActivePeers))
    return one._parameters


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], []),
        (["--analyse", "syn-rate"], ["syn-rate"]),
        (["--analyse", "syn-rate", "--analyse", "port-fanout:ports=5"], ["syn-rate", "port-fanout"]),
        (["--analyse", "all"], ALL),
        (["--block", "scan"], SCAN_DETECTORS),
        (["--block", " flood ,scan"], ["syn-rate", *SCAN_DETECTORS]),
        (["--block", "scan", "--analyse", "random-walk"], ["random-walk"]),
        (["--block", "scan", "--analyse", "syn-rate"], ["syn-rate", *SCAN_DETECTORS]),
        (["--block", "scan,flood", "--analyse", "all"], ALL),
        (["--serve-ip-list"], ["active-peers"]),
        (["--serve-ip-list", "--analyse", "active-peers:window=5"], ["active-peers"]),
        (["--serve-ip-list", "--analyse", "all"], ALL),
        (["--ports", "22"], ["active-peers"]),
        (["--window", "5", "--analyse", "syn-rate"], ["syn-rate", "active-peers"]),
    ],
    ids=" ".join,
)
def test_analysers(arguments: list[str], expected: list[str]) -> None:
    found = names(*arguments)
    assert (sorted(found) if expected == ALL else found) == expected


def test_ports_and_window_are_those_of_active_peers() -> None:
    both = peers("--ports", "22,80,8000-8002", "--window", "5.5", "--serve-ip-list")
    in_one = peers("--analyse", "active-peers:ports=22+80+8000-8002,window=5.5")
    assert both == in_one
    assert peers("--window", "5").ports == peers("--serve-ip-list").ports
    assert peers("--ports", "all").window == 60


@pytest.mark.parametrize("analyse", ["active-peers", "active-peers:window=9", "all"])
@pytest.mark.parametrize(("option", "value"), [("--ports", "22"), ("--window", "5")])
def test_ports_in_two_places(analyse: str, option: str, value: str) -> None:
    said = refused("--analyse", "syn-rate", "--analyse", analyse, option, value)
    assert said == f"{option} switches active-peers on: leave that out of --analyse, or give it there"


# --- alerts ---


def test_alerts_go_to_standard_error_where_nothing_else_is_said(tmp_path: Path) -> None:
    assert opened().alert_sinks == []
    (one,) = opened("--analyse", "all").alert_sinks
    assert isinstance(one, StandardErrorAlerts)
    (one,) = opened("--block", "scan", "--alerts", f"json:{tmp_path}/a").alert_sinks
    assert isinstance(one, JsonAlerts)
    assert (
        len(opened("--serve-ip-list", "--alerts", "stderr", "--alerts", f"json:{tmp_path}/a").alert_sinks)
        == 2
    )


def test_alerts_of_nobody() -> None:
    said = refused("--alerts", "stderr")
    assert said == "--alerts is of no use without --analyse, which says what to watch for"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("json:a", "json:{here}/a"),
        ("parquet:a/b", "parquet:{here}/a/b"),
        ("parquet:./a:b", "parquet:{here}/a:b"),
        ("json:/a", "json:/a"),
        ("json:-", "json:-"),
        ("json:", "json:"),
        ("json", "json"),
        ("stderr", "stderr"),
        ("syslog:a", "syslog:a"),
    ],
)
def test_path_of_alerts_is_that_of_where_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert options("--alerts", given)["alerts"] == (expected.format(here=tmp_path),)


def test_nothing_is_opened_where_an_option_is_wrong(tmp_path: Path) -> None:
    place = tmp_path / "a"
    for wrong in (["--listen", "nowhere"], ["--analyse", "nothing"], ["--block", "x"], ["--alerts", "x"]):
        refused("--analyse", "all", *wrong, "--alerts", f"json:{place}")
    assert not place.exists()
    with pytest.raises(SinkError):
        opened("--analyse", "all", "--alerts", "json:/sys/a")


# --- blocks ---


def test_blocks() -> None:
    assert opened().block == BlockOptions()
    found = opened(
        *("--block", "scan,flood", "--enforce", "--block-ttl", "15m", "--block-most", "7"),
        *("--never-block", "192.0.2.0/24", "--never-block", "::1"),
    ).block
    assert found == BlockOptions(frozenset({"scan", "flood"}), True, 900.0, 7, ("192.0.2.0/24", "::1"))


@pytest.mark.parametrize("scopes", ["", ",", "scans", "scan;flood", "scan,all"])
def test_unknown_scope(scopes: str) -> None:
    assert refused("--block", scopes) == f"--block {scopes}: expected scan, flood, or scan,flood"


def test_enforce_of_nothing() -> None:
    said = refused("--enforce", "--analyse", "all")
    assert said == "--enforce is of no use without --block, which says against what"


def test_time_to_live_that_is_none() -> None:
    said = refused("--block", "scan", "--block-ttl", "soon")
    assert said.startswith("--block-ttl: 'soon' is no time to live: expected")


# --- HTTP ---


@pytest.mark.parametrize(
    ("arguments", "listen", "is_asked"),
    [
        ([], ("127.0.0.1", 2112), False),
        (["--listen", "127.0.0.1:2112"], ("127.0.0.1", 2112), True),
        (["--listen", "[::1]:0"], ("::1", 0), True),
        (["--listen", "off"], None, True),
    ],
    ids=str,
)
def test_listen(arguments: list[str], listen: tuple[str, int] | None, is_asked: bool) -> None:
    found = opened(*arguments)
    assert (found.listen, found.is_listening_asked, found.serve_ip_list) == (listen, is_asked, False)
    assert opened(*arguments, "--serve-ip-list").serve_ip_list
