"""Three tags (the first 0x9100), four tags, and five, which are too many."""

from craft import IPV4, Frame, ethernet, framed, reply, request

TAGS = [(0x9100, 300), (0x88A8, 200), (0x8100, 100), (0x8100, 50), (0x8100, 25)]


def frames() -> list[Frame]:
    return [
        framed(0, ethernet(IPV4, *TAGS[:3]), request()),
        framed(1, ethernet(IPV4, *TAGS[:4]), reply()),
        framed(2, ethernet(IPV4, *TAGS), reply()),
    ]
