"""Frames of pcapng files whose interfaces or sections differ, by Scapy's reader."""

import ctypes
import io
import logging
import struct
from collections.abc import Generator, Iterator
from typing import Any, Literal, cast

from flowmon.captures.frame import (
    NO_INTERFACE,
    NS,
    PCAPNG_MAGIC,
    STDIO_BUFFER,
    TRUNCATED,
    CaptureError,
    DamagedError,
    Frame,
    clamped,
)
from flowmon.captures.link_types import LINK_TYPES

_LARGEST_BLOCK = 16 << 20  # octets, as libpcap's
_LARGEST_FRAME = 262_144  # octets, as libpcap's MAXIMUM_SNAPLEN
_MOST_INTERFACES = 1 << 16
_INTERFACE_BLOCK = 1
_PACKET_BLOCKS = (2, 3, 6)  # Packet (obsolete), Simple Packet, Enhanced Packet
_TIME_OFFSET_OPTION = 14  # if_tsoffset: seconds, 64 bits, signed


class _BlockFile:
    """What Scapy's reader reads from: one look ahead, no more octets at once than a block may have."""

    def __init__(self, file: io.FileIO) -> None:
        self._buffer = io.BufferedReader(file, STDIO_BUFFER)
        self._ahead = b""
        self.at_end = False

    def look(self) -> bytes:
        """The first eight octets of the next block, still to be read; fewer at the end."""
        self._ahead = self._buffer.read(8)
        return self._ahead

    def read(self, count: int) -> bytes:
        if count > _LARGEST_BLOCK:
            raise DamagedError(f"a block of {count} octets or more")
        data, self._ahead = self._ahead[:count], self._ahead[count:]
        if len(data) < count:
            data += self._buffer.read(count - len(data))
            self.at_end = len(data) < count
        return data

    def detach(self) -> None:
        self._buffer.detach()


class ScapyReader:
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
        except DamagedError as damage:
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
            raise DamagedError("a malformed section header") from None
        reader.blocktypes = {kind: reader.blocktypes[kind] for kind in _PACKET_BLOCKS}
        reader.blocktypes[_INTERFACE_BLOCK] = lambda block, _: _describe(reader, block)
        while head := blocks.look():
            kind = int.from_bytes(head[:4], _byte_order(reader))
            if head.startswith(PCAPNG_MAGIC):
                reader.interfaces.clear()
            try:
                packet = reader._read_block(_LARGEST_FRAME)  # noqa: SLF001 - the public way tells no end from damage
            except (EOFError, Scapy_Exception, struct.error):
                raise DamagedError(
                    TRUNCATED if blocks.at_end else f"a malformed block of type {kind}"
                ) from None
            if packet is not None:
                octets, about = packet
                yield about.linktype, _time_ns(about), octets, about.wirelen
            elif kind in _PACKET_BLOCKS:
                yield NO_INTERFACE, 0, b"", 0


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
        raise DamagedError(f"more than {_MOST_INTERFACES} interfaces")


def _time_ns(about: Any) -> int:
    """Of what Scapy tells about a packet; a Simple Packet Block has no time, which is 0."""
    units_per_second, offset_seconds = about.tsresol
    units = (about.tshigh or 0) << 32 | (about.tslow or 0)
    return clamped(units * NS // units_per_second + offset_seconds * NS)
