"""A datagram of three fragments, the second before the first."""

from craft import Frame, fragments, frame, request


def frames() -> list[Frame]:
    first, second, third = fragments(request(132, id=99), [64, 48, 28])
    return [frame(0, second), frame(1, first), frame(2, third)]
