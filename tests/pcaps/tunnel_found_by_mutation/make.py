"""A first fragment that holds a whole inner packet, with another next header behind it; and GRE without key, and key 0."""

from craft import FAR, FAR6, IPV4, NEAR, NEAR6, Frame, fragments6, frame, gre, ip, request, request6


def frames() -> list[Frame]:
    first, _ = fragments6(NEAR6, FAR6, 41, bytes(request6()) + bytes(18), [80, 16], identification=1)
    _, second = fragments6(NEAR6, FAR6, 47, bytes(request6()) + bytes(18), [80, 16], identification=1)
    return [
        frame(0, first),
        frame(1, second),
        frame(2, ip(NEAR, FAR, proto=47) / gre(IPV4) / request()),
        frame(3, ip(NEAR, FAR, proto=47) / gre(IPV4, key=0) / request()),
    ]
