"""Mutated frames for the parser: what a wire may carry that nobody meant to send.

``frames(seed, corpus, count)`` takes frames of a corpus and damages each of them by one to three mutations that know
where the headers are. Rules it keeps:

* The same seed, corpus and count give the same frames.
* A frame has ``SHORTEST`` to ``LONGEST`` octets. One that got longer loses its end, one that got shorter gets zeros.
* A mutation that inserts a header mends the lengths and types around it three times in four: a parser that refuses
  everything at the first wrong length would never be led any deeper.
* Headers are looked for in the corpus only. A later mutation of the same frame may therefore aim beside one that an
  earlier mutation has moved, which does no harm.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import craft
import oracle

SHORTEST, LONGEST = 15, 1500
STEP_NS = 1_000_003
"""Between two frames of a written batch; no number of steps is just the 30 s that fragments are remembered."""

ETHERTYPES = (0x0800, 0x86DD, 0x8847, 0x8848, 0x0806, 0x05DC, 0x0600, 0x0008)
TAGS = (0x8100, 0x88A8, 0x9100)
RARE_ETHERTYPES = (*TAGS, 0x8864)  # the length that follows them is then most often one that tshark stops at
PROTOCOLS = (0, 1, 4, 6, 17, 33, 41, 43, 44, 47, 50, 51, 58, 59, 60, 108, 132, 135, 136, 255)
EXTENSIONS = (0, 43, 44, 51, 60, 0, 43, 44, 51, 60, 60, 60, 135)
BYTES = (0, 1, 2, 4, 5, 6, 0x7F, 0x80, 0xFF, 17, 43, 44, 51, 58, 59, 60, 0x45, 0x46, 0x4F, 0x60, 0xC2)
IPV4, IPV6 = 4, 6


@dataclass(slots=True)
class Draft:
    """A frame that is being damaged; ``ip`` and ``transport`` are offsets, ``version`` is 0 where there is no IP."""

    octets: bytearray
    version: int = 0
    ip: int = 0
    transport: int = 0
    protocol: int = 0


Draw = Callable[[], float]
"""A number from 0 up to 1, 1 excluded."""
Mutation = Callable[[Draw, Draft], None]


def corpus_of(directory: Path) -> list[bytes]:
    """The frames of all Ethernet captures ``directory``/*/*.pcap, each once, in order."""
    captures = filter(_is_ethernet, sorted(directory.glob("*/*.pcap")))
    return list({frame: None for path in captures for _, _, frame in oracle.frames_of(path)})


def _is_ethernet(capture: Path) -> bool:
    """Whether it is a little-endian pcap file of link type 1."""
    with capture.open("rb") as file:
        header = file.read(24)
    magic, link_type = struct.unpack("<I16xI", header)
    return magic in (0xA1B2C3D4, craft.NANOSECOND_MAGIC) and link_type == craft.LINKTYPE_ETHERNET


def write_pcap(path: Path, batch: Iterable[bytes], without: Container[int] = ()) -> None:
    """Write an Ethernet capture with times in ns, one frame every ``STEP_NS``; those left out leave a gap."""
    craft.write_pcap(
        path,
        (
            craft.Frame(craft.START_NS + at * STEP_NS, frame)
            for at, frame in enumerate(batch)
            if at not in without
        ),
    )


def frames(seed: int, corpus: list[bytes], count: int) -> Iterator[bytes]:
    """``count`` damaged frames; one in about thirty is left as it was."""
    draw = Random(seed).random
    layouts = [layout_of(frame) for frame in corpus]
    others = Splice(corpus)
    mutations: tuple[Mutation, ...] = (*MUTATIONS, others)
    for _ in range(count):
        version, ip, transport, protocol = layouts[at := int(draw() * len(corpus))]
        draft = Draft(bytearray(corpus[at]), version, ip, transport, protocol)
        for _ in range(int(draw() * 3.1 + 0.9)):
            mutations[int(draw() * len(mutations))](draw, draft)
        yield bytes(draft.octets[:LONGEST]).ljust(SHORTEST, b"\0")


def layout_of(frame: bytes) -> tuple[int, int, int, int]:
    """IP version, offsets of the IP and of the transport header, and protocol; 0 for what there is not."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8", b"\x91\x00"):
        at += 4
    ip = at + 2
    if frame[at:ip] == b"\x08\x00" and len(frame) >= ip + 20:
        return IPV4, ip, ip + (frame[ip] & 0x0F) * 4, frame[ip + 9]
    if frame[at:ip] == b"\x86\xdd" and len(frame) >= ip + 40:
        protocol, transport = frame[ip + 6], ip + 40
        while protocol in EXTENSIONS and transport + 8 <= len(frame):
            fixed = protocol == 44
            protocol, length = frame[transport], frame[transport + 1]
            transport += 8 if fixed else (length + 1) * 8
        return IPV6, ip, transport, protocol
    return 0, 0, 0, 0


# Helpers


def _choose(draw: Draw, values: tuple[int, ...]) -> int:
    return values[int(draw() * len(values))]


def _random_octets(draw: Draw, count: int) -> bytes:
    return int(draw() * (1 << 52)).to_bytes(8, "little")[:6] * (count // 6 + 1) if count else b""


def _put16(octets: bytearray, at: int, value: int) -> None:
    """Write where there is room for it."""
    if at + 2 <= len(octets):
        octets[at : at + 2] = (value & 0xFFFF).to_bytes(2, "big")


def _add16(octets: bytearray, at: int, more: int) -> None:
    """Add to a length field, so that a lie stays one."""
    _put16(octets, at, int.from_bytes(octets[at : at + 2], "big") + more)


def _put8(octets: bytearray, at: int, value: int) -> None:
    if at < len(octets):
        octets[at] = value & 0xFF


def _link_length(draw: Draw, octets: int) -> int:
    """A length in the link layer: right, too long, or anything; too short hides the end from tshark."""
    if _mends(draw):
        octets += int(draw() * 100) if draw() < 0.7 else 0
    else:
        octets = int(draw() * 1500)
    return max(octets, 0) & 0xFFFF


def _mends(draw: Draw) -> bool:
    return draw() < 0.75


# Anywhere


def flip_bits(draw: Draw, draft: Draft) -> None:
    octets = draft.octets
    for _ in range(1 + int(draw() * 4)):
        if octets:
            octets[int(draw() * len(octets))] ^= 1 << int(draw() * 8)


def set_byte(draw: Draw, draft: Draft) -> None:
    """A byte of the headers gets a value that means something somewhere."""
    octets = draft.octets
    if len(octets) > 12:
        octets[12 + int(draw() * (min(len(octets), 96) - 12))] = _choose(draw, BYTES)


def truncate(draw: Draw, draft: Draft) -> None:
    """The end goes; more often within the headers than not."""
    octets = draft.octets
    longest = min(len(octets), 100) if draw() < 0.8 else len(octets)
    del octets[int(draw() * longest) :]


def pad(draw: Draw, draft: Draft) -> None:
    """What a network card appends: zeros, or anything."""
    count = int(draw() * 64)
    draft.octets += bytes(count) if draw() < 0.5 else _random_octets(draw, count)[:count]


def duplicate(draw: Draw, draft: Draft) -> None:
    """Some octets stand there twice."""
    octets = draft.octets
    at = 12 + int(draw() * 60)
    octets[at:at] = octets[at : at + 4 * (1 + int(draw() * 10))]


class Splice:
    """Goes on, from somewhere, as another frame of the corpus does from somewhere."""

    def __init__(self, corpus: list[bytes]) -> None:
        self._corpus = corpus

    def __call__(self, draw: Draw, draft: Draft) -> None:
        other = self._corpus[int(draw() * len(self._corpus))]
        cut = int(draw() * len(draft.octets))
        resume = cut if draw() < 0.5 else int(draw() * len(other))
        draft.octets[cut:] = other[resume:]


# The link layer


def insert_tags(draw: Draw, draft: Draft) -> None:
    """One to five VLAN tags; VLAN 0 now and then."""
    tags = b"".join(
        struct.pack("!HH", _choose(draw, TAGS), int(draw() * 4096) if draw() < 0.8 else 0)
        for _ in range(1 + int(draw() * draw() * 5))
    )
    _insert_link(draft, 12, tags)


def insert_labels(draw: Draw, draft: Draft) -> None:
    """One to nine MPLS labels, under their EtherType if it is mended."""
    count = 1 + int(draw() * draw() * 9)
    last = count - 1 if _mends(draw) else int(draw() * count)
    labels = b"".join(
        struct.pack("!I", (16 + int(draw() * 0xFFFE0)) << 12 | (at == last) << 8 | 64) for at in range(count)
    )
    _wrap_ip(draw, draft, 0x8847 + (draw() < 0.2), labels)


def insert_pppoe(draw: Draw, draft: Draft) -> None:
    length = _link_length(draw, len(draft.octets) - draft.ip + 2)
    protocol = 0x0057 if draft.version == IPV6 else 0x0021
    _wrap_ip(draw, draft, 0x8864, struct.pack("!BBHHH", 0x11, 0, int(draw() * 65536), length, protocol))


def insert_snap(draw: Draw, draft: Draft) -> None:
    """LLC and SNAP with the same EtherType, after a length that may lie."""
    ethertype = bytes(draft.octets[draft.ip - 2 : draft.ip]) if draft.ip else b"\x08\x00"
    length = _link_length(draw, len(draft.octets) - draft.ip + 8)
    _wrap_ip(draw, draft, length, b"\xaa\xaa\x03\0\0\0" + ethertype)


def set_ethertype(draw: Draw, draft: Draft) -> None:
    ethertypes = ETHERTYPES if draw() < 0.98 else RARE_ETHERTYPES
    _put16(draft.octets, draft.ip - 2 if draft.ip else 12, _choose(draw, ethertypes))


def _wrap_ip(draw: Draw, draft: Draft, ethertype: int, header: bytes) -> None:
    """``header`` in front of the IP header, and the EtherType that announces it."""
    at = draft.ip or 14
    if _mends(draw):
        _put16(draft.octets, at - 2, ethertype)
    _insert_link(draft, at, header)


def _insert_link(draft: Draft, at: int, header: bytes) -> None:
    draft.octets[at:at] = header
    if draft.version:
        draft.ip += len(header)
        draft.transport += len(header)


# The network layer


def lie_about_length(draw: Draw, draft: Draft) -> None:
    """The length of the IP packet or of the UDP datagram is anything but, or just, what it should be."""
    if not draft.version:
        _put16(draft.octets, 12, int(draw() * 0x0600))
        return
    room = len(draft.octets) - draft.ip
    at = draft.ip + 2
    if draft.version == IPV6:
        room -= 40
        at = draft.ip + 4
    if draw() < 0.2:
        at, room = draft.transport + 4, len(draft.octets) - draft.transport
    header = draft.transport - draft.ip
    lies = (
        0,
        0,
        1,
        room,
        room - 1,
        room + 1,
        header,
        header - 1,
        header + 8,
        0x7FFF,
        0xFFFF,
        int(draw() * 1600),
    )
    _put16(draft.octets, at, _choose(draw, lies))


def damage_ip_header(draw: Draw, draft: Draft) -> None:
    """Version, header length, or protocol."""
    at = draft.ip
    if not at or at + 10 > len(draft.octets):
        return
    kind = int(draw() * 4)
    if kind == 0:
        draft.octets[at] = int(draw() * 256)
    elif kind == 1:
        draft.octets[at] = draft.version << 4 | int(draw() * 16)
    else:
        draft.octets[at + (9 if draft.version == IPV4 else 6)] = _choose(draw, PROTOCOLS)


def fragment(draw: Draw, draft: Draft) -> None:
    """A first or later fragment with one of few identifications, so that first and later ones meet."""
    at = draft.ip
    offset = 0 if draw() < 0.4 else 1 + int(draw() * 185)
    identification = int(draw() * 4)
    if draft.version == IPV4 and at + 8 <= len(draft.octets):
        _put16(draft.octets, at + 4, identification)
        _put16(draft.octets, at + 6, offset | (0x2000 if draw() < 0.7 else 0))
    elif draft.version == IPV6:
        header = struct.pack("!BBHI", 0, 0, offset << 3 | (draw() < 0.7), identification)
        _insert_extensions(draw, draft, [(44, bytearray(header))])


def insert_options(draw: Draw, draft: Draft) -> None:
    """IPv4 options, up to the 40 octets that there is room for."""
    if draft.version != IPV4:
        return
    words = 1 + int(draw() * 10)
    options = bytearray(_random_octets(draw, words * 4)[: words * 4] if draw() < 0.5 else b"\x01" * words * 4)
    if draw() < 0.5:
        options[0:2] = bytes((_choose(draw, (7, 68, 130, 131, 148, 0, 1)), int(draw() * 41)))
    at = draft.ip
    draft.octets[at + 20 : at + 20] = options
    if _mends(draw) and at < len(draft.octets):
        draft.octets[at] = 0x40 | min(15, (draft.octets[at] & 0x0F) + words)
        _add16(draft.octets, at + 2, len(options))
    draft.transport += len(options)


def insert_extensions(draw: Draw, draft: Draft) -> None:
    """One to eighteen IPv6 extension headers, most often few."""
    if draft.version != IPV6:
        return
    headers = []
    for _ in range(1 + int(draw() * draw() * draw() * 18)):
        kind = _choose(draw, EXTENSIONS)
        size = 1 + int(draw() * 3)
        body = bytearray(size * 8)
        body[1] = size * 2 - 2 if kind == 51 else 0 if kind == 44 else size - 1
        if kind == 44:
            del body[8:]
        else:
            body[2] = 1 if draw() < 0.8 else int(draw() * 256)  # PadN
            body[3] = size * 8 - 4
        if draw() < 0.1:
            body[1] = int(draw() * 40)
        headers.append((kind, body))
    _insert_extensions(draw, draft, headers)


def insert_jumbo(draw: Draw, draft: Draft) -> None:
    """A hop-by-hop header with the jumbo payload option (RFC 2675), the payload length 0."""
    if draft.version != IPV6 or draw() < 0.95:  # rarely: tshark does not decide it
        return
    length = len(draft.octets) - draft.ip - 40 + 8 + int(draw() * 3 - 1)
    option = struct.pack("!BBI", 0xC2 if draw() < 0.9 else 0xC3, 4, max(length, 0))
    _insert_extensions(draw, draft, [(0, bytearray(b"\0\0" + option))])
    _put16(draft.octets, draft.ip + 4, 0)


def _insert_extensions(draw: Draw, draft: Draft, headers: list[tuple[int, bytearray]]) -> None:
    """``headers`` behind the fixed header, chained."""
    at = draft.ip + 40
    if len(draft.octets) < at:
        return
    following = draft.octets[draft.ip + 6]
    for kind, body in reversed(headers):
        body[0] = following if draw() < 0.97 else _choose(draw, PROTOCOLS)
        following = kind
        draft.octets[at:at] = body
        draft.transport += len(body)
        if draw() < 0.95:
            _add16(draft.octets, draft.ip + 4, len(body))
    draft.octets[draft.ip + 6] = following


def insert_tunnel(draw: Draw, draft: Draft) -> None:
    """The IP packet goes into another: GRE, or IP in IP, with an IPv4 or IPv6 header of its own."""
    if not draft.version:
        return
    gre = draw() < 0.5
    inner = b""
    if gre:
        flags = _choose(draw, (0, 0, 0x2000, 0x8000, 0xB000, 0x4000, 0x0001))
        fields = bytes(4 * (flags & 0xB000).bit_count())
        inner = struct.pack("!HH", flags, 0x86DD if draft.version == IPV6 else 0x0800) + fields
    protocol = 47 if gre else 41 if draft.version == IPV6 else 4
    length = max(len(draft.octets) - draft.ip, 0) + len(inner)
    if draw() < 0.5:
        outer = (
            struct.pack("!BBHHHBBH", 0x45, 0, length + 20, 1, 0, 64, protocol, 0) + b"\x0a\0\0\1\x0a\0\0\2"
        )
        ethertype = 0x0800
    else:
        outer = struct.pack("!IHBB", 6 << 28, length, protocol, 64) + b"\xfd".ljust(16, b"\0") * 2
        ethertype = 0x86DD
    draft.octets[draft.ip : draft.ip] = outer + inner
    if _mends(draw):
        _put16(draft.octets, draft.ip - 2, ethertype)
    draft.version, draft.transport = (IPV4 if ethertype == 0x0800 else IPV6), draft.ip + len(outer)


# The transport layer


def damage_transport(draw: Draw, draft: Draft) -> None:
    """The TCP data offset, or a port, or what an extension header says of its length."""
    at = draft.transport
    kind = int(draw() * 3)
    if kind == 0:
        _put8(draft.octets, at + 12, int(draw() * 256))
    elif kind == 1:
        _put16(draft.octets, at + 2 * int(draw() * 2), int(draw() * 65536))
    else:
        _put8(draft.octets, draft.ip + 41 if draft.version == IPV6 else at + 1, _choose(draw, BYTES))


def cut_at_transport(draw: Draw, draft: Draft) -> None:
    """The frame ends about where the transport header begins, and the IP length says so three times in four."""
    if not draft.version:
        return
    del draft.octets[max(draft.transport + int(draw() * 24), 15) :]
    if _mends(draw):
        length = len(draft.octets) - draft.ip
        if draft.version == IPV4:
            _put16(draft.octets, draft.ip + 2, length)
        else:
            _put16(draft.octets, draft.ip + 4, length - 40)


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    set_byte,
    truncate,
    pad,
    duplicate,
    insert_tags,
    insert_labels,
    insert_pppoe,
    insert_snap,
    set_ethertype,
    lie_about_length,
    damage_ip_header,
    fragment,
    insert_options,
    insert_extensions,
    insert_jumbo,
    insert_tunnel,
    damage_transport,
    cut_at_transport,
)
