"""Inside: a wrong header length, a length that lies, both in another tunnel, cut by the snap length; a later fragment."""

from craft import FAR, IPV4, NEAR, Frame, cut, frame, gre, ip, request


def frames() -> list[Frame]:
    forth = ip(NEAR, FAR)
    return [
        frame(0, forth / request(ihl=4)),
        frame(1, forth / request(len=200)),
        frame(2, ip(NEAR, FAR, proto=47) / gre(IPV4) / ip("10.1.0.1", "10.1.0.2") / request(ihl=4)),
        cut(frame(3, forth / request()), 14 + 20 + 10),
        cut(frame(4, forth / request()), 14 + 20 + 20 + 4),
        frame(5, ip(NEAR, FAR, frag=1) / request()),
    ]
