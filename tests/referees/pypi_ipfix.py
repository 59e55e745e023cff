"""The package `ipfix` 0.9.7 of PyPI as a referee: it decodes a stream of messages to dictionaries.

What it makes of IPFIX:
- It knows IANA's elements as of about 2017 and their reverse ones (RFC 5103); others are _ipfix_PEN_NUMBER,
  as octets. Types that are told by options records (RFC 5610) change nothing.
- It takes the seconds of micro- and nanosecond times to count from 1970, where RFC 7011 (sections 6.1.9
  and 6.1.10) has them count from 1900: what it says is 70 years late. It also rounds them to microseconds.
- It knows no NetFlow v9 but in files of its own.
"""

import io
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import ipfix.ie
import ipfix.message

from referees.expected import Flow

UNNAMED = "_ipfix_"
SECONDS_1900_TO_1970 = 2_208_988_800
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the package's times have no zone


@dataclass
class Reading:
    """A stream. sequences: data records before each message, as it was announced and as they were counted."""

    records: list[dict[str, Any]] = field(default_factory=list)
    announced: list[int] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)


def read(path: Path) -> Reading:
    """Every data record of a stream, those of options among them."""
    ipfix.ie.use_iana_default()
    ipfix.ie.use_5103_default()
    reading = Reading()
    message = ipfix.message.MessageBuffer()
    stream = io.BytesIO(path.read_bytes())
    while stream.tell() < len(stream.getvalue()):
        message.read_message(stream)
        reading.announced.append(message.sequence)
        reading.counted.append(len(reading.records))
        reading.records.extend(message.namedict_iterator())
    return reading


def flow(record: dict[str, Any]) -> Flow:
    """What a flow record says; its times are in milliseconds."""
    version = "IPv6" if "sourceIPv6Address" in record else "IPv4"
    return Flow(
        source=str(record[f"source{version}Address"]),
        destination=str(record[f"destination{version}Address"]),
        source_port=record["sourceTransportPort"],
        destination_port=record["destinationTransportPort"],
        protocol=record["protocolIdentifier"],
        packets=record["packetDeltaCount"],
        octets=record["octetDeltaCount"],
        reverse_packets=record.get("reversePacketDeltaCount", 0),
        reverse_octets=record.get("reverseOctetDeltaCount", 0),
        start_ns=microseconds(record["flowStartMilliseconds"]) * 1000,
        end_ns=microseconds(record["flowEndMilliseconds"]) * 1000,
    )


def microseconds(time: datetime) -> int:
    """Since 1970."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def ntp_microseconds(time: datetime) -> int:
    """Of a time in micro- or nanoseconds: since 1970, as it was meant."""
    return microseconds(time) - SECONDS_1900_TO_1970 * 1_000_000
