"""IPv4, IPv6 and MPLS behind LLC and SNAP, one behind a tag; spanning tree and an unknown organization."""

from craft import IPV4, IPV6, MPLS, Frame, ethernet, framed, reply, reply6, request, request6

SNAP = bytes.fromhex("aaaa03000000")
SPANNING_TREE = bytes.fromhex("424203") + bytes(35)


def snap(ethertype: int) -> bytes:
    return SNAP + ethertype.to_bytes(2, "big")


def frames() -> list[Frame]:
    return [
        framed(0, ethernet(8 + 58), snap(IPV4), request()),
        framed(1, ethernet(8 + 68), snap(IPV4), reply()),
        framed(2, ethernet(8 + 78, (0x8100, 10)), snap(IPV6), request6()),
        framed(3, ethernet(8 + 88, (0x8100, 10)), snap(IPV6), reply6()),
        framed(4, ethernet(12 + 59), snap(MPLS), bytes.fromhex("00010140"), request(31)),
        framed(5, ethernet(38), SPANNING_TREE),
        framed(6, ethernet(8 + 58), bytes.fromhex("aaaa0300000c0800"), request()),
        framed(7, ethernet(12 + 58), snap(0x8100), bytes.fromhex("000a0800"), request()),
    ]
