"""One label, three, eight and nine; and behind one label what is no IP. The answer comes without a label."""

from craft import IPV4, MPLS, Frame, ethernet, framed, labels, reply, request


def frames() -> list[Frame]:
    return [
        framed(0, ethernet(MPLS), labels(1000), request()),
        framed(1, ethernet(MPLS), labels(2000, 3000, 4000), request()),
        framed(2, ethernet(IPV4), reply()),
        framed(3, ethernet(MPLS), labels(5000), reply()),
        framed(4, ethernet(0x8848), labels(*range(100, 108)), request(50)),
        framed(5, ethernet(MPLS), labels(*range(100, 109)), request()),
        framed(6, ethernet(MPLS), labels(1000), bytes(64)),
    ]
