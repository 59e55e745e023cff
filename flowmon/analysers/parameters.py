"""`--analyse NAME[:key=value,…]`: which analysers there are, and what can be said of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, field, fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

from flowmon.analysers import Analyser
from flowmon.errors import ConfigError

ALL = "all"
_NOUNS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
_TRUTHS = {"true": True, "false": False}


class Kind(NamedTuple):
    """Where an analyser is; it is imported when it is wanted. Its parameters are a dataclass."""

    module: str
    analyser: str

    def analyser_class(self) -> Any:
        """Makes the analyser, of its parameters."""
        return getattr(import_module(self.module), self.analyser)

    def parameters_class(self) -> Any:
        """A frozen dataclass: int, float, bool and str with defaults, and a `meaning` each."""
        return getattr(import_module(self.module), self.analyser + "Parameters")


KINDS = {
    "active-peers": Kind("flowmon.analysers.active_peers", "ActivePeers"),
    "port-fanout": Kind("flowmon.analysers.port_fanout", "PortFanout"),
    "random-walk": Kind("flowmon.analysers.random_walk", "RandomWalk"),
    "syn-rate": Kind("flowmon.analysers.syn_rate", "SynRate"),
}


def parameter(default: Any, meaning: str, **limits: float) -> Any:
    """A dataclass field. limits: `above`, `below`, `least`, `most`; check() keeps them."""
    return field(default=default, metadata={"meaning": meaning, **limits})


def check(parameters: Any) -> None:
    """Raises ValueError where a field is beyond its limits, or not finite."""
    for one in fields(parameters):
        value = getattr(parameters, one.name)
        if isinstance(value, int | float) and not _within(value, one):
            raise ValueError(f"{one.name}: expected {_expected(one)}, not {value}")


def analysers(texts: Sequence[str]) -> list[Analyser]:
    """In the order given, each "NAME" or "NAME:key=value,…"; "all": every one, by default. Raises ConfigError."""
    made: dict[str, Analyser] = {}
    for text in texts:
        name, colon, rest = text.partition(":")
        if name == ALL and colon:
            raise ConfigError(f"--analyse {ALL} takes no parameters: name the analyser that {rest!r} is for")
        for each in KINDS if name == ALL else (name,):
            if each in made:
                raise ConfigError(f"--analyse {each} is given twice: give it once, with all its parameters")
            made[each] = _analyser(each, rest.split(",") if colon else [])
    return list(made.values())


def _analyser(name: str, settings: Sequence[str]) -> Analyser:
    if name not in KINDS:
        near = get_close_matches(name, KINDS, 1)
        advice = f"is {near[0]} meant? " if near else ""
        raise ConfigError(f"--analyse {name!r}: {advice}There are {', '.join(KINDS)}, and {ALL}")
    kind = KINDS[name]
    try:
        parameters = kind.parameters_class()(**_values(kind.parameters_class(), settings))
    except ValueError as error:
        raise ConfigError(f"--analyse {name}: {error}") from error
    analyser: Analyser = kind.analyser_class()(parameters)
    return analyser


def _values(parameters_class: Any, settings: Sequence[str]) -> dict[str, Any]:
    known = {one.name: one for one in fields(parameters_class)}
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"expected key=value, not {setting!r}")
        if key not in known:
            near = get_close_matches(key, known, 1)
            advice = f"is {near[0]} meant? " if near else ""
            raise ValueError(f"no parameter {key!r}: {advice}There are {', '.join(known)}")
        if key in values:
            raise ValueError(f"{key}: given twice")
        values[key] = _value(known[key], text)
    return values


def _value(one: Field[Any], text: str) -> Any:
    try:
        match _type_name(one):
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool":
                return _TRUTHS[text]
    except (ValueError, KeyError):
        raise ValueError(f"{one.name}: expected {_expected(one)}, not {text!r}") from None
    return text


def _type_name(one: Field[Any]) -> str:
    return one.type if isinstance(one.type, str) else one.type.__name__


def _within(value: float, one: Field[Any]) -> bool:
    limits = one.metadata
    return (
        math.isfinite(value)
        and limits.get("above", -math.inf) < value < limits.get("below", math.inf)
        and limits.get("least", -math.inf) <= value <= limits.get("most", math.inf)
    )


def _expected(one: Field[Any]) -> str:
    words = {"above": "above", "below": "below", "least": "of at least", "most": "of at most"}
    limits = [f"{word} {one.metadata[limit]:g}" for limit, word in words.items() if limit in one.metadata]
    return " ".join([_NOUNS[_type_name(one)], " and ".join(limits)]).rstrip()
