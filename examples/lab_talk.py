"""Ordinary traffic of a small laboratory: `lab_talk.py serve`, and `lab_talk.py talk SERVER SECONDS CLIENT...`.

serve: HTTP on 8000 (GET /N gives N octets), an echo on 2323, and UDP 53, which answers what begins with a question mark.
talk: from the clients' addresses in turn, for so many seconds:
- HTTP, one to five requests on a connection, 200 octets to 300 kB each, some after a pause
- questions by UDP, of which some are garbled and get no answer, asked up to three times
- people who type: a few octets at a time, echoed
- connections that come to nothing: port 9 is closed, and at 10.99.0.1, where nobody is, SYNs go unanswered
"""
# ruff: noqa: S104, S311  # a namespace of its own; chance that is the same on each run

import asyncio
import contextlib
import random
import sys
from collections.abc import Awaitable, Callable

HTTP, ECHO, NAMES, CLOSED = 8000, 2323, 53, 9
NOBODY = "10.99.0.1"
A_SECOND = {
    "fetch": 14,
    "ask": 14,
    "knock": 2,
    "wait_in_vain": 1,
    "type_away": 1.5,
}  # conversations that begin


class Resolver(asyncio.DatagramProtocol):
    """Answers questions; of all else it says nothing."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        """Keeps whom to answer through."""
        self._transport = transport

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        """The answer is up to eight times as long."""
        if data.startswith(b"?"):
            self._transport.sendto(data * random.randint(1, 8), sender)


async def answer_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """GET /N, again and again."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            octets = int(request.split()[1][1:])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % octets + bytes(octets))
            await writer.drain()
    writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What comes in goes out."""
    with contextlib.suppress(OSError):
        while data := await reader.read(4096):
            writer.write(data)
    writer.close()


async def serve() -> None:
    """For ever."""
    await asyncio.start_server(answer_http, "0.0.0.0", HTTP, backlog=1024)
    await asyncio.start_server(echo, "0.0.0.0", ECHO, backlog=1024)
    await asyncio.get_running_loop().create_datagram_endpoint(Resolver, ("0.0.0.0", NAMES))
    await asyncio.Event().wait()


async def fetch(server: str, client: str) -> None:
    """One to five requests."""
    reader, writer = await asyncio.open_connection(server, HTTP, local_addr=(client, 0))
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        octets = round(200 * 1500 ** random.random())
        padding = "x" * random.randint(20, 900)
        writer.write(f"GET /{octets} HTTP/1.1\r\nHost: {server}\r\nCookie: {padding}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(octets)
        await asyncio.sleep(random.choice((0, 0.02, 0.5)))
    writer.close()


async def ask(server: str, client: str) -> None:
    """Up to three times; one question in ten is garbled."""
    loop = asyncio.get_running_loop()
    answered = loop.create_future()

    class Asker(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, _sender: tuple[str, int]) -> None:
            if not answered.done():
                answered.set_result(data)

    transport, _ = await loop.create_datagram_endpoint(Asker, (client, 0), (server, NAMES))
    mark = b"!" if random.random() < 0.1 else b"?"
    for _ in range(3):
        transport.sendto(mark + bytes(random.randint(20, 60)))
        await asyncio.wait((answered,), timeout=1)
        if answered.done() or random.random() < 0.5:
            break
    transport.close()


async def type_away(server: str, client: str) -> None:
    """A few octets at a time."""
    reader, writer = await asyncio.open_connection(server, ECHO, local_addr=(client, 0))
    for _ in range(random.randint(3, 30)):
        typed = bytes(random.randint(1, 8))
        writer.write(typed)
        await reader.readexactly(len(typed))
        await asyncio.sleep(random.uniform(0.05, 0.6))
    writer.close()


async def knock(server: str, client: str) -> None:
    """At a closed port."""
    await asyncio.open_connection(server, CLOSED, local_addr=(client, 0))


async def wait_in_vain(_: str, client: str) -> None:
    """For an answer from nobody."""
    await asyncio.open_connection(NOBODY, HTTP, local_addr=(client, 0))


async def at_random(seconds: float, a_second: float, converse: Callable[[], Awaitable[None]]) -> None:
    """Begins conversations, spread over the time; none lasts longer than ten seconds."""

    async def one() -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await asyncio.wait_for(converse(), 10)

    begun = set()
    for _ in range(int(seconds * a_second)):
        begun.add(asyncio.create_task(one()))
        await asyncio.sleep(random.expovariate(a_second))
    await asyncio.gather(*begun)


async def talk(server: str, seconds: float, clients: list[str]) -> None:
    """Everything at once."""
    kinds = (fetch, ask, knock, wait_in_vain, type_away)
    await asyncio.gather(
        *(
            at_random(
                seconds, A_SECOND[kind.__name__], lambda kind=kind: kind(server, random.choice(clients))
            )
            for kind in kinds
        )
    )


if __name__ == "__main__":
    random.seed(1)
    what, *rest = sys.argv[1:]
    asyncio.run(serve() if what == "serve" else talk(rest[0], float(rest[1]), rest[2:]))
