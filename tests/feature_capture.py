"""A capture of some 80 sessions that interleave, with everything that packet features tell apart.

Sessions are those of feature_conversations (``_SESSIONS``); ``frames`` spreads them over the time of the
capture. Rules:

* The same seed gives the same octets. No two packets have the same time, in ns.
* A session's packets follow each other within ``LONGEST_GAP_NS``, and the whole lasts less than 20 s: with the default
  timeouts each session is one flow record, or two where one connection ends.
* Several sessions have more than 100 packets. Some have one.
* What is no TCP, UDP, ICMP or ICMPv6 is between, on the same hosts.
* Some frames are padded to 60 octets, some were cut behind the transport header.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import feature_conversations as conversations
from craft import (
    NO_OPERATION,
    START_NS,
    Frame,
)
from feature_conversations import (
    DESTINATION_OPTIONS,
    DONT_FRAGMENT,
    HOP_BY_HOP,
    RESERVED_FLAG,
    Ends,
    Session,
)

LATEST_START_NS = 8 * 10**9
LONGEST_GAP_NS = 90_000_000
SNAP_OCTETS = 140
LEAST_FRAME = 60

_EITHER: list[Session] = [
    conversations.connection,
    conversations.connection,
    conversations.long_connection,
    conversations.connection_that_wraps,
    conversations.connection_that_is_reset,
    conversations.refused,
    conversations.unanswered,
    conversations.from_the_middle,
    conversations.from_the_middle_without_acknowledgement,
    conversations.one_way,
    conversations.from_the_answer_on,
    conversations.overtaken,
    conversations.fast_open,
    conversations.connection_in_fragments,
    conversations.ports_used_again,
    conversations.datagrams,
    conversations.datagrams,
    conversations.long_datagrams,
    conversations.exactly_a_hundred,
    conversations.datagrams_one_way,
    conversations.datagrams_of_one_host,
    conversations.datagrams_of_one_host,
    conversations.datagrams_in_two_vlans,
    conversations.datagrams_in_fragments,
    conversations.fragments_out_of_order,
    conversations.fragments_without_their_first,
    conversations.echo_of_two_identifiers,
    conversations.long_echo,
    conversations.echo_of_one_host,
    conversations.echo_unanswered,
    conversations.echo_in_fragments,
    conversations.errors,
    conversations.others,
]
_IN_FRAGMENTS = [
    conversations.connection_in_fragments,
    conversations.datagrams_in_fragments,
    conversations.fragments_out_of_order,
    conversations.echo_in_fragments,
]
_SESSIONS = {
    4: [*_EITHER, conversations.timestamp_queries],
    6: [*_EITHER, conversations.atomic_fragment, conversations.neighbours],
}
NETWORKS = {4: ("192.0.2.", "198.51.100."), 6: ("2001:db8:1::", "2001:db8:2::")}


def frames(seed: int = 0) -> list[Frame]:
    """The capture, in order of time."""
    random = Random(seed)
    made = [
        frame
        for version in (4, 6)
        for number, session in enumerate(_SESSIONS[version], 1)
        for frame in _timed(random, session(_ends(random, version, number, session)))
    ]
    made.sort(key=lambda frame: frame.time_ns)
    assert len({frame.time_ns for frame in made}) == len(made), "two packets at one time: take another seed"
    return [_captured(random, frame) for frame in made]


def _ends(random: Random, version: int, number: int, session: Session) -> Ends:
    """Hosts of the session's own; every other time the client has the higher address."""
    client, server = NETWORKS[version] if number % 2 else NETWORKS[version][::-1]
    plain = Ends(
        random,
        f"{client}{number // 3 + 1}",
        f"{server}{number // 3 + 1}",
        ttl=(random.choice((1, 64, 128, 255)), random.randrange(1, 256)),
        class_of_service=random.choice((0, 0, random.getrandbits(8))),
        flags=(DONT_FRAGMENT, DONT_FRAGMENT, 0, RESERVED_FLAG)[number % 4],
    )
    if session in _IN_FRAGMENTS or random.random() < 0.7:
        return plain
    return replace(
        plain,
        options=NO_OPERATION * 4 * random.randrange(1, 4),
        extensions=((HOP_BY_HOP, 8), (DESTINATION_OPTIONS, 16)),
    )


def _timed(random: Random, octets: list[bytes]) -> Iterator[Frame]:
    time_ns = START_NS + random.randrange(LATEST_START_NS)
    longest = random.choice((2_000, 1_000_000, LONGEST_GAP_NS))
    for each in octets:
        yield Frame(time_ns, each)
        time_ns += random.randrange(1, longest)


def _captured(random: Random, frame: Frame) -> Frame:
    """The frame as it is in the file: every now and then padded, or cut."""
    if len(frame.octets) < LEAST_FRAME and random.random() < 0.5:
        return replace(frame, octets=frame.octets.ljust(LEAST_FRAME, b"\0"))
    if len(frame.octets) > SNAP_OCTETS and random.random() < 0.2:
        return replace(frame, octets=frame.octets[:SNAP_OCTETS], wire_octets=len(frame.octets))
    return frame
