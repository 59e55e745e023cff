"""Frames by libpcap: pcap, and pcapng whose interfaces and sections are all alike."""

import ctypes
import errno
import os
import struct
from collections.abc import Generator
from functools import cache

from flowmon.captures.frame import NS, STDIO_BUFFER, CaptureError, DamagedError, Frame, clamped

_PRECISION_NANO = 1  # PCAP_TSTAMP_PRECISION_NANO
_PACKET_HEADER = struct.Struct("llII")  # struct pcap_pkthdr: tv_sec, tv_usec (here ns), caplen, len


@cache
def libpcap() -> ctypes.CDLL:
    """Libpcap, with argument types set where calls are few. Raises CaptureError where it is not installed."""
    for name in ("libpcap.so.0.8", "libpcap.so.1"):  # Debian's name, and everybody else's
        try:
            lib = ctypes.CDLL(name)
        except OSError:
            continue
        lib.pcap_fopen_offline_with_tstamp_precision.argtypes = (
            ctypes.c_void_p,
            ctypes.c_uint,
            ctypes.c_char_p,
        )
        lib.pcap_fopen_offline_with_tstamp_precision.restype = ctypes.c_void_p
        lib.pcap_datalink.argtypes = (ctypes.c_void_p,)
        lib.pcap_geterr.argtypes = (ctypes.c_void_p,)
        lib.pcap_geterr.restype = ctypes.c_char_p
        lib.pcap_file.argtypes = (ctypes.c_void_p,)
        lib.pcap_file.restype = ctypes.c_void_p
        lib.pcap_close.argtypes = (ctypes.c_void_p,)
        lib.pcap_close.restype = None
        lib.pcap_next.restype = ctypes.c_void_p  # without argument types a call takes 30 ns less
        for to_text in (lib.pcap_datalink_val_to_name, lib.pcap_datalink_val_to_description):
            to_text.argtypes = (ctypes.c_int,)
            to_text.restype = ctypes.c_char_p
        return lib
    raise CaptureError("libpcap.so.0.8 cannot be opened: install it (Debian: libpcap0.8)")


@cache
def libc() -> ctypes.CDLL:
    """The C library's streams, and its read."""
    lib = ctypes.CDLL(None, use_errno=True)
    lib.fdopen.argtypes = (ctypes.c_int, ctypes.c_char_p)
    lib.fdopen.restype = ctypes.c_void_p
    lib.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    lib.ungetc.argtypes = (ctypes.c_int, ctypes.c_void_p)
    lib.ftell.argtypes = (ctypes.c_void_p,)
    lib.ftell.restype = ctypes.c_long
    lib.fclose.argtypes = (ctypes.c_void_p,)
    lib.read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    lib.read.restype = ctypes.c_ssize_t
    return lib


class LibpcapReader:
    """What libpcap reads from a duplicate of `fd`; `pushed_back` was read from it before.

    After the last frame `count` is of all frames, `problem` what libpcap said (empty at a proper
    end), and `stopped_at` where in the file it was then.
    """

    def __init__(self, fd: int, pushed_back: bytes) -> None:
        """Raises DamagedError with what libpcap says where it opens no capture."""
        pcap, c = libpcap(), libc()
        self.count = 0
        self.problem = ""
        self.stopped_at = 0
        duplicate = os.dup(fd)
        stream = c.fdopen(duplicate, b"rb")
        if not stream:
            os.close(duplicate)
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._buffer = ctypes.create_string_buffer(STDIO_BUFFER)  # stdio's, until the stream is closed
        c.setvbuf(stream, self._buffer, 0, STDIO_BUFFER)
        for octet in reversed(pushed_back):
            if c.ungetc(octet, stream) < 0:  # glibc takes any number back
                c.fclose(stream)
                raise OSError(errno.ENOBUFS, "the C library takes no more octets back")
        error = ctypes.create_string_buffer(256)  # PCAP_ERRBUF_SIZE
        self._handle = ctypes.c_void_p(
            pcap.pcap_fopen_offline_with_tstamp_precision(stream, _PRECISION_NANO, error)
        )
        if not self._handle:
            c.fclose(stream)
            raise DamagedError(error.value.decode(errors="replace"))
        self.link_type: int = pcap.pcap_datalink(self._handle)
        # pcap's seconds have 32 bits without a sign (1970 to 2106), and libpcap takes them as signed.
        self._seconds_wrap = 0 if pcap.pcap_major_version(self._handle) == 1 else 1 << 32

    def frames(self) -> Generator[Frame, None, None]:
        """Each frame. The inner loop of flowmon -r: what it does is measured in nanoseconds."""
        # pcap_next rather than pcap_next_ex, which has two more results to fetch (410 ns a frame, not 490);
        # what it does not tell apart, end and error, pcap_geterr does.
        next_packet = libpcap().pcap_next
        handle, link_type = self._handle, self.link_type
        header = ctypes.create_string_buffer(_PACKET_HEADER.size)
        header_address = ctypes.c_void_p(ctypes.addressof(header))
        header_view = memoryview(header)
        unpack = _PACKET_HEADER.unpack_from
        count = 0
        try:
            while address := next_packet(handle, header_address):
                seconds, nanoseconds, captured, wire_length = unpack(header_view)
                time_ns = seconds * 1_000_000_000 + nanoseconds
                if not 0 <= time_ns <= 0x3FFF_FFFF_FFFF_FFFF:
                    time_ns = self._mended(seconds, nanoseconds)
                if captured > wire_length:  # noqa: PLR1730 - max() takes 40 ns more
                    wire_length = captured
                count += 1
                yield time_ns, address, captured, wire_length, link_type
        finally:
            self.count = count
        self.problem = libpcap().pcap_geterr(handle).decode(errors="replace")
        self.stopped_at = libc().ftell(libpcap().pcap_file(handle))

    def _mended(self, seconds: int, nanoseconds: int) -> int:
        if seconds < 0:
            seconds += self._seconds_wrap
        return clamped(seconds * NS + nanoseconds)

    def close(self) -> None:
        """Closes the capture, its stream and the duplicate."""
        if self._handle:
            libpcap().pcap_close(self._handle)
            self._handle = ctypes.c_void_p()
