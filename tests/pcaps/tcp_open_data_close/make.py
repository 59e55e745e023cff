"""A whole TCP conversation, with the options that Linux sends."""

from craft import NO_OPERATION, SACK_PERMITTED, Frame, Tcp, maximum_segment_size, timestamps, window_scale


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        tcp.client(0, "S", seq=0, window=64240, options=_syn_options(100, 0)),
        tcp.server(10, "SA", seq=0, ack=1, window=65160, options=_syn_options(900, 100)),
        tcp.client(20, "A", seq=1, ack=1, options=timestamps(120, 900)),
        tcp.client(30, "PA", seq=1, ack=1, octets=100, options=timestamps(130, 900)),
        tcp.server(40, "A", seq=1, ack=101, options=timestamps(930, 130)),
        tcp.server(45, "PA", seq=1, ack=101, octets=300, options=timestamps(935, 130)),
        tcp.client(55, "A", seq=101, ack=301, options=timestamps(155, 935)),
        tcp.client(60, "FA", seq=101, ack=301, options=timestamps(160, 935)),
        tcp.server(70, "A", seq=301, ack=102, options=timestamps(960, 160)),
        tcp.server(75, "FA", seq=301, ack=102, options=timestamps(965, 160)),
        tcp.client(85, "A", seq=102, ack=302, options=timestamps(185, 965)),
    ]


def _syn_options(value: int, echo: int) -> bytes:
    """MSS, SACK permitted, timestamps without the usual padding, NOP, window scale: 20 octets."""
    return (
        maximum_segment_size(1460)
        + SACK_PERMITTED
        + timestamps(value, echo)[2:]
        + NO_OPERATION
        + window_scale(7)
    )
