"""A conversation over IPv6 in IPv6."""

from craft import FAR6, NEAR6, Frame, frame, ip, reply6, request6


def frames() -> list[Frame]:
    return [frame(0, ip(NEAR6, FAR6) / request6()), frame(1, ip(FAR6, NEAR6) / reply6())]
