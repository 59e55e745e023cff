"""Segments behind IPv4 headers of every length with options."""

from scapy.layers.inet import IPOption_NOP

from craft import Frame, Tcp


def frames() -> list[Frame]:
    tcp = Tcp()
    return [
        tcp.client(
            words, "PA", seq=10 * words, ack=1, octets=10, network={"options": [IPOption_NOP()] * 4 * words}
        )
        for words in range(1, 11)
    ]
