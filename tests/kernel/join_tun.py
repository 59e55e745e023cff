"""Makes tun0 here and in another namespace, and carries packets between the two until it is ended."""

import fcntl
import os
import select
import struct
import sys

from pyroute2 import netns

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 1, 0x1000


def open_tun() -> int:
    """A tun device of this namespace, as a file descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", b"tun0", IFF_TUN | IFF_NO_PI))
    return fd


here = open_tun()
netns.setns(sys.argv[1])
there = open_tun()
while True:
    for readable in select.select([here, there], [], [])[0]:
        try:
            packet = os.read(readable, 65536)
            os.write(there if readable == here else here, packet)
        except OSError:  # the other end is not up yet
            continue
