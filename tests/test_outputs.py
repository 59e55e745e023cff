"""Which sinks the options ask for, and what is said of options that cannot be."""

from __future__ import annotations

import io
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from collector_process import LOCALHOST, free_port
from flowmon import cli, outputs
from flowmon.errors import ConfigError, SinkError
from flowmon.ipfix.fields import CHOICES, IANA_ONLY, NOT_BY_DEFAULT
from flowmon.outputs import elements, ipfix_options, sinks
from flowmon.sinks.exporter import Refresh
from flowmon.sinks.ipfix import IpfixSink
from flowmon.sinks.json_lines import JsonLinesSink
from flowmon.sinks.parquet import ParquetSink
from flowmon.sinks.transports.tls import TlsFiles

UDP = f"udp://{LOCALHOST}:{free_port(socket.SOCK_DGRAM)}"
TCP = f"tcp://{LOCALHOST}:{free_port()}"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FLOWMON_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, which a sink may keep."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))


def options(*arguments: str) -> dict[str, Any]:
    """As the command line gives them."""
    return cli.start.make_context("start", list(arguments)).params


def opened(*arguments: str) -> list[type]:
    """The kinds of sinks; they are closed again."""
    found = sinks(options(*arguments))
    for sink in found:
        sink.close()
    return [type(sink) for sink in found]


def refused(kind: type[Exception], *arguments: str) -> str:
    """What is said, in one line."""
    with pytest.raises(kind) as error:
        sinks(options(*arguments))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [JsonLinesSink]),
        (["-j"], [JsonLinesSink]),
        (["-d", "DIR"], [ParquetSink]),
        (["-d", "DIR", "-j"], [ParquetSink, JsonLinesSink]),
        (["--ipfix", UDP], [IpfixSink]),
        (["--ipfix", UDP, "-j"], [IpfixSink, JsonLinesSink]),
        (
            ["-j", "--ipfix", TCP, "-d", "DIR", "--ipfix", UDP],
            [ParquetSink, IpfixSink, IpfixSink, JsonLinesSink],
        ),
        (["--ipfix", "file:DIR.ipfix", "--ipfix-version", "9"], [IpfixSink]),
    ],
)
def test_combinations(arguments: list[str], expected: list[type], tmp_path: Path) -> None:
    assert opened(*(one.replace("DIR", f"{tmp_path}/d") for one in arguments)) == expected


def test_standard_output_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert refused(ConfigError, "-j").startswith("standard output is closed")
    assert opened("--ipfix", UDP) == [IpfixSink]


def test_options_of_ipfix() -> None:
    text = (
        "--ipfix-version=9 --ipfix-uniflow --ipfix-time=us --ipfix-elements=octetDeltaCount --ipfix-pen=32473"
        " --ipfix-mtu=1000 --ipfix-rate=10 --ipfix-refresh=2 --ipfix-refresh-messages=3 --ipfix-ca=a --ipfix-cert=b"
        " --ipfix-key=c --ipfix-spool=d --ipfix-spool-size=5 --observation-domain=6"
    )
    found = ipfix_options(options(*text.split()))
    profile = found.profile
    assert (profile.version, profile.biflows, profile.time_unit) == (9, False, "us")
    assert (profile.chosen, profile.pen, profile.observation_domain_id) == (
        frozenset({"octetDeltaCount"}),
        32473,
        6,
    )
    assert (found.udp_message, found.udp_rate, found.refresh) == (1000, 10, Refresh(2, 3))
    assert found.tls == TlsFiles(Path("a"), Path("b"), Path("c"))
    assert (found.spool, found.spool_bytes) == (Path("d"), 5 << 20)


def test_elements() -> None:
    default = frozenset(CHOICES) - NOT_BY_DEFAULT
    assert elements("default") == default
    assert elements("all") == frozenset(CHOICES)
    assert elements(" octetDeltaCount ,packetDeltaCount") == {"octetDeltaCount", "packetDeltaCount"}
    assert elements("iana") == IANA_ONLY
    (other, *_) = sorted(NOT_BY_DEFAULT)
    assert elements(f"default,{other}") == default | {other}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("octetDeltaCout", "--ipfix-elements: 'octetDeltaCout' is no element: is octetDeltaCount meant?"),
        ("xyz", "--ipfix-elements: 'xyz' is no element: docs/ipfix-elements.md lists them"),
        ("default,", "--ipfix-elements: '' is no element: docs/ipfix-elements.md lists them"),
    ],
)
def test_unknown_element(text: str, expected: str) -> None:
    said = refused(ConfigError, "--ipfix", UDP, "--ipfix-elements", text)
    assert said == expected


@pytest.mark.parametrize("other", [UDP, f"{UDP}/"])
def test_the_same_twice(other: str) -> None:
    assert refused(ConfigError, "--ipfix", UDP, "--ipfix", other) == f"--ipfix {UDP} stands there twice"


def test_the_same_file_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(ConfigError, "--ipfix", "file:a", "--ipfix", f"file:{tmp_path}/a")
    assert said == f"--ipfix file:{tmp_path}/a stands there twice"


def test_key_without_its_certificate() -> None:
    said = refused(ConfigError, "--ipfix", UDP, "--ipfix-key", "key.pem")
    assert said == "--ipfix-key is of no use without --ipfix-cert"


@pytest.mark.parametrize("option", ["--ipfix-ca", "--ipfix-cert"])
def test_files_of_tls_for_what_is_not_encrypted(option: str) -> None:
    said = refused(ConfigError, "--ipfix", TCP, option, "a.pem")
    assert said == f"{option} is for tls://: nothing else goes out encrypted"


def test_whoever_reads_a_capture_may_be_held_up() -> None:
    assert not ipfix_options(options()).waits
    assert ipfix_options(options() | {"capture": "a.pcap"}).waits


def test_message_too_short_for_a_record() -> None:
    said = refused(ConfigError, "--ipfix", UDP, "--ipfix-mtu", "64")
    assert said.startswith("--ipfix-mtu 64: a message with one record has up to ")
    assert opened("--ipfix", TCP, "--ipfix-mtu", "64") == [IpfixSink]


@pytest.mark.parametrize("directory", ["/dev/null/spool", "/sys/spool", "/proc/spool"])
def test_spool_that_cannot_be_written(directory: str) -> None:
    said = refused(SinkError, "--ipfix", TCP, "--ipfix-spool", directory)
    assert said.startswith(f"{directory}/tcp-")
    assert "cannot be written" in said


def test_file_that_cannot_be_written() -> None:
    said = refused(SinkError, "--ipfix", "file:/sys/flows.ipfix")
    assert said.startswith("--ipfix file:/sys/flows.ipfix: ")


def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    said = refused(SinkError, "--ipfix", "tcp://collector.invalid")
    assert said == "--ipfix tcp://collector.invalid:4739: no such host (Name or service not known)"


def test_wrong_destination_is_found_before_anything_is_opened(tmp_path: Path) -> None:
    refused(ConfigError, "--ipfix", f"file:{tmp_path}/a", "--ipfix", "udp://")
    assert not (tmp_path / "a").exists()


def test_those_opened_before_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    def noted(kind: type) -> None:
        close = kind.close

        def note(self: Any) -> None:
            closed.append(kind.__name__)
            close(self)

        monkeypatch.setattr(kind, "close", note)

    for kind in (ParquetSink, IpfixSink):
        noted(kind)
    spool = ["--ipfix-spool", str(tmp_path / "spool")]
    before = threading.active_count()
    refused(
        SinkError, "-d", str(tmp_path / "d"), "--ipfix", TCP, "--ipfix", "file:/sys/a", "--ipfix", UDP, *spool
    )
    assert list(dict.fromkeys(closed)) == ["ParquetSink", "IpfixSink"]
    assert threading.active_count() == before
    assert opened("--ipfix", TCP, *spool) == [IpfixSink]  # nobody holds its spool


def test_spool_of_two_destinations(tmp_path: Path) -> None:
    assert opened("--ipfix", TCP, "--ipfix", UDP, "--ipfix-spool", str(tmp_path)) == [IpfixSink, IpfixSink]
    assert len(list(tmp_path.iterdir())) == 2
    found = sinks(options("--ipfix", TCP, "--ipfix-spool", str(tmp_path)))
    said = refused(SinkError, "--ipfix", TCP, "--ipfix-spool", str(tmp_path))
    assert "is used by another flowmon" in said
    for sink in found:
        sink.close()
    assert outputs.MIB == 1 << 20
