"""What the options choose, as those who do the work take it; sinks and analysers are in outputs.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flowmon.config import given_as
from flowmon.errors import ConfigError

if TYPE_CHECKING:
    from flowmon.collector import CollectorOptions
    from flowmon.kernel.load_options import Features, LoadOptions
    from flowmon.session import Where

# What takes time to import is imported where it is used.

NS = 1_000_000_000
MIB = 1 << 20
MOST_SECONDS = 1e9  # as nanoseconds they fit 64 bits


def where(options: dict[str, Any]) -> Where:
    """Which interfaces, and which hooks of them. Raises ConfigError."""
    from flowmon.abi import Direction
    from flowmon.session import BOTH, Where

    if options["every"] and options["names"]:
        options_given = f"{given_as('every', '--all')} and {given_as('names', '--iface')}"
        raise ConfigError(f"{options_given} exclude each other: all interfaces, or those named")
    direction = options["direction"]
    directions = BOTH if direction == "both" else frozenset({Direction[direction.upper()]})
    return Where(options["names"], options["every"], directions)


def load_options(options: dict[str, Any], owner_pid: int) -> LoadOptions:
    """How the programs are loaded; owner_pid: who takes them away again, or 0."""
    from flowmon.abi import TimeSource
    from flowmon.kernel.load_options import OBJECT, Guard, LoadOptions

    if not options["features"]:
        _refuse(_OF_FEATURES)
    guard = Guard(options["guard_ports"], options["guard_window"], options["guard_block"])
    return LoadOptions(
        loader=options["loader"],
        max_flows=options["max_flows"],
        time_source=TimeSource.COARSE if options["timestamps"] == "coarse" else TimeSource.MONOTONIC,
        decap=options["decap"],
        first_packets=options["splt"],
        object_path=options["object_path"] or OBJECT,
        section=options["section"],
        deny=bool(options.get("block_scopes")),
        guard=guard if guard.ports else None,
        features=_features(options) if options["features"] else None,
        owner_pid=owner_pid,
    )


_OF_FEATURES = ("packets_per_session", "sessions", "protocols", "session_restart", "ring_size")
_OF_THEIR_OUTPUT = ("accept_restart", "features_directory", "features_format", "debug")


def refuse_feature_outputs(options: dict[str, Any]) -> None:
    """Raises ConfigError where the command line says where features go, and nobody captures any."""
    if not options["features"]:
        _refuse(_OF_THEIR_OUTPUT)


def _refuse(names: tuple[str, ...]) -> None:
    context = click.get_current_context(silent=True)
    for name in names:
        if context and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise ConfigError(f"--{name.replace('_', '-')} is of no use without --features")


def _features(options: dict[str, Any]) -> Features:
    """Which packets are captured one by one. Raises ConfigError."""
    from flowmon.abi import FEATURE_PACKET, FeaturesProtocol
    from flowmon.kernel import ring
    from flowmon.kernel.load_options import Features

    ring_octets = options["ring_size"] * MIB
    option = given_as("ring_size", "--ring-size")
    if ring_octets & (ring_octets - 1):
        raise ConfigError(f"{option} {options['ring_size']}: must be a power of two, 1 to 1024 (MiB)")
    packets, room = options["packets_per_session"], ring.room(ring_octets, FEATURE_PACKET)
    if packets > room:
        raise ConfigError(
            f"{given_as('packets_per_session', '--packets-per-session')} {packets}: a ring of"
            f" {options['ring_size']} MiB holds {room} packets: ask for fewer, or raise {option}"
        )
    chosen = FeaturesProtocol(0)
    for name in options["protocols"].split(","):
        known = FeaturesProtocol.__members__.get(name.strip().upper())
        if known is None:
            names = ", ".join(FeaturesProtocol.__members__).lower()
            raise ConfigError(f"{given_as('protocols', '--protocols')} {name!r}: known are {names}")
        chosen |= known
    return Features(packets, options["sessions"], chosen, int(options["session_restart"] * NS), ring_octets)


def collector_options(options: dict[str, Any]) -> CollectorOptions:
    """How flows end and what is reported. Raises ConfigError."""
    from flowmon.collector import CollectorOptions
    from flowmon.domain import default_observation_domain_id
    from flowmon.expiry import Timeouts

    if not 0 <= options["interval"] <= MOST_SECONDS:
        interval = f"{given_as('interval', '-i')} {options['interval']:g}"
        raise ConfigError(f"{interval}: the interval is in seconds, 0 (one pass) to {MOST_SECONDS:g}")
    for name in ("idle_timeout", "active_timeout", "linger"):
        if not 0 <= options[name] <= MOST_SECONDS:
            option = given_as(name, f"--{name.replace('_', '-')}")
            raise ConfigError(f"{option} {options[name]:g}: seconds, 0 to {MOST_SECONDS:g}")
    domain = options["observation_domain"]
    return CollectorOptions(
        interval_s=options["interval"],
        timeouts=Timeouts(
            int(options["idle_timeout"] * NS),
            int(options["active_timeout"] * NS),
            int(options["linger"] * NS),
        ),
        every_interface=options["every_interface"],
        observation_domain_id=default_observation_domain_id() if domain is None else domain,
    )
