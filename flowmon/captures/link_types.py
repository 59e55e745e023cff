"""Where the network layer begins in frames that have no Ethernet header.

A file names its link type by a LINKTYPE_ number, the same everywhere; libpcap
gives it as a DLT_ value, which on some systems is another one. Of those below,
raw IP alone has several: LINKTYPE_RAW is 101, DLT_RAW is 12 on Linux and 14 on
OpenBSD. No number means two things here, so one table does for both.

Source: https://www.tcpdump.org/linktypes.html
"""

from collections.abc import Callable

ETHERNET = 1

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_MPLS_UNICAST = 0x8847
ETHERTYPE_MPLS_MULTICAST = 0x8848
ETHERTYPE_PPPOE_SESSION = 0x8864
_LOWEST_ETHERTYPE = 0x0600  # below, the field is a length or a number of Linux's own

Header = tuple[int, int]
"""An EtherType, and how many octets of link header precede what it announces."""

_ADDRESS_FAMILIES = {
    2: ETHERTYPE_IPV4,
    10: ETHERTYPE_IPV6,  # Linux
    24: ETHERTYPE_IPV6,  # NetBSD, OpenBSD
    28: ETHERTYPE_IPV6,  # FreeBSD
    30: ETHERTYPE_IPV6,  # Darwin
}
_PPP_PROTOCOLS = {
    0x0021: ETHERTYPE_IPV4,
    0x0057: ETHERTYPE_IPV6,
    0x0281: ETHERTYPE_MPLS_UNICAST,  # RFC 3032
    0x0283: ETHERTYPE_MPLS_MULTICAST,
}
_PPP_ADDRESS_AND_CONTROL = b"\xff\x03"  # RFC 1662
_CISCO_ADDRESS_AND_CONTROL = (b"\x0f\x00", b"\x8f\x00")  # unicast and broadcast, RFC 1547 section 4.3.1

# Devices (ARPHRD_ values) whose cooked frames have no EtherType in the protocol field.
_WITHOUT_ETHERTYPE = {770, 803, 824}  # frame relay access device, 802.11 with radiotap, netlink


def to_ethernet(link_type: int, data: bytes) -> Header | None:
    """The EtherType and the octets of link header of a frame that begins with `data`.

    None where it has no EtherType: it is no IP, it was cut off within its link
    header, or `link_type` is not in LINK_TYPES. What announces a further header
    (a VLAN tag, MPLS, PPPoE) is given as it is, and so is what is not IP at all.
    24 octets of a frame are enough.
    """
    known = _PARSERS.get(link_type)
    return known[1](data) if known else None


def _number(data: bytes, offset: int) -> int:
    """16 bits in network order; 0 where the data ends before."""
    return int.from_bytes(data[offset : offset + 2], "big") if len(data) >= offset + 2 else 0


def _announced(data: bytes, offset: int, header: int) -> Header | None:
    """A header of a fixed length, with an EtherType at `offset`."""
    ethertype = _number(data, offset)
    return (ethertype, header) if len(data) >= header and ethertype >= _LOWEST_ETHERTYPE else None


def _ethernet(data: bytes) -> Header | None:
    return (_number(data, 12), 14) if len(data) >= 14 else None


def _raw(data: bytes) -> Header | None:
    version = data[0] >> 4 if data else 0
    if version == 4:
        return ETHERTYPE_IPV4, 0
    return (ETHERTYPE_IPV6, 0) if version == 6 else None


def _ipv4(data: bytes) -> Header | None:  # noqa: ARG001 - the link type says it all
    return ETHERTYPE_IPV4, 0


def _ipv6(data: bytes) -> Header | None:  # noqa: ARG001
    return ETHERTYPE_IPV6, 0


def _cooked(data: bytes) -> Header | None:
    return None if _number(data, 2) in _WITHOUT_ETHERTYPE else _announced(data, 14, 16)


def _cooked_v2(data: bytes) -> Header | None:
    return None if _number(data, 8) in _WITHOUT_ETHERTYPE else _announced(data, 0, 20)


def _null(data: bytes) -> Header | None:
    """The byte order is that of the host that captured, which no header tells."""
    return _address_family(min(int.from_bytes(data[:4], "big"), int.from_bytes(data[:4], "little")), data)


def _loop(data: bytes) -> Header | None:
    return _address_family(int.from_bytes(data[:4], "big"), data)


def _address_family(family: int, data: bytes) -> Header | None:
    ethertype = _ADDRESS_FAMILIES.get(family)
    return (ethertype, 4) if ethertype and len(data) >= 4 else None


def _ppp(data: bytes) -> Header | None:
    if data[:2] in _CISCO_ADDRESS_AND_CONTROL:
        return _announced(data, 2, 4)
    start = 2 if data[:2] == _PPP_ADDRESS_AND_CONTROL else 0
    # RFC 1661 section 6.5: a protocol whose first octet is odd was compressed to this octet.
    width = 1 if data[start : start + 1] and data[start] & 1 else 2
    protocol = data[start : start + width]
    ethertype = _PPP_PROTOCOLS.get(int.from_bytes(protocol, "big")) if len(protocol) == width else None
    return (ethertype, start + width) if ethertype else None


def _ppp_with_direction(data: bytes) -> Header | None:
    found = _ppp(data[1:])
    return (found[0], found[1] + 1) if found else None


def _ppp_over_ethernet(data: bytes) -> Header | None:
    """What a session's EtherType announces; code 0 is a session's (RFC 2516), others are discovery."""
    return (ETHERTYPE_PPPOE_SESSION, 0) if data[:2] == b"\x11\x00" else None


def _cisco_hdlc(data: bytes) -> Header | None:
    return _announced(data, 2, 4)


_PARSERS: dict[int, tuple[str, Callable[[bytes], Header | None]]] = {
    0: ("BSD loopback", _null),
    ETHERNET: ("Ethernet", _ethernet),
    9: ("PPP", _ppp),
    12: ("raw IP", _raw),  # DLT_RAW on Linux, Darwin, FreeBSD, NetBSD
    14: ("raw IP", _raw),  # DLT_RAW on OpenBSD
    50: ("PPP in HDLC-like framing", _ppp),
    51: ("PPP over Ethernet", _ppp_over_ethernet),
    101: ("raw IP", _raw),  # LINKTYPE_RAW
    104: ("Cisco HDLC", _cisco_hdlc),
    108: ("OpenBSD loopback", _loop),
    113: ("Linux cooked", _cooked),
    204: ("PPP with direction", _ppp_with_direction),
    228: ("raw IPv4", _ipv4),
    229: ("raw IPv6", _ipv6),
    276: ("Linux cooked v2", _cooked_v2),
}

LINK_TYPES: dict[int, str] = {number: name for number, (name, _) in _PARSERS.items()}
"""What can be read: LINKTYPE_ and DLT_ numbers, and a name of each."""
