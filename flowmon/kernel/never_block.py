"""Whom this host cannot do without: its own addresses, its gateways, its resolvers."""

import ipaddress
from pathlib import Path

from pyroute2 import IPRoute

from flowmon.kernel.deny_list import Network

RESOLVER_FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))

# Whoever has no address yet asks for one with the unspecified address.
ALWAYS = {
    "127.0.0.0/8": "loopback",
    "::1/128": "loopback",
    "0.0.0.0/32": "the unspecified address",
    "::/128": "the unspecified address",
}


def host_rules(netlink: IPRoute) -> dict[Network, str]:
    """Each prefix that may not be blocked here, and why."""
    rules: dict[Network, str] = {ipaddress.ip_network(text): reason for text, reason in ALWAYS.items()}
    for text in _resolvers():
        rules[ipaddress.ip_network(text)] = "a resolver of this host"
    names = {link["index"]: link.get("ifname") for link in netlink.get_links()}
    for text, index in _gateways(netlink):
        rules[ipaddress.ip_network(text)] = f"a gateway of this host ({names.get(index, index)})"
    for address in netlink.get_addr():
        text = address.get("IFA_LOCAL") or address.get("IFA_ADDRESS")
        if text:
            rules[ipaddress.ip_network(text)] = f"this host's own address ({names.get(address['index'])})"
    return rules


def _gateways(netlink: IPRoute) -> list[tuple[str, int]]:
    """(address, interface index) of every route's next hops, in all tables."""
    found = []
    for route in netlink.get_routes():
        for hop in (route, *(route.get("RTA_MULTIPATH") or ())):
            via = hop.get("RTA_VIA") or {}
            gateway = hop.get("RTA_GATEWAY") or via.get("addr")
            if gateway:
                found.append((gateway, hop.get("RTA_OIF") or hop.get("oif") or 0))
    return found


def _resolvers() -> list[str]:
    found = []
    for path in RESOLVER_FILES:
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[:1] == ["nameserver"] and len(words) > 1:
                found.append(words[1].partition("%")[0])
    return [text for text in found if _is_address(text)]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
