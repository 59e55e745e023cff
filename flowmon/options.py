"""The command line's options, in the groups that commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

# Parameters that exclude each other, and each one's rival: one on the command line rules out a rival in a file.
_EXCLUSIVE = (("map_path", "map_name"), ("every", "names"), ("quiet", "verbose"))
RIVALS = {one: other for pair in _EXCLUSIVE for one, other in (pair, pair[::-1])}

ONLY_COMMAND_LINE = "only_command_line"  # the parameter that says: neither the environment nor a file


def _options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order given."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


class NonEmptyPath(click.Path):
    """A path that is not empty: an unset variable of a script shall not mean the current directory."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        """As click.Path does, but for the empty one."""
        if value == "":
            self.fail("an empty path", param, context)
        return super().convert(value, param, context)


class FiniteRange(click.FloatRange):
    """A number in a range; "nan" is in none."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        """As click.FloatRange does, but for what is no number."""
        number = super().convert(value, param, context)
        if math.isnan(number):
            self.fail(f"{value} is no number", param, context)
        return number


class DestinationUrl(click.types.StringParamType):
    """Where IPFIX goes, as text. A path becomes absolute: in the background, the directory is another."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> str:
        """As it is, but for a relative path; whether it is right is found where it is opened."""
        value = super().convert(value, param, context)
        path = value.removeprefix("file:")
        return value if path in ("", value) or path.startswith("/") else f"file:{Path(path).absolute()}"


class AlertPlace(click.types.StringParamType):
    """Where alerts go, as text. A path becomes absolute, as above."""

    name = "where"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> str:
        """As it is, but for a relative path."""
        value = super().convert(value, param, context)
        kind, _, path = value.partition(":")
        is_relative = kind in ("json", "parquet") and path not in ("", "-") and not path.startswith("/")
        return f"{kind}:{Path(path).absolute()}" if is_relative else value


config_option = click.option(
    "--config",
    metavar="FILE",
    type=NonEmptyPath(),
    expose_value=False,
    help="TOML file with options by their long names; FLOWMON_NAME in the environment goes before it.",
)
table_options = _options(
    click.option(
        "-f",
        "--table-path",
        "map_path",
        metavar="PATH",
        type=NonEmptyPath(),
        help="Flow table by its full path in bpffs.",
    ),
    click.option(
        "-p",
        "--table-name",
        "map_name",
        metavar="NAME",
        help="Flow table by name, in /sys/fs/bpf/flowmon.",
    ),
)
where_options = _options(
    click.option("--iface", "names", metavar="NAME", multiple=True, help="Interface; may be repeated."),
    click.option(
        "-a", "--all", "every", is_flag=True, help="Every interface that is up, and those that appear."
    ),
    click.option(
        "--direction",
        type=click.Choice(["ingress", "egress", "both"]),
        default="both",
        show_default=True,
        help="Which hooks of an interface.",
    ),
)
load_options = _options(
    click.option(
        "--loader",
        type=click.Choice(["auto", "libbpf", "bcc"]),
        default="auto",
        show_default=True,
        help="auto: libbpf where the object is built, else BCC.",
    ),
    click.option(
        "--max-flows",
        type=click.IntRange(1, 1 << 28),
        default=65536,
        show_default=True,
        help="Size of the table: directed flows, two a biflow.",
    ),
    click.option("--decap", is_flag=True, help="Flows are those inside tunnels, with the tunnel's columns."),
    click.option(
        "--splt",
        type=click.IntRange(0, 32),
        default=0,
        show_default=True,
        metavar="N",
        help="List length, direction and time of a record's first N packets, at most 32; 0: none.",
    ),
    click.option(
        "--timestamps",
        type=click.Choice(["exact", "coarse"]),
        default="exact",
        show_default=True,
        help="Packets' time: exact to the nanosecond, or cheap and as fine as a tick (1-10 ms).",
    ),
    click.option("--object", "object_path", type=NonEmptyPath(), help="Another BPF object."),
    click.option("--section", default="tc", show_default=True, help="Section of the programs in it."),
)
collect_options = _options(
    click.option(
        "-i",
        "--interval",
        type=float,
        default=1.0,
        show_default=True,
        help="Seconds between passes over the table; 0: one pass, then exit.",
    ),
    click.option("-d", "--directory", metavar="DIR", type=NonEmptyPath(), help="Parquet files go there."),
    click.option("-j", "--json-lines", is_flag=True, help="JSON lines on standard output."),
    click.option("-l", "--log-file", metavar="FILE", type=NonEmptyPath(), help="Log messages go there."),
    click.option("-q", "--quiet", is_flag=True, help="Warnings only."),
    click.option("-v", "--verbose", is_flag=True, help="Say what each pass recorded."),
    click.option(
        "--idle-timeout",
        type=float,
        default=15.0,
        show_default=True,
        help="Seconds without a packet that end a flow.",
    ),
    click.option(
        "--active-timeout",
        type=float,
        default=60.0,
        show_default=True,
        help="Seconds after which a flow that goes on is reported.",
    ),
    click.option(
        "--linger",
        type=float,
        default=1.0,
        show_default=True,
        help="Seconds after RST or FINs that end a TCP flow.",
    ),
    click.option("--every-interface", is_flag=True, help="Report a flow at every interface that saw it."),
    click.option(
        "--observation-domain",
        type=click.IntRange(0, 2**32 - 1),
        help="observationDomainId; by default from the machine's id.",
    ),
)
features_options = _options(
    click.option(
        "--features", is_flag=True, help="Hand out the first packets of each session one by one, as well."
    ),
    click.option(
        "--packets-per-session",
        type=click.IntRange(1, 1 << 27),
        default=100,
        show_default=True,
        help="So many of each, both directions together.",
    ),
    click.option(
        "--sessions",
        type=click.IntRange(1, 1 << 20),
        default=1024,
        show_default=True,
        help="So many at a time; who finds no place is only counted. With -r by the file's size.",
    ),
    click.option(
        "--protocols",
        default="tcp,udp,icmp",
        show_default=True,
        metavar="LIST",
        help="Sessions of which protocols, of both IP versions.",
    ),
    click.option(
        "--session-restart",
        type=FiniteRange(0, 1e9),
        default=5.0,
        show_default=True,
        help="Seconds after which a session that reached its limit and goes on is captured again.",
    ),
    click.option(
        "--ring-size",
        type=click.IntRange(1, 1024),
        default=16,
        show_default=True,
        help="MiB for packets on their way from the kernel; a power of two.",
    ),
)
features_output_options = _options(
    click.option(
        "--accept-restart",
        type=FiniteRange(0.1, 1e9),
        default=1.0,
        show_default=True,
        help="Seconds after which, all places being taken, the session least used makes room for one.",
    ),
    click.option(
        "--features-directory",
        metavar="DIR",
        type=NonEmptyPath(),
        help="Packet features go there.  [default: _features in that of -d]",
    ),
    click.option(
        "--features-format",
        type=click.Choice(["parquet", "json"]),
        default="parquet",
        show_default=True,
        help="parquet, or json: one result.json.",
    ),
    click.option("--debug", is_flag=True, help="A CSV file for each session as well."),
)
never_block_option = click.option(
    "--never-block",
    "never_block",
    metavar="PREFIX",
    multiple=True,
    help="May not be blocked, beside this host's addresses, gateways and resolvers; may be repeated.",
)
guard_options = _options(
    click.option(
        "--guard-ports",
        type=click.IntRange(0, 64),
        default=0,
        show_default=True,
        help="The kernel drops a source whose SYNs reach more ports than that; 0: no guard.",
    ),
    click.option(
        "--guard-window",
        type=click.IntRange(1, 86400),
        default=60,
        show_default=True,
        help="Seconds in which the guard counts them.",
    ),
    click.option(
        "--guard-block",
        type=click.IntRange(1, 10**9),
        default=600,
        show_default=True,
        help="Seconds for which it drops the source.",
    ),
    never_block_option,
)
watch_options = _options(
    click.option(
        "--analyse",
        "analyse",
        metavar="NAME[:KEY=VALUE,…]",
        multiple=True,
        help="Watch for port-fanout, random-walk, syn-rate, active-peers, or all; may be repeated.",
    ),
    click.option(
        "--alerts",
        "alerts",
        metavar="WHERE",
        type=AlertPlace(),
        multiple=True,
        help="stderr (the default), syslog, journal, json:PATH, parquet:DIR; may be repeated.",
    ),
    click.option("--ports", metavar="LIST", help="Ports of active-peers, as 22,80,8000-8100 or all."),
    click.option("--window", type=FiniteRange(0.1, 1e9), help="Its seconds back; 60 by default."),
    click.option(
        "--block",
        "block_scopes",
        metavar="SCOPES",
        help="Answer alerts with entries of the deny-list: scan, flood, or both with a comma between.",
    ),
    click.option("--enforce", is_flag=True, help="These entries drop; without it they only count."),
    click.option("--block-ttl", metavar="TIME", default="1h", show_default=True, help="How long they stay."),
    click.option(
        "--block-most",
        type=click.IntRange(1, 65536),
        default=1000,
        show_default=True,
        help="How many of them at a time.",
    ),
    click.option(
        "--listen",
        metavar="ADDR:PORT",
        help="HTTP: /metrics, /alerts, /list, /healthz; off for none.  [default: 127.0.0.1:2112]",
    ),
    click.option("--serve-ip-list", is_flag=True, help="/list says which peers are active."),
)
export_options = _options(
    click.option(
        "--ipfix",
        "destinations",
        metavar="URL",
        type=DestinationUrl(),
        multiple=True,
        help="Send IPFIX to udp://HOST:PORT, tcp://…, tls://…, or into file:PATH; may be repeated.",
    ),
    click.option(
        "--ipfix-version",
        type=click.IntRange(9, 10),
        default=10,
        show_default=True,
        help="9: NetFlow v9, for collectors that know nothing else.",
    ),
    click.option(
        "--ipfix-uniflow", is_flag=True, help="Two records a biflow, for collectors without RFC 5103."
    ),
    click.option(
        "--ipfix-time",
        type=click.Choice(["ms", "us", "ns"]),
        default="ms",
        show_default=True,
        help="Unit of flow times.",
    ),
    click.option(
        "--ipfix-elements",
        metavar="NAMES",
        default="default",
        show_default=True,
        help="default, iana (no vendor's), all, or columns by name, with commas between.",
    ),
    click.option(
        "--ipfix-pen",
        type=click.IntRange(1, 2**32 - 1),
        help="Your enterprise number: flowmon's own elements go out under it.",
    ),
    click.option(
        "--ipfix-mtu",
        type=click.IntRange(64, 65507),
        default=1400,
        show_default=True,
        help="Longest message over UDP, in octets, without the UDP and IP headers.",
    ),
    click.option(
        "--ipfix-rate",
        type=FiniteRange(0, 1e9),
        default=20000.0,
        show_default=True,
        help="Most messages a second over UDP, so that no collector's buffer overflows; 0: no limit.",
    ),
    click.option(
        "--ipfix-refresh",
        type=FiniteRange(0.1, 1e9),
        default=60.0,
        show_default=True,
        help="Seconds after which templates (UDP) and statistics go out again.",
    ),
    click.option(
        "--ipfix-refresh-messages",
        type=click.IntRange(1, 1 << 30),
        default=1000,
        show_default=True,
        help="Messages after which templates go out again over UDP.",
    ),
    click.option("--ipfix-ca", type=NonEmptyPath(), help="Authorities of the collector's certificate (PEM)."),
    click.option("--ipfix-cert", type=NonEmptyPath(), help="Our certificate (PEM)."),
    click.option("--ipfix-key", type=NonEmptyPath(), help="Its key (PEM), if it is not in the same file."),
    click.option(
        "--ipfix-spool", metavar="DIR", type=NonEmptyPath(), help="What waits for a collector is kept there."
    ),
    click.option(
        "--ipfix-spool-size",
        type=click.IntRange(1, 1 << 30),
        default=1024,
        show_default=True,
        help="Most MiB of it, for each destination; then the oldest go.",
    ),
)
