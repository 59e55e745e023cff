"""Receivers of UDP and TCP in a namespace: what arrived, octet by octet, and what was lost on the way.

A socket belongs to the namespace that its thread was in when it was made, and stays
there: so the tests make it in a thread that goes there, and read it anywhere.
"""

import contextlib
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator

from pyroute2 import netns

from netns import Host, wait_for

PORT = 4739  # of IPFIX; tshark looks for it there
QUIET_S = 0.3  # without a datagram, after the sender has ended: there are no more
ROOM = 64 << 20
SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>
LARGEST = 65535
"""Octets of a datagram."""


def socket_of(host: Host, kind: socket.SocketKind, port: int) -> socket.socket:
    """A bound socket in the host's namespace."""
    made: list[socket.socket] = []

    def make() -> None:
        netns.setns(host.namespace, flags=0)
        one = socket.socket(socket.AF_INET, kind)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        one.bind((host.ipv4, port))
        made.append(one)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert made, f"no socket on port {port} of {host.namespace}"
    return made[0]


@contextlib.contextmanager
def udp(host: Host, port: int) -> Iterator[list[bytes]]:
    """The datagrams; all are there when the block has ended."""
    datagrams: list[bytes] = []
    ended = threading.Event()

    def receive() -> None:
        while True:
            try:
                datagrams.append(receiver.recv(LARGEST))
            except TimeoutError:
                if ended.is_set():
                    return

    with socket_of(host, socket.SOCK_DGRAM, port) as receiver:
        receiver.settimeout(QUIET_S)
        thread = threading.Thread(target=receive)
        thread.start()
        try:
            yield datagrams
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def tcp(host: Host, port: int) -> Iterator[bytearray]:
    """The octets of one connection; all are there when the block has ended, and the sender with it."""
    octets = bytearray()

    def receive() -> None:
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(listener.gettimeout())
                while some := connection.recv(LARGEST):
                    octets.extend(some)

    with socket_of(host, socket.SOCK_STREAM, port) as listener:
        listener.listen()
        listener.settimeout(20)
        thread = threading.Thread(target=receive)
        thread.start()
        try:
            yield octets
        finally:
            thread.join()


@contextlib.contextmanager
def collector(host: Host, port: int, end: signal.Signals, *command: str) -> Iterator[None]:
    """A program that collects over UDP: it has read all that arrives in the block, and ended by the signal.

    What the kernel drops between the wire and the program is a failure of the test, and not of flowmon.
    """
    process = subprocess.Popen(
        host.command(*command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    try:
        wait_for(
            lambda: process.poll() is not None or _waiting_octets(host, port) is not None,
            f"{command[0]} to listen on port {port}",
        )
        assert process.poll() is None, f"{command}: ended with {process.returncode}"
        before = _udp_errors(host)
        yield
        wait_for(lambda: _waiting_octets(host, port) == 0, f"{command[0]} to read what arrived")
        assert _udp_errors(host) == before
        process.send_signal(end)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


def _waiting_octets(host: Host, port: int) -> int | None:
    """What the owner of a UDP socket has not read; None if nobody has that port."""
    line = host.run("ss", "-Hlun", f"sport = :{port}")
    return int(line.split()[1]) if line.strip() else None


def _udp_errors(host: Host) -> dict[str, int]:
    """Datagrams that the namespace's kernel did not deliver, by reason (RFC 4113 and Linux's own)."""
    header, values = [
        line.split()[1:] for line in host.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Udp:")
    ]
    counters = dict(zip(header, map(int, values), strict=True))
    return {name: counters[name] for name in ("NoPorts", "InErrors", "RcvbufErrors")}
