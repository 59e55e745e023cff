"""What tcpdump -i any wrote once: IPv4, IPv6, and IPv4 behind a tag."""

import struct

from craft import framed, pcap, reply, request, request6

TAG = bytes.fromhex("000a0800")


def header(protocol: int) -> bytes:
    return struct.pack("!HHH8sH", 0, 1, 6, bytes.fromhex("0200000000010000"), protocol)


def capture() -> bytes:
    frames = [
        framed(0, header(0x0800), request()),
        framed(1, header(0x0800), reply()),
        framed(2, header(0x86DD), request6()),
        framed(3, header(0x8100), TAG, request(31)),
    ]
    return pcap(frames, 113)
