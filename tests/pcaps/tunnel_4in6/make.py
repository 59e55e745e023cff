"""A conversation over IPv4 in IPv6; the request with a tunnel encapsulation limit's header (RFC 2473)."""

from craft import FAR6, NEAR6, Frame, chain, frame, raw_ipv6, reply, request


def frames() -> list[Frame]:
    first, options = chain([(60, 8)], 4)
    return [
        frame(0, raw_ipv6(NEAR6, FAR6, first, options + bytes(request()))),
        frame(1, raw_ipv6(FAR6, NEAR6, 4, bytes(reply()))),
    ]
