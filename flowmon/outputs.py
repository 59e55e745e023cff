"""What the options ask for: sinks, analysers, and where their alerts go."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmon.config import given_as
from flowmon.domain import default_observation_domain_id
from flowmon.errors import ConfigError

if TYPE_CHECKING:
    from flowmon.analysers import Analyser
    from flowmon.analysers.alerts import Alert
    from flowmon.blocker import BlockOptions
    from flowmon.collector import CollectorOptions
    from flowmon.features.tap import TapOptions
    from flowmon.sinks import Sink
    from flowmon.sinks.alerts import AlertSink
    from flowmon.sinks.features import FeatureSink
    from flowmon.sinks.ipfix import IpfixOptions
    from flowmon.watch import Watch

# What a sink or an analyser needs is imported where there is any: it takes time.

MIB = 1 << 20
NS = 1_000_000_000
# Readers of Parquet leave out what begins so, when they read the flows, or the features.
FEATURES_DIRECTORY, SESSIONS_DIRECTORY = "_features", "_sessions"
DEFAULT_LISTEN = "127.0.0.1:2112"
ACTIVE_PEERS = "active-peers"
LEAST_TTL_S = 20.0  # entries are looked after every 10 s


def sinks(options: dict[str, Any]) -> list[Sink]:
    """Opened. JSON lines where nothing else is asked for. Raises ConfigError, SinkError."""
    found: list[Sink] = []
    try:
        if options["directory"] is not None:
            from flowmon.sinks.parquet import ParquetSink

            found.append(ParquetSink(options["directory"]))
        if options["destinations"]:
            _add_ipfix(options, found)
        if options["json_lines"] or not found:
            if sys.stdout is None:
                raise ConfigError("standard output is closed: open it, or give -d DIR or --ipfix URL")
            from flowmon.sinks.json_lines import JsonLinesSink

            found.append(JsonLinesSink(sys.stdout.buffer))
    except BaseException:
        for sink in found:
            sink.close()
        raise
    return found


@dataclass
class FeatureOutput:
    """Where packet features go: nothing is opened before `open`.

    directory: None where none was named.
    """

    directory: Path | None
    as_json: bool
    as_csv: bool
    accept_restart_s: float
    is_capture: bool  # the same again gives the same files; what an interface has shown does not come again
    _sinks: list[FeatureSink] = field(default_factory=list)

    def open(self) -> list[FeatureSink]:
        """Opened; once. Raises ConfigError, SinkError."""
        from flowmon.sinks.features.parquet import ParquetFeatureSink
        from flowmon.sinks.features.result_json import ResultJsonSink
        from flowmon.sinks.features.session_csv import SessionCsvSink

        if self._sinks:
            return self._sinks
        if self.directory is None:
            raise ConfigError(
                "packet features need a directory: give -d DIR, or --features-directory DIR for them alone"
            )
        if self.as_json:
            self._sinks.append(ResultJsonSink(self.directory, keep=not self.is_capture))
        else:
            self._sinks.append(ParquetFeatureSink(self.directory))
        if self.as_csv:
            self._sinks.append(SessionCsvSink(self.directory / SESSIONS_DIRECTORY))
        return self._sinks

    def tap_options(self, options: CollectorOptions) -> TapOptions:
        """How often the collector looks after them."""
        from flowmon.features.tap import TapOptions

        return TapOptions(
            options.timeouts.idle_ns, int(self.accept_restart_s * NS), int(options.interval_s * NS)
        )

    def close(self) -> None:
        """Closes what was opened."""
        for sink in self._sinks:
            sink.close()


def feature_output(options: dict[str, Any]) -> FeatureOutput:
    """As the options say."""
    directory = options["features_directory"]
    if directory is None and options["directory"] is not None:
        directory = options["directory"] / FEATURES_DIRECTORY
    return FeatureOutput(
        directory,
        options["features_format"] == "json",
        options["debug"],
        options["accept_restart"],
        options.get("capture") is not None,
    )


@dataclass(frozen=True)
class Watching:
    """Analysers and where their alerts go; what is done about them; and HTTP.

    listen: address and port, or None. is_listening_asked: whether a user wants it, or it is the default.
    """

    analysers: list[Analyser]
    alert_sinks: list[AlertSink]
    block: BlockOptions
    listen: tuple[str, int] | None
    is_listening_asked: bool
    serve_ip_list: bool

    def watch(
        self, interval_s: float, respond: Callable[[list[Alert]], list[Alert]] = lambda alerts: alerts
    ) -> Watch | None:
        """Of the analysers; None where there are none."""
        from flowmon.watch import Watch

        return Watch(self.analysers, self.alert_sinks, interval_s, respond) if self.analysers else None

    def close(self) -> None:
        """Closes the alert sinks."""
        for sink in self.alert_sinks:
            sink.close()


def watching(options: dict[str, Any]) -> Watching:
    """Opened. Raises ConfigError, SinkError."""
    from flowmon.analysers import parameters
    from flowmon.web.server import parse_listen

    block = _block_options(options)
    texts = _analyse_texts(options, block)
    analysers = parameters.analysers(texts)
    places = options["alerts"]
    if places and not texts:
        option = given_as("alerts", "--alerts")
        raise ConfigError(f"{option} is of no use without --analyse, which says what to watch for")
    listen = parse_listen(options["listen"] or DEFAULT_LISTEN)
    return Watching(
        analysers,
        _alert_sinks(places or ("stderr",)) if texts else [],
        block,
        listen,
        is_listening_asked=options["listen"] is not None,
        serve_ip_list=options["serve_ip_list"],
    )


def _alert_sinks(texts: Sequence[str]) -> list[AlertSink]:
    from flowmon.sinks.alerts import alert_sinks

    return alert_sinks(texts)


def _analyse_texts(options: dict[str, Any], block: BlockOptions) -> list[str]:
    """What --analyse says, and what other options need."""
    from flowmon.analysers.parameters import ALL
    from flowmon.blocker import SCOPES

    texts = list(options["analyse"])
    names = {text.partition(":")[0] for text in texts}
    settings = {"ports": options["ports"], "window": options["window"]}
    given = [f"{key}={str(value).replace(',', '+')}" for key, value in settings.items() if value is not None]
    if names.intersection((ACTIVE_PEERS, ALL)) and given:
        option = given[0].partition("=")[0]
        raise ConfigError(
            f"--{option} switches {ACTIVE_PEERS} on: leave that out of --analyse, or give it there"
        )
    if ALL in names:
        return texts
    for scope in sorted(block.scopes):
        detectors = [name for name, of in SCOPES.items() if of == scope]
        if not names.intersection(detectors):
            texts += detectors
    if (given or options["serve_ip_list"]) and ACTIVE_PEERS not in names:
        texts.append(f"{ACTIVE_PEERS}:{','.join(given)}" if given else ACTIVE_PEERS)
    return texts


def _block_options(options: dict[str, Any]) -> BlockOptions:
    from flowmon.blocker import SCOPES, BlockOptions

    scopes = {text.strip() for text in (options["block_scopes"] or "").split(",") if text.strip()}
    if options["block_scopes"] is not None and (not scopes or scopes - set(SCOPES.values())):
        option = given_as("block_scopes", "--block")
        raise ConfigError(f"{option} {options['block_scopes']}: expected scan, flood, or scan,flood")
    if options["enforce"] and not scopes:
        raise ConfigError(
            f"{given_as('enforce', '--enforce')} is of no use without --block, which says against what"
        )
    return BlockOptions(
        scopes=frozenset(scopes),
        enforce=options["enforce"],
        ttl_s=_block_ttl(options["block_ttl"]),
        most=options["block_most"],
        never=tuple(options["never_block"]),
    )


def _block_ttl(text: str) -> float:
    from flowmon.blocking import seconds

    option = given_as("block_ttl", "--block-ttl")
    try:
        ttl_s = seconds(text)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None
    if ttl_s < LEAST_TTL_S:
        raise ConfigError(f"{option} {text}: expected at least {LEAST_TTL_S:g} s")
    return ttl_s


def _add_ipfix(options: dict[str, Any], found: list[Sink]) -> None:
    from flowmon.sinks.destination import destination
    from flowmon.sinks.ipfix import IpfixSink

    destinations = [destination(text) for text in options["destinations"]]
    for one in destinations:
        if destinations.count(one) > 1:
            raise ConfigError(f"--ipfix {one} stands there twice")
    for name in ("ipfix_ca", "ipfix_cert"):
        if options[name] and not any(one.scheme == "tls" for one in destinations):
            option = given_as(name, f"--{name.replace('_', '-')}")
            raise ConfigError(f"{option} is for tls://: nothing else goes out encrypted")
    how = ipfix_options(options)
    found.extend(IpfixSink(one, how) for one in destinations)


def ipfix_options(options: dict[str, Any]) -> IpfixOptions:
    """What the options say of IPFIX. Raises ConfigError."""
    from flowmon.ipfix.encoder import Profile
    from flowmon.sinks.exporter import Refresh
    from flowmon.sinks.ipfix import IpfixOptions
    from flowmon.sinks.transports.tls import TlsFiles

    domain = options["observation_domain"]
    if options["ipfix_key"] and not options["ipfix_cert"]:
        raise ConfigError(f"{given_as('ipfix_key', '--ipfix-key')} is of no use without --ipfix-cert")
    return IpfixOptions(
        profile=Profile(
            chosen=elements(options["ipfix_elements"]),
            version=options["ipfix_version"],
            biflows=not options["ipfix_uniflow"],
            time_unit=options["ipfix_time"],
            pen=options["ipfix_pen"],
            observation_domain_id=default_observation_domain_id() if domain is None else domain,
            first_packets=options["splt"],
        ),
        udp_message=options["ipfix_mtu"],
        udp_rate=options["ipfix_rate"],
        refresh=Refresh(options["ipfix_refresh"], options["ipfix_refresh_messages"]),
        tls=TlsFiles(options["ipfix_ca"], options["ipfix_cert"], options["ipfix_key"]),
        spool=options["ipfix_spool"],
        spool_bytes=options["ipfix_spool_size"] * MIB,
        waits=options.get("capture") is not None,
    )


def elements(text: str) -> frozenset[str]:
    """The columns that "default", "iana", "all", or names with commas between choose. Raises ConfigError."""
    from flowmon.ipfix.fields import CHOICES, IANA_ONLY, NOT_BY_DEFAULT

    chosen: set[str] = set()
    for name in (part.strip() for part in text.split(",")):
        if name == "default":
            chosen |= set(CHOICES) - NOT_BY_DEFAULT
        elif name == "all":
            chosen |= set(CHOICES)
        elif name == "iana":
            chosen |= IANA_ONLY
        elif name in CHOICES:
            chosen.add(name)
        else:
            near = difflib.get_close_matches(name, CHOICES, 1)
            advice = f"is {near[0]} meant?" if near else "docs/ipfix-elements.md lists them"
            option = given_as("ipfix_elements", "--ipfix-elements")
            raise ConfigError(f"{option}: {name!r} is no element: {advice}")
    return frozenset(chosen)
