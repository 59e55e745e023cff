"""What an alert shows of contacts: addresses as text, and some examples."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

import numpy as np

from flowmon.analysers.alerts import EXAMPLES_MOST
from flowmon.analysers.contacts import PREFIX_BITS

Array = np.ndarray[Any, np.dtype[Any]]

ICMP = (1, 58)
_LOOKED_AT = 1024  # contacts, for examples: to sort a million addresses takes seconds


@dataclass(frozen=True)
class Source:
    """Who does it, as text. prefix: the /64 of an IPv6 address; of IPv4 nothing."""

    text: str
    prefix: str = ""

    @property
    def is_prefix(self) -> bool:
        """Is it a /64 itself?"""
        return self.text == self.prefix


def source_of(contact: Any) -> Source:
    """The source of one CONTACT."""
    text = address_text(contact["source"], contact["ip_version"])
    if contact["ip_version"] != 6:
        return Source(text)
    prefix = str(ip_network(f"{text}/{PREFIX_BITS}", strict=False))
    return Source(prefix if contact["prefix_length"] == PREFIX_BITS else text, prefix)


def address_text(address: Array, ip_version: int) -> str:
    """RFC 5952 text of uint8[16]; IPv4 stands in the last four bytes."""
    raw = address.tobytes()
    return str(IPv6Address(raw) if ip_version == 6 else IPv4Address(raw[-4:]))


def example_hosts(contacts: Array) -> tuple[str, ...]:
    """Up to EXAMPLES_MOST destinations of CONTACT[n], in order, none twice."""
    distinct = np.unique(contacts["destination"][:_LOOKED_AT], axis=0)[:EXAMPLES_MOST]
    return tuple(address_text(one, int(contacts["ip_version"][0])) for one in distinct)


def example_ports(contacts: Array) -> tuple[int, ...]:
    """Up to EXAMPLES_MOST destination ports of CONTACT[n], in order, none twice; ICMP has none."""
    contacts = contacts[:_LOOKED_AT]
    with_ports = contacts[~np.isin(contacts["protocol"], ICMP)]
    return tuple(np.unique(with_ports["port"])[:EXAMPLES_MOST].tolist())


def port_of(contact: Any) -> int | None:
    """The destination port of one CONTACT; ICMP has none."""
    return None if contact["protocol"] in ICMP else int(contact["port"])
