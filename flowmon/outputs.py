"""The sinks that the options ask for."""

from __future__ import annotations

import difflib
import sys
from typing import TYPE_CHECKING, Any

from flowmon.config import given_as
from flowmon.domain import default_observation_domain_id
from flowmon.errors import ConfigError
from flowmon.sinks import Sink
from flowmon.sinks.json_lines import JsonLinesSink
from flowmon.sinks.parquet import ParquetSink

if TYPE_CHECKING:
    from flowmon.sinks.ipfix import IpfixOptions

# What IPFIX needs is imported where there is any: it takes time.

MIB = 1 << 20


def sinks(options: dict[str, Any]) -> list[Sink]:
    """Opened. JSON lines where nothing else is asked for. Raises ConfigError, SinkError."""
    found: list[Sink] = []
    try:
        if options["directory"] is not None:
            found.append(ParquetSink(options["directory"]))
        if options["destinations"]:
            _add_ipfix(options, found)
        if options["json_lines"] or not found:
            if sys.stdout is None:
                raise ConfigError("standard output is closed: open it, or give -d DIR or --ipfix URL")
            found.append(JsonLinesSink(sys.stdout.buffer))
    except BaseException:
        for sink in found:
            sink.close()
        raise
    return found


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
