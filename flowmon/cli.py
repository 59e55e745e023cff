"""The command line. Options only: what they do is in the modules that they call.

Exit status 0, 1 for a failure, 2 for wrong usage; an error is one line on standard error.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowmon import __version__, chosen, config
from flowmon.config import ConfigurableCommand, given_as
from flowmon.errors import (
    ConfigError,
    FlowmonError,
    KernelError,
    NotSentError,
    ReaderGoneError,
    SinkError,
)
from flowmon.options import (
    ONLY_COMMAND_LINE,
    NonEmptyPath,
    collect_options,
    export_options,
    features_options,
    features_output_options,
    guard_options,
    load_options,
    never_block_option,
    table_options,
    watch_options,
    where_options,
)

if TYPE_CHECKING:
    from flowmon.kernel.pins import PinSet
    from flowmon.outputs import FeatureOutput, Watching
    from flowmon.session import Where, Work
    from flowmon.sinks import Sink

# What takes time to import is imported where it is used: `flowmon --help` is quick.

log = logging.getLogger("flowmon")

TABLE_NAME_MOST = 200  # bytes; with a prefix it must fit a file name
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def main() -> None:
    """The `flowmon` command."""
    # As NumPy is imported, its OpenBLAS starts a thread for every CPU, each of which spins for a while. Nothing
    # here multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        status = cli.main(standalone_mode=False, prog_name="flowmon")
    except ReaderGoneError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ReaderGoneError.exit_status)
    except FlowmonError as error:
        _fail(str(error), error.exit_status)
    except click.UsageError as error:
        _fail(f"{error.format_message()} (flowmon --help)", ConfigError.exit_status)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except PermissionError as error:
        _fail(f"{error.filename or error.filename2 or 'a BPF call'}: {error.strerror}: run as root", 1)
    except OSError as error:
        _fail(f"{error.filename or 'standard output'}: {error.strerror}", 1)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> None:
    if sys.stderr is not None:
        print(f"flowmon: {' '.join(message.split())}", file=sys.stderr)
    if sys.stdout is not None:  # what could not be printed shall not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


class _Group(ConfigurableCommand, click.Group):
    """Commands whose output may be cut off by its reader: Click would make a failure of that."""

    command_class = ConfigurableCommand

    def invoke(self, ctx: click.Context) -> Any:
        try:
            status = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            raise ReaderGoneError from None
        return status


@click.group(cls=_Group, context_settings=SETTINGS, invoke_without_command=True)
@table_options
@where_options
@load_options
@guard_options
@features_options
@collect_options
@features_output_options
@export_options
@watch_options
@click.option(
    "-r", "capture", metavar="CAPTURE", help="Read a pcap or pcapng file instead (-: standard input)."
)
@click.option("--pid-file", type=NonEmptyPath(), hidden=True)
@click.option("--only-command-line", ONLY_COMMAND_LINE, is_flag=True, hidden=True, expose_value=False)
@click.version_option(__version__, "--version")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """Network flow monitor: biflow records of what passes the interfaces.

    Without a command: the collector. It reads the table that `flowmon load` made; with --iface
    or --all it loads and attaches itself, and takes that away again when it ends. With -r it
    reads a capture through the same programs, and needs no interface.
    Without -d, -j or --ipfix, records are printed as JSON lines.
    """
    context.obj = {"map_path": options["map_path"], "map_name": options["map_name"]}
    if options["capture"] is not None:
        if context.invoked_subcommand is not None:
            raise ConfigError(f"-r reads a capture: {context.invoked_subcommand} does not go with it")
        _read_capture(options, context)
    elif context.invoked_subcommand is None:
        _collect(options)


@cli.command()
@table_options
@where_options
@load_options
@guard_options
@features_options
@click.pass_obj
def load(outer: dict[str, Any], /, **options: Any) -> None:
    """Load the programs and attach them; they count from then on."""
    where = chosen.where(options)
    if not where.anywhere:
        raise ConfigError("load where? name interfaces (--iface NAME) or take all (--all)")
    _load(_pin_set(options, outer), options, where)


@cli.command()
@table_options
@where_options
@load_options
@guard_options
@features_options
@collect_options
@features_output_options
@export_options
@watch_options
@click.pass_obj
def start(outer: dict[str, Any], /, **options: Any) -> None:
    """Load, attach, and run the collector in the background."""
    from flowmon import daemon

    where = chosen.where(options)
    if not where.anywhere:
        raise ConfigError("start where? name interfaces (--iface NAME) or take all (--all)")
    pin_set = _pin_set(options, outer)
    chosen.collector_options(options)  # wrong ones are found before anything is loaded
    if not (options["directory"] or options["json_lines"] or options["destinations"]):
        raise ConfigError(
            "start needs -d DIR or --ipfix URL for the records (or -j, for JSON lines in the log file)"
        )
    process = daemon.running(pin_set)
    if process is not None:
        raise KernelError(f"a collector runs already (process {process}): flowmon stop first")
    log_file = (options["log_file"] or Path("/var/log/flowmon.log")).absolute()
    daemon.check_log(log_file)
    features = _feature_output(options)
    _check_feature_outputs(pin_set, options, features)
    features.close()
    for sink in _sinks(options):  # what cannot be written is found out before anything is loaded
        sink.close()
    _watching(options).close()
    _load(pin_set, options, where)
    process = daemon.start(pin_set, _daemon_arguments(options, pin_set), log_file)
    print(f"collector started, process {process}, log {log_file}")


@cli.command()
@table_options
@click.pass_obj
def stop(outer: dict[str, Any], /, **options: Any) -> None:
    """End the collector in the background; the programs go on counting."""
    from flowmon import daemon

    stopped = daemon.stop(_pin_set(options, outer))
    print("collector stopped" if stopped else "no collector was running in the background")


@cli.command()
@table_options
@click.option(
    "--iface",
    "names",
    metavar="NAME",
    multiple=True,
    allow_from_autoenv=False,  # those to watch are not those to leave
    help="Only this interface; may be repeated.",
)
@click.pass_obj
def unload(outer: dict[str, Any], /, names: tuple[str, ...], **options: Any) -> None:
    """Detach the programs; the table keeps what was not collected."""
    from flowmon import daemon, session

    pin_set = _pin_set(options, outer)
    if not names:
        daemon.stop(pin_set)
    detached = session.unload(pin_set, names)
    print(f"detached from {', '.join(detached) or 'nothing'}")


@cli.command()
@table_options
@click.pass_obj
def purge(outer: dict[str, Any], /, **options: Any) -> None:
    """Detach the programs and remove the table: flows that were not collected are gone."""
    from flowmon import daemon, session

    pin_set = _pin_set(options, outer)
    daemon.stop(pin_set)
    was_there = pin_set.has_table()
    detached = session.purge(pin_set)
    where = ", ".join(detached) or "nothing"
    print(f"detached from {where}; {pin_set.table_path} is gone" if was_there else "nothing was loaded")


@cli.command()
@table_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def status(outer: dict[str, Any], /, *, as_json: bool, **options: Any) -> None:
    """Where the programs are, how full the table is, and the books."""
    import json

    from flowmon import status as status_module

    found = status_module.status(_pin_set(options, outer))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        status_module.print_status(found)


@cli.command()
@table_options
@click.argument("address")
@click.option(
    "--ttl", metavar="TIME", default="1h", show_default=True, help="For how long: 90s, 15m, 1h, 7d."
)
@click.option(
    "--reason", metavar="TEXT", default="by hand", show_default=True, help="Why, for those who ask."
)
@never_block_option
@click.pass_obj
def block(outer: dict[str, Any], /, **options: Any) -> None:
    """Drop what comes in from an address or prefix, at the interfaces that flowmon watches."""
    from flowmon import blocking

    pin_set = _pin_set(options, outer)
    given = (options["address"], options["ttl"], options["reason"], options["never_block"])
    print(blocking.block(pin_set, *given))


@cli.command()
@table_options
@click.argument("address")
@click.pass_obj
def unblock(outer: dict[str, Any], /, address: str, **options: Any) -> None:
    """Take an address or prefix off the deny-list, and out of the guard's registry."""
    from flowmon import blocking

    print(blocking.unblock(_pin_set(options, outer), address))


@cli.command()
@table_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def blocked(outer: dict[str, Any], /, *, as_json: bool, **options: Any) -> None:
    """Whom the deny-list and the guard drop, until when and why, and what that was."""
    import json

    from flowmon import blocking

    found = blocking.blocked(_pin_set(options, outer))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        blocking.print_blocked(found)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(*, as_json: bool) -> int:
    """Look at this host: can it run flowmon, and what is to be done?"""
    from flowmon import doctor as doctor_module

    return doctor_module.report(as_json)


def _pin_set(options: dict[str, Any], outer: dict[str, Any] | None = None) -> PinSet:
    from flowmon import session
    from flowmon.kernel.pins import PinSet

    path, name = options["map_path"], options["map_name"]
    if path is None and name is None and outer:
        path, name = outer["map_path"], outer["map_name"]
    if path is not None and name is not None:
        options_given = f"{given_as('map_path', '-f')} and {given_as('map_name', '-p')}"
        raise ConfigError(f"{options_given} both name the flow table: give one of them")
    if name is not None and "/" in name:
        raise ConfigError(f"{given_as('map_name', '-p')} takes a name, not a path: -f {name}")
    table = path.name if path else name
    option = given_as("map_path", "-f") if path else given_as("map_name", "-p")
    if table is not None and not 0 < len(table.encode(errors="replace")) <= TABLE_NAME_MOST:
        raise ConfigError(f"{option}: a table's name has 1 to {TABLE_NAME_MOST} bytes, not {len(table)}")
    if table is not None and "." in table:
        raise ConfigError(f"{option} {table}: bpffs takes no dot in a name")
    if path:
        return session.find(PinSet.of_table(path.absolute()))
    return session.find(PinSet.default(name) if name else PinSet.default())


def _load(pin_set: PinSet, options: dict[str, Any], where: Where, owner_pid: int = 0) -> Work:
    from flowmon import blocking, session
    from flowmon.kernel import loader

    if options["direction"] == "egress" and (options["guard_ports"] or options.get("block_scopes")):
        raise ConfigError(
            "--direction egress leaves out where packets are dropped: the guard and --block need ingress"
        )
    never = blocking.never_rules(options["never_block"])  # a wrong one is found before anything is loaded
    work = session.load(pin_set, chosen.load_options(options, owner_pid), where)
    try:
        blocking.protect_loaded(pin_set, never)
    except BaseException:
        session.purge(pin_set, work) if work.loaded else session.detach(pin_set, work)
        raise
    size, memory = loader.table_info(pin_set).max_entries, loader.table_bytes(pin_set)
    names = ", ".join(interface.name for interface in work.attached) or "nothing more than before"
    print(
        f"flow table {pin_set.table_path}: {size:,} directed flows, {memory / 1e6:.1f} MB;"
        f" attached to {names}",
        file=sys.stderr,
    )
    return work


def _sinks(options: dict[str, Any]) -> list[Sink]:
    from flowmon import outputs

    return outputs.sinks(options)


def _feature_output(options: dict[str, Any]) -> FeatureOutput:
    from flowmon import outputs

    return outputs.feature_output(options)


def _check_feature_outputs(pin_set: PinSet, options: dict[str, Any], features: FeatureOutput) -> None:
    """What is of no use, or cannot be written, is found out before anything is loaded."""
    if options["features"]:
        chosen.load_options(options, owner_pid=0)
        features.open()
    elif not pin_set.has_programs():
        chosen.refuse_feature_outputs(options)


def _watching(options: dict[str, Any]) -> Watching:
    from flowmon import outputs

    return outputs.watching(options)


def _set_up_log(options: dict[str, Any]) -> None:
    level = logging.DEBUG if options["verbose"] else logging.WARNING if options["quiet"] else logging.INFO
    try:
        logging.basicConfig(filename=options["log_file"], format="%(asctime)s %(levelname)s %(message)s")
    except OSError as error:
        option = given_as("log_file", "-l")
        raise ConfigError(f"{option} {options['log_file']}: {error.strerror}") from None
    log.setLevel(level)


def _collect(options: dict[str, Any]) -> None:
    from flowmon import session
    from flowmon.arrow import leave_pandas_out
    from flowmon.kernel import loader
    from flowmon.run import Outputs, run

    leave_pandas_out()
    where = chosen.where(options)
    collector_options = chosen.collector_options(options)
    pin_set = _pin_set(options)
    _set_up_log(options)
    if pin_set.has_programs():  # what is loaded lists as many as it lists
        options["splt"] = options["splt"] or loader.loaded_options(pin_set).first_packets
    if not where.anywhere:
        _check_loaded(pin_set, options)
    watching = _watching(options)
    outputs = Outputs(_sinks(options), _feature_output(options))
    if not where.anywhere:
        with session.collector_lock(pin_set):
            run(pin_set, where, None, outputs, watching, collector_options, options["pid_file"])
        return
    _check_feature_outputs(pin_set, options, outputs.features)
    work = _load(pin_set, options, where, owner_pid=os.getpid())
    try:
        with session.collector_lock(pin_set):
            run(pin_set, where, work, outputs, watching, collector_options, options["pid_file"])
        if work.loaded:
            session.purge(pin_set, work)
    except SinkError as error:
        # Flows that could not be written are in the table: it stays, but for those that left it.
        if work.loaded and isinstance(error, NotSentError):
            session.purge(pin_set, work)
        raise
    except BaseException:
        if work.loaded:
            session.purge(pin_set, work)
        raise
    finally:
        session.detach(pin_set, work)


def _check_loaded(pin_set: PinSet, options: dict[str, Any]) -> None:
    from flowmon import session
    from flowmon.kernel import loader

    loader.check_loaded(pin_set)
    if options["features"]:
        session.check_features(pin_set, chosen.load_options(options, owner_pid=0))


_OF_INTERFACES = (
    *("map_path", "map_name", "names", "every", "direction"),
    *("timestamps", "every_interface", "pid_file"),
    *("guard_ports", "guard_window", "guard_block", "never_block"),
    *("block_scopes", "enforce", "listen", "serve_ip_list"),
)


def _read_capture(options: dict[str, Any], context: click.Context) -> None:
    from flowmon import offline
    from flowmon.arrow import leave_pandas_out

    leave_pandas_out()
    for name in _OF_INTERFACES:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = next(param.opts[0] for param in context.command.params if param.name == name)
            raise ConfigError(f"-r reads a capture: {option} is of interfaces and their tables")
    # A file of options has them for interfaces.
    options |= {"timestamps": "exact", "every_interface": False, "guard_ports": 0, "never_block": ()}
    options |= {"block_scopes": None, "enforce": False, "listen": "off", "serve_ip_list": False}
    if not options["capture"]:
        raise ConfigError("-r needs the name of a capture file, or - for standard input")
    collector_options = chosen.collector_options(options)
    chosen.refuse_feature_outputs(options)
    _set_up_log(options)
    by_default = click.core.ParameterSource.DEFAULT
    given = context.get_parameter_source("max_flows") is not by_default
    if context.get_parameter_source("sessions") is by_default:
        options["sessions"] = 0  # by the size of the file: nothing there is a flood to be kept out
    offline.read_capture(
        options["capture"],
        lambda: _sinks(options),
        chosen.load_options(options, owner_pid=0),
        options["max_flows"] if given else None,
        collector_options,
        _watching(options),
        _feature_output(options),
    )


def _daemon_arguments(options: dict[str, Any], pin_set: PinSet) -> list[str]:
    """The collector's command line, for the process in the background: every option of its own, with its value.

    It reads neither file nor environment, which may say something else where it runs.
    """
    arguments = [f"--{ONLY_COMMAND_LINE.replace('_', '-')}", "-f", str(pin_set.table_path)]
    of_load = config.settings(load)
    for key, option in config.settings(start).items():
        # The log is its standard output.
        if (key not in of_load or key == "never-block") and key != "log-file":
            arguments += config.as_arguments(key, option, options[option.name])
    return arguments
