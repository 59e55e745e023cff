"""Options from the environment or a TOML file, for every command, from what Click knows of its options.

Rules:
- The command line goes before the environment, that before the file, that before the defaults.
- Of two options that exclude each other, the one from the stronger source counts.
- One file serves all commands: a key that only another command has is ignored.
- The group takes its own command line only where a command follows: the rest is the command's.
"""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import click

from flowmon.errors import ConfigError
from flowmon.options import ONLY_COMMAND_LINE, RIVALS, config_option

_FILE = "flowmon.config"  # keys of Click's meta, which a group shares with its commands
_ORIGINS = "flowmon.origins"
_NOUNS = {bool: "boolean (true or false)", int: "whole number", float: "number", str: "string"}


class _Setting(NamedTuple):
    value: Any
    origin: str  # in the words of an error: the variable, or the file and key


class ConfigurableCommand(click.Command):
    """A command with --config, whose options may come from a file or the environment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config_option(self)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As Click does, with what was given elsewhere as the defaults."""
        said, rest, _ = self.make_parser(ctx).parse_args(list(args))
        if said.get("config"):
            ctx.meta[_FILE] = said["config"]
        eager = any(param.is_eager and param.name in said for param in self.get_params(ctx))  # --help
        follows = isinstance(self, click.Group) and rest
        if not (eager or follows or ONLY_COMMAND_LINE in said or ctx.resilient_parsing):
            of_group = {name for name, value in (ctx.obj or {}).items() if value is not None}
            given = _given(ctx, of_group.union(said))
            ctx.default_map = {name: setting.value for name, setting in given.items()}
            ctx.meta[_ORIGINS] = {name: setting.origin for name, setting in given.items()}
        return super().parse_args(ctx, args)


def settings(command: click.Command) -> dict[str, click.Option]:
    """By key, the options that a file or the environment may give: with a long name, not hidden, nor excepted."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    usable = [one for one in options if one.expose_value and not one.hidden and one.allow_from_autoenv]
    named = {option.opts[-1]: option for option in usable}
    return {name[2:]: option for name, option in named.items() if name.startswith("--")}


def variable(key: str) -> str:
    """The environment variable of a key."""
    return "FLOWMON_" + key.replace("-", "_").upper()


def given_as(name: str, option: str) -> str:
    """How the user gave a parameter: the variable, the file and key, or else the option."""
    context = click.get_current_context(silent=True)
    return context.meta.get(_ORIGINS, {}).get(name, option) if context else option


def _given(context: click.Context, said: set[str]) -> dict[str, _Setting]:
    """What counts of environment and file, by parameter, beside what the command line said."""
    path = context.meta.get(_FILE) or os.environ.get("FLOWMON_CONFIG")
    environment = _from_environment(context, said)
    file = _from_file(context, path) if path else {}
    over_file = said.union(name for name, setting in environment.items() if setting.value)
    file = {name: setting for name, setting in file.items() if RIVALS.get(name) not in over_file}
    environment = {name: setting for name, setting in environment.items() if RIVALS.get(name) not in said}
    return {name: setting for name, setting in (file | environment).items() if name not in said}


def _from_environment(context: click.Context, said: set[str]) -> dict[str, _Setting]:
    found = {}
    for key, option in settings(context.command).items():
        text = os.environ.get(variable(key))
        if text and option.name not in said:  # an empty variable is as none
            value = option.type.split_envvar_value(text) if option.multiple else text
            found[str(option.name)] = _converted(context, option, value, variable(key))
    return found


def _from_file(context: click.Context, path: str) -> dict[str, _Setting]:
    own, found = settings(context.command), {}
    for key, value in _read(path, _every_key(context.find_root().command)).items():
        if key in own:
            _check_type(own[key], value, f"{path}: {key}")
            found[str(own[key].name)] = _converted(context, own[key], value, f"{path}: {key}")
    return found


def _every_key(command: click.Command) -> set[str]:
    commands = command.commands.values() if isinstance(command, click.Group) else ()
    return set(settings(command)).union(*map(_every_key, commands))


def _read(path: str, keys: set[str]) -> dict[str, Any]:
    """The file as it is. Raises ConfigError where it has other keys."""
    try:
        read = tomllib.loads(Path(path).read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: expected a TOML file that can be read") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected TOML in UTF-8: {error}") from None
    for key in read:
        if key not in keys:
            near = difflib.get_close_matches(key, sorted(keys), 1)
            advice = f"is {near[0]} meant?" if near else "expected a long option name (flowmon --help)"
            raise ConfigError(f"{path}: {key!r} is no option: {advice}")
    return read


def _check_type(option: click.Option, value: Any, origin: str) -> None:
    kind = _kind(option)
    values = value if option.multiple and isinstance(value, list) else [value]
    right = isinstance(value, list) == option.multiple
    right = right and all(type(each) is kind or (kind is float and type(each) is int) for each in values)
    if not right or any("\0" in each for each in values if kind is str):
        noun = f"list of {_NOUNS[kind]}s" if option.multiple else _NOUNS[kind]
        raise ConfigError(f"{origin}: expected a {noun}")


def _kind(option: click.Option) -> type:
    number = {type(click.INT): int, type(click.FLOAT): float}
    kinds = [kind for base, kind in number.items() if isinstance(option.type, base)]
    return bool if option.is_flag else kinds[0] if kinds else str


def _converted(context: click.Context, option: click.Option, value: Any, origin: str) -> _Setting:
    """The value as the option takes it; raises ConfigError, with the origin, where it does not."""
    try:
        return _Setting(option.type_cast_value(context, value), origin)
    except (click.BadParameter, ValueError, OverflowError) as error:
        raise ConfigError(f"{origin}: {error}") from None


def as_arguments(key: str, option: click.Option, value: Any) -> list[str]:
    """A value as the command line has it."""
    if option.is_flag:
        return [f"--{key}"] if value else []
    values = value if option.multiple else (value,)
    return [
        f"--{key}={each.absolute() if isinstance(each, Path) else each}"
        for each in values
        if each is not None
    ]
