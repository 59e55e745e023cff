"""The same conversation of two customers in one service VLAN; a customer tag of VID 0 is none."""

from craft import IPV4, Frame, ethernet, framed, reply, request


def link(customer: int) -> bytes:
    return ethernet(IPV4, (0x88A8, 100), (0x8100, customer))


def frames() -> list[Frame]:
    return [
        framed(0, link(1), request(30)),
        framed(1, link(2), request(31)),
        framed(2, link(1), reply(40)),
        framed(3, link(2), reply(41)),
        framed(4, link(0), request(32)),
        framed(5, ethernet(IPV4, (0x88A8, 100)), reply(42)),
    ]
