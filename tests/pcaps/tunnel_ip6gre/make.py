"""A conversation over IPv4 in GRE over IPv6."""

from craft import FAR6, IPV4, NEAR6, Frame, chain, frame, gre, raw_ipv6, reply, request


def frames() -> list[Frame]:
    first, options = chain([(60, 8)], 47)
    return [
        frame(0, raw_ipv6(NEAR6, FAR6, first, options + bytes(gre(IPV4) / request()))),
        frame(1, raw_ipv6(FAR6, NEAR6, 47, bytes(gre(IPV4) / reply()))),
    ]
