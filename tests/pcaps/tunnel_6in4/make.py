"""A conversation over IPv6 in IPv4."""

from craft import FAR, NEAR, Frame, frame, ip, reply6, request6


def frames() -> list[Frame]:
    return [frame(0, ip(NEAR, FAR) / request6()), frame(1, ip(FAR, NEAR) / reply6())]
