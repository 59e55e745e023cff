"""A capture of very many biflows, and the truth about them, made by NumPy with no Python step per packet.

    python tests/pcaps/many_flows.py OUT.pcap --biflows 100000 [--truth OUT.npy]

Half of the biflows are whole TCP conversations, three tenths UDP requests with replies, two tenths UDP without any
answer; every other one is IPv6. They start at random times within ``SPREAD_NS``, so their packets interleave.

How: all packets that are the same step of the same kind of biflow have the same layout and length, so each such step
is one structured array of frames (``_frames``). The packets of all steps are then ordered by time, which gives each
frame its place in the file. Checksums are 0; lengths, and TCP sequence numbers, are right, and nothing is lost or sent
twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

START_NS = 1_767_225_600 * 10**9
"""2026-01-01T00:00:00Z, ns since 1970 UTC."""
SPREAD_NS = 60 * 10**9
"""Biflows start within this time."""
STEP_NS = 1_000_000
"""Longest time between two packets of a biflow; each biflow has one pace of its own."""

TCP, UDP = 6, 17
FIN, SYN, PSH, ACK = 0x01, 0x02, 0x08, 0x10
REQUEST_OCTETS, REPLY_OCTETS = 60, 200
"""Payload of each data packet of the forward and of the reverse direction."""
BIFLOWS_PER_CLIENT = 8
SERVERS = 1000
FIRST_CLIENT4, FIRST_SERVER4 = int(IPv4Address("10.0.0.1")), int(IPv4Address("198.18.0.1"))
FIRST_CLIENT6, FIRST_SERVER6 = int(IPv6Address("2001:db8:c::1")), int(IPv6Address("2001:db8:5::1"))

ETHERNET = [("destination_mac", "S6"), ("source_mac", "S6"), ("ethertype", ">u2")]
RECORD_HEADER = [("seconds", "<u4"), ("nanoseconds", "<u4"), ("captured", "<u4"), ("wire", "<u4")]
IP_HEADER = {
    4: [
        ("version_ihl", "u1"), ("tos", "u1"), ("total_length", ">u2"), ("id", ">u2"), ("fragment", ">u2"),
        ("ttl", "u1"), ("protocol", "u1"), ("checksum", ">u2"), ("source", "u1", 4), ("destination", "u1", 4),
    ],
    6: [
        ("version_class_label", ">u4"), ("payload_length", ">u2"), ("protocol", "u1"), ("ttl", "u1"),
        ("source", "u1", 16), ("destination", "u1", 16),
    ],
}  # fmt: skip
TRANSPORT_HEADER = {
    TCP: [
        ("source_port", ">u2"), ("destination_port", ">u2"), ("seq", ">u4"), ("ack", ">u4"), ("offset", "u1"),
        ("flags", "u1"), ("window", ">u2"), ("transport_checksum", ">u2"), ("urgent", ">u2"),
    ],
    UDP: [
        ("source_port", ">u2"), ("destination_port", ">u2"), ("length", ">u2"), ("transport_checksum", ">u2"),
    ],
}  # fmt: skip

TRUTH = np.dtype(
    [
        ("flowStartNanoseconds", "i8"),
        ("flowEndNanoseconds", "i8"),
        ("sourceAddress", "U39"),
        ("destinationAddress", "U39"),
        ("ipVersion", "u1"),
        ("sourceTransportPort", "u2"),
        ("destinationTransportPort", "u2"),
        ("protocolIdentifier", "u1"),
        ("packetDeltaCount", "u8"),
        ("octetDeltaCount", "u8"),
        ("tcpControlBits", "u2"),
        ("reversePacketDeltaCount", "u8"),
        ("reverseOctetDeltaCount", "u8"),
        ("reverseTcpControlBits", "u2"),
    ]
)
"""One biflow a row, in order of flow start. Control bits of other than TCP are 0."""


@dataclass(frozen=True)
class Step:
    """One packet of a kind of biflow. ``seq`` and ``ack`` count from the initial sequence numbers."""

    forward: bool
    payload: int
    flags: int = 0
    seq: int = 0
    ack: int = 0


def write_many_flows(
    path: Path | str, biflows: int, packets_per_direction: int = 2, seed: int = 0
) -> NDArray[np.void]:
    """Write a pcap file of so many biflows; gives the truth about them, of dtype ``TRUTH``.

    ``packets_per_direction`` are the data packets; a TCP conversation has six more to open and close. The same
    arguments write the same file.
    """
    random = np.random.default_rng(seed)
    start = START_NS + np.sort(random.choice(SPREAD_NS // 1000, biflows, replace=False)) * 1000
    pace = random.integers(STEP_NS // 10, STEP_NS, biflows)
    turn = np.arange(biflows)
    ports = 32768 + turn % BIFLOWS_PER_CLIENT * 4000 + random.integers(0, 4000, biflows)
    kinds = turn // 2 % 10  # 0 to 4: TCP, 5 to 7: UDP with replies, 8 and 9: UDP without; each half IPv6

    truth = np.zeros(biflows, TRUTH)
    truth["flowStartNanoseconds"] = start
    truth["ipVersion"] = np.where(turn % 2, 6, 4)
    truth["protocolIdentifier"] = np.where(kinds < 5, TCP, UDP)
    truth["sourceTransportPort"] = ports
    truth["destinationTransportPort"] = np.where(kinds < 5, 443, 53)

    times, sizes, groups = [], [], []
    for protocol, is_kind, steps in (
        (TCP, kinds < 5, _tcp_steps(packets_per_direction)),
        (UDP, (kinds >= 5) & (kinds < 8), _udp_steps(packets_per_direction, answered=True)),
        (UDP, kinds >= 8, _udp_steps(packets_per_direction, answered=False)),
    ):
        for version in (4, 6):
            members = np.flatnonzero(is_kind & (truth["ipVersion"] == version))
            clients, servers = _addresses(version, members)
            truth["sourceAddress"][members] = _texts(version, clients)
            truth["destinationAddress"][members] = _texts(version, servers)
            for at, step in enumerate(steps):
                time = start[members] + at * pace[members]
                frames = _frames(version, protocol, step, time, clients, servers, truth[members])
                _tally(truth, members, step, time, version, protocol)
                times.append(time)
                sizes.append(np.full(len(members), frames.shape[1]))
                groups.append(frames)
    _write(Path(path), np.concatenate(times), np.concatenate(sizes), groups)
    return truth


def _tcp_steps(data_packets: int) -> list[Step]:
    """Handshake, so many requests each with its reply, and FIN, FIN and last ACK."""
    sent, received = 1 + data_packets * REQUEST_OCTETS, 1 + data_packets * REPLY_OCTETS
    exchange: list[Step] = []
    for at in range(data_packets):
        seq, ack = 1 + at * REQUEST_OCTETS, 1 + at * REPLY_OCTETS
        exchange.append(Step(True, REQUEST_OCTETS, PSH | ACK, seq, ack))
        exchange.append(Step(False, REPLY_OCTETS, PSH | ACK, ack, seq + REQUEST_OCTETS))
    return [
        Step(True, 0, SYN),
        Step(False, 0, SYN | ACK, 0, 1),
        Step(True, 0, ACK, 1, 1),
        *exchange,
        Step(True, 0, FIN | ACK, sent, received),
        Step(False, 0, FIN | ACK, received, sent + 1),
        Step(True, 0, ACK, sent + 1, received + 1),
    ]


def _udp_steps(data_packets: int, *, answered: bool) -> list[Step]:
    exchange = [Step(True, REQUEST_OCTETS)] + [Step(False, REPLY_OCTETS)] * answered
    return exchange * data_packets


def _addresses(version: int, members: NDArray[np.intp]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Client and server addresses in network order, shape (biflows, 4 or 16). A client has a few biflows."""
    first_client, first_server = (
        (FIRST_CLIENT4, FIRST_SERVER4) if version == 4 else (FIRST_CLIENT6, FIRST_SERVER6)
    )
    return (
        _address_octets(version, first_client, members // BIFLOWS_PER_CLIENT),
        _address_octets(version, first_server, members % SERVERS),
    )


def _address_octets(version: int, first: int, add: NDArray[np.intp]) -> NDArray[np.uint8]:
    octets = np.zeros((len(add), 4 if version == 4 else 16), np.uint8)
    octets[:] = np.frombuffer(first.to_bytes(octets.shape[1], "big"), np.uint8)
    low = (first % 2**32 + add).astype(">u4")
    octets[:, -4:] = low.view(np.uint8).reshape(-1, 4)
    return octets


def _texts(version: int, addresses: NDArray[np.uint8]) -> list[str]:
    """RFC 5952 text of each address; each different one is made once."""
    kind = IPv4Address if version == 4 else IPv6Address
    width = addresses.shape[1]
    whole = np.ascontiguousarray(addresses).view(f"V{width}").ravel()
    known: dict[bytes, str] = {}
    return [known.get(raw) or known.setdefault(raw, str(kind(raw))) for raw in map(bytes, whole)]


def _frames(
    version: int,
    protocol: int,
    step: Step,
    time: NDArray[np.int64],
    clients: NDArray[np.uint8],
    servers: NDArray[np.uint8],
    truth: NDArray[np.void],
) -> NDArray[np.uint8]:
    """The pcap records of one step of many biflows, shape (biflows, octets of a record)."""
    layout = np.dtype(
        RECORD_HEADER
        + ETHERNET
        + IP_HEADER[version]
        + TRANSPORT_HEADER[protocol]
        + [("payload", "u1", step.payload)]
    )
    frames = np.zeros(len(time), layout)
    frames["seconds"], frames["nanoseconds"] = time // 10**9, time % 10**9
    frames["captured"] = frames["wire"] = layout.itemsize - 16
    frames["destination_mac"], frames["source_mac"] = b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x01"
    frames["protocol"], frames["ttl"] = protocol, 64
    octets = _ip_octets(version, protocol, step.payload)
    if version == 4:
        frames["ethertype"], frames["version_ihl"], frames["total_length"] = 0x0800, 0x45, octets
    else:
        frames["ethertype"], frames["version_class_label"], frames["payload_length"] = (
            0x86DD,
            6 << 28,
            octets - 40,
        )
    own, other = ("source", "destination") if step.forward else ("destination", "source")
    frames[own], frames[other] = clients, servers
    frames[f"{own}_port"], frames[f"{other}_port"] = (
        truth["sourceTransportPort"],
        truth["destinationTransportPort"],
    )
    if protocol == TCP:
        frames["offset"], frames["flags"], frames["window"] = 5 << 4, step.flags, 64240
        frames["seq"] = 1000 + step.seq
        frames["ack"] = 1000 + step.ack if step.flags & ACK else 0
    else:
        frames["length"] = 8 + step.payload
    return frames.view(np.uint8).reshape(len(frames), layout.itemsize)


def _ip_octets(version: int, protocol: int, payload: int) -> int:
    """IP total length of a packet with so many octets of payload."""
    return (20 if version == 4 else 40) + (20 if protocol == TCP else 8) + payload


def _tally(
    truth: NDArray[np.void],
    members: NDArray[np.intp],
    step: Step,
    time: NDArray[np.int64],
    version: int,
    protocol: int,
) -> None:
    """Count one step of many biflows in the truth."""
    packets, octets, bits = "packetDeltaCount", "octetDeltaCount", "tcpControlBits"
    if not step.forward:
        packets, octets, bits = "reversePacketDeltaCount", "reverseOctetDeltaCount", "reverseTcpControlBits"
    truth[packets][members] += 1
    truth[octets][members] += _ip_octets(version, protocol, step.payload)
    truth[bits][members] |= step.flags
    truth["flowEndNanoseconds"][members] = time


def _write(
    path: Path, times: NDArray[np.int64], sizes: NDArray[np.int64], groups: list[NDArray[np.uint8]]
) -> None:
    """Write the records of all groups in order of time. ``times`` and ``sizes`` run through the groups in turn."""
    order = np.argsort(times, kind="stable")
    places = np.empty(len(order), np.int64)
    places[order] = np.cumsum(sizes[order]) - sizes[order]
    content = np.empty(int(sizes.sum()), np.uint8)
    for frames, at in zip(groups, _split(places, groups), strict=True):
        content[at[:, None] + np.arange(frames.shape[1])] = frames
    header = np.array((0xA1B23C4D, 2, 4, 0, 0, 262_144, 1), dtype="<u4, <u2, <u2, <i4, <u4, <u4, <u4")
    with path.open("wb") as capture:
        capture.write(header.tobytes())
        content.tofile(capture)


def _split(places: NDArray[np.int64], groups: list[NDArray[np.uint8]]) -> Iterator[NDArray[np.int64]]:
    begin = 0
    for frames in groups:
        yield places[begin : begin + len(frames)]
        begin += len(frames)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a capture of many biflows.")
    parser.add_argument("capture", type=Path, metavar="OUT.pcap")
    parser.add_argument("--biflows", type=int, default=100_000)
    parser.add_argument("--packets-per-direction", type=int, default=2, help="data packets (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--truth", type=Path, metavar="OUT.npy", help="save the truth as a NumPy structured array"
    )
    options = parser.parse_args(arguments)
    truth = write_many_flows(options.capture, options.biflows, options.packets_per_direction, options.seed)
    if options.truth:
        np.save(options.truth, truth)
    packets = int(truth["packetDeltaCount"].sum() + truth["reversePacketDeltaCount"].sum())
    print(f"{len(truth)} biflows, {packets} packets")


if __name__ == "__main__":
    main()
