"""Two fragments each in a packet of its own; and a packet of a tunnel in two fragments."""

from craft import FAR, IPV4, NEAR, Frame, fragments, frame, gre, ip, request


def frames() -> list[Frame]:
    inside = fragments(request(132, id=99), [64, 76])
    outside = fragments(ip(NEAR, FAR, proto=47, id=99) / gre(IPV4) / request(132), [104, 60])
    return [
        frame(0, ip(NEAR, FAR) / inside[0]),
        frame(1, ip(NEAR, FAR) / inside[1]),
        frame(2, outside[0]),
        frame(3, outside[1]),
    ]
