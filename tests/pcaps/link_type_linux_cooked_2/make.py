"""What tcpdump -i any writes now; with ARP."""

import struct

from craft import framed, pcap, reply, request, request6


def header(protocol: int) -> bytes:
    return struct.pack("!HHIHBB8s", protocol, 0, 2, 1, 0, 6, bytes.fromhex("0200000000010000"))


def capture() -> bytes:
    frames = [
        framed(0, header(0x0800), request()),
        framed(1, header(0x0800), reply()),
        framed(2, header(0x86DD), request6()),
        framed(3, header(0x0806), bytes(28)),
    ]
    return pcap(frames, 276)
