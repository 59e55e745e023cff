"""What should stand in IPFIX records, a record at a time: from the columns to numbers of the registries.

The tables are written from IANA's registry, nProbe's documentation and RFC 5103,
not from flowmon.ipfix.fields.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from flowmon.elements import ELEMENTS
from flowmon.errors import ConfigError
from flowmon.ipfix.encoder import Encoder, Profile
from flowmon.ipfix.fields import CHOICES, NOT_BY_DEFAULT
from flowmon.ipfix.options_records import Report
from flowmon.ipfix.session import Dictionary, Session
from flowmon.ipfix.templates import Register
from flowmon.records import EndedFlows, record_batch
from ipfix_reader import IANA, IPFIX, NTOP, PEN, REVERSE, Message, Number, Reader
from test_records import CONTEXT, ICMP, ICMPV6, OFFSET, TCP, some_flows

Row = dict[str, Any]

EVERY, FEW = frozenset(CHOICES), frozenset({"flowEndReason", "tcpControlBits", "icmpIdentifier"})
DEFAULT = EVERY - NOT_BY_DEFAULT
LIMIT = 1400
EXPORTED_NS = OFFSET + (1 << 60)
NEVER_LONGER = 1 << 48  # packets and octets of a flow, so that sums stay in 64 bits

# column → (number, largest value where the field is narrower than IANA's element)
U4 = 2**32 - 1
ONE_WAY = {
    "flowEndReason": 136,
    "ipVersion": 60,
    "sourceTransportPort": 7,
    "destinationTransportPort": 11,
    "protocolIdentifier": 4,
    "flowId": 148,
}
BOTH_WAYS = {
    "packetDeltaCount": 2,
    "octetDeltaCount": 1,
    "layer2OctetDeltaCount": 352,
    "ipClassOfService": 5,
    "minimumIpTotalLength": 25,
    "maximumIpTotalLength": 26,
    "minimumTTL": 52,
    "maximumTTL": 53,
}
BOTH_WAYS_TCP = {
    "tcpControlBits": 6,
    "tcpSynTotalCount": 218,
    "tcpFinTotalCount": 219,
    "tcpRstTotalCount": 220,
    "tcpWindowSize": 186,
    "tcpWindowScale": 238,
}
OWN = {
    "minimumInterArrivalNanoseconds": 8,
    "maximumInterArrivalNanoseconds": 9,
    "interArrivalSumNanoseconds": 10,
    "interArrivalSquareSum": 11,
}
OWN_TCP = {"tcpOutOfOrderOctetDeltaCount": 12, "tcpSynNanoseconds": 13, "tcpFirstAckNanoseconds": 14}
NTOP_TCP = {
    "tcpRetransmittedPacketDeltaCount": (109, 110),
    "tcpRetransmittedOctetDeltaCount": (127, 128),
    "tcpOutOfOrderPacketDeltaCount": (111, 112),
    "minimumTcpWindowSize": (415, 419),
    "maximumTcpWindowSize": (416, 420),
    "tcpMaximumSegmentSize": (417, 421),
}
NTOP_BINS = {
    "packetSizeHistogram": (88, 89, 90, 91, 92, 93),
    "ttlHistogram": (347, 346, 334, 335, 336, 337, 338, 339, 340, 341),
}
SATURATES = frozenset(
    "tcpSynTotalCount tcpFinTotalCount tcpRstTotalCount tcpRetransmittedPacketDeltaCount"
    " tcpRetransmittedOctetDeltaCount tcpOutOfOrderPacketDeltaCount minimumIpTotalLength maximumIpTotalLength".split()
)
TIMES = {"ms": (152, 153), "us": (154, 155), "ns": (156, 157)}
TUNNELS = ("gre", "ipip", "6in4", "4in6", "6in6", "vxlan", "geneve", "gtp-u")
ALWAYS = frozenset(
    "sourceAddress destinationAddress sourceTransportPort destinationTransportPort protocolIdentifier"
    " octetDeltaCount packetDeltaCount".split()
)
SWAPPED = (
    ("sourceAddress", "destinationAddress"),
    ("sourceTransportPort", "destinationTransportPort"),
    ("tunnelSourceAddress", "tunnelDestinationAddress"),
    ("ingressInterface", "egressInterface"),
)
REVERSIBLE = tuple(element.name for element in ELEMENTS if element.reversible)


def reverse(name: str) -> str:
    return f"reverse{name[0].upper()}{name[1:]}"


def rows_of(batch: pa.RecordBatch) -> list[Row]:
    """Plain values, times in nanoseconds since 1970."""
    plain = [
        column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(plain, names=batch.schema.names).to_pylist()


def directions(row: Row) -> Iterator[Row]:
    """The rows of both directions alone, those that have packets, as if each were a flow of its own."""
    times = ("flowStartNanoseconds", "flowEndNanoseconds")
    blank = {reverse(name): None for name in REVERSIBLE} | {reverse(name): None for name in times}
    start, end = (row[name] for name in times)
    own_start, own_end = (row[reverse(name)] for name in times)
    if row["packetDeltaCount"]:
        lasted = row["interArrivalSumNanoseconds"]
        # Who has the first packet has the record's start, and who has the last one its end.
        begins = end - lasted if own_start == start and own_end != end else start
        yield row | blank | {"flowStartNanoseconds": begins, "flowEndNanoseconds": begins + lasted}
    if row["reversePacketDeltaCount"]:
        other = row | {name: row[reverse(name)] for name in REVERSIBLE} | blank
        for one, two in SWAPPED:
            other[one], other[two] = row[two], row[one]
        if row["flowDirection"] is not None:
            other["flowDirection"] = 1 - row["flowDirection"]
        yield other | {"flowStartNanoseconds": own_start, "flowEndNanoseconds": own_end}


def expected(row: Row, profile: Profile, exported_at_ns: int = EXPORTED_NS) -> Iterator[dict[Number, Any]]:
    """The records of one row."""
    if profile.version == IPFIX and profile.biflows:
        yield dict(_fields(row, profile))
        return
    for one in directions(row):
        record = dict(_fields(one, profile))
        if profile.version != IPFIX:
            boot_ms = exported_at_ns // 10**9 * 1000 - 2**31
            for number, name in ((22, "flowStartNanoseconds"), (21, "flowEndNanoseconds")):
                record[IANA, number] = min(max(one[name] // 10**6 - boot_ms, 0), U4)
        yield record


def _fields(  # noqa: C901, PLR0912 - a table would need as many rows
    row: Row, profile: Profile
) -> Iterator[tuple[Number, Any]]:
    version, is_netflow9 = row["ipVersion"], profile.version != IPFIX
    is_biflow = bool(row["reversePacketDeltaCount"])
    protocol = row["protocolIdentifier"]
    pen = None if is_netflow9 else profile.pen
    wanted = profile.chosen | ALWAYS

    def both(name: str, number: int, of: int = IANA) -> Iterator[tuple[Number, Any]]:
        if name not in wanted:
            return
        yield (of, number), _value(row, name)
        if is_biflow:
            yield (
                ((REVERSE, number) if of == IANA else (of, number | 0x4000)),
                _value(row, reverse(name), name),
            )

    def ntop(number: int, value: int) -> tuple[Number, int]:
        return ((IANA, 57472 + number) if is_netflow9 else (NTOP, number)), min(value, U4)

    if not is_netflow9:
        yield from _times(row, profile, is_biflow)
    for name, number in ONE_WAY.items():
        if name in wanted and not (is_netflow9 and name == "flowId"):  # there 148 makes an event of a record
            yield (IANA, number), row[name]
    for name, numbers in (("sourceAddress", (8, 27)), ("destinationAddress", (12, 28))):
        yield (IANA, numbers[version == 6]), _address(row[name])
    for name, number in BOTH_WAYS.items():
        yield from both(name, number)
    if version == 6:
        yield from both("flowLabelIPv6", 31)
    if protocol in {ICMP, ICMPV6}:
        yield from both("icmpTypeCode", 139 if version == 6 else 32)
        if pen and "icmpIdentifier" in wanted:
            yield (pen, 1), row["icmpIdentifier"] or 0
    if protocol in {50, 51} and "IPSecSPI" in wanted:
        yield (IANA, 295), row["IPSecSPI"]
    if row["vlanId"] or row["dot1qCustomerVlanId"]:
        for name, number in (("vlanId", 58), ("dot1qCustomerVlanId", 245)):
            if name in wanted:
                yield (IANA, number), row[name] or 0
    options = ("ipv4Options", "ipv6ExtensionHeaders")
    if any(row[name] or (is_biflow and row[reverse(name)]) for name in options):
        yield from both(options[version == 6], 64 if version == 6 else 208)
    label = "mplsTopLabelStackSection"
    if row[label] or (is_biflow and row[reverse(label)]):
        yield from both(label, 70)
    if row["flowDirection"] is not None:
        for name, number in (("flowDirection", 61), ("ingressInterface", 10), ("egressInterface", 14)):
            if name in wanted:
                yield (IANA, number), row[name] or 0
        yield from _dropped_fields(row, wanted, both, is_biflow)
    if pen and row["tunnelType"] is not None:
        if "tunnelType" in wanted:
            yield (pen, 2), TUNNELS.index(row["tunnelType"]) + 1
        yield from both("tunnelIdentifier", 3, pen)
        for name, numbers in (("tunnelSourceAddress", (4, 6)), ("tunnelDestinationAddress", (5, 7))):
            if name in wanted:
                yield (pen, numbers[":" in row[name]]), _address(row[name])
    for name, bins in NTOP_BINS.items():
        if name in wanted:
            sums = zip(row[name], row[reverse(name)] or [0] * len(bins), strict=True)
            for number, (one, other) in zip(bins, sums, strict=True):
                yield ntop(number, one + other)
    if pen:
        for name, number in OWN.items():
            yield from both(name, number, pen)
    if protocol == TCP:
        yield from _tcp_fields(row, wanted, both, ntop, pen)
    if is_biflow:
        yield (IANA, 239), 1


def _dropped_fields(
    row: Row, wanted: frozenset[str], both: Any, is_biflow: bool
) -> Iterator[tuple[Number, Any]]:
    dropped = "droppedPacketDeltaCount"
    if row[dropped] or (is_biflow and row[reverse(dropped)]):
        for name, number in ((dropped, 133), ("droppedOctetDeltaCount", 132), ("forwardingStatus", 89)):
            yield from both(name, number)
        if "firewallEvent" in wanted:
            yield (IANA, 233), row["firewallEvent"] or 0


def _tcp_fields(row: Row, wanted: frozenset[str], both: Any, ntop: Any, pen: int | None) -> Iterator[Any]:
    for name, number in BOTH_WAYS_TCP.items():
        yield from both(name, number)
    for name, numbers in NTOP_TCP.items():
        if name in wanted:
            yield ntop(numbers[0], row[name] or 0)
            if row["reversePacketDeltaCount"]:
                yield ntop(numbers[1], row[reverse(name)] or 0)
    if pen:
        for name, number in OWN_TCP.items():
            yield from both(name, number, pen)
    latency = {"tcpSynNanoseconds", "tcpFirstAckNanoseconds"}
    if row["reversePacketDeltaCount"] and latency <= wanted:
        syn, answer = row["tcpSynNanoseconds"], row["reverseTcpSynNanoseconds"]
        for number, first, last in ((123, answer, row["tcpFirstAckNanoseconds"]), (124, syn, answer)):
            is_known = first is not None and last is not None and last > first
            yield ntop(number, (last - first) // 2 // 10**6 if is_known else 0)


def _times(row: Row, profile: Profile, is_biflow: bool) -> Iterator[tuple[Number, int]]:
    """As the reader gives them back: in nanoseconds, but milliseconds as they are."""
    unit = profile.time_unit
    for name, number in zip(("flowStartNanoseconds", "flowEndNanoseconds"), TIMES[unit], strict=True):
        for column, enterprise in ((name, IANA), (reverse(name), REVERSE))[: 1 + is_biflow]:
            ns = row[column]
            yield (enterprise, number), {"ms": ns // 10**6, "us": ns // 1000 * 1000, "ns": ns}[unit]


def _value(row: Row, column: str, name: str | None = None) -> Any:
    value = row[column] or 0
    return min(value, U4) if (name or column) in SATURATES else value


def _address(text: str) -> str:
    return ipaddress.IPv6Address(text).packed.hex() if ":" in text else text


# --- batches and streams ---


@st.composite
def some_more_flows(draw: st.DrawFn) -> EndedFlows:
    """As some_flows, with captures, TCP, mapped addresses, and counts that can be summed up."""
    flows = draw(some_flows())
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = len(flows)
    keys = flows.keys
    keys["ifindex"] *= random.choice(np.array([0, 1, 1, 1], "u4"), rows)
    is_mapped = (keys["ip_version"] == 6) & (random.choice([0, 1, 1, 1], rows) == 0)
    keys["destination_address"][is_mapped, :12] = [0] * 10 + [255] * 2
    keys["protocol"][random.choice([0, 1], rows) == 1] = TCP
    keys["protocol"][random.choice([0, 0, 0, 0, 1], rows) == 1] = 51
    for side in (flows.forward, flows.reverse):
        seen = side["packets"] > 0
        largest = draw(st.sampled_from([1, 100, NEVER_LONGER]))
        for name in ("packets", "octets", "layer2_octets"):
            side[name] = np.where(seen, random.integers(1, largest, rows, "u8", endpoint=True), 0)
        for name in ("size_histogram", "ttl_histogram"):
            side[name] = np.where(
                seen[:, np.newaxis], random.integers(0, 2**33, side[name].shape, "u8"), np.uint64(0)
            )
        for name in ("syn_packets", "retransmitted_packets", "out_of_order_packets"):
            side[name] >>= np.uint64(31)
        for name in ("syn_mono_ns", "first_ack_mono_ns"):
            side[name] = np.where(
                seen, random.integers(0, 3, rows, "u8") * random.integers(1, 2**40, rows, "u8"), 0
            )
        side["mpls_top_label"] &= np.uint32(0xFFFFFF)
        for name in ("ipv4_options", "ipv6_extension_headers"):
            side[name] *= random.choice(np.array([0, 1], "u4"), rows)
    return flows


batches = some_more_flows().map(lambda flows: record_batch(flows, CONTEXT))
profiles = st.builds(
    Profile,
    chosen=st.sampled_from([DEFAULT, EVERY, FEW, frozenset()])
    | st.frozensets(st.sampled_from(CHOICES), max_size=len(CHOICES)),
    version=st.sampled_from([10, 10, 9]),
    biflows=st.booleans(),
    time_unit=st.sampled_from(sorted(TIMES)),
    pen=st.sampled_from([None, PEN]),
    observation_domain_id=st.just(CONTEXT.observation_domain_id),
)


@lru_cache(maxsize=200)
def _encoders(profile: Profile, longest: int) -> tuple[Encoder, Dictionary]:
    register = Register()
    encoder = Encoder(profile, longest, register)
    return encoder, Dictionary(encoder, register)


def opened(profile: Profile, longest: int = LIMIT) -> tuple[Session, Encoder]:
    """A new session, and what encodes for it."""
    encoder, dictionary = _encoders(profile, longest)
    return Session(encoder, dictionary), encoder


def messages(content: np.ndarray, ends: np.ndarray) -> list[bytes]:
    raw = content.tobytes()
    return [raw[start:end] for start, end in pairwise([0, *ends])]


def read_all(
    batch: pa.RecordBatch, profile: Profile, longest: int = LIMIT, exported_at_ns: int = EXPORTED_NS
) -> list[Message]:
    """The data messages of a batch, checked against the rules and against what the blocks say of them."""
    session, encoder = opened(profile, longest)
    reader = Reader(profile.version, profile.observation_domain_id, longest)
    for message in session.refresh(Report()):
        reader.read(message)
    found = []
    for block in encoder.encode(batch, exported_at_ns):
        assert len(block)
        for message in session.announce(block):
            assert not reader.read(message).flows
        session.stamp(block, 0, len(block))
        read = [reader.read(message) for message in messages(block.content, block.ends)]
        assert [len(message.flows) for message in read] == block.records.tolist()
        assert {number for message in read for number in message.flow_templates} == set(block.templates)
        for counted, number in ((block.packets, 2), (block.octets, 1)):
            assert [_total(message, number) for message in read] == counted.tolist()
        found += read
    return found


def _total(message: Message, number: int) -> int:
    return sum(flow[IANA, number] + flow.get((REVERSE, number), 0) for flow in message.flows)


def flows_of(batch: pa.RecordBatch, profile: Profile, longest: int = LIMIT) -> list[dict[Number, Any]]:
    return [flow for message in read_all(batch, profile, longest) for flow in message.flows]


def least(profile: Profile) -> int:
    """The shortest limit that the encoder takes, as it says itself."""
    with pytest.raises(ConfigError) as refused:
        Encoder(profile, 0)
    (octets,) = re.findall(r"up to (\d+) octets", str(refused.value))
    return int(octets)
