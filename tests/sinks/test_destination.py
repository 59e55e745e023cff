"""URLs of --ipfix: what each means, and what is said of wrong ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowmon import cli, config
from flowmon.errors import ConfigError
from flowmon.kernel.pins import PinSet
from flowmon.sinks.destination import Destination, destination

HERE = Path.cwd()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("udp://collector", Destination("udp", "collector", 4739)),
        ("tcp://collector", Destination("tcp", "collector", 4739)),
        ("tls://collector", Destination("tls", "collector", 4740)),
        ("udp://collector:1", Destination("udp", "collector", 1)),
        ("tcp://192.0.2.1:65535", Destination("tcp", "192.0.2.1", 65535)),
        ("tls://Collector.Example.:4739/", Destination("tls", "collector.example.", 4739)),
        ("udp://[2001:DB8::1]", Destination("udp", "2001:db8::1", 4739)),
        ("tcp://[2001:db8:0::1]:9995", Destination("tcp", "2001:db8::1", 9995)),
        ("tls://[fe80::1%eth0]/", Destination("tls", "fe80::1%eth0", 4740)),
        ("udp://bücher.example:2055", Destination("udp", "bücher.example", 2055)),
        ("file:/var/tmp/flows.ipfix", Destination("file", path=Path("/var/tmp/flows.ipfix"))),
        ("file:///var/tmp/flows.ipfix", Destination("file", path=Path("/var/tmp/flows.ipfix"))),
        ("file:flows.ipfix", Destination("file", path=HERE / "flows.ipfix")),
        ("file:a b/c:d?e#f%20", Destination("file", path=HERE / "a b/c:d?e#f%20")),
    ],
)
def test_right_ones(text: str, expected: Destination) -> None:
    assert destination(text) == expected
    assert destination(str(expected)) == expected


FORM = "give udp://HOST:PORT, an IPv6 address in brackets, nothing before or after"
SCHEMES = "give udp://HOST:PORT, tcp://HOST:PORT, tls://HOST:PORT or file:PATH"
PORT = "a port is 1 to 65535"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", SCHEMES),
        ("collector", SCHEMES),
        ("collector:4739", SCHEMES),
        ("sctp://collector", SCHEMES),
        ("UDP://collector", SCHEMES),
        (" udp://collector", SCHEMES),
        ("udp:", FORM),
        ("udp:collector:4739", FORM),
        ("udp:/collector", FORM),
        ("udp://", FORM),
        ("udp://:4739", FORM),
        ("udp://[]:4739", FORM),
        ("udp://collector:", PORT),
        ("udp://collector:0", PORT),
        ("udp://collector:65536", PORT),
        ("udp://collector:-1", PORT),
        ("udp://collector:+1", PORT),
        ("udp://collector:ipfix", PORT),
        ("udp://collector:4739x", PORT),
        ("udp://collector:٣", PORT),
        (f"udp://collector:{'9' * 5000}", PORT),
        ("udp://collector:4739/path", FORM),
        ("udp://collector:4739//", FORM),
        ("udp://collector:4739?", FORM),
        ("udp://collector#", FORM),
        ("udp://collector:4739 ", FORM),
        ("udp://two words:4739", FORM),
        ("udp://user@collector", FORM),
        ("udp://@collector", FORM),
        ("udp://user:password@collector:4739", FORM),
        ("udp://2001:db8::1", FORM),
        ("udp://2001:db8::1:4739", FORM),
        ("udp://::1", FORM),
        ("udp://[::1", FORM),
        ("udp://::1]", FORM),
        ("udp://[::1]x:4739", FORM),
        ("udp://x[::1]:4739", FORM),
        ("udp://[collector]", "expected an IPv6 address in the brackets"),
        ("udp://[192.0.2.1]", "expected an IPv6 address in the brackets"),
        ("udp://a..b", "expected a name of a host"),
        ("udp://.b", "expected a name of a host"),
        (f"udp://{'x' * 64}", "expected a name of a host"),
        ("udp://caf\udce9", "expected a name of a host"),
        ("file:", "which file? give file:PATH"),
        ("file://", "which file? give file:PATH"),
        ("file://flows.ipfix", "which file? give file:PATH"),
    ],
)
def test_wrong_ones(text: str, advice: str) -> None:
    with pytest.raises(ConfigError) as error:
        destination(text)
    assert str(error.value) == f"--ipfix {text}: {advice}"


def test_each_has_its_own_directory_in_a_spool() -> None:
    texts = [
        *("udp://a", "tcp://a", "tls://a", "tcp://a:1", "tcp://a-1:1", "tcp://a:11"),
        *("tcp://[::1]:1", "tcp://[1::]:1", "tcp://1--:1", "tcp://--1:1"),
        *("file:/a/b", "file:/a-b", "file:/a%2Fb", "file:/a/\udce9"),
    ]
    names = [destination(text).directory_name for text in texts]
    assert len(set(names)) == len(texts)
    assert all("/" not in name and name not in (".", "..") for name in names)
    assert destination("file:a").directory_name == destination(f"file:{HERE}/a").directory_name


def test_path_is_absolute_for_the_collector_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FLOWMON_")]:
        monkeypatch.delenv(name)
    urls = ["file:two words.ipfix", "file:/abs", "udp://collector", "file:"]
    context = cli.start.make_context("start", [f"--ipfix={url}" for url in urls])
    (tmp_path / "flowmon.toml").write_text('ipfix = ["file:from.ipfix"]')
    from_file = cli.start.make_context("start", ["--config", "flowmon.toml"])
    monkeypatch.chdir("/")
    arguments = cli._daemon_arguments(context.params, PinSet(Path("/nowhere")))
    assert [one for one in arguments if one.startswith("--ipfix=")] == [
        f"--ipfix=file:{tmp_path}/two words.ipfix",
        "--ipfix=file:/abs",
        "--ipfix=udp://collector",
        "--ipfix=file:",
    ]
    assert from_file.params["destinations"] == (f"file:{tmp_path}/from.ipfix",)


def test_names_the_file_that_it_stands_in(tmp_path: Path) -> None:
    path = tmp_path / "flowmon.toml"
    path.write_text('ipfix = ["udp://"]')
    with cli.start.make_context("start", ["--config", str(path)]) as context:
        with pytest.raises(ConfigError) as error:
            destination(context.params["destinations"][0])
    assert str(error.value) == f"{path}: ipfix udp://: {FORM}"
    assert "ipfix" in config.settings(cli.start)
