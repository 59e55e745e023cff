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

import numpy as np

from flowmon import abi
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

    def close(self) -> None:
        """Closes the program's descriptor."""
        os.close(self._program)

    def ethernet(self, time_ns: int, address: int, captured: int, wire_length: int) -> None:
        """One Ethernet frame, `captured` octets of it at `address`, at a time other than 0."""
        at = self._next
        if captured > _MOST:  # noqa: PLR1730 - min() takes longer
            captured = _MOST
        _HEAD.pack_into(self._memory, at, time_ns, wire_length, wire_length, captured)
        ctypes.memmove(self._address + at + _HEAD.size, address, captured)
        self._next = at = at + _STRIDE
        if at == self._end:
            self.flush()

    def packet(
        self, time_ns: int, ether_type: int, captured: bytes, link_length: int, wire_length: int
    ) -> None:
        """One packet of another link type, `captured` behind `link_length` octets of link header."""
        frame = bytes(ETHERNET_HEADER - 2) + ether_type.to_bytes(2) + captured
        end = ETHERNET_HEADER + max(wire_length - link_length, len(captured))
        self._frame(time_ns, frame[:_MOST], end, wire_length)

    def no_packet(self, time_ns: int, wire_length: int) -> None:
        """A frame of another link type that carries no IP: counted as such."""
        self._frame(time_ns, bytes(ETHERNET_HEADER - 2) + NO_ETHERTYPE, ETHERNET_HEADER, wire_length)

    def _frame(self, time_ns: int, frame: bytes, end: int, layer2_length: int) -> None:
        at = self._next
        _HEAD.pack_into(self._memory, at, time_ns, end, layer2_length, len(frame))
        self._memory[at + _HEAD.size : at + _HEAD.size + len(frame)] = frame
        self._next = at + _STRIDE
        if self._next == self._end:
            self.flush()

    def flush(self) -> None:
        """Runs what has gathered. Raises KernelError where the kernel does not take it."""
        count = self._next // _STRIDE
        self._next = 0
        self._state["cursor"] = 0
        while (done := int(self._state["cursor"][0])) < count:
            libbpf.test_run(self._program, self._buffer, repeat=count - done)
        if self._state["failed"][0]:
            raise KernelError("the kernel could not hand a captured packet to the program")
