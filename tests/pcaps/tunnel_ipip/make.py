"""A conversation in one tunnel, and its request in another one."""

from craft import FAR, NEAR, Frame, frame, ip, reply, request


def frames() -> list[Frame]:
    return [
        frame(0, ip(NEAR, FAR, ttl=9, tos=4) / request(ttl=33, tos=8)),
        frame(1, ip(FAR, NEAR) / reply()),
        frame(2, ip(NEAR, "203.0.113.3") / request(31)),
    ]
