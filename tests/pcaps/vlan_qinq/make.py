"""A datagram and its answer behind an 802.1ad tag and an 802.1Q tag."""

from craft import IPV4, Frame, ethernet, framed, reply, request

LINK = ethernet(IPV4, (0x88A8, 100), (0x8100, 7))


def frames() -> list[Frame]:
    return [framed(0, LINK, request()), framed(1, LINK, reply())]
