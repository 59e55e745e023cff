"""Feeds a capture's packets to the program for ingress on Ethernet, by BPF_PROG_TEST_RUN.

Rules:
- It is the program that meets packets at an interface, loaded to take a packet's time
  and its lengths on the wire from where the replay program puts them (kern/flowmon.h).
- Packets are laid side by side in memory that the kernel sees, and go in by the batch:
  a system call for each would cost several times the program.
- What is no Ethernet gets an Ethernet header in place of its own.
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from itertools import chain

import numpy as np

from flowmon import abi
from flowmon.captures.frame import Frame
from flowmon.captures.link_types import ETHERNET, to_ethernet
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
        self._packets = map_into_memory(source, "replay_packets", abi.CAPTURED_PACKET, abi.REPLAY_BATCH)
        self._state = map_into_memory(source, "replay_state", abi.REPLAY_STATE, 1)
        self._memory = self._packets.view("u1").data
        self._address = int(self._packets.ctypes.data)
        self._next = 0  # where the next packet goes, in octets
        self._end = self._packets.nbytes
        self._buffer = np.zeros(_MOST, "u1")
        self._latest_ns = 0

    def close(self) -> None:
        """Closes the program's descriptor."""
        os.close(self._program)

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
        if count:
            self._latest_ns = int(self._packets["time_ns"][count - 1])
        return self._latest_ns
