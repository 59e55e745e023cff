"""An EtherType behind address and control; keep-alives are not IP."""

from craft import framed, pcap, reply, request, request6


def capture() -> bytes:
    frames = [
        framed(0, bytes.fromhex("0f000800"), request()),
        framed(1, bytes.fromhex("0f000800"), reply()),
        framed(2, bytes.fromhex("0f0086dd"), request6()),
        framed(3, bytes.fromhex("8f008035"), bytes(14)),
    ]
    return pcap(frames, 104)
