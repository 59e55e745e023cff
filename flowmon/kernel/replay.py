"""Feeds a capture's packets to the program for ingress on Ethernet, by BPF_PROG_TEST_RUN.

Rules:
- It is the program that meets packets at an interface, loaded to take a packet's time
  and its lengths on the wire from where the replay program puts them (kern/flowmon.h).
- Packets are laid side by side in memory that the kernel sees, and go in by the batch:
  a system call for each would cost several times the program.
- What is no Ethernet gets an Ethernet header in place of its own.
- Of the usual pcap file the kernel gets the octets themselves, a chunk at a time, and
  finds the packets in it (kern/flowmon.bpf.c: replay_records): several times as fast.
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from itertools import chain
from typing import Protocol

import numpy as np

from flowmon import abi
from flowmon.abi import ReplayStop
from flowmon.captures.frame import Frame
from flowmon.captures.link_types import ETHERNET, to_ethernet
from flowmon.captures.reader import Capture
from flowmon.captures.records import PcapRecords
from flowmon.errors import KernelError
from flowmon.kernel import libbpf
from flowmon.kernel.flow_table import map_into_memory
from flowmon.kernel.pins import MapSource

ETHERNET_HEADER = 14
NO_ETHERTYPE = b"\xff\xff"  # reserved: of nobody's
_HEAD = struct.Struct("=QIII4x")  # CAPTURED_PACKET but for the octets
_STRIDE = abi.CAPTURED_PACKET.itemsize
_MOST = abi.CAPTURED_MOST


class Replay:
    """Packets on their way into the program. Nothing is counted for sure before `flush`.

    Close it after use.
    """

    def __init__(self, source: MapSource) -> None:
        self._program = source.open_program("replay")
        self._walk_program = source.open_program("replay_records")
        self._packets = map_into_memory(source, "replay_packets", abi.CAPTURED_PACKET, abi.REPLAY_BATCH)
        self._state = map_into_memory(source, "replay_state", abi.REPLAY_STATE, 1)
        self._state["latest_ns"] = 0  # of an earlier capture
        self._walk = self._state[0]  # the same memory
        chunk = map_into_memory(source, "replay_chunk", abi.REPLAY_CHUNK, 1)
        self._octets = chunk["octets"][0].data
        self._chunk_address = int(chunk.ctypes.data)
        self._record_octets = 128  # of the latest records, about
        self._memory = self._packets.view("u1").data
        self._address = int(self._packets.ctypes.data)
        self._next = 0  # where the next packet goes, in octets
        self._end = self._packets.nbytes
        self._buffer = np.zeros(_MOST, "u1")

    def close(self) -> None:
        """Closes the programs' descriptors."""
        os.close(self._program)
        os.close(self._walk_program)

    def run(
        self, first: Frame, frames: Iterator[Frame], before_ns: int, most: int
    ) -> tuple[int, Frame | None]:
        """Feeds `first` and the frames after it: until one is not before `before_ns`, or `most` were fed.

        Returns how many were fed, and the frame that was not (None: there are no more).
        The table's 0 means never, so its times are one nanosecond later than the capture's.
        """
        # The inner loop of flowmon -r: what it looks up, it looks up once.
        pack_into, memory, address = _HEAD.pack_into, self._memory, self._address
        memmove, head, stride, end, longest = ctypes.memmove, _HEAD.size, _STRIDE, self._end, _MOST
        at, fed = self._next, 0
        for frame in chain((first,), frames):
            time_ns, octets, captured, wire_length, link_type = frame
            if time_ns >= before_ns or fed == most:
                self._next = at
                return fed, frame
            if link_type == ETHERNET:
                captured = min(captured, longest)
                pack_into(memory, at, time_ns + 1, wire_length, wire_length, captured)
                memmove(address + at + head, octets, captured)
            else:
                self._put_other_link(at, frame)
            fed += 1
            at += stride
            if at == end:
                self._next = at
                self.flush()
                at = 0
        self._next = at
        return fed, None

    def _put_other_link(self, at: int, frame: Frame) -> None:
        """A packet behind an Ethernet header of our own in place of its link header."""
        time_ns, address, captured, wire_length, link_type = frame
        data = ctypes.string_at(address, min(captured, _MOST))
        found = to_ethernet(link_type, data)
        if found is None:
            octets, end = bytes(ETHERNET_HEADER - 2) + NO_ETHERTYPE, ETHERNET_HEADER
        else:
            ether_type, link_length = found
            packet = data[link_length:]
            octets = (bytes(ETHERNET_HEADER - 2) + ether_type.to_bytes(2) + packet)[:_MOST]
            end = ETHERNET_HEADER + max(wire_length - link_length, len(packet))
        _HEAD.pack_into(self._memory, at, time_ns + 1, end, wire_length, len(octets))
        start = at + _HEAD.size
        self._memory[start : start + len(octets)] = octets

    def flush(self) -> int:
        """Runs what has gathered. Returns the time of the latest packet fed (0: none was).

        Raises KernelError where the kernel does not take it.
        """
        count = self._next // _STRIDE
        self._next = 0
        self._state["cursor"] = 0
        while (done := int(self._state["cursor"][0])) < count:
            libbpf.test_run(self._program, self._buffer, repeat=count - done)
        if self._state["failed"][0]:
            raise KernelError("the kernel could not hand a captured packet to the program")
        return int(self._state["latest_ns"][0])

    def begin_walk(self, records: PcapRecords) -> None:
        """Gets ready for records of a file, of which nothing is here yet."""
        self._walk["fraction_ns"], self._walk["longest"] = records.fraction_ns, records.longest
        self._walk["offset"] = self._walk["end"] = 0
        self._walk["stop"] = ReplayStop.CUT

    def refill(self, records: PcapRecords) -> bool:
        """Puts as many octets as are there behind those that were not walked; whether any came."""
        rest = self.rest()
        self._octets[: len(rest)] = rest
        came = records.read_into(self._chunk_address + len(rest), len(self._octets) - len(rest))
        self._walk["offset"], self._walk["end"] = 0, len(rest) + came
        return came > 0

    def rest(self) -> bytes:
        """The octets that were not walked."""
        return bytes(self._octets[self._walk["offset"] : self._walk["end"]])

    def walk(self, before_ns: int, most: int) -> int:
        """Feeds the next records: until one is not before `before_ns`, `most` were fed, or there is none to feed.

        Returns how many were fed; `stopped_at` then says where it stopped. They are counted at once.
        """
        walk = self._walk
        walk["before_ns"], walk["left"], walk["stop"] = before_ns, most, ReplayStop.GOES_ON
        start = int(walk["offset"])
        while walk["stop"] == ReplayStop.GOES_ON:
            # A run too many costs a fraction of one that feeds, and a call ten of them.
            about = int(walk["end"] - walk["offset"]) // self._record_octets
            libbpf.test_run(self._walk_program, self._buffer, repeat=1 + min(about, int(walk["left"])))
        fed = most - int(walk["left"])
        if fed:
            self._record_octets = (int(walk["offset"]) - start) // fed
        return fed

    def stopped_at(self) -> tuple[ReplayStop, int]:
        """Why the next record was not fed; its time, if it may be (READY)."""
        return ReplayStop(int(self._walk["stop"])), int(self._walk["next_ns"])


class Feed(Protocol):
    """The packets of a capture, as they go into the program."""

    def next_time_ns(self) -> int | None:
        """The time of the next packet; None at the end. Waits for it where it reads along."""

    def feed(self, before_ns: int, most: int) -> int:
        """Feeds the next packets, `most` at most, and none from one on that is not before `before_ns`.

        Returns how many. There is a next packet.
        """


def feed_of(capture: Capture, replay: Replay) -> Feed:
    """By whom the packets of a capture are found: the kernel if it can, else libpcap."""
    if capture.records is not None:
        return RecordFeed(capture, capture.records, replay)
    return FrameFeed(capture, replay)


class FrameFeed:
    """Packets that libpcap finds."""

    def __init__(self, capture: Capture, replay: Replay) -> None:
        self._replay = replay
        self._frames = capture.frames()
        self._next = next(self._frames, None)

    def next_time_ns(self) -> int | None:
        """See Feed."""
        return self._next[0] if self._next is not None else None

    def feed(self, before_ns: int, most: int) -> int:
        """See Feed."""
        if self._next is None:
            return 0
        fed, self._next = self._replay.run(self._next, self._frames, before_ns, most)
        return fed


class RecordFeed:
    """Packets that the kernel finds, and from the first record on that is not for it, libpcap."""

    def __init__(self, capture: Capture, records: PcapRecords, replay: Replay) -> None:
        self._capture = capture
        self._records = records
        self._replay = replay
        self._behind: FrameFeed | None = None
        replay.begin_walk(records)

    def next_time_ns(self) -> int | None:
        """See Feed."""
        while self._behind is None:
            stop, time_ns = self._replay.stopped_at()
            if stop == ReplayStop.READY:
                return time_ns
            if stop == ReplayStop.CUT and self._replay.refill(self._records):
                self._replay.walk(0, 0)  # only looks
            else:
                self._records.give_back(self._replay.rest())
                self._behind = FrameFeed(self._capture, self._replay)
        return self._behind.next_time_ns()

    def feed(self, before_ns: int, most: int) -> int:
        """See Feed."""
        if self._behind is not None:
            return self._behind.feed(before_ns, most)
        fed = self._replay.walk(before_ns, most)
        self._records.count += fed
        return fed
