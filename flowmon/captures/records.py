"""The records of a pcap file as they lie in it, for the kernel to walk without libpcap.

Rules:
- Of one kind of file only, the usual one: pcap 2.4 in this machine's byte order, with
  microseconds or nanoseconds, of Ethernet. All others are libpcap's.
- A record is for the walk where libpcap would give just what it says: it is whole, and
  its lengths and its fraction of a second are within bounds. From the first on that is
  none, and from what is left at the end of the file, libpcap goes on: so what it makes
  of odd and damaged files, and says of them, holds here too.
- A read takes what is there: packets of a live stream do not wait for later ones.
"""

import ctypes
import os
import struct

from flowmon.abi import REPLAY_RECORD_MOST
from flowmon.captures.libpcap import libc
from flowmon.captures.link_types import ETHERNET

_FILE_HEADER = struct.Struct(
    "=IHHiIII"
)  # magic, version, version, time zone, accuracy, snapshot length, link type
FILE_HEADER_OCTETS = _FILE_HEADER.size
_FRACTION_NS = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
_VERSION = (2, 4)


class PcapRecords:
    """What follows the file header, which has been read from `fd`.

    fraction_ns: what the fractions of a second count, in nanoseconds.
    longest: octets that a packet may have.
    count: packets that were made of them so far; whoever walks keeps it.
    problem: why no more could be read, in libpcap's words (empty: it could).
    """

    def __init__(self, fd: int, file_header: bytes, fraction_ns: int, longest: int) -> None:
        self._fd = fd
        self._file_header = file_header
        self._rest = b""
        self.fraction_ns = fraction_ns
        self.longest = longest
        self.count = 0
        self.problem = ""

    def read_into(self, address: int, room: int) -> int:
        """How many octets came; 0 at the end, or where there is a `problem`.

        A signal whose handler returns is a problem, as it is in libpcap: os.read would go on waiting.
        """
        came: int = libc().read(self._fd, address, room)
        if came < 0:
            self.problem = f"error reading dump file: {os.strerror(ctypes.get_errno())}"
        return max(came, 0)

    def give_back(self, rest: bytes) -> None:
        """Takes the latest octets that were read back, which begin with a record."""
        self._rest = rest

    def for_libpcap(self) -> bytes:
        """What libpcap is to read before it goes on reading from `fd`."""
        try:
            os.lseek(self._fd, -len(self._rest), os.SEEK_CUR)
        except OSError:  # a stream
            return self._file_header + self._rest
        return self._file_header


def pcap_records(fd: int, file_header: bytes) -> PcapRecords | None:
    """The records behind a file header, if the file is of the usual kind."""
    if len(file_header) != FILE_HEADER_OCTETS:
        return None
    magic, *version, _, _, longest, link_type = _FILE_HEADER.unpack(file_header)
    usual = tuple(version) == _VERSION and link_type == ETHERNET and 0 < longest < 1 << 31
    if magic not in _FRACTION_NS or not usual:
        return None
    return PcapRecords(fd, file_header, _FRACTION_NS[magic], min(longest, REPLAY_RECORD_MOST))
