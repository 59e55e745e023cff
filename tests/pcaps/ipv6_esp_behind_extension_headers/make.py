"""Two packets of one security association over IPv6."""

from craft import CLIENT6, SERVER6, Frame, chain, frame, raw_ipv6

ESP = bytes.fromhex("cafe0001") + bytes(36)


def frames() -> list[Frame]:
    first, octets = chain([(0, 8), (60, 8)], 50)
    return [
        frame(0, raw_ipv6(CLIENT6, SERVER6, first, octets + ESP)),
        frame(1, raw_ipv6(CLIENT6, SERVER6, 50, ESP)),
    ]
