"""Options from the environment and from a file: which one counts, and what is said of a wrong one."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import click
import pytest
from click.core import ParameterSource

from flowmon import cli as cli_module
from flowmon import offline, options
from flowmon.cli import cli
from flowmon.config import ConfigurableCommand, as_arguments, settings, variable
from flowmon.errors import ConfigError
from flowmon.kernel.pins import PinSet
from refusal import assert_refused

COMMANDS = {"": cli, **cli.commands}
# The only ones that come from the command line alone.
COMMAND_LINE_ONLY = {"capture", "pid_file", "only_command_line", "version", "config"}
OPTIONS = [
    pytest.param(command, param, id=f"{name or 'flowmon'} {param.name}")
    for name, command in COMMANDS.items()
    for param in command.params
    if isinstance(param, click.Option)
    if param.name not in COMMAND_LINE_ONLY and (name, param.name) != ("unload", "names")
]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch) -> None:
    for command in COMMANDS.values():
        for key in (*settings(command), "config"):
            monkeypatch.delenv(variable(key), raising=False)


@pytest.fixture
def parsed(monkeypatch):
    """Runs a command line whose command does nothing; gives the options that it would have had."""

    def parse(*arguments: str) -> dict:
        words = [word for word in arguments if word in cli.commands]
        command = COMMANDS[words[-1] if words else ""]
        seen = {}
        with monkeypatch.context() as patch:
            patch.setattr(command, "callback", lambda **options: seen.update(options))
            run(*arguments)
        return seen

    return parse


@pytest.fixture
def file(tmp_path):
    """Writes a file of options; gives its path."""

    def write(text: str | bytes) -> str:
        path = tmp_path / "flowmon.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def run(*arguments: str) -> None:
    cli.main(list(arguments), standalone_mode=False, prog_name="flowmon")


def flowmon(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowmon", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def sample(param: click.Option) -> tuple[str, str, object]:
    """A value that is not the default: as TOML, in the environment, and as the command has it."""
    if param.multiple:
        return '["eth0", "eth1"]', "eth0 eth1", ("eth0", "eth1")
    if param.is_flag:
        return "true", "yes", True
    if isinstance(param.type, click.Choice):
        value = next(choice for choice in reversed(param.type.choices) if choice != param.default)
        return f'"{value}"', value, value
    if isinstance(param.type, click.Path):
        return '"/some/where"', "/some/where", Path("/some/where")
    if isinstance(param.type, click.IntRange):
        low, high = param.type.min or 0, 77 if param.type.max is None else param.type.max
        number = next(one for one in (min(77, high), low) if one != param.default)
        return str(number), str(number), number
    is_number = isinstance(param.type, type(click.FLOAT))
    return ("7.25", "7.25", 7.25) if is_number else ('"word"', "word", "word")


# --- every option of every command ---


def test_a_version_of_netflow_is_a_number_in_the_file(parsed, file):
    assert parsed("--config", file("ipfix-version = 9"))["ipfix_version"] == 9


@pytest.mark.parametrize("option", ["--ipfix-rate", "--ipfix-refresh"])
def test_what_is_no_number_is_in_no_range(option):
    with pytest.raises(click.UsageError, match="nan is no number"):
        run(option, "nan")


@pytest.mark.parametrize(("command", "param"), OPTIONS)
def test_every_option_comes_from_file_and_environment(command, param, parsed, file, monkeypatch):
    long_name = next(name for name in param.opts if name.startswith("--"))
    toml, text, value = sample(param)
    words = [command.name] if command is not cli else []
    words += ["192.0.2.1" for one in command.params if isinstance(one, click.Argument) and one.required]
    assert parsed(*words)[param.name] != value
    assert parsed(*words, "--config", file(f"{long_name[2:]} = {toml}"))[param.name] == value
    monkeypatch.setenv("FLOWMON_" + long_name[2:].replace("-", "_").upper(), text)
    assert parsed(*words)[param.name] == value


@pytest.mark.parametrize(
    "key", ["pid-file", "version", "help", "config", "only-command-line", "r", "capture"]
)
def test_what_is_for_the_command_line_only_is_no_key(key, file):
    with pytest.raises(ConfigError, match=f"'{key}' is no option"):
        run("--config", file(f'{key} = "x"'))


def test_what_is_for_the_command_line_only_has_no_variable(parsed, monkeypatch):
    for name in ("PID_FILE", "CAPTURE", "R", "HELP", "VERSION"):
        monkeypatch.setenv(f"FLOWMON_{name}", "1")
    assert (parsed()["pid_file"], parsed()["capture"]) == (None, None)


def test_an_option_added_later_needs_nothing_more(monkeypatch, file):
    decorated = [
        click.Option(["--ipfix"], multiple=True),
        click.Option(["--ipfix-mtu"], type=click.IntRange(100, 9000), default=1400),
        click.Option(["--ipfix-ca"], type=options.NonEmptyPath()),
    ]
    seen = {}
    command = ConfigurableCommand("x", params=decorated, callback=lambda **values: seen.update(values))
    monkeypatch.setenv("FLOWMON_IPFIX", "tcp://a:1 udp://b:2")
    monkeypatch.setenv("FLOWMON_IPFIX_CA", "ca.pem")
    command.main(["--config", file("ipfix-mtu = 500")], standalone_mode=False)
    assert seen == {"ipfix": ("tcp://a:1", "udp://b:2"), "ipfix_mtu": 500, "ipfix_ca": Path("ca.pem")}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_file_and_every_long_option(name):
    text = COMMANDS[name].get_help(click.Context(COMMANDS[name]))
    assert "--config FILE" in text
    assert all(f"--{key}" in text for key in settings(COMMANDS[name]))
    assert "--only-command-line" not in text


# --- which one counts ---


@pytest.mark.parametrize(
    ("in_file", "variable_text", "argument", "expected"),
    [
        (None, None, None, 15.0),
        ("20", None, None, 20.0),
        ("20", "25", None, 25.0),
        ("20", "25", "30", 30.0),
        ("20", None, "30", 30.0),
        (None, "25", "30", 30.0),
        ("20", "", None, 20.0),
    ],
)
@pytest.mark.parametrize("words", [(), ("start",)], ids=str)
def test_precedence(words, in_file, variable_text, argument, expected, parsed, file, monkeypatch):
    if variable_text is not None:
        monkeypatch.setenv("FLOWMON_IDLE_TIMEOUT", variable_text)
    arguments = [*words]
    if in_file:
        arguments += ["--config", file(f"idle-timeout = {in_file}")]
    if argument:
        arguments += ["--idle-timeout", argument]
    assert parsed(*arguments)["idle_timeout"] == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["start"], 1.5),
        (["start", "--config", "b.toml"], 2.5),
        (["--config", "b.toml", "start"], 2.5),
        (["--config", "b.toml", "start", "--config", "c.toml"], 3.5),
        (["--config", "c.toml"], 3.5),
        ([], 1.5),
    ],
    ids=str,
)
def test_which_file(arguments, expected, parsed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, interval in (("a", 1.5), ("b", 2.5), ("c", 3.5)):
        Path(f"{name}.toml").write_text(f"interval = {interval}")
    monkeypatch.setenv("FLOWMON_CONFIG", "a.toml")
    assert parsed(*arguments)["interval"] == expected


def test_a_wrong_file_or_variable_that_is_overridden_is_not_looked_at(parsed, file, monkeypatch):
    monkeypatch.setenv("FLOWMON_CONFIG", "/nosuch")
    monkeypatch.setenv("FLOWMON_IDLE_TIMEOUT", "soon")
    assert parsed("start", "--config", file("interval = 5"), "--idle-timeout", "3")["interval"] == 5


def test_help_reads_no_file(monkeypatch, capsys):
    monkeypatch.setenv("FLOWMON_CONFIG", "/nosuch")
    run("status", "--help")
    assert capsys.readouterr().out.startswith("Usage: flowmon status")


def test_a_variable_takes_a_flag_of_the_file_back(parsed, file, monkeypatch):
    monkeypatch.setenv("FLOWMON_CONFIG", file("all = true\ndecap = true"))
    assert (parsed("load")["every"], parsed("load")["decap"]) == (True, True)
    monkeypatch.setenv("FLOWMON_ALL", "no")
    assert (parsed("load")["every"], parsed("load")["decap"]) == (False, True)


def test_one_file_serves_all_commands(parsed, file, monkeypatch):
    text = 'directory = "/flows"\niface = ["eth0"]\njson = true\ntable-name = "t"\ninterval = "ignored by status"'
    monkeypatch.setenv("FLOWMON_CONFIG", file(text))
    assert parsed("status") == {"map_path": None, "map_name": "t", "as_json": True}
    assert parsed("unload")["names"] == ()  # all are left, not only those that the file has for `load`
    assert parsed("doctor") == {"as_json": True}


# --- options that exclude each other ---


@pytest.mark.parametrize(
    ("in_file", "environment", "arguments", "expected"),
    [
        ("all = true", {}, ["--iface", "lo"], (False, ("lo",))),
        ('iface = ["a"]', {}, ["--all"], (True, ())),
        ("all = true", {"FLOWMON_IFACE": "b c"}, [], (False, ("b", "c"))),
        ('iface = ["a"]', {"FLOWMON_ALL": "1"}, [], (True, ())),
        ('iface = ["a"]', {"FLOWMON_ALL": "0"}, [], (False, ("a",))),
        ("all = true", {"FLOWMON_IFACE": "b"}, ["--all"], (True, ())),
    ],
)
def test_the_stronger_source_decides_on_interfaces(
    in_file, environment, arguments, expected, parsed, file, monkeypatch
):
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    given = parsed("load", "--config", file(in_file), *arguments)
    assert (given["every"], given["names"]) == expected


def test_quiet_on_the_command_line_is_not_verbose_by_file(parsed, file):
    given = parsed("-q", "--config", file("verbose = true"))
    assert (given["quiet"], given["verbose"]) == (True, False)


def test_rivals_are_parameters():
    assert set(options.RIVALS) <= {param.name for param in cli.params}


@pytest.mark.parametrize("before", [True, False], ids=["flowmon -p x status", "flowmon status -p x"])
def test_the_table_of_the_command_line_counts(before, file, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "flowmon.session.find", lambda pin_set: seen.append(pin_set.table_path.parts) or pin_set
    )
    monkeypatch.setattr("flowmon.status.status", lambda pin_set: {})
    monkeypatch.setenv("FLOWMON_TABLE_NAME", "of_environment")
    monkeypatch.setenv("FLOWMON_CONFIG", file('table-path = "/sys/fs/bpf/of_file"'))
    table = ["-p", "of_command_line"]
    run(*(table if before else []), "status", "--json", *([] if before else table))
    run("status", "--json")
    assert ["of_command_line" in parts for parts in seen] == [True, False]
    assert ["of_environment" in parts for parts in seen] == [False, True]


# --- what is wrong ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("idle-timout = 3", ("'idle-timout' is no option", "is idle-timeout meant?")),
        ("idle_timeout = 3", ("is idle-timeout meant?",)),
        ("zzz = 3", ("'zzz' is no option", "expected a long option name")),
        ("[collector]\nidle-timeout = 3", ("'collector' is no option",)),
        ('idle-timeout = "3"', ("idle-timeout: expected a number",)),
        ("idle-timeout = true", ("idle-timeout: expected a number",)),
        ("idle-timeout = [3]", ("idle-timeout: expected a number",)),
        ("[idle-timeout]\na = 3", ("idle-timeout: expected a number",)),
        ("idle-timeout = 2026-11-21", ("idle-timeout: expected a number",)),
        ("idle-timeout = nan", ("idle-timeout nan", "seconds")),
        ("idle-timeout = 1e300", ("idle-timeout 1e+300", "seconds")),
        (f"idle-timeout = 1{'0' * 400}", ("idle-timeout: int too large",)),
        ("interval = -1", ("interval -1", "seconds")),
        ("interval = 1e300", ("interval 1e+300", "seconds")),
        ("max-flows = 1.5", ("max-flows: expected a whole number",)),
        ("max-flows = true", ("max-flows: expected a whole number",)),
        ("max-flows = 0", ("max-flows: 0 is not in the range",)),
        (f"max-flows = 0x{'f' * 5000}", ("max-flows: Exceeds the limit",)),
        ("all = 1", ("all: expected a boolean (true or false)",)),
        ('direction = "up"', ("direction: 'up' is not one of", "ingress")),
        ("section = 1", ("section: expected a string",)),
        ('directory = ["a"]', ("directory: expected a string",)),
        ('directory = ""', ("directory: an empty path",)),
        ('directory = "a\\u0000"', ("directory: expected a string",)),
        ('iface = "eth0"', ("iface: expected a list of strings",)),
        ('iface = ["eth0", 1]', ("iface: expected a list of strings",)),
        ('iface = [["eth0"]]', ("iface: expected a list of strings",)),
        ('iface = ["a\\u0000"]', ("iface: expected a list of strings",)),
        ('all = true\niface = ["lo"]', (": all and ", ": iface exclude each other")),
        ('table-name = "a.b"', ("table-name a.b", "dot")),
        ('table-name = ""', ("table-name: a table's name has 1",)),
        ('table-name = "a/b"', ("table-name takes a name",)),
        (
            'table-name = "a"\ntable-path = "/b"',
            (": table-path and ", ": table-name both name the flow table"),
        ),
        ("all = maybe", ("expected TOML in UTF-8", "line 1")),
        ("all = true\nall = true", ("expected TOML in UTF-8",)),
        (b"\xff", ("expected TOML in UTF-8", "0xff")),
        (f"all = {'[' * 5000}", ("expected TOML in UTF-8", "recursion")),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(text, words, file, monkeypatch):
    path = file(text)
    monkeypatch.setattr(cli_module, "_load", lambda *_: pytest.fail("it was taken"))
    with pytest.raises(ConfigError) as error:
        run("--config", path)
    for word in (path, *words):
        assert word in str(error.value)


@pytest.mark.parametrize("path", ["/nosuch/f.toml", "/tmp"])
def test_a_file_that_cannot_be_read(path):
    with pytest.raises(ConfigError, match=f"^{path}: (No such file|Is a dir).*expected a TOML file"):
        run("status", "--config", path)


def test_a_file_without_permission(file, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=PermissionError(13, "Permission denied")))
    path = file("")
    with pytest.raises(ConfigError, match=f"^{path}: Permission denied"):
        run("--config", path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("FLOWMON_IDLE_TIMEOUT", "soon", "'soon' is not a valid float"),
        ("FLOWMON_IDLE_TIMEOUT", "-3", "-3: seconds"),
        ("FLOWMON_INTERVAL", "inf", "inf: the interval"),
        ("FLOWMON_ALL", "maybe", "'maybe' is not a valid boolean"),
        ("FLOWMON_MAX_FLOWS", "0", "0 is not in the range"),
        ("FLOWMON_DIRECTION", "up", "'up' is not one of"),
        ("FLOWMON_TABLE_NAME", "a.b", "dot"),
        ("FLOWMON_CONFIG", "/nosuch", "No such file"),
    ],
)
def test_what_is_wrong_in_the_environment_is_said_with_its_name(name, text, words, monkeypatch):
    monkeypatch.setenv(name, text)
    with pytest.raises(ConfigError) as error:
        run()
    assert words in str(error.value)
    assert str(error.value).startswith("/nosuch" if name == "FLOWMON_CONFIG" else name)


def test_it_is_one_line_and_status_2(file, monkeypatch):
    path = file("idle-timout = 3")
    assert_refused(flowmon("start", "--config", path), 2, f"{path}: 'idle-timout'", "idle-timeout")
    log = file('log-file = "/nosuch/log"')
    assert_refused(flowmon("--config", log), 2, f"{log}: log-file /nosuch/log: No such file")
    assert_refused(flowmon("--config", ""), 2, "--config", "empty")
    monkeypatch.setenv("FLOWMON_LINGER", "x")
    assert_refused(flowmon(), 2, "FLOWMON_LINGER", "'x'")


# --- captures ---


def read_capture_with(monkeypatch, *arguments: str) -> tuple:
    """What a capture that is not read would be read with, from the load options on."""
    calls = []
    monkeypatch.setattr(offline, "read_capture", lambda *given: calls.append(given[2:]))
    run("-r", "some.pcap", *arguments)
    (call,) = calls
    return call


def test_a_capture_ignores_options_of_interfaces(file, monkeypatch):
    plain = read_capture_with(monkeypatch)
    of_interfaces = [param for param in cli.params if param.name in cli_module._OF_INTERFACES]
    lines = [f"{key} = {sample(p)[0]}" for key, p in settings(cli).items() if p in of_interfaces]
    assert len(lines) == len(of_interfaces) - 1  # the pid file is no key
    assert read_capture_with(monkeypatch, "--config", file("\n".join(lines))) == plain
    monkeypatch.setenv("FLOWMON_EVERY_INTERFACE", "yes")
    monkeypatch.setenv("FLOWMON_TIMESTAMPS", "coarse")
    monkeypatch.setenv("FLOWMON_IFACE", "nosuch")
    assert read_capture_with(monkeypatch) == plain
    with pytest.raises(ConfigError, match="--iface is of interfaces"):
        run("-r", "some.pcap", "--iface", "lo")


def test_a_capture_takes_the_other_options(file, monkeypatch):
    monkeypatch.setenv("FLOWMON_DECAP", "yes")
    written = file('interval = 10\nanalyse = ["syn-rate"]')
    load_options, _, collector, watching, _ = read_capture_with(monkeypatch, "--config", written)
    assert (load_options.decap, collector.interval_s) == (True, 10)
    assert [one.name for one in watching.analysers] == ["syn-rate"]


def test_a_table_size_from_anywhere_is_given(file, monkeypatch):
    assert read_capture_with(monkeypatch)[1] is None
    assert read_capture_with(monkeypatch, "--config", file("max-flows = 65536"))[1] == 65536
    monkeypatch.setenv("FLOWMON_MAX_FLOWS", "65536")
    assert read_capture_with(monkeypatch)[1] == 65536


# --- the process in the background ---

CHILD = """
iface = ["eth0"]
directory = "flows"
json-lines = true
verbose = true
every-interface = true
interval = 0.1
idle-timeout = 30
active-timeout = 1e9
linger = 0.30000000000000004
observation-domain = 7
log-file = "log"
"""


def started(monkeypatch, tmp_path, *arguments: str) -> list[str]:
    """The arguments that `flowmon start` hands to the process in the background."""
    calls = []
    monkeypatch.setattr("flowmon.session.find", lambda pin_set: PinSet(Path("/sys/fs/bpf/pins")))
    monkeypatch.setattr("flowmon.daemon.running", lambda pin_set: None)
    monkeypatch.setattr("flowmon.daemon.start", lambda pin_set, given, log: calls.append((given, log)) or 1)
    monkeypatch.setattr(cli_module, "_load", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    run("start", *arguments)
    ((given, log_file),) = calls
    assert log_file == tmp_path / "log"
    return given


def test_the_child_has_the_same_values_and_reads_nothing(file, parsed, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWMON_CONFIG", file(CHILD))
    monkeypatch.setenv("FLOWMON_ACTIVE_TIMEOUT", "90")
    given = started(monkeypatch, tmp_path, "--linger", "2")
    parent = parsed("start", "--linger", "2")
    for name in ("FLOWMON_QUIET", "FLOWMON_ALL", "FLOWMON_DECAP"):
        monkeypatch.setenv(name, "yes")
    monkeypatch.setenv("FLOWMON_INTERVAL", "not read")
    child = parsed(*given, "--pid-file", "/run/x.pid")
    own = set(settings(cli.commands["start"])) - set(settings(cli.commands["load"])) - {"log-file"}
    names = {option.name for key, option in settings(cli).items() if key in own}
    assert {"interval", "directory", "json_lines", "observation_domain"} <= names
    expected = {name: parent[name] for name in names} | {"directory": tmp_path / "flows"}
    assert {name: child[name] for name in names} == expected
    assert (child["idle_timeout"], child["active_timeout"], child["linger"]) == (30, 90, 2)
    assert (child["names"], child["every"], child["log_file"], child["map_name"]) == ((), False, None, None)
    assert child["map_path"] == PinSet(Path("/sys/fs/bpf/pins")).table_path


def test_the_child_gets_lists_and_paths_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    many = click.Option(["--ipfix"], multiple=True)
    ca = click.Option(["--ipfix-ca"], type=options.NonEmptyPath())
    assert as_arguments("ipfix", many, ("a", "-b")) == ["--ipfix=a", "--ipfix=-b"]
    assert as_arguments("ipfix-ca", ca, Path("ca.pem")) == [f"--ipfix-ca={tmp_path}/ca.pem"]
    assert as_arguments("ipfix-ca", ca, None) == []


def test_only_the_command_line_where_that_is_said(parsed, monkeypatch):
    monkeypatch.setenv("FLOWMON_CONFIG", "/nosuch")
    monkeypatch.setenv("FLOWMON_IFACE", "lo")
    assert parsed("--only-command-line")["names"] == ()


def test_default_is_still_the_source_of_what_nobody_gave(file):
    context = cli.make_context("flowmon", ["--config", file("linger = 1.0")])
    assert context.get_parameter_source("linger") is ParameterSource.DEFAULT_MAP
    assert context.get_parameter_source("interval") is ParameterSource.DEFAULT
