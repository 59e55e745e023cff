"""The kernel's structs as NumPy dtypes, a mirror of kern/flowmon.h.

Names, offsets and sizes are held against the BTF of the built object by
tests/test_abi.py. All integers are of the host's byte order; addresses are 16
bytes in network order (IPv4 as ::ffff:a.b.c.d); times are CLOCK_MONOTONIC
nanoseconds, 0 meaning never.
"""

from enum import IntEnum, IntFlag
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

ABI_VERSION = 6

SIZE_BINS = 6
TTL_BINS = 10
TAKE_BATCH = 4096
TOTALS_SLOTS = 4096  # of each CPU; the lowest bit of a slot's number is the direction
NO_WINDOW_SCALE = 255
TCP = 6
SYN = 2  # of tcpControlBits


class Direction(IntEnum):
    """IANA flowDirection (element 61)."""

    INGRESS = 0
    EGRESS = 1


class FlowState(IntEnum):
    """Whether an entry of the table is in use."""

    LIVE = 0
    TAKEN = 1


class Closing(IntEnum):
    """What a TCP direction has done to end its connection; a set of bits."""

    FIN = 1
    RST = 2


class Ignored(IntEnum):
    """Why a packet that a program saw is in no flow."""

    NOT_IP = 0
    TRUNCATED = 1
    BAD_IP_HEADER = 2
    BAD_TRANSPORT_HEADER = 3
    TOO_MANY_HEADERS = 4
    NO_MEMORY = 5
    TABLE_FULL = 6
    CONTENDED = 7


class Tunnel(IntEnum):
    """What a flow's packets were inside of; the four by version are inner in outer."""

    NONE = 0
    GRE = 1
    IPIP = 2
    SIX_IN_4 = 3
    FOUR_IN_6 = 4
    SIX_IN_6 = 5
    VXLAN = 6
    GENEVE = 7
    GTP_U = 8


class DenyKind(IntEnum):
    """What an entry of the deny-list means."""

    NONE = 0
    DROP = 1
    DRY_RUN = 2
    NEVER = 3


class TimeSource(IntEnum):
    """Where a packet's time comes from."""

    MONOTONIC = 0
    SKB_TSTAMP = 1
    COARSE = 2


class Loader(IntEnum):
    """What loaded the programs."""

    LIBBPF = 1
    BCC = 2


FLOW_KEY = np.dtype(
    [
        ("source_address", "u1", 16),
        ("destination_address", "u1", 16),
        ("source_port", "u2"),
        ("destination_port", "u2"),
        ("ifindex", "u4"),
        ("vlan_id", "u2"),  # in a tunnel, this and the next are one hash
        ("customer_vlan_id", "u2"),
        ("protocol", "u1"),
        ("ip_version", "u1"),
        ("direction", "u1"),
        ("in_tunnel", "u1"),
    ]
)

FLOW_COUNTERS = np.dtype(
    [
        ("born_mono_ns", "u8"),
        ("syn_mono_ns", "u8"),
        ("first_ack_mono_ns", "u8"),
        ("late_packets", "u8"),
        ("late_octets", "u8"),
        ("late_layer2_octets", "u8"),
        ("late_tcp_control_bits", "u8"),
        ("lock", "u8"),
        ("last_seen_mono_ns", "u8"),
        ("next_sequence_mono_ns", "u8"),
        ("next_sequence", "u4"),
        ("last_ack", "u4"),
        ("initial_sequence", "u4"),
        ("raw_window", "u2"),
        ("maximum_segment_size", "u2"),
        ("state", "u1"),
        ("tcp_closing", "u1"),
        ("sequence_known", "u1"),
        ("duplicate_acks", "u1"),
        ("window_scale", "u1"),
        ("window_shift", "u1"),
        ("padding", "u1", 2),
        ("first_seen_mono_ns", "u8"),
        ("packets", "u8"),
        ("octets", "u8"),
        ("layer2_octets", "u8"),
        ("minimum_ip_length", "u4"),
        ("maximum_ip_length", "u4"),
        ("flow_label", "u4"),
        ("class_of_service", "u1"),
        ("icmp_type", "u1"),
        ("icmp_code", "u1"),
        ("minimum_ttl", "u1"),
        ("maximum_ttl", "u1"),
        ("windows_seen", "u1"),
        ("tcp_control_bits", "u2"),
        ("minimum_window", "u4"),
        ("maximum_window", "u4"),
        ("first_window", "u2"),
        ("padding2", "u1", 2),
        ("minimum_interval_ns", "u8"),
        ("maximum_interval_ns", "u8"),
        ("interval_squares_low", "u8"),
        ("interval_squares_high", "u8"),
        ("size_histogram", "u8", SIZE_BINS),
        ("ttl_histogram", "u8", TTL_BINS),
        ("syn_packets", "u8"),
        ("fin_packets", "u8"),
        ("rst_packets", "u8"),
        ("retransmitted_packets", "u8"),
        ("retransmitted_octets", "u8"),
        ("out_of_order_packets", "u8"),
        ("out_of_order_octets", "u8"),
        ("ipv4_options", "u4"),
        ("ipv6_extension_headers", "u4"),
        ("mpls_top_label", "u4"),
        ("tunnel_identifier", "u4"),
        ("tunnel_source", "u1", 16),
        ("tunnel_destination", "u1", 16),
        ("tunnel_type", "u1"),
        ("tunnel_identified", "u1"),
        ("tunnel_vlan_id", "u2"),
        ("tunnel_customer_vlan_id", "u2"),
        ("padding3", "u1", 2),
        ("dropped_packets", "u8"),
        ("dropped_octets", "u8"),
    ]
)

FIRST_PACKETS_MOST = 32
FIRST_PACKETS_LOST = 0x7FFFFFFF

FIRST_PACKETS = np.dtype(
    [
        ("began_mono_ns", "u8"),
        ("packets", "u4"),
        ("arrivals", "u4"),
        ("times_mono_ns", "u8", FIRST_PACKETS_MOST),
        ("segments", "u2", FIRST_PACKETS_MOST),
        ("segment_lengths", "u2", FIRST_PACKETS_MOST),
        ("last_lengths", "u2", FIRST_PACKETS_MOST),
    ]
)

INTERFACE_TOTALS = np.dtype(
    [
        ("ifindex", "u4"),
        ("in_use", "u4"),
        ("seen_packets", "u8"),
        ("seen_octets", "u8"),
        ("counted_packets", "u8"),
        ("counted_octets", "u8"),
        ("flows_inserted", "u8"),
        ("entries_made", "u8"),
        ("insertions_failed", "u8"),
        ("late_packets", "u8"),
        ("orphan_fragments", "u8"),
        ("dropped_packets", "u8"),
        ("dropped_octets", "u8"),
        ("ignored_packets", "u8", len(Ignored)),
        ("ignored_octets", "u8", len(Ignored)),
    ]
)

TOTALS_IN_USE = np.dtype([("slots", "u1", TOTALS_SLOTS)])

TAKE_REQUEST = np.dtype([("key", FLOW_KEY), ("keep_entry", "u4"), ("found", "u4")])

TAKE_BOOKS = np.dtype(
    [("cursor", "u8"), ("taken_flows", "u8"), ("taken_packets", "u8"), ("taken_octets", "u8")]
)

SCAN_STATE = np.dtype(
    [
        ("now_mono_ns", "u8"),
        ("idle_ns", "u8"),
        ("active_ns", "u8"),
        ("linger_ns", "u8"),
        ("seed", "u8"),
        ("slice", "u4"),
        ("slices", "u4"),
        ("entries", "u8"),
        ("flows", "u8"),
        ("packets", "u8"),
        ("layer2_octets", "u8"),
        ("due_entries", "u8"),
        ("rows", "u4"),
        ("overflow", "u4"),
    ]
)

SCAN_ROW = np.dtype(
    [
        ("key", FLOW_KEY),
        ("last_seen_mono_ns", "u8"),
        ("born_mono_ns", "u8"),
        ("first_seen_mono_ns", "u8"),
        ("packets", "u8"),
        ("layer2_octets", "u8"),
        ("tcp_closing", "u1"),
        ("padding", "u1", 7),
    ]
)

LOADED_INFO = np.dtype(
    [
        ("abi_version", "u4"),
        ("loader", "u4"),
        ("follow_directions", "u4"),
        ("time_source", "u4"),
        ("owner_pid", "u4"),
        ("decap", "u4"),
        ("loaded_mono_ns", "u8"),
        ("deny", "u4"),
        ("guard_ports", "u4"),
        ("guard_window_s", "u4"),
        ("guard_block_s", "u4"),
        ("first_packets", "u4"),
        ("features_packets", "u4"),
        ("features_sessions", "u4"),
        ("features_protocols", "u4"),
        ("features_ring_octets", "u4"),
        ("padding", "u4"),
        ("features_restart_ns", "u8"),
    ]
)

CAPTURED_MOST = 3072
REPLAY_BATCH = 256

CAPTURED_PACKET = np.dtype(
    [
        ("time_ns", "u8"),
        ("end", "u4"),
        ("layer2_length", "u4"),
        ("length", "u4"),
        ("padding", "u4"),
        ("octets", "u1", CAPTURED_MOST),
    ]
)

REPLAY_CHUNK_OCTETS = 1 << 19
REPLAY_RECORD_MOST = 262_144

REPLAY_CHUNK = np.dtype([("octets", "u1", REPLAY_CHUNK_OCTETS), ("room", "u1", 16 + CAPTURED_MOST)])


class ReplayStop(IntEnum):
    """Why the record in hand is not fed: `enum replay_stop`."""

    GOES_ON = 0
    READY = 1
    CUT = 2
    ODD = 3


REPLAY_STATE = np.dtype(
    [
        ("cursor", "u8"),
        ("failed", "u8"),
        ("place", "u8"),
        ("latest_ns", "u8"),
        ("before_ns", "u8"),
        ("next_ns", "u8"),
        ("left", "u4"),
        ("offset", "u4"),
        ("end", "u4"),
        ("stop", "u4"),
        ("longest", "u4"),
        ("fraction_ns", "u4"),
    ]
)

SETTINGS = np.dtype(
    [
        ("time_source", "u4"),
        ("plain_unlock", "u4"),
        ("decap", "u4"),
        ("deny", "u4"),
        ("guard_ports", "u4"),
        ("guard_window_s", "u4"),
        ("guard_block_s", "u4"),
        ("first_packets", "u4"),
        ("features_packets", "u4"),
        ("features_sessions", "u4"),
        ("features_protocols", "u4"),
        ("padding", "u4"),
        ("features_restart_ns", "u8"),
    ]
)

DENY_REASON_MOST = 80

DENY_KEY = np.dtype([("prefix_length", "u4"), ("address", "u1", 16)])

DENY_ENTRY = np.dtype(
    [
        ("packets", "u8"),
        ("octets", "u8"),
        ("made_mono_ns", "u8"),
        ("expires_mono_ns", "u8"),
        ("prefix_length", "u4"),
        ("kind", "u4"),
        ("reason", "u1", DENY_REASON_MOST),
    ]
)

GUARD_PORTS_MOST = 64

GUARD_SOURCE = np.dtype([("address", "u1", 16)])

GUARD_ENTRY = np.dtype(
    [
        ("lock", "u8"),
        ("last_seen_mono_ns", "u8"),
        ("blocked_mono_ns", "u8"),
        ("packets", "u8"),
        ("octets", "u8"),
        ("blocks", "u4"),
        ("trigger_port", "u4"),
        ("taken", "u4"),
        ("room", "u4"),
        ("seen_mono_ns", "u8", GUARD_PORTS_MOST),
        ("ports", "u2", GUARD_PORTS_MOST),
    ]
)

GUARD_BOOKS = np.dtype([("blocks", "u8"), ("packets", "u8"), ("octets", "u8")])


class FeaturesProtocol(IntFlag):
    """Whose packets are captured one by one: `enum features_protocol`."""

    TCP = 1
    UDP = 2
    ICMP = 4


SESSION_SIDE = np.dtype([("last_seen_mono_ns", "u8"), ("padding", "u1", 56)])

SESSION = np.dtype(
    [
        ("began_utc_ns", "u8"),
        ("progress", "u8"),
        ("limit_mono_ns", "u8"),
        ("initial_sequence", "u4", 2),
        ("points", "u4", 2),
        ("sequence_known", "u1", 2),
        ("turned", "u1"),
        ("padding", "u1", 69),
        ("sides", SESSION_SIDE, 2),
    ]
)

SESSION_GATE = np.dtype([("taken", "u8"), ("freed", "u8"), ("utc_offset_ns", "i8")])

FEATURE_PACKET = np.dtype(
    [
        ("key", FLOW_KEY),
        ("time_mono_ns", "u8"),
        ("interval_ns", "u8"),
        ("began_utc_ns", "u8"),
        ("index", "u4"),
        ("round", "u4"),
        ("segments", "u4"),
        ("kept", "u4"),
        ("last_ip_length", "u4"),
        ("segment_ip_length", "u4"),
        ("headers_length", "u4"),
        ("sequence", "u4"),
        ("acknowledgement", "u4"),
        ("fragment", "u2"),
        ("tcp_control_bits", "u2"),
        ("window", "u2"),
        ("udp_length", "u2"),
        ("time_to_live", "u1"),
        ("class_of_service", "u1"),
        ("icmp_type", "u1"),
        ("icmp_code", "u1"),
        ("is_reverse", "u1"),
        ("unread", "u1"),
        ("padding", "u1", 6),
    ]
)

FEATURE_BOOKS = np.dtype(
    [
        ("captured_packets", "u8"),
        ("lost_packets", "u8"),
        ("refused_packets", "u8"),
        ("watched_packets", "u8"),
        ("elsewhere_packets", "u8"),
        ("padding", "u8", 3),
    ]
)

ATTACHMENT = np.dtype([("directions", "u4"), ("made_clsact", "u4")])


def words(rows: Array) -> Array:
    """uint64[n, size / 8]: the same memory. NumPy copies these twenty times faster than rows of fields."""
    return rows.view("u8").reshape(len(rows), rows.dtype.itemsize // 8)
