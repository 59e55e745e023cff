"""From captured packets to rows: the columns of a packet, each declared once, and where its values come from.

Rules:
- One row a packet on the wire. A super-packet (GSO, GRO) becomes the segments that it stands for, as hardware
  cuts it: all but the last of one length; FIN and PSH on the last, CWR on the first, other flags on all;
  sequence numbers go on by the payload, modulo 2^32. At the limit of packets the rest of them is left out.
- Of the session, not of the packet: addresses, ports, protocol and flowId. They are those of its forward
  direction, which is that of its first captured packet; biflowDirection says which way a packet went.
- flowId is that of the flow record (biflow.pair).
- What a protocol does not have is null, and so is what was in a header that could not be read.
- Rows stay in the order of the packets.

Columns are named as records are: by IANA, where IANA has the element.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, unique
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from flowmon import biflow
from flowmon.abi import TCP
from flowmon.arrow import from_numpy, to_numpy
from flowmon.text import address_column

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA_VERSION = 1
UDP = 17
ON_LAST_SEGMENT = 0x01 | 0x08  # FIN, PSH
ON_FIRST_SEGMENT = 0x80  # CWR
UDP_HEADER = 8
FORWARD, REVERSE = 1, 2  # IANA "biflowDirection": initiator, reverseInitiator


@unique
class When(Enum):
    """When a column has a value; null otherwise."""

    ALWAYS = ""
    TCP = "TCP, and the header was read"
    UDP = "UDP, and the header was read"
    ICMP = "ICMP or ICMPv6, and the header was read"


class _Rows:
    """Captured packets (FEATURE_PACKET[n]) as rows, one a packet on the wire. utc_offset_ns: as Context's."""

    def __init__(self, packets: Array, utc_offset_ns: int) -> None:
        self.packets = packets
        self._utc_offset_ns = utc_offset_ns
        self._kept = packets["kept"].astype(np.int64)

    def of(self, name: str) -> Array:
        """A field of the packet that each row is of."""
        return self.spread(self.packets[name])

    def of_key(self, name: str) -> Array:
        """Likewise, of its key."""
        return self.spread(self.packets["key"][name])

    def spread(self, by_packet: Array) -> Array:
        """What is known of each packet, for each of its rows."""
        return by_packet[self._packet_of]

    @cached_property
    def _packet_of(self) -> Array | slice:
        if (self._kept == 1).all():
            return slice(None)
        return np.repeat(np.arange(len(self.packets)), self._kept)

    @cached_property
    def place(self) -> Array:
        """int64[rows]: which of its super-packet's segments a row is, from 0."""
        return np.arange(self._kept.sum()) - self.spread(np.cumsum(self._kept) - self._kept)

    @cached_property
    def is_last(self) -> Array:
        return self.place + 1 == self.of("segments")

    @cached_property
    def is_reverse(self) -> Array:
        return self.packets["is_reverse"] != 0

    @cached_property
    def is_icmp(self) -> Array:
        return self._is_protocol(*biflow.ICMP)

    @cached_property
    def ip_length(self) -> Array:
        return np.where(self.is_last, self.of("last_ip_length"), self.of("segment_ip_length"))

    @cached_property
    def payload_length(self) -> Array:
        headers = self.of("headers_length")
        return np.maximum(self.ip_length, headers) - headers

    @cached_property
    def validity(self) -> dict[When, pa.Buffer | None]:
        """Bitmaps, as Arrow has them: None where all rows are valid."""
        read = self.of("unread") == 0
        return {
            When.ALWAYS: None,
            When.TCP: _bitmap(read & self._is_protocol(TCP)),
            When.UDP: _bitmap(read & self._is_protocol(UDP)),
            When.ICMP: _bitmap(read & self.is_icmp),
        }

    def _is_protocol(self, *any_of: int) -> Array:
        return np.logical_or.reduce([self.of_key("protocol") == one for one in any_of])

    def utc(self, name: str) -> Array:
        """int64 nanoseconds since the epoch, of a monotonic time."""
        return self.of(name).astype(np.int64) + self._utc_offset_ns

    def address(self, side: str, other_side: str) -> pa.DictionaryArray:
        """Of the session: that of the other side where the packet went in reverse."""
        keys = self.packets["key"]
        turned = self.is_reverse[:, np.newaxis]
        addresses = np.where(turned, keys[f"{other_side}_address"], keys[f"{side}_address"])
        texts = address_column(addresses, keys["ip_version"] == 4)
        codes = self.spread(to_numpy(texts.indices))
        return pa.DictionaryArray.from_arrays(from_numpy(codes), texts.dictionary)

    def port(self, side: str, other_side: str) -> Array:
        """Likewise; 0 for ICMP, which has none."""
        keys = self.packets["key"]
        ports = np.where(self.is_reverse, keys[f"{other_side}_port"], keys[f"{side}_port"])
        return self.spread(ports) * ~self.is_icmp

    def flow_id(self) -> Array:
        return self.spread(biflow.hash_rows(biflow.canonical(self.packets["key"])[0], seed=0))

    def interval(self) -> Array:
        return np.where(self.place == 0, self.of("interval_ns"), 0)

    def control_bits(self) -> Array:
        bits = self.of("tcp_control_bits")
        bits = np.where(self.is_last, bits, bits & ~np.uint16(ON_LAST_SEGMENT))
        return np.where(self.place == 0, bits, bits & ~np.uint16(ON_FIRST_SEGMENT))

    def sequence(self) -> Array:
        """Every segment before this one was as long as the first."""
        segment = self.of("segment_ip_length").astype(np.int64) - self.of("headers_length")
        return (self.of("sequence") + self.place * segment) & 0xFFFFFFFF

    def udp_length(self) -> Array:
        """The header of a super-packet has the length of them all, or none."""
        return np.where(self.of("segments") > 1, self.payload_length + UDP_HEADER, self.of("udp_length"))


@dataclass(frozen=True)
class Feature:
    """One column.

    number: IANA's, or None for our own. values: the column's; what stands where it has no value does not matter.
    """

    name: str
    number: int | None
    type: pa.DataType
    meaning: str
    values: Callable[[_Rows], Array | pa.Array]
    when: When = When.ALWAYS


_U1, _U2, _U4, _U8 = pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()
_TIME = pa.timestamp("ns", tz="UTC")
_TEXT = pa.dictionary(pa.int32(), pa.string())

FEATURES: tuple[Feature, ...] = (
    Feature(
        "flowId",
        148,
        _U8,
        "hash of the conversation, the same as in its flow records",
        lambda rows: rows.flow_id(),
    ),
    Feature(
        "sourceAddress",
        None,
        _TEXT,
        "address that sent the session's first packet (elements 8 and 27 as text)",
        lambda rows: rows.address("source", "destination"),
    ),
    Feature(
        "destinationAddress",
        None,
        _TEXT,
        "address that it was sent to (elements 12 and 28 as text)",
        lambda rows: rows.address("destination", "source"),
    ),
    Feature(
        "sourceTransportPort",
        7,
        _U2,
        "port of that source; 0 for ICMP",
        lambda rows: rows.port("source", "destination"),
    ),
    Feature(
        "destinationTransportPort",
        11,
        _U2,
        "port of that destination; 0 for ICMP",
        lambda rows: rows.port("destination", "source"),
    ),
    Feature(
        "protocolIdentifier",
        4,
        _U1,
        "6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6",
        lambda rows: rows.of_key("protocol"),
    ),
    Feature(
        "captureStartNanoseconds",
        None,
        _TIME,
        "the session's first packet that was captured; with flowId it names the session",
        lambda rows: rows.of("began_utc_ns").astype(np.int64),
    ),
    Feature(
        "captureRound",
        None,
        _U4,
        "0; 1, 2, … where a session that goes on was captured again",
        lambda rows: rows.of("round"),
    ),
    Feature(
        "packetIndex",
        None,
        _U4,
        "the packet's place in this round, from 0, both directions counted; a gap is packets that were lost",
        lambda rows: rows.of("index") + rows.place,
    ),
    Feature(
        "observationTimeNanoseconds",
        325,
        _TIME,
        "when the packet was seen; the segments of a super-packet, at once",
        lambda rows: rows.utc("time_mono_ns"),
    ),
    Feature(
        "biflowDirection",
        239,
        _U1,
        "1 forward (as the session's first packet), 2 reverse",
        lambda rows: rows.spread(np.where(rows.is_reverse, REVERSE, FORWARD)),
    ),
    Feature(
        "interArrivalNanoseconds",
        None,
        _U8,
        "since the session's packet before, of either direction; 0 for the first of a session,"
        " and for further segments of a super-packet",
        lambda rows: rows.interval(),
    ),
    Feature("ipTotalLength", 224, _U4, "IP header and all that follows it", lambda rows: rows.ip_length),
    Feature(
        "fragmentFlags",
        197,
        _U1,
        "0x40 don't fragment, 0x20 more fragments, 0x80 reserved",
        lambda rows: rows.of("fragment") >> 8 & 0xE0,
    ),
    Feature(
        "fragmentOffset",
        88,
        _U2,
        "as in the header: in units of 8 octets",
        lambda rows: rows.of("fragment") & 0x1FFF,
    ),
    Feature("ipTTL", 192, _U1, "time to live, or hop limit", lambda rows: rows.of("time_to_live")),
    Feature(
        "ipClassOfService",
        5,
        _U1,
        "type of service, or traffic class",
        lambda rows: rows.of("class_of_service"),
    ),
    Feature(
        "transportPayloadLength",
        None,
        _U4,
        "ipTotalLength without IP and transport headers (of ICMP: type, code and checksum)",
        lambda rows: rows.payload_length,
    ),
    Feature("tcpControlBits", 6, _U2, "flags", lambda rows: rows.control_bits(), When.TCP),
    Feature(
        "tcpWindowSize", 186, _U2, "as in the header, not scaled", lambda rows: rows.of("window"), When.TCP
    ),
    Feature(
        "tcpRelativeSequenceNumber",
        None,
        _U4,
        "less that of the direction's first segment",
        lambda rows: rows.sequence(),
        When.TCP,
    ),
    Feature(
        "tcpRelativeAcknowledgementNumber",
        None,
        _U4,
        "less the sequence number of the other direction's first segment; 0 where the ACK flag is not set",
        lambda rows: rows.of("acknowledgement"),
        When.TCP,
    ),
    Feature(
        "udpMessageLength",
        205,
        _U2,
        "UDP header and payload, as in the header",
        lambda rows: rows.udp_length(),
        When.UDP,
    ),
    Feature("icmpType", None, _U1, "elements 176 and 178", lambda rows: rows.of("icmp_type"), When.ICMP),
    Feature("icmpCode", None, _U1, "elements 177 and 179", lambda rows: rows.of("icmp_code"), When.ICMP),
)

FEATURES_SCHEMA = pa.schema(
    [pa.field(feature.name, feature.type) for feature in FEATURES],
    metadata={"flowmon.features_schema_version": str(SCHEMA_VERSION)},
)


def feature_batch(packets: Array, utc_offset_ns: int) -> pa.RecordBatch:
    """The rows of FEATURE_PACKET[n], in the columns of FEATURES_SCHEMA.

    utc_offset_ns: UTC less the clock of the packets.
    """
    rows = _Rows(packets, utc_offset_ns)
    columns = [
        _arrow(feature.values(rows), rows.validity[feature.when], feature.type) for feature in FEATURES
    ]
    return pa.RecordBatch.from_arrays(columns, schema=FEATURES_SCHEMA)


def _bitmap(valid: Array) -> pa.Buffer | None:
    return None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def _arrow(values: Array | pa.Array, validity: pa.Buffer | None, type_: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    dtype = np.int64 if pa.types.is_timestamp(type_) else type_.to_pandas_dtype()
    plain = np.ascontiguousarray(values, dtype)
    return pa.Array.from_buffers(type_, len(plain), [validity, pa.py_buffer(plain)])
