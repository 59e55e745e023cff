"""Fragments of two datagrams of different ports, told apart by identification, and of the answer."""

from craft import CLIENT, SERVER, Frame, fragments, frame, reply, request, udp


def frames() -> list[Frame]:
    one = fragments(request(132, id=99), [64, 48, 28])
    two = fragments(udp(CLIENT, SERVER, 6000, 9, 132, id=100), [80, 40, 20])
    answer = fragments(reply(132, id=99), [96, 44])
    return [
        frame(0, one[0]),
        frame(1, two[0]),
        frame(2, answer[0]),
        frame(3, two[1]),
        frame(4, one[2]),
        frame(5, one[1]),
        frame(6, two[2]),
        frame(7, answer[1]),
    ]
