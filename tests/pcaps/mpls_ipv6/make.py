"""A datagram and its answer over IPv6, behind a tag and labels."""

from craft import MPLS, Frame, ethernet, framed, labels, reply6, request6

LINK = ethernet(MPLS, (0x8100, 10))


def frames() -> list[Frame]:
    return [
        framed(0, LINK, labels(16, 17, 18), request6()),
        framed(1, LINK, labels(1_048_575), reply6()),
    ]
