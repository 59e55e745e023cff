"""A small collector of IPFIX over TCP, TLS and UDP, as threads of a test or as a process to be killed.

As a process: `collector_process.py PORT` writes each message that it has read whole
to standard output, after the number of its connection (4 octets).
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from ipfix_reader import IANA, IPFIX, Message, Reader

LOCALHOST = "127.0.0.1"
DOMAIN = 7
PACKETS = (IANA, 2)
HEADER = 16
PATIENCE = 30.0
TRANSPORT_GONE = (OSError, EOFError)


def wait_until(condition: Callable[[], Any], what: str = "it") -> Any:
    """What `condition` says, as soon as that is true."""
    until = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.002)
    return found


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """One that the kernel gives to no connection of its own accord."""
    start = 20_000 + 97 * os.getpid() % 10_000  # far from that of another run beside this one
    for port in range(start, start + 2000):
        with socket.socket(socket.AF_INET, kind) as one, contextlib.suppress(OSError):
            one.bind((LOCALHOST, port))
            return port
    raise AssertionError("no port is free")


class FlowReader(Reader):
    """Of flow records it tells PACKETS only, but quickly: the tests number records by it."""

    def _data(self, set_id: int, content: bytes, found: Message) -> int:
        layout = self.layouts[set_id]
        if layout.scopes:
            return super()._data(set_id, content, found)
        octets = sum(width for _, width in layout.fields)
        at = sum(width for _, width in layout.fields[: [one for one, _ in layout.fields].index(PACKETS)])
        assert len(content) % octets == 0
        for start in range(at, len(content), octets):
            found.flows.append({PACKETS: int.from_bytes(content[start : start + 8], "big")})
        return len(content) // octets


def read(messages: Iterable[bytes], sequence: int = 0) -> list[Message]:
    """A session from its beginning, whose rules are checked."""
    reader = FlowReader(IPFIX, DOMAIN, sequence=sequence)
    return [reader.read(message) for message in messages]


def flows(messages: Iterable[bytes]) -> list[int]:
    """The numbers of the flow records of a session."""
    return [flow[PACKETS] for message in read(messages) for flow in message.flows]


def flows_of(sessions: Iterable[Iterable[bytes]]) -> list[int]:
    """Those of all sessions; each begins anew."""
    return [number for messages in sessions for number in flows(messages)]


def options(messages: Iterable[bytes], element: int) -> list[dict[Any, Any]]:
    """The options records of a session that have an element of IANA's."""
    return [record for message in read(messages) for record in message.options if (IANA, element) in record]


class Stream:
    """One connection: its whole messages, and what went wrong. dies_after: octets, None: never."""

    def __init__(self, connection: socket.socket, dies_after: int | None = None) -> None:
        self.messages: list[bytes] = []
        self.octets = 0
        self.connection = connection
        self._dies_after = dies_after

    def read(self) -> None:
        """Until the end."""
        with contextlib.suppress(*TRANSPORT_GONE):
            while True:
                header = self._exactly(HEADER)
                self.messages.append(header + self._exactly(struct.unpack_from(">H", header, 2)[0] - HEADER))

    def _exactly(self, octets: int) -> bytes:
        found = b""
        while len(found) < octets:
            wanted = octets - len(found)
            if self._dies_after is not None:
                wanted = min(wanted, max(1, self._dies_after - self.octets))
            some = self.connection.recv(wanted)
            if not some:
                raise EOFError
            found += some
            self.octets += len(some)
            if self._dies_after is not None and self.octets >= self._dies_after:
                self.half_close()
        return found

    def half_close(self) -> None:
        """Says that it goes, and goes on to read what is under way."""
        self._dies_after = None
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.connection, socket.SHUT_WR)  # of TCP, under TLS too

    def reset(self) -> None:
        """As the kernel does for a process that is killed before it has read all."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class Collector:
    """Listens on TCP, or TLS, in threads. It reads while `reading` is set.

    dies_after: octets of the first connection after which it says that it goes, and is gone.
    """

    def __init__(
        self,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        receive_buffer: int = 0,
        dies_after: int | None = None,
    ) -> None:
        self.streams: list[Stream] = []
        self.errors: list[str] = []
        self.reading = threading.Event()
        self.reading.set()
        self._tls = tls
        self._dies_after = dies_after
        self._stopped = False
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.bind((LOCALHOST, port or free_port()))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def sessions(self) -> list[list[bytes]]:
        return [list(stream.messages) for stream in self.streams if stream.messages]

    @property
    def flows(self) -> list[int]:
        return flows_of(self.sessions)

    def stop(self) -> list[list[bytes]]:
        """Orderly: it reads all that its kernel acknowledges; its sessions."""
        self._stopped = True
        self._end_listening()
        for stream in self.streams:
            stream.half_close()
        self.reading.set()
        return self.wait()

    def wait_for_end(self) -> list[list[bytes]]:
        """Until all whom it knows have left; its sessions."""
        wait_until(lambda: len(self._threads) > 1)
        self._end_listening()
        return self.wait()

    def wait(self) -> list[list[bytes]]:
        """Until it has died of itself, or was left by everybody; its sessions."""
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        return self.sessions

    def _end_listening(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                if self._dies_after is not None:
                    self._end_listening()
                self._threads.append(threading.Thread(target=self._serve, args=[connection], daemon=True))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True, suppress_ragged_eofs=True)
        except OSError as error:
            self.errors.append(str(error))
            connection.close()
            return
        stream = Stream(connection, self._dies_after)
        self.streams.append(stream)
        if self._stopped:
            stream.half_close()
        self.reading.wait(PATIENCE)
        stream.read()
        connection.close()


class UdpCollector:
    """Takes datagrams in a thread, each with the time when it came."""

    def __init__(self, port: int = 0) -> None:
        self.messages: list[bytes] = []
        self.times: list[float] = []
        self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self._socket.bind((LOCALHOST, port or free_port(socket.SOCK_DGRAM)))
        self._socket.settimeout(0.05)
        self.port: int = self._socket.getsockname()[1]
        self._stopped = False
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        while True:
            try:
                message = self._socket.recv(65536)
            except TimeoutError:
                if self._stopped:
                    return
            else:
                self.times.append(time.monotonic())
                self.messages.append(message)

    def stop(self) -> list[bytes]:
        """After it has taken all that is there; its messages."""
        self._stopped = True
        self._thread.join(PATIENCE)
        self._socket.close()
        return self.messages

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class CollectorProcess:
    """A collector over TCP that can be killed. prefix: what runs a command elsewhere."""

    def __init__(self, port: int, *prefix: str) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, __file__, str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._frames: list[tuple[int, bytes]] = []
        self._thread = threading.Thread(target=self._follow, daemon=True)
        assert self._process.stderr is not None
        assert self._process.stderr.readline() == b"listening\n"
        self._thread.start()

    @property
    def sessions(self) -> list[list[bytes]]:
        frames = list(self._frames)
        numbers = sorted({number for number, _ in frames})
        return [[message for of, message in frames if of == number] for number in numbers]

    def kill(self) -> list[list[bytes]]:
        """SIGKILL; the sessions with all that it had read."""
        self._process.kill()
        self._process.wait()
        self._thread.join(PATIENCE)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        return self.sessions

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for frame in _frames(self._process.stdout.read):
            self._frames.append(frame)


def _frames(read_octets: Callable[[int], bytes]) -> Iterator[tuple[int, bytes]]:
    while len(start := read_octets(4 + HEADER)) == 4 + HEADER:
        number, length = struct.unpack_from(">I2xH", start)
        rest = read_octets(length - HEADER)
        if len(rest) == length - HEADER:
            yield number, start[4:] + rest


class _Printed(list[bytes]):
    """Messages that go to standard output as they come."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def append(self, message: bytes) -> None:
        os.write(1, struct.pack(">I", self._number) + message)


def main() -> None:
    with socket.create_server((LOCALHOST, int(sys.argv[1]))) as listener:
        print("listening", file=sys.stderr, flush=True)
        number = 0
        while True:
            connection, _ = listener.accept()
            stream = Stream(connection)
            stream.messages = _Printed(number)
            stream.read()
            connection.close()
            number += 1


if __name__ == "__main__":
    main()
