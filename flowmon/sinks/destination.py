"""Where IPFIX goes: a URL taken apart and checked."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from urllib.parse import quote

from flowmon.config import given_as
from flowmon.errors import ConfigError

PORTS = {"udp": 4739, "tcp": 4739, "tls": 4740}
FILE = "file"

_AUTHORITY = re.compile(r"//(?:\[(?P<ipv6>[^][]*)\]|(?P<name>[^][:/?#@\s]*))(?::(?P<port>[^:/?#@\s]*))?/?")


@dataclass(frozen=True)
class Destination:
    """scheme: udp, tcp, tls or file. host and port of the first three, absolute path of a file."""

    scheme: str
    host: str = ""
    port: int = 0
    path: Path = Path()

    def __str__(self) -> str:
        if self.scheme == FILE:
            return f"file:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def directory_name(self) -> str:
        """Its own directory in a spool."""
        where = os.fspath(self.path) if self.scheme == FILE else f"{self.host}-{self.port}"
        return f"{self.scheme}-{quote(os.fsencode(where), safe='')}"


def destination(text: str) -> Destination:
    """Of udp://HOST[:PORT], tcp://…, tls://… or file:PATH. Raises ConfigError."""
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in (*PORTS, FILE):
        raise _wrong(text, "give udp://HOST:PORT, tcp://HOST:PORT, tls://HOST:PORT or file:PATH")
    return Destination(FILE, path=_path(text, rest)) if scheme == FILE else _remote(text, scheme, rest)


def _path(text: str, rest: str) -> Path:
    """Absolute, as a collector in the background runs in another directory."""
    if not rest or (rest.startswith("//") and not rest.startswith("///")):
        raise _wrong(text, "which file? give file:PATH")
    return Path(rest).absolute()


def _remote(text: str, scheme: str, rest: str) -> Destination:
    found = _AUTHORITY.fullmatch(rest)
    if not found or not (found["ipv6"] or found["name"]):
        advice = f"give {scheme}://HOST:PORT, an IPv6 address in brackets, nothing before or after"
        raise _wrong(text, advice)
    return Destination(scheme, _host(text, found), _port(text, found["port"], PORTS[scheme]))


def _host(text: str, found: re.Match[str]) -> str:
    try:
        if found["ipv6"]:
            return str(IPv6Address(found["ipv6"]))
        found["name"].encode("idna")
    except ValueError:
        expected = "an IPv6 address in the brackets" if found["ipv6"] else "a name of a host"
        raise _wrong(text, f"expected {expected}") from None
    return found["name"].lower()


def _port(text: str, port: str | None, default: int) -> int:
    if port is None:
        return default
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise _wrong(text, "a port is 1 to 65535")
    return int(port)


def _wrong(text: str, advice: str) -> ConfigError:
    return ConfigError(f"{given_as('destinations', '--ipfix')} {text}: {advice}")
