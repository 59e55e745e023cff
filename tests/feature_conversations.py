"""Conversations with everything that packet features tell apart, each a function that gives its frames in order.

Checksums are 0, lengths are right. The hosts and what their IP headers say come from ``Ends``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from random import Random

from craft import (
    IPV4,
    IPV6,
    NO_OPERATION,
    SACK_PERMITTED,
    chain,
    data,
    ethernet,
    maximum_segment_size,
    option,
    timestamps,
    window_scale,
)

ICMP, TCP, UDP, GRE, ICMPV6, SCTP, UDP_LITE = 1, 6, 17, 47, 58, 132, 136
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
RESERVED_FLAG, DONT_FRAGMENT, MORE_FRAGMENTS = 0x8000, 0x4000, 0x2000
HOP_BY_HOP, FRAGMENT_HEADER, DESTINATION_OPTIONS = 0, 44, 60
ARP = 0x0806
UNIT = 8  # octets, of fragment offsets


@dataclass(frozen=True)
class Ends:
    """Two hosts, and what the IP headers between them say."""

    random: Random
    client: str
    server: str
    ttl: tuple[int, int] = (64, 57)
    class_of_service: int = 0
    flags: int = DONT_FRAGMENT
    options: bytes = b""  # of IPv4
    extensions: tuple[tuple[int, int], ...] = ()  # of IPv6: see craft.chain
    vlan: int | None = None

    @property
    def version(self) -> int:
        return ip_address(self.client).version

    def packet(
        self,
        *,
        forward: bool,
        protocol: int,
        payload: bytes,
        identification: int = 0,
        fragment: int | None = None,
    ) -> bytes:
        """An Ethernet frame; ``fragment`` are flags and offset as in the header of the version."""
        own, other = (self.client, self.server) if forward else (self.server, self.client)
        addresses = ip_address(own).packed + ip_address(other).packed
        tags = [(0x8100, self.vlan)] if self.vlan is not None else []
        ttl = self.ttl[not forward]
        if self.version == 4:
            words, total = 5 + len(self.options) // 4, 20 + len(self.options) + len(payload)
            flags = self.flags if fragment is None else fragment
            head = struct.pack(
                "!BBHHHBBH",
                4 << 4 | words,
                self.class_of_service,
                total,
                identification,
                flags,
                ttl,
                protocol,
                0,
            )
            return ethernet(IPV4, *tags) + head + addresses + self.options + payload
        following, extensions = chain(
            list(self.extensions), protocol if fragment is None else FRAGMENT_HEADER
        )
        if fragment is not None:
            extensions += struct.pack("!BBHI", protocol, 0, fragment, identification)
        first_word = 6 << 28 | self.class_of_service << 20 | 0x12345
        head = struct.pack("!IHBB", first_word, len(extensions) + len(payload), following, ttl)
        return ethernet(IPV6, *tags) + head + addresses + extensions + payload

    def fragments(
        self, *, forward: bool, protocol: int, payload: bytes, identification: int, room: int
    ) -> list[bytes]:
        """The payload in pieces of so many octets, a multiple of 8."""
        pieces = []
        for at in range(0, len(payload), room):
            more = at + room < len(payload)
            place = at | more if self.version == 6 else at // UNIT | more * MORE_FRAGMENTS
            pieces.append(
                self.packet(
                    forward=forward,
                    protocol=protocol,
                    payload=payload[at : at + room],
                    identification=identification,
                    fragment=place,
                )
            )
        return pieces


Session = Callable[[Ends], list[bytes]]


# TCP


class Talk:
    """A TCP connection. It remembers both sequence numbers, and varies what is free to vary."""

    def __init__(self, ends: Ends, initial: tuple[int, int] | None = None, *, options: bytes = b"") -> None:
        self.ends, self.options = ends, options
        random = ends.random
        self.ports = random.randrange(32768, 61000), random.randrange(7000, 7990)
        self.next = list(initial or (random.getrandbits(32), random.getrandbits(32)))
        self.frames: list[bytes] = []

    def say(
        self,
        forward: bool,
        flags: int,
        octets: int = 0,
        *,
        back: int = 0,
        options: bytes | None = None,
        ack: int | None = None,
    ) -> None:
        """A segment; it begins ``back`` octets before the next one. Without ``ack`` it acknowledges all."""
        random, own, other = self.ends.random, int(not forward), int(forward)
        sequence = (self.next[own] - back) % 2**32
        if ack is None:
            ack = self.next[other] % 2**32 if flags & ACK else 0
        options = self.options if options is None else options
        header = struct.pack(
            "!HHIIHHHH",
            *(self.ports if forward else self.ports[::-1]),
            sequence,
            ack,
            (5 + len(options) // 4) << 12 | flags,
            random.choice((0, 1, 502, 64240, 65535, random.getrandbits(16))),
            0,
            random.getrandbits(8) if flags & URG else 0,
        )
        payload = header + options + bytes(data(octets))
        self.frames.append(self.ends.packet(forward=forward, protocol=TCP, payload=payload))
        end = sequence + octets + bool(flags & (SYN | FIN))
        self.next[own] = max(self.next[own], end if not back else 0)

    def open(self, flags: int = 0) -> Talk:
        both = maximum_segment_size(1460) + SACK_PERMITTED + NO_OPERATION + window_scale(7) + NO_OPERATION
        self.say(True, SYN | flags, options=both)
        self.say(False, SYN | ACK | flags & ECE, options=both + timestamps(7, 8))
        self.say(True, ACK)
        return self

    def exchange(self, segments: int) -> Talk:
        """Data both ways, some of it sent again, with flags as they come."""
        random = self.ends.random
        for _ in range(segments):
            forward, octets = random.random() < 0.5, random.choice((0, 1, random.randrange(2, 1400)))
            flags = ACK | random.choice((0, PSH, PSH, ECE, CWR, PSH | CWR, ECE | URG, PSH | URG))
            self.say(forward, flags, octets)
            if random.random() < 0.1:
                self.say(forward, flags | PSH, octets, back=octets)
        return self

    def close(self) -> Talk:
        self.say(True, FIN | PSH | ACK, 10)
        self.say(False, FIN | ACK)
        self.say(True, ACK)
        return self


def connection(ends: Ends) -> list[bytes]:
    return Talk(ends).open().exchange(ends.random.randrange(5, 40)).close().frames


def long_connection(ends: Ends) -> list[bytes]:
    return Talk(ends, options=timestamps(1, 2)).open(ECE | CWR).exchange(150).close().frames


def connection_that_wraps(ends: Ends) -> list[bytes]:
    """Both directions pass 2**32 within a few segments."""
    return Talk(ends, (2**32 - 300, 2**32 - 1)).open().exchange(30).close().frames


def connection_that_is_reset(ends: Ends) -> list[bytes]:
    talk = Talk(ends).open().exchange(6)
    talk.say(False, RST, ack=ends.random.getrandbits(32))  # not an acknowledgement, whatever stands there
    talk.say(True, RST | ACK)
    return talk.frames


def refused(ends: Ends) -> list[bytes]:
    talk = Talk(ends, (ends.random.getrandbits(32), 0))
    talk.say(True, SYN)
    talk.say(False, RST | ACK)
    return talk.frames


def unanswered(ends: Ends) -> list[bytes]:
    """The same SYN three times; its acknowledgement number means nothing."""
    talk = Talk(ends)
    for again in range(3):
        talk.say(
            True, SYN, back=bool(again), ack=ends.random.getrandbits(32), options=maximum_segment_size(536)
        )
    return talk.frames


def from_the_middle(ends: Ends) -> list[bytes]:
    return Talk(ends).exchange(25).close().frames


def from_the_middle_without_acknowledgement(ends: Ends) -> list[bytes]:
    """The other direction's first is not known before it speaks; then a segment from before the first one."""
    talk = Talk(ends, (100, 5))
    talk.say(True, PSH, 50, ack=77)
    talk.say(False, ACK, 20)
    talk.say(True, ACK, 40, back=120)
    talk.say(True, 0)
    talk.say(True, FIN | PSH | URG)
    talk.say(True, 0xFFF, 3)
    return talk.frames


def one_way(ends: Ends) -> list[bytes]:
    """The replies take another path."""
    talk = Talk(ends)
    for _ in range(12):
        talk.next[1] += ends.random.randrange(3000)
        talk.say(True, ACK, ends.random.randrange(100))
    return talk.frames


def from_the_answer_on(ends: Ends) -> list[bytes]:
    """The SYN was missed: the session's first packet is the server's."""
    return Talk(ends).open().exchange(5).close().frames[1:]


def overtaken(ends: Ends) -> list[bytes]:
    """The SYN comes behind its answer."""
    syn, answer, *others = Talk(ends).open().exchange(5).close().frames
    return [answer, syn, *others]


def fast_open(ends: Ends) -> list[bytes]:
    """Data in the SYN (RFC 7413)."""
    talk = Talk(ends)
    talk.say(True, SYN, 200, options=option(34, bytes(8)) + NO_OPERATION * 2)
    talk.say(False, SYN | ACK, 300)
    return talk.exchange(5).close().frames


def connection_in_fragments(ends: Ends) -> list[bytes]:
    """One segment of the client's comes in three fragments."""
    talk = Talk(ends).open()
    whole = Talk(replace(ends, flags=0))
    whole.ports, whole.next = talk.ports, talk.next
    whole.say(True, ACK | PSH, 1000)
    segment = whole.frames[0][14 + (20 if ends.version == 4 else 40) :]
    talk.frames += ends.fragments(forward=True, protocol=TCP, payload=segment, identification=4242, room=400)
    return talk.exchange(5).close().frames


def ports_used_again(ends: Ends) -> list[bytes]:
    """Connections on the same ports, with other initial sequence numbers: one session. Of the last the answer is missed."""
    first, second, third = (Talk(ends) for _ in range(3))
    second.ports = third.ports = first.ports
    for talk in (first, second, third):
        talk.open().exchange(4).close()
    return [*first.frames, *second.frames, third.frames[0], *third.frames[2:]]


# UDP


def datagram(ports: tuple[int, int], octets: int) -> bytes:
    return struct.pack("!HHHH", *ports, 8 + octets, 0) + bytes(data(octets))


def _datagrams(ends: Ends, count: int, answered: bool = True) -> list[bytes]:
    random = ends.random
    ports = random.randrange(32768, 61000), random.randrange(7000, 7990)
    frames = []
    for at in range(count):
        forward = not answered or at == 0 or random.random() < 0.5
        whose = ports if forward else ports[::-1]
        payload = datagram(whose, random.choice((0, 1, random.randrange(1400))))
        frames.append(
            ends.packet(forward=forward, protocol=UDP, payload=payload, identification=random.getrandbits(16))
        )
    return frames


def datagrams(ends: Ends) -> list[bytes]:
    return _datagrams(ends, ends.random.randrange(2, 20))


def long_datagrams(ends: Ends) -> list[bytes]:
    return _datagrams(ends, 130)


def datagrams_one_way(ends: Ends) -> list[bytes]:
    return _datagrams(ends, ends.random.randrange(1, 8), answered=False)


def exactly_a_hundred(ends: Ends) -> list[bytes]:
    return _datagrams(ends, 100)


def datagrams_of_one_host(ends: Ends) -> list[bytes]:
    """To itself: only the ports tell the directions apart."""
    return _datagrams(replace(ends, server=ends.client), 9)


def datagrams_in_two_vlans(ends: Ends) -> list[bytes]:
    """The same addresses and ports: two sessions."""
    ports = 50_000, 7000
    return [
        replace(ends, vlan=vlan).packet(forward=forward, protocol=UDP, payload=datagram(whose, 10 + vlan))
        for forward, whose in ((True, ports), (False, ports[::-1]), (True, ports))
        for vlan in (5, 6)
    ]


def datagrams_in_fragments(ends: Ends) -> list[bytes]:
    """Large ones with small ones between, both ways; both directions count their identifications alike."""
    ports = ends.random.randrange(32768, 61000), 7999
    frames = []
    for number in range(3):
        for forward, whose in ((True, ports), (False, ports[::-1])):
            large = datagram(whose, 2900 + number)
            frames += ends.fragments(
                forward=forward, protocol=UDP, payload=large, identification=900 + number, room=1200
            )
            frames.append(ends.packet(forward=forward, protocol=UDP, payload=datagram(whose, 30)))
    return frames


def fragments_out_of_order(ends: Ends) -> list[bytes]:
    """The first comes first; with the other datagram's between, their order is the other way round."""
    ports = ends.random.randrange(32768, 61000), 7999
    one, two = (
        ends.fragments(
            forward=True, protocol=UDP, payload=datagram(ports, 1500), identification=number, room=400
        )
        for number in (31, 32)
    )
    return [one[0], two[0], *(piece for pair in zip(one[:0:-1], two[:0:-1], strict=True) for piece in pair)]


def fragments_without_their_first(ends: Ends) -> list[bytes]:
    """Nobody knows whose they are: a session without ports."""
    pieces = ends.fragments(
        forward=True, protocol=UDP, payload=datagram((7000, 7001), 1500), identification=77, room=400
    )
    return pieces[1:]


def atomic_fragment(ends: Ends) -> list[bytes]:
    """A fragment header around a whole datagram (RFC 6946)."""
    return [
        ends.packet(
            forward=True, protocol=UDP, payload=datagram((50_100, 7000), 12), identification=3, fragment=0
        )
    ]


# ICMP


def _echo(ends: Ends, identifier: int, numbers: int, *, answered: bool = True) -> list[bytes]:
    protocol, request, reply = (ICMP, 8, 0) if ends.version == 4 else (ICMPV6, 128, 129)
    frames = []
    for number in range(numbers):
        for forward, kind in ((True, request), (False, reply))[: 1 + answered]:
            message = struct.pack("!BBHHH", kind, 0, 0, identifier, number) + bytes(data(20 + number))
            frames.append(ends.packet(forward=forward, protocol=protocol, payload=message))
    return frames


def echo_of_two_identifiers(ends: Ends) -> list[bytes]:
    """Two sessions between the same hosts."""
    one, two = _echo(ends, 7, 4), _echo(ends, 8, 4)
    return [each for pair in zip(one, two, strict=True) for each in pair]


def long_echo(ends: Ends) -> list[bytes]:
    return _echo(ends, 9, 60)


def echo_of_one_host(ends: Ends) -> list[bytes]:
    """To itself: nothing tells the directions apart, so all is forward."""
    return _echo(replace(ends, server=ends.client), 13, 2)


def echo_unanswered(ends: Ends) -> list[bytes]:
    return _echo(ends, 10, 3, answered=False)


def echo_in_fragments(ends: Ends) -> list[bytes]:
    protocol, kind = (ICMP, 8) if ends.version == 4 else (ICMPV6, 128)
    message = struct.pack("!BBHHH", kind, 0, 0, 11, 1) + bytes(data(1000))
    pieces = ends.fragments(forward=True, protocol=protocol, payload=message, identification=55, room=600)
    return [*pieces, *_echo(ends, 11, 2)]


def timestamp_queries(ends: Ends) -> list[bytes]:
    return [
        ends.packet(
            forward=kind == 13, protocol=ICMP, payload=struct.pack("!BBHHH", kind, 0, 0, 12, 1) + bytes(12)
        )
        for kind in (13, 14, 13, 14)
    ]


def errors(ends: Ends) -> list[bytes]:
    """Each kind is a session of its own, whatever it is about; one kind comes both ways.

    They quote a connection and a datagram that are in the capture as well.
    """
    quoting = replace(ends, options=b"", extensions=(), vlan=None)
    talk = Talk(quoting)
    talk.say(True, ACK, 100)
    about = [
        talk.frames[0][14:],
        quoting.packet(forward=True, protocol=UDP, payload=datagram((50_200, 7000), 4))[14:],
    ]
    kinds = (
        [(3, 1), (3, 3), (11, 0), (3, 3), (5, 1)] if ends.version == 4 else [(1, 4), (3, 0), (2, 0), (1, 4)]
    )
    protocol = ICMP if ends.version == 4 else ICMPV6
    frames = []
    for at, (kind, code) in enumerate(kinds):
        message = struct.pack("!BBHI", kind, code, 0, 0) + about[at % 2]
        frames.append(ends.packet(forward=at == 3, protocol=protocol, payload=message))
    talk.say(False, ACK, 10)
    return [*frames[:2], talk.frames[0], *frames[2:], talk.frames[1]]


def neighbours(ends: Ends) -> list[bytes]:
    """Solicitation and advertisement; the hosts' second question goes the other way."""
    return [
        ends.packet(forward=forward, protocol=ICMPV6, payload=struct.pack("!BBHI", kind, 0, 0, 0) + bytes(16))
        for forward, kind in ((True, 135), (False, 136), (False, 135), (True, 136))
    ]


# What must not appear


def others(ends: Ends) -> list[bytes]:
    """GRE with an IP packet inside, SCTP, UDP-Lite, a protocol for experiments, and ARP."""
    inside = replace(ends, vlan=None).packet(forward=True, protocol=UDP, payload=datagram((50_300, 7000), 9))
    ethertype = inside[12:14]
    frames = [
        ends.packet(forward=True, protocol=GRE, payload=b"\0\0" + ethertype + inside[14:]),
        ends.packet(
            forward=False, protocol=SCTP, payload=struct.pack("!HHII", 50_400, 7000, 1, 0) + bytes(16)
        ),
        ends.packet(forward=True, protocol=UDP_LITE, payload=datagram((50_500, 7000), 9)),
        ends.packet(forward=True, protocol=253, payload=bytes(40)),
    ]
    question = struct.pack("!HHBBH", 1, IPV4, 6, 4, 1) + bytes(20)
    return [*frames, ethernet(ARP) + question]
