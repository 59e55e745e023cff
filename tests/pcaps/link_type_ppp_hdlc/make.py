"""FF 03 and a PPP protocol for IPv4, 0F 00 and an EtherType for IPv6."""

from craft import framed, pcap, reply, request, request6


def capture() -> bytes:
    frames = [
        framed(0, bytes.fromhex("ff030021"), request()),
        framed(1, bytes.fromhex("ff030021"), reply()),
        framed(2, bytes.fromhex("0f0086dd"), request6()),
    ]
    return pcap(frames, 50)
