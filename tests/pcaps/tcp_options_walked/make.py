"""A SYN whose options have to be walked one by one."""

from craft import END_OF_OPTIONS, NO_OPERATION, Frame, Tcp, maximum_segment_size, option, window_scale

OPTIONS = b"".join(
    [
        option(200, b"flow"),  # assigned to nothing
        NO_OPERATION,
        option(253, b"\x12\x34\x56\x78"),  # experimental (RFC 6994)
        maximum_segment_size(1220),
        option(254, b"\x9a\xbc"),  # experimental
        NO_OPERATION,
        window_scale(5),
        END_OF_OPTIONS,
        # Behind the end there is no option; read as an option of length 1 or 2, the end would lead to one.
        maximum_segment_size(768),
        maximum_segment_size(768),
    ]
)


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(client_options=OPTIONS),
        tcp.client(30, "PA", seq=1, ack=1, octets=10),
    ]
