"""A SYN without options, answered by one with a maximum segment size only."""

from craft import Frame, Tcp, maximum_segment_size


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        *tcp.handshake(client_options=b"", server_options=maximum_segment_size(1400)),
    ]
