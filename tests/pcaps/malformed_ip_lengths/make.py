"""Wrong versions and header lengths; totals below the header and beyond the frame; extension headers beyond the packet."""

from craft import CLIENT6, IPV4, IPV6, SERVER6, Frame, ethernet, frame, framed, raw_ipv6, request, request6


def frames() -> list[Frame]:
    return [
        framed(0, ethernet(IPV4), request(version=5)),
        framed(1, ethernet(IPV6), request()),
        framed(2, ethernet(IPV4), request6()),
        frame(3, request(ihl=4)),
        frame(4, request(ihl=15)),
        frame(5, request(len=19)),
        frame(6, request(len=59)),
        frame(7, request()),
        frame(8, request6(plen=39)),
        frame(9, raw_ipv6(CLIENT6, SERVER6, 60, bytes.fromhex("1101010400000000"))),
        frame(10, request(len=59), pad_to=80),
    ]
