"""Ordinary traffic between two hosts, for detectors to leave alone. Run as a program in a namespace.

`talkers.py serve` answers TCP on PORTS and UDP 53 at every address of the host, also at those that
only a route makes its own. `talkers.py talk SECONDS` is a crawler, a resolver, a NAT gateway, a
poller and a busy client, each from an address of its own; DEAD hosts never answer. `talkers.py converse CONNECTIONS SECONDS` sends
octets to and fro all the time, and prints of each connection its port and how many octets went each way.
"""

import asyncio
import contextlib
import json
import random
import socket
import sys

PORTS = (8000, 8001, 8002, 8003)
HOSTS = [f"10.78.0.{number}" for number in range(1, 255)]
DEAD = [f"10.79.0.{number}" for number in range(1, 255)]
CRAWLER, RESOLVER, GATEWAY, POLLER, CLIENT = (f"10.77.2.{number}" for number in range(1, 6))
TALKERS = (CRAWLER, RESOLVER, GATEWAY, POLLER, CLIENT)
IP_PKTINFO = 8


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


def answer(one: socket.socket) -> None:
    """Sends a datagram back from the address that it was sent to."""
    data, control, _, sender = one.recvmsg(512, 128)
    one.sendmsg([data], control, 0, sender)


async def serve() -> None:
    for port in PORTS:
        await asyncio.start_server(echo, "0.0.0.0", port, backlog=1024)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    udp.bind(("", 53))
    asyncio.get_running_loop().add_reader(udp, answer, udp)
    await asyncio.Event().wait()


async def fetch(source: str, host: str, port: int, octets: int, lasts: float = 0.0) -> None:
    with contextlib.suppress(OSError, TimeoutError, EOFError):
        async with asyncio.timeout(2 + lasts):
            reader, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
            writer.write(bytes(octets))
            await reader.readexactly(octets)
            await asyncio.sleep(lasts)
            writer.close()


async def converse(connections: int, seconds: int) -> None:
    async def one() -> tuple[int, int]:
        reader, writer = await asyncio.open_connection("10.77.0.2", PORTS[1], local_addr=(CLIENT, 0))
        port, octets = writer.get_extra_info("sockname")[1], 0
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            writer.write(bytes(500))
            octets += len(await reader.readexactly(500))
            await asyncio.sleep(0.1)
        writer.close()
        await writer.wait_closed()
        return port, octets

    print(json.dumps(await asyncio.gather(*(one() for _ in range(connections)))))


async def ask(source: str, host: str) -> None:
    """One query by UDP, from a port of its own."""
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.setblocking(False)
    one.bind((source, 0))
    one.sendto(b"who is there", (host, 53))
    await asyncio.sleep(1)
    one.close()


async def at_random(seconds: float, a_second: float, talk) -> None:
    """Starts talks, spread over the time."""
    tasks = set()
    for _ in range(int(seconds * a_second)):
        tasks.add(asyncio.create_task(talk()))
        await asyncio.sleep(random.expovariate(a_second))
    await asyncio.gather(*tasks)


def somebody(dead_share: float) -> str:
    return random.choice(DEAD if random.random() < dead_share else HOSTS)


async def talk(seconds: int) -> None:
    await asyncio.gather(
        at_random(seconds, 40, lambda: fetch(CRAWLER, somebody(0.05), 8000, 20_000)),
        at_random(seconds, 60, lambda: ask(RESOLVER, somebody(0.03))),
        at_random(
            seconds,
            60,
            lambda: fetch(GATEWAY, somebody(0.03), random.choice(PORTS), random.randrange(100, 5000), 1),
        ),
        at_random(seconds, 15, lambda: fetch(POLLER, somebody(0.08), random.choice(PORTS), 100)),
        at_random(seconds, 80, lambda: fetch(CLIENT, HOSTS[0], 8001, 2000)),
    )


if __name__ == "__main__":
    random.seed(1)
    what, *numbers = sys.argv[1:]
    asyncio.run({"serve": serve, "talk": talk, "converse": converse}[what](*map(int, numbers)))
