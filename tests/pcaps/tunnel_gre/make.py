"""A conversation under key 42, its request under key 43 too, and one over IPv6 without a key."""

from craft import FAR, NEAR, Frame, frame, gre, ip, reply, reply6, request, request6

FORTH, BACK = ip(NEAR, FAR, proto=47), ip(FAR, NEAR, proto=47)


def frames() -> list[Frame]:
    return [
        frame(0, FORTH / gre(0x0800, key=42) / request()),
        frame(1, BACK / gre(0x0800, key=42) / reply()),
        frame(2, FORTH / gre(0x0800, key=43) / request()),
        frame(3, FORTH / gre(0x86DD) / request6()),
        frame(4, BACK / gre(0x86DD) / reply6()),
    ]
