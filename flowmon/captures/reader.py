"""Frames of a capture file, each with its time, its lengths and where its octets are in memory.

libpcap reads them: pcap in both byte orders, with microseconds or nanoseconds,
and pcapng. The rules:

* A file is opened once, by the path that was given, and what it is is told by
  its first octets. The descriptor is ours; libpcap reads through a duplicate,
  which shares the file offset: so `position` costs one lseek, and a second
  reader can start again.
* libpcap refuses a pcapng file whose interfaces differ in link type or snapshot
  length, or whose sections differ in byte order, and says so only when it comes
  to the interface or section. Scapy's reader then starts again from the front
  and passes over as many frames as were handed out. A pcapng stream that cannot
  be rewound is copied to a temporary file first; a pcap stream is read as it comes.
* Whatever a file says, a frame has 0 <= captured <= wire_length and a time
  within 0 ... 2^62-1 ns.
* A file that ends too early or is damaged gives the frames before, and no
  exception: `cut_short` says what happened. That it cannot be read at all is a
  CaptureError when it is opened, while nothing has been set up for it yet.
"""

import ctypes
import io
import logging
import os
import shlex
import shutil
import struct
import tempfile
from collections.abc import Generator, Iterator
from functools import cache
from itertools import chain
from types import TracebackType
from typing import Any, Literal, Self, cast

from flowmon.captures.link_types import LINK_TYPES
from flowmon.errors import FlowmonError

Frame = tuple[int, int, int, int, int]
"""time_ns (UTC), address of the captured octets, captured, wire_length, link_type."""

_NS = 1_000_000_000
_LAST_NS = 2**62 - 1

_HEAD_OCTETS = 6  # as many as the longest magic number below
_PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
_SECTION_HEAD_OCTETS = 12  # block type, length, and the byte order of both
_LITTLE_ENDIAN_SECTION = b"\x4d\x3c\x2b\x1a"
_COMPRESSIONS = (
    (b"\x1f\x8b", "gzip", "zcat"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstdcat"),
    (b"\xfd7zXZ\x00", "xz", "xzcat"),
    (b"BZh", "bzip2", "bzcat"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4cat"),
)

_PRECISION_NANO = 1  # PCAP_TSTAMP_PRECISION_NANO
_PACKET_HEADER = struct.Struct("llII")  # struct pcap_pkthdr: tv_sec, tv_usec (here ns), caplen, len
# With stdio's own 4 KiB, full-size frames take 850 ns instead of 540; more than 128 KiB is slower again.
_STDIO_BUFFER = 1 << 16

# What libpcap's pcapng reader says (sf-pcapng.c, 1.10.3 to 1.10.6) of files that are well-formed all the same.
_TOO_DIVERSE = "different"  # ... type / snapshot length ... from the first interface; ... byte orders
_NO_INTERFACES = "no Interface Description Blocks"
_TRUNCATED = "truncated"

_LARGEST_BLOCK = 16 << 20  # octets, as libpcap's
_LARGEST_FRAME = 262_144  # octets, as libpcap's MAXIMUM_SNAPLEN
_MOST_INTERFACES = 1 << 16
_NO_INTERFACE = -1  # the link type of packets whose interface is not described
_INTERFACE_BLOCK = 1
_PACKET_BLOCKS = (2, 3, 6)  # Packet (obsolete), Simple Packet, Enhanced Packet
_TIME_OFFSET_OPTION = 14  # if_tsoffset: seconds, 64 bits, signed


class CaptureError(FlowmonError):
    """The capture's: a file that is not there, or is nothing that can be read."""


class _Damaged(Exception):  # noqa: N818 - it ends the reading, and is never seen outside
    """A pcapng block that cannot be."""


@cache
def _libpcap() -> ctypes.CDLL:
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
def _libc() -> ctypes.CDLL:
    """The C library's streams."""
    lib = ctypes.CDLL(None, use_errno=True)
    lib.fdopen.argtypes = (ctypes.c_int, ctypes.c_char_p)
    lib.fdopen.restype = ctypes.c_void_p
    lib.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    lib.ungetc.argtypes = (ctypes.c_int, ctypes.c_void_p)
    lib.ftell.argtypes = (ctypes.c_void_p,)
    lib.ftell.restype = ctypes.c_long
    lib.fclose.argtypes = (ctypes.c_void_p,)
    return lib


class Capture:
    """A capture that is open, to be read once from the front to the end.

    `path` is followed as open(2) does and never asked again; "-" is standard
    input. `size` is in octets, 0 where it is not known (a pipe). After the last
    frame `cut_short` says in a line what kept it from being read to its end
    (empty: nothing did), and `skipped_packets` how many packets of link types
    that cannot be read (or of interfaces that the file does not describe) were
    passed over. Raises CaptureError where it cannot be read at all.
    """

    def __init__(self, path: str) -> None:
        self.name = "standard input" if path == "-" else _printable(path)
        self.size = 0
        self.cut_short = ""
        self.skipped_packets = 0
        self._libpcap: _LibpcapReader | None = None
        self._parts = self._read_in_parts()
        self._part: Generator[Frame, None, None] | None = None
        self._file = _opened(path, self.name)
        try:
            self._prepare(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file; the frames end, and the octets of the last one are gone."""
        self._parts.close()
        if self._part is not None:
            self._part.close()
        self._drop_libpcap()
        self._file.close()

    def position(self) -> int:
        """How many octets have been read so far, those read ahead included; 0 of a pipe."""
        return self._file.tell() - self._start if self._seekable and not self._file.closed else 0

    def frames(self) -> Iterator[Frame]:
        """Each frame; its octets stay where they are until the next one is asked for.

        A signal whose handler returns ends the frames of a pipe, as if it were damaged.
        """
        return chain.from_iterable(self._parts)  # `yield from` would take 50 ns more a frame

    def _prepare(self, path: str) -> None:
        """Finds out what it is, and that it can be read."""
        self._seekable = self._file.seekable()
        self._start = self._file.tell() if self._seekable else 0
        head = self._read_head()
        _check_head(head, path, self.name)
        self._is_pcapng = head.startswith(_PCAPNG_MAGIC)
        if self._is_pcapng and not self._seekable:
            self._spool(head)
        if self._seekable:
            self.size = max(os.fstat(self._file.fileno()).st_size - self._start, 0)
            self._file.seek(self._start)
            head = b""
        self._open_libpcap(pushed_back=head)

    def _read_head(self) -> bytes:
        head = b""
        try:
            while len(head) < _HEAD_OCTETS and (more := self._file.read(_HEAD_OCTETS - len(head))):
                head += more
        except OSError as error:
            raise CaptureError(f"{self.name} cannot be read: {error.strerror}") from None
        return head

    def _spool(self, head: bytes) -> None:
        """Goes on with a copy of the stream, which has no name and can be rewound."""
        try:
            with self._file as stream, tempfile.TemporaryFile() as copy:
                copy.write(head)
                shutil.copyfileobj(stream, copy)
                copy.flush()
                self._file = io.FileIO(os.dup(copy.fileno()))
        except OSError as error:
            raise CaptureError(
                f"{self.name} cannot be copied to a temporary file ({error.strerror}):"
                " give a file, or set TMPDIR to a directory with room for it"
            ) from None
        self._start, self._seekable = 0, True

    def _open_libpcap(self, pushed_back: bytes) -> None:
        """Opens the capture by libpcap, unless it is for Scapy to read."""
        try:
            reader = _LibpcapReader(self._file.fileno(), pushed_back)
        except _Damaged as damage:
            if reason := self._refused(str(damage)):
                raise CaptureError(reason) from None
            return
        self._libpcap = reader
        if reader.link_type in LINK_TYPES:
            return
        if self._is_pcapng:  # its other interfaces may have a type that can be read
            for _ in reader.frames():
                pass
        self._drop_libpcap()
        if not self._is_for_scapy(reader):
            raise CaptureError(_unknown_link_types(self.name, {reader.link_type}))

    def _refused(self, problem: str) -> str:
        """Why a file that libpcap does not open cannot be read; empty where Scapy's reader is to have a look."""
        if _TOO_DIVERSE in problem or _NO_INTERFACES in problem:
            return ""
        if problem.startswith(_TRUNCATED) and self._is_pcapng_with_whole_header():
            return ""
        if problem.startswith(_TRUNCATED) or (self._is_pcapng and self.size < _SECTION_HEAD_OCTETS):
            return (
                f"{self.name} ends in the middle of its file header: not a capture, or one that was cut off"
            )
        if problem == "unknown file format":
            return (
                f"{self.name} is not a capture: expected pcap or pcapng, as tcpdump -w and Wireshark write them"
                " (editcap makes them of many other formats)"
            )
        return f"{self.name} is not a capture that libpcap can read ({problem}): is it whole and undamaged?"

    def _is_pcapng_with_whole_header(self) -> bool:
        if not self._is_pcapng:
            return False
        head = os.pread(self._file.fileno(), _SECTION_HEAD_OCTETS, self._start)
        length = int.from_bytes(head[4:8], "little" if head[8:] == _LITTLE_ENDIAN_SECTION else "big")
        return len(head) == _SECTION_HEAD_OCTETS and length <= self.size

    def _drop_libpcap(self) -> None:
        if self._libpcap is not None:
            self._libpcap.close()
            self._libpcap = None

    def _read_in_parts(self) -> Generator[Iterator[Frame], None, None]:
        """The frames that libpcap reads, then, where it gives up, those of Scapy's reader."""
        passed_over = 0
        if self._libpcap is not None:
            self._part = self._libpcap.frames()
            yield self._part
            problem, passed_over = self._libpcap.problem, self._libpcap.count
            if not self._is_for_scapy(self._libpcap):
                self.cut_short = self._what_happened(problem, passed_over)
                return
            self._drop_libpcap()
        self._file.seek(self._start)
        reader = _ScapyReader(self._file, self.name)
        self._part = reader.frames(passed_over)
        yield self._part
        self.skipped_packets = reader.skipped
        unknown = reader.skipped_link_types - {_NO_INTERFACE}
        if unknown and not reader.yielded:
            raise CaptureError(_unknown_link_types(self.name, unknown))
        self.cut_short = self._what_happened(reader.problem, reader.count)

    def _is_for_scapy(self, ended: "_LibpcapReader") -> bool:
        """Whether libpcap stopped where the file is well-formed.

        Of a section in the other byte order it misreads the length before it looks at the order,
        and then says that the block is too large.
        """
        if not (self._is_pcapng and ended.problem):
            return False
        block_header = os.pread(self._file.fileno(), 8, max(ended.stopped_at - 8, 0))
        return _TOO_DIVERSE in ended.problem or block_header.startswith(_PCAPNG_MAGIC)

    def _what_happened(self, problem: str, packets: int) -> str:
        if not problem:
            return ""
        if problem.startswith(_TRUNCATED):
            # What a pcapng block is that was cut off is not told; it need not be a packet.
            where = f"a block after packet {packets}" if self._is_pcapng else f"packet {packets + 1}"
            return f"{self.name} ends in the middle of {where}: what came before is reported"
        return f"{self.name} cannot be read beyond packet {packets} ({problem}): what came before is reported"


def _opened(path: str, name: str) -> io.FileIO:
    """The file, which is no directory."""
    try:
        return io.FileIO(os.dup(0)) if path == "-" else io.FileIO(path)
    except FileNotFoundError:
        raise CaptureError(
            f"{name} does not exist: expected a capture file, or - for standard input"
        ) from None
    except IsADirectoryError:
        raise CaptureError(
            f"{name} is a directory: expected a capture file, or - for standard input"
        ) from None
    except PermissionError:
        raise CaptureError(
            f"{name} may not be read: give this user the right to (chmod), or use sudo"
        ) from None
    except OSError as error:
        raise CaptureError(f"{name} cannot be opened: {error.strerror}") from None


def _printable(path: str) -> str:
    """The path, or what Python would call it: a message is one line, of characters that can be written."""
    return path if path.isprintable() else repr(path)


def _check_head(head: bytes, path: str, name: str) -> None:
    """Raises CaptureError of what its first octets show to be no capture."""
    if not head:
        raise CaptureError(f"{name} is empty: not a capture")
    for magic, kind, tool in _COMPRESSIONS:
        if head.startswith(magic):
            file = "FILE" if path == "-" else shlex.quote(_printable(path))
            raise CaptureError(f"{name} is compressed ({kind}): {tool} {file} | flowmon -r -")


def _unknown_link_types(name: str, numbers: set[int]) -> str:
    unknown = ", ".join(_link_type_name(number) for number in sorted(numbers))
    known = ", ".join(dict.fromkeys(LINK_TYPES.values()))
    return (
        f"{name} has frames of link type {unknown}: expected one of {known}; capture it on such an interface"
    )


def _link_type_name(number: int) -> str:
    """Name, description and number, as far as libpcap knows them (by DLT_, most of which are LINKTYPE_ too)."""
    name = _libpcap().pcap_datalink_val_to_name(number)
    description = _libpcap().pcap_datalink_val_to_description(number)
    return f"{name.decode()} ({description.decode()}, {number})" if name and description else f"{number}"


def _clamped(time_ns: int) -> int:
    return min(max(time_ns, 0), _LAST_NS)


class _LibpcapReader:
    """What libpcap reads from a duplicate of `fd`; `pushed_back` was read from it before.

    After the last frame `count` is of all frames, `problem` what libpcap said (empty at a proper
    end), and `stopped_at` where in the file it was then.
    """

    def __init__(self, fd: int, pushed_back: bytes) -> None:
        """Raises _Damaged with what libpcap says where it opens no capture."""
        libpcap, libc = _libpcap(), _libc()
        self.count = 0
        self.problem = ""
        self.stopped_at = 0
        duplicate = os.dup(fd)
        stream = libc.fdopen(duplicate, b"rb")
        if not stream:
            os.close(duplicate)
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._buffer = ctypes.create_string_buffer(_STDIO_BUFFER)  # stdio's, until the stream is closed
        libc.setvbuf(stream, self._buffer, 0, _STDIO_BUFFER)
        for octet in reversed(pushed_back):  # glibc takes any number back, musl eight
            libc.ungetc(octet, stream)
        error = ctypes.create_string_buffer(256)  # PCAP_ERRBUF_SIZE
        self._handle = ctypes.c_void_p(
            libpcap.pcap_fopen_offline_with_tstamp_precision(stream, _PRECISION_NANO, error)
        )
        if not self._handle:
            libc.fclose(stream)
            raise _Damaged(error.value.decode(errors="replace"))
        self.link_type: int = libpcap.pcap_datalink(self._handle)
        # pcap's seconds have 32 bits without a sign (1970 to 2106), and libpcap takes them as signed.
        self._seconds_wrap = 0 if libpcap.pcap_major_version(self._handle) == 1 else 1 << 32

    def frames(self) -> Generator[Frame, None, None]:
        """Each frame. The inner loop of flowmon -r: what it does is measured in nanoseconds."""
        # pcap_next rather than pcap_next_ex, which has two more results to fetch (410 ns a frame, not 490);
        # what it does not tell apart, end and error, pcap_geterr does.
        next_packet = _libpcap().pcap_next
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
        self.problem = _libpcap().pcap_geterr(handle).decode(errors="replace")
        self.stopped_at = _libc().ftell(_libpcap().pcap_file(handle))

    def _mended(self, seconds: int, nanoseconds: int) -> int:
        if seconds < 0:
            seconds += self._seconds_wrap
        return _clamped(seconds * _NS + nanoseconds)

    def close(self) -> None:
        """Closes the capture, its stream and the duplicate."""
        if self._handle:
            _libpcap().pcap_close(self._handle)
            self._handle = ctypes.c_void_p()


class _BlockFile:
    """What Scapy's reader reads from: one look ahead, no more octets at once than a block may have."""

    def __init__(self, file: io.FileIO) -> None:
        self._buffer = io.BufferedReader(file, _STDIO_BUFFER)
        self._ahead = b""
        self.at_end = False

    def look(self) -> bytes:
        """The first eight octets of the next block, still to be read; fewer at the end."""
        self._ahead = self._buffer.read(8)
        return self._ahead

    def read(self, count: int) -> bytes:
        if count > _LARGEST_BLOCK:
            raise _Damaged(f"a block of {count} octets or more")
        data, self._ahead = self._ahead[:count], self._ahead[count:]
        if len(data) < count:
            data += self._buffer.read(count - len(data))
            self.at_end = len(data) < count
        return data

    def detach(self) -> None:
        self._buffer.detach()


class _ScapyReader:
    """What Scapy's RawPcapNgReader reads: pcapng whose interfaces differ, at a tenth of the speed.

    Scapy leaves to its caller what a second section changes (its interfaces are
    numbered from 0 again), `if_tsoffset`, a snapshot length of 0 (none), and any
    limit on sizes; all that is done here. `count` is of all packets, `skipped`
    of those that nothing was made of; they and `problem` hold after the last frame.
    """

    def __init__(self, file: io.FileIO, name: str) -> None:
        self._file = file
        self._name = name
        self.count = 0
        self.yielded = 0
        self.skipped = 0
        self.skipped_link_types: set[int] = set()
        self.problem = ""

    def frames(self, passed_over: int) -> Generator[Frame, None, None]:
        """Each frame but the first `passed_over`."""
        blocks = _BlockFile(self._file)
        octets = bytearray(_LARGEST_FRAME)
        address = ctypes.addressof(ctypes.c_char.from_buffer(octets))
        self.yielded = passed_over
        try:
            for link_type, time_ns, data, wire_length in self._packets(blocks):
                self.count += 1
                if link_type not in LINK_TYPES:
                    self.skipped += 1
                    self.skipped_link_types.add(link_type)
                elif self.count > passed_over:
                    captured = len(data)
                    octets[:captured] = data
                    self.yielded += 1
                    yield time_ns, address, captured, max(wire_length, captured), link_type
        except _Damaged as damage:
            self.problem = str(damage)
        finally:
            blocks.detach()

    def _packets(self, blocks: _BlockFile) -> Iterator[tuple[int, int, bytes, int]]:
        """Of each packet link type, time, octets and wire length."""
        try:
            from scapy.error import Scapy_Exception
            from scapy.utils import RawPcapNgReader
        except ImportError:
            raise CaptureError(
                f"{self._name} has interfaces of several kinds, which libpcap cannot read:"
                " install scapy (python3-scapy), or split it with editcap or tshark"
            ) from None
        logging.getLogger("scapy.runtime").setLevel(logging.CRITICAL)  # `problem` says it in our words
        try:
            reader = RawPcapNgReader(cast("Any", blocks))
        except Scapy_Exception:
            raise _Damaged("a malformed section header") from None
        reader.blocktypes = {kind: reader.blocktypes[kind] for kind in _PACKET_BLOCKS}
        reader.blocktypes[_INTERFACE_BLOCK] = lambda block, _: _describe(reader, block)
        while head := blocks.look():
            kind = int.from_bytes(head[:4], _byte_order(reader))
            if head.startswith(_PCAPNG_MAGIC):
                reader.interfaces.clear()
            try:
                packet = reader._read_block(_LARGEST_FRAME)  # noqa: SLF001 - the public way tells no end from damage
            except (EOFError, Scapy_Exception, struct.error):
                raise _Damaged(_TRUNCATED if blocks.at_end else f"a malformed block of type {kind}") from None
            if packet is not None:
                octets, about = packet
                yield about.linktype, _time_ns(about), octets, about.wirelen
            elif kind in _PACKET_BLOCKS:
                yield _NO_INTERFACE, 0, b"", 0


def _byte_order(reader: Any) -> Literal["little", "big"]:
    return "little" if reader.endian == "<" else "big"


def _describe(reader: Any, block: bytes) -> None:
    """An Interface Description Block: what Scapy makes of it, its time offset put beside the resolution."""
    reader._read_block_idb(block, 0)  # noqa: SLF001 - there is no other way to an interface's options
    offset = reader._read_options(block[8:]).get(_TIME_OFFSET_OPTION, b"")  # noqa: SLF001
    link_type, snapshot_length, options = reader.interfaces.pop()
    options["tsresol"] = options["tsresol"], int.from_bytes(offset[:8], _byte_order(reader), signed=True)
    reader.interfaces.append((link_type, snapshot_length or _LARGEST_FRAME, options))
    if len(reader.interfaces) > _MOST_INTERFACES:
        raise _Damaged(f"more than {_MOST_INTERFACES} interfaces")


def _time_ns(about: Any) -> int:
    """Of what Scapy tells about a packet; a Simple Packet Block has no time, which is 0."""
    units_per_second, offset_seconds = about.tsresol
    units = (about.tshigh or 0) << 32 | (about.tslow or 0)
    return _clamped(units * _NS // units_per_second + offset_seconds * _NS)
