"""A first fragment that holds a whole inner packet, with another next header behind it; GRE without key, and key 0; and
an IPv6 header without length in the padding of an outer packet that ends before it."""

from craft import FAR, FAR6, IPV4, NEAR, NEAR6, Frame, fragments6, frame, gre, ip, request, request6


def frames() -> list[Frame]:
    first, _ = fragments6(NEAR6, FAR6, 41, bytes(request6()) + bytes(18), [80, 16], identification=1)
    _, second = fragments6(NEAR6, FAR6, 47, bytes(request6()) + bytes(18), [80, 16], identification=1)
    return [
        frame(0, first),
        frame(1, second),
        frame(2, ip(NEAR, FAR, proto=47) / gre(IPV4) / request()),
        frame(3, ip(NEAR, FAR, proto=47) / gre(IPV4, key=0) / request()),
        frame(4, ip(NEAR, FAR, proto=41, len=20) / ip(NEAR6, FAR6, nh=253, plen=0)),
    ]
