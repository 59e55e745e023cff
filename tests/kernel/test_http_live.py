"""What a running flowmon says over HTTP: the books, the peers, its health."""

import json
import subprocess
import sys
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from netns import Host, Pair, monitor, wait_for

pytestmark = pytest.mark.kernel

URL = "http://127.0.0.1:2112"


def get(host: Host, path: str) -> tuple[int, str]:
    """Status and body."""
    done = host.run("curl", "-s", "-m", "5", "-w", "\n%{http_code}", URL + path)
    body, _, status = done.rpartition("\n")
    return int(status), body


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """By name and label values."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_the_books_and_prometheus_takes_them(pair: Pair) -> None:
    left, right = pair.left, pair.right
    with (
        right.server(80, sys.executable, "-m", "http.server", "80"),
        monitor(right, "--iface", right.interface, "-i", "0.2", "-j", "--serve-ip-list") as running,
    ):
        for _ in range(5):
            left.run("curl", "-s", "-o", "/dev/null", f"http://{right.ipv4}/")
        left.run("ping", "-q", "-c", "3", "-i", "0.05", right.ipv6)
        # A view is as old as a second: until it knows all, and nothing moves any more.
        wait_for(lambda: seen(right) == books(right)["seen_packets"], "a view of all packets")
        status, text = get(right, "/metrics")
        known = books(right)
        peers = json.loads(get(right, "/list")[1])
        health = get(right, "/healthz")
        running.stop()
    assert status == 200
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    found = samples(text)
    assert found["flowmon_seen_packets_total", ()] == known["seen_packets"]
    assert found["flowmon_counted_packets_total", ()] == known["counted_packets"]
    assert found["network_new_connections_count", ()] == 5
    assert found["active_users", ("ipv4", "80", "tcp")] == 1
    assert {"ip": left.ipv4, "type": "ipv4", "port": 80, "proto": "tcp"} in peers
    assert (health[0], json.loads(health[1])["status"]) == (200, "ok")


def seen(host: Host) -> float:
    return samples(get(host, "/metrics")[1]).get(("flowmon_seen_packets_total", ()), -1)


def books(host: Host) -> dict:
    return json.loads(host.flowmon("status", "--json").stdout)["books"]


def test_programs_that_somebody_removed_are_noticed(pair: Pair) -> None:
    left, right = pair.left, pair.right
    with monitor(right, "--iface", right.interface, "-i", "0.2", "-j") as running:
        wait_for(lambda: get(right, "/healthz")[0] == 200, "the first view")
        for hook in ("ingress", "egress"):
            right.run("tc", "filter", "del", "dev", right.interface, hook)
        with left.background("ping", "-q", "-i", "0.01", right.ipv4):
            wait_for(lambda: get(right, "/healthz")[0] == 503, "the verdict")
            (reason,) = json.loads(get(right, "/healthz")[1])["reasons"]
        running.stop()
    assert right.interface in reason


def test_address_in_use_is_a_warning_by_default_and_an_error_if_it_is_asked_for(pair: Pair) -> None:
    host = pair.left
    with monitor(host, "--iface", host.interface, "-j") as first:
        wait_for(lambda: get(host, "/healthz")[0] == 200, "the first view")
        with monitor(host, "--iface", host.interface, "-p", "other", "-j") as second:
            assert get(host, "/healthz")[0] == 200
            second.stop()
        assert "127.0.0.1:2112: address already in use" in second.said
        asked = ("--iface", host.interface, "-p", "other", "-j", "--listen", "127.0.0.1:2112")
        done = host.flowmon(*asked)
        assert done.returncode == 2
        complaint = (
            "flowmon: --listen 127.0.0.1:2112: address already in use: give another address, or --listen off"
        )
        assert done.stderr.splitlines()[-1] == complaint
        first.stop()
    time.sleep(0.1)
    with monitor(host, "--iface", host.interface, "-j", "--listen", "off") as silent:
        assert host.run("ss", "-Hltn").strip() == ""
        silent.stop()
