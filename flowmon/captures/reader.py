"""Frames of a capture file, each with its time, its lengths and where its octets are in memory.

libpcap reads them: pcap in both byte orders, with microseconds or nanoseconds,
and pcapng. The rules:

* A file is opened once, by the path that was given, and what it is is told by
  its first octets. The descriptor is ours; libpcap reads through a duplicate,
  which shares the file offset: so `position` costs one lseek, and a second
  reader can start again.
* Records of the usual pcap file can be had as they lie in it (records.py), until
  libpcap goes on from one of them.
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

import io
import os
import shlex
import shutil
import tempfile
from collections.abc import Generator, Iterator
from itertools import chain
from types import TracebackType
from typing import Self

from flowmon.captures.frame import NO_INTERFACE, PCAPNG_MAGIC, TRUNCATED, CaptureError, DamagedError, Frame
from flowmon.captures.libpcap import LibpcapReader, libpcap
from flowmon.captures.link_types import LINK_TYPES
from flowmon.captures.pcapng import ScapyReader
from flowmon.captures.records import FILE_HEADER_OCTETS, PcapRecords, pcap_records

_HEAD_OCTETS = 6  # as many as the longest magic number below
_SECTION_HEAD_OCTETS = 12  # block type, length, and the byte order of both
_LITTLE_ENDIAN_SECTION = b"\x4d\x3c\x2b\x1a"
_COMPRESSIONS = (
    (b"\x1f\x8b", "gzip", "zcat"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstdcat"),
    (b"\xfd7zXZ\x00", "xz", "xzcat"),
    (b"BZh", "bzip2", "bzcat"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4cat"),
)

# What libpcap's pcapng reader says (sf-pcapng.c, 1.10.3 to 1.10.6) of files that are well-formed all the same.
_TOO_DIVERSE = "different"  # ... type / snapshot length ... from the first interface; ... byte orders
_NO_INTERFACES = "no Interface Description Blocks"


class Capture:
    """A capture that is open, to be read once from the front to the end.

    `path` is followed as open(2) does and never asked again; "-" is standard
    input. `size` is in octets, 0 where it is not known (a pipe). After the last
    frame `cut_short` says in a line what kept it from being read to its end
    (empty: nothing did), and `skipped_packets` how many packets of link types
    that cannot be read (or of interfaces that the file does not describe) were
    passed over. `records`: the file's octets, where the kernel can walk them;
    `frames` begin behind those that were taken from there. Raises CaptureError where it cannot be read at all.
    """

    def __init__(self, path: str) -> None:
        self.name = "standard input" if path == "-" else _printable(path)
        self.size = 0
        self.cut_short = ""
        self.skipped_packets = 0
        self.records: PcapRecords | None = None
        self._libpcap: LibpcapReader | None = None
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
        head = self._read_head(b"", _HEAD_OCTETS)
        _check_head(head, path, self.name)
        self._is_pcapng = head.startswith(PCAPNG_MAGIC)
        if self._is_pcapng and not self._seekable:
            self._spool(head)
        if self._seekable:
            self.size = max(os.fstat(self._file.fileno()).st_size - self._start, 0)
        if not self._is_pcapng:
            head = self._read_head(head, FILE_HEADER_OCTETS)
            self.records = pcap_records(self._file.fileno(), head)
        if self.records is not None:
            libpcap()  # to know now whether it is there
            return
        if self._seekable:
            self._file.seek(self._start)
            head = b""
        self._open_libpcap(pushed_back=head)

    def _read_head(self, head: bytes, octets: int) -> bytes:
        """The first octets of the file, of which `head` has been read; fewer where it ends."""
        try:
            while len(head) < octets and (more := self._file.read(octets - len(head))):
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
            reader = LibpcapReader(self._file.fileno(), pushed_back)
        except DamagedError as damage:
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
        if problem.startswith(TRUNCATED) and self._is_pcapng_with_whole_header():
            return ""
        if problem.startswith(TRUNCATED) or (self._is_pcapng and self.size < _SECTION_HEAD_OCTETS):
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
        if self.records is not None:
            passed_over = self.records.count
            if self.records.problem:
                self.cut_short = self._what_happened(self.records.problem, passed_over)
                return
            self._open_libpcap(self.records.for_libpcap())
        if self._libpcap is not None:
            self._part = self._libpcap.frames()
            yield self._part
            problem = self._libpcap.problem
            passed_over += self._libpcap.count
            if not self._is_for_scapy(self._libpcap):
                self.cut_short = self._what_happened(problem, passed_over)
                return
            self._drop_libpcap()
        self._file.seek(self._start)
        reader = ScapyReader(self._file, self.name)
        self._part = reader.frames(passed_over)
        yield self._part
        self.skipped_packets = reader.skipped
        unknown = reader.skipped_link_types - {NO_INTERFACE}
        if unknown and not reader.yielded:
            raise CaptureError(_unknown_link_types(self.name, unknown))
        self.cut_short = self._what_happened(reader.problem, reader.count)

    def _is_for_scapy(self, ended: "LibpcapReader") -> bool:
        """Whether libpcap stopped where the file is well-formed.

        Of a section in the other byte order it misreads the length before it looks at the order,
        and then says that the block is too large.
        """
        if not (self._is_pcapng and ended.problem):
            return False
        block_header = os.pread(self._file.fileno(), 8, max(ended.stopped_at - 8, 0))
        return _TOO_DIVERSE in ended.problem or block_header.startswith(PCAPNG_MAGIC)

    def _what_happened(self, problem: str, packets: int) -> str:
        if not problem:
            return ""
        if problem.startswith(TRUNCATED):
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
    name = libpcap().pcap_datalink_val_to_name(number)
    description = libpcap().pcap_datalink_val_to_description(number)
    return f"{name.decode()} ({description.decode()}, {number})" if name and description else f"{number}"
