"""The host's network interfaces, by netlink."""

import socket
from dataclasses import dataclass

from pyroute2 import IPRoute

from flowmon.abi import Direction
from flowmon.errors import ConfigError

IFF_UP = 1

# ARPHRD types (include/uapi/linux/if_arp.h) by what a TC program finds at the start of a packet.
ETHERNET_TYPES = frozenset({1, 772})  # Ethernet, loopback
IP_TYPES = frozenset(
    {
        512,  # PPP
        519,  # raw IP
        768,  # IPIP tunnel
        769,  # IPv6 tunnel
        776,  # SIT
        778,  # GRE over IPv4
        823,  # GRE over IPv6
        0xFFFE,  # none: tun, WireGuard
    }
)
RTMGRP_LINK = 1


@dataclass(frozen=True)
class Interface:
    """A network interface of this namespace."""

    index: int
    name: str
    arphrd: int
    is_up: bool
    description: str = ""  # what an administrator called it (`ip link set dev NAME alias TEXT`)

    @property
    def has_ethernet(self) -> bool:
        """Whether its packets start with an Ethernet header."""
        return self.arphrd in ETHERNET_TYPES

    @property
    def is_supported(self) -> bool:
        """Whether a program can read its packets."""
        return self.arphrd in ETHERNET_TYPES or self.arphrd in IP_TYPES


def interfaces(netlink: IPRoute) -> list[Interface]:
    """All interfaces of this network namespace."""
    return [
        Interface(
            index=link["index"],
            name=link.get("ifname"),
            arphrd=link["ifi_type"],
            is_up=bool(link["flags"] & IFF_UP),
            description=link.get("ifalias") or "",
        )
        for link in netlink.get_links()
    ]


def packets(netlink: IPRoute) -> dict[int, tuple[str, dict[Direction, int]]]:
    """By index: name, and what the host counted so far in each direction; super-packets count once."""
    found: dict[int, tuple[str, dict[Direction, int]]] = {}
    for link in netlink.get_links():
        counters = link.get("stats64") or {}
        by_direction = {
            Direction.INGRESS: int(counters.get("rx_packets", 0)),
            Direction.EGRESS: int(counters.get("tx_packets", 0)),
        }
        found[link["index"]] = (link.get("ifname"), by_direction)
    return found


def interface_named(netlink: IPRoute, name: str) -> Interface:
    """The interface of that name. Raises ConfigError where there is none."""
    known = interfaces(netlink)
    for interface in known:
        if interface.name == name:
            return interface
    names = ", ".join(sorted(interface.name for interface in known))
    raise ConfigError(f"no interface {name} in this network namespace: it has {names}")


def link_events() -> socket.socket:
    """A socket that becomes readable when an interface appears, changes or vanishes.

    What it says is not parsed: who is woken looks at the interfaces anew, so a
    lost message costs nothing.
    """
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    events.bind((0, RTMGRP_LINK))
    events.setblocking(False)
    return events


def drain_events(events: socket.socket) -> None:
    """Empties the socket."""
    while True:
        try:
            events.recv(65536)
        except BlockingIOError:
            return
        except OSError:  # overrun: messages were lost, and the look at the interfaces makes up for it
            continue
