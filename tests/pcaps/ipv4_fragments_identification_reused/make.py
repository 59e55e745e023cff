"""The identification 99 for ports 5000, a later fragment after 29 and one after 31 s; then for ports 6000."""

from craft import CLIENT, SERVER, Frame, fragments, frame, request, udp


def frames() -> list[Frame]:
    one = fragments(request(132, id=99), [64, 48, 28])
    two = fragments(udp(CLIENT, SERVER, 6000, 9, 132, id=99), [64, 48, 28])
    return [
        frame(0, one[0]),
        frame(29_000, one[1]),
        frame(31_000, one[2]),
        frame(32_000, one[0]),
        frame(33_000, two[0]),
        frame(34_000, two[1]),
        frame(62_500, two[2]),
    ]
