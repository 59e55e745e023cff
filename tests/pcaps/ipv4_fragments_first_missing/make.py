"""The second and third fragment of a datagram, another one's first, and one whose ports were not to be read."""

from craft import Frame, cut, fragments, frame, request


def frames() -> list[Frame]:
    _, second, third = fragments(request(132, id=99), [64, 48, 28])
    other, _, _ = fragments(request(132, id=100), [64, 48, 28])
    cut_first, _, cut_third = fragments(request(132, id=101), [64, 48, 28])
    return [
        frame(0, second),
        frame(1, third),
        frame(2, other),
        cut(frame(3, cut_first), 14 + 20 + 3),
        frame(4, cut_third),
    ]
