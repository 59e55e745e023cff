/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel programs and the collector share: the only declaration of
 * each kernel field.  flowmon/abi.py mirrors it as NumPy dtypes, and a test
 * holds those against the BTF of the built object.
 *
 * Host byte order throughout, except the addresses (network order, bytes).
 * Times are CLOCK_MONOTONIC nanoseconds, 0 = never.
 * A change of layout or meaning takes a new FLOWMON_ABI_VERSION.
 */
#ifndef FLOWMON_H
#define FLOWMON_H

#define FLOWMON_ABI_VERSION 6

#define FLOWMON_SIZE_BINS 6
#define FLOWMON_TTL_BINS 10

/* IANA flowDirection (element 61). */
enum flow_direction {
	FLOW_INGRESS = 0,
	FLOW_EGRESS = 1,
};

/* One direction of a flow at one observation point. */
struct flow_key {
	__u8 source_address[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u8 destination_address[16];
	__u16 source_port; /* ICMP: the identifier; ESP and AH: the SPI, high half here */
	__u16 destination_port; /* ICMP: type << 8 | code; of a query, for its reply too */
	__u32 ifindex;
	union {
		struct {
			__u16 vlan_id; /* outermost tag, 0 = untagged */
			__u16 customer_vlan_id; /* second tag, 0 = none */
		};
		__u32 tunnel; /* in_tunnel: hash of what tells tunnels apart, the same both ways */
	};
	__u8 protocol;
	__u8 ip_version;
	__u8 direction; /* enum flow_direction */
	__u8 in_tunnel;
};
_Static_assert(sizeof(struct flow_key) == 48, "flow_key is 48 bytes without holes");

enum flow_state {
	FLOW_LIVE = 0,
	FLOW_TAKEN = 1, /* copied out, about to be deleted: do not count here */
};

/* What this direction has done to end the connection; outlives a record. */
enum tcp_closing {
	TCP_CLOSING_FIN = 1,
	TCP_CLOSING_RST = 2,
};

#define TCP_NO_WINDOW_SCALE 255

/*
 * The counters of one flow_key.  What comes first lives as long as the entry
 * (it carries the TCP state over an active timeout); from first_seen_mono_ns
 * on, all is of the current record and starts afresh with the next one.
 * packets == 0 means that the current record has not begun.
 *
 * What every packet changes, and what the collector looks at, lies together
 * from the lock on.
 */
struct flow_counters {
	__u64 born_mono_ns; /* first packet of the entry; of a capture, its place in it */
	__u64 syn_mono_ns; /* latest SYN */
	__u64 first_ack_mono_ns; /* first segment that is nothing but an ACK */
	/* Of packets that could not have the lock: added atomically, apart from all the rest. */
	__u64 late_packets;
	__u64 late_octets;
	__u64 late_layer2_octets;
	__u64 late_tcp_control_bits;

	__u64 lock; /* enum flow_lock */
	__u64 last_seen_mono_ns;
	__u64 next_sequence_mono_ns; /* when next_sequence last advanced */
	__u32 next_sequence; /* highest sequence number sent, plus one */
	__u32 last_ack;
	__u32 initial_sequence; /* of the latest SYN */
	__u16 raw_window; /* latest, not scaled */
	__u16 maximum_segment_size; /* SYN option, 0 = none */
	__u8 state; /* enum flow_state */
	__u8 tcp_closing; /* enum tcp_closing, a set */
	__u8 sequence_known;
	__u8 duplicate_acks; /* in a row */
	__u8 window_scale; /* SYN option, or TCP_NO_WINDOW_SCALE */
	__u8 window_shift; /* window_scale where both sides offered it, else 0 */
	__u8 padding[2];

	__u64 first_seen_mono_ns;
	__u64 packets; /* on the wire */
	__u64 octets; /* IP */
	__u64 layer2_octets;
	__u32 minimum_ip_length;
	__u32 maximum_ip_length;
	__u32 flow_label; /* of the record's first packet, as the next three */
	__u8 class_of_service;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 minimum_ttl;
	__u8 maximum_ttl;
	__u8 windows_seen; /* minimum_window and maximum_window hold */
	__u16 tcp_control_bits;
	__u32 minimum_window; /* scaled */
	__u32 maximum_window;
	__u16 first_window; /* of the record's first packet, not scaled */
	__u8 padding2[2];
	__u64 minimum_interval_ns; /* holds from two arrivals on, ~0 before */
	__u64 maximum_interval_ns;
	__u64 interval_squares_low; /* sum of squares in ns^2, 128 bits */
	__u64 interval_squares_high;
	__u64 size_histogram[FLOWMON_SIZE_BINS]; /* IP length <128 <256 <512 <1024 <1514 more */
	__u64 ttl_histogram[FLOWMON_TTL_BINS]; /* <=1 <=5 <=32, then steps of 32 to 255 */
	__u64 syn_packets;
	__u64 fin_packets;
	__u64 rst_packets;
	__u64 retransmitted_packets;
	__u64 retransmitted_octets; /* TCP payload */
	__u64 out_of_order_packets;
	__u64 out_of_order_octets;
	__u32 ipv4_options; /* a set: bit = option number (IANA element 208) */
	__u32 ipv6_extension_headers; /* a set (IANA element 64) */
	__u32 mpls_top_label; /* of the record's first packet, as all that follow: label, exp, bottom; 24 bits */
	__u32 tunnel_identifier;
	__u8 tunnel_source[16];
	__u8 tunnel_destination[16];
	__u8 tunnel_type; /* enum tunnel_type */
	__u8 tunnel_identified; /* tunnel_identifier holds */
	__u16 tunnel_vlan_id; /* of the frame outside */
	__u16 tunnel_customer_vlan_id;
	__u8 padding3[2];
	__u64 dropped_packets; /* of the packets, those that the deny-list or the guard dropped */
	__u64 dropped_octets; /* IP */
};
_Static_assert(sizeof(struct flow_counters) == 456, "flow_counters is 456 bytes without holes");

#define FIRST_PACKETS_MOST 32
#define FIRST_PACKETS_LOST 0x7fffffff

/*
 * The first packets of a record's direction, by arrivals: one packet, or the segments of a super-packet, all but the
 * last of the same length.  Lengths are IP; 65535 stands for all that is longer.
 */
struct first_packets {
	__u64 began_mono_ns; /* first_seen_mono_ns of the record that they are of */
	__u32 packets; /* of all arrivals here */
	__u32 arrivals; /* or FIRST_PACKETS_LOST: there are some, and nobody knows them any more */
	__u64 times_mono_ns[FIRST_PACKETS_MOST];
	__u16 segments[FIRST_PACKETS_MOST];
	__u16 segment_lengths[FIRST_PACKETS_MOST];
	__u16 last_lengths[FIRST_PACKETS_MOST];
};
_Static_assert(sizeof(struct first_packets) == 464, "first_packets is 464 bytes without holes");

enum tunnel_type {
	TUNNEL_NONE = 0,
	TUNNEL_GRE = 1,
	TUNNEL_IPIP = 2, /* the four by version, inner in outer */
	TUNNEL_SIX_IN_4 = 3,
	TUNNEL_FOUR_IN_6 = 4,
	TUNNEL_SIX_IN_6 = 5,
	TUNNEL_VXLAN = 6,
	TUNNEL_GENEVE = 7,
	TUNNEL_GTP_U = 8,
};

enum flow_lock {
	LOCK_FREE = 0,
	LOCK_PACKET = 1,
	LOCK_TAKER = 2,
};

/* Why a packet that a program saw is in no flow. */
enum ignored_reason {
	IGNORED_NOT_IP,
	IGNORED_TRUNCATED, /* the packet ends within a header */
	IGNORED_BAD_IP_HEADER, /* version, header length or total length cannot be */
	IGNORED_BAD_TRANSPORT_HEADER, /* TCP data offset cannot be */
	IGNORED_TOO_MANY_HEADERS, /* tags, labels or extension headers without end */
	IGNORED_NO_MEMORY, /* the kernel could not make the headers readable */
	IGNORED_TABLE_FULL, /* no entry could be made */
	IGNORED_CONTENDED, /* the entry was being taken out, and that took too long */
	IGNORED_REASONS,
};

/*
 * Totals of the observation points.  Each CPU has TOTALS_SLOTS of its own, so that
 * nothing is added atomically.  A point takes the first free slot of its CPU
 * from its interface's place on; the lowest bit of a slot's number is the direction.
 */
#define TOTALS_SLOTS 4096
#define TOTALS_TRIES 8

struct interface_totals {
	__u32 ifindex; /* 0: of a capture, or of all that found no free slot */
	__u32 in_use;
	__u64 seen_packets; /* on the wire */
	__u64 seen_octets; /* layer 2 */
	__u64 counted_packets;
	__u64 counted_octets;
	__u64 flows_inserted; /* records begun: in a new entry, or in one that an active timeout kept */
	__u64 entries_made;
	__u64 insertions_failed;
	__u64 late_packets; /* counted in packets, octets and flags only: the entry was locked */
	__u64 orphan_fragments; /* counted with ports 0: their first fragment was not seen before them */
	__u64 dropped_packets; /* seen, counted or ignored, and dropped by the deny-list or the guard */
	__u64 dropped_octets;
	__u64 ignored_packets[IGNORED_REASONS];
	__u64 ignored_octets[IGNORED_REASONS];
};

struct totals_in_use {
	__u8 slots[TOTALS_SLOTS];
};

/* One flow that the collector takes out of the table. */
struct take_request {
	struct flow_key key;
	__u32 keep_entry; /* 1: it goes on, begin a new record in the same entry */
	__u32 found; /* set by the program */
};

/* The running books of what was taken, and where the take program stands. */
struct take_books {
	__u64 cursor; /* next request to serve */
	__u64 taken_flows;
	__u64 taken_packets;
	__u64 taken_octets; /* layer 2, as seen_octets */
};

/*
 * What the collector asks of a look at the whole table, and what comes of it.
 * An entry is due where its conversation may be over.
 */
struct scan_state {
	__u64 now_mono_ns;
	__u64 idle_ns;
	__u64 active_ns;
	__u64 linger_ns;
	__u64 seed; /* of the hash that stands for a conversation */
	__u32 slice; /* which entries are fetched: of so many slices, by the hash, this one */
	__u32 slices;
	/* `find` counts: */
	__u64 entries;
	__u64 flows; /* whose record has begun */
	__u64 packets;
	__u64 layer2_octets;
	__u64 due_entries;
	/* `fetch` counts: */
	__u32 rows;
	__u32 overflow; /* 1: there was no room for all */
};

/* One entry of a conversation that may be over. */
struct scan_row {
	struct flow_key key;
	__u64 last_seen_mono_ns;
	__u64 born_mono_ns;
	__u64 first_seen_mono_ns;
	__u64 packets;
	__u64 layer2_octets;
	__u8 tcp_closing;
	__u8 padding[7];
};

/* Written once by the loader: what is loaded, and how. */
struct loaded_info {
	__u32 abi_version;
	__u32 loader; /* 1 libbpf, 2 BCC */
	__u32 follow_directions; /* attach to new interfaces: 1 ingress | 2 egress */
	__u32 time_source;
	__u32 owner_pid; /* who takes it all away when it ends; 0 = nobody, it stays */
	__u32 decap; /* flows are those inside tunnels */
	__u64 loaded_mono_ns;
	__u32 deny; /* as in the settings, these four */
	__u32 guard_ports;
	__u32 guard_window_s;
	__u32 guard_block_s;
	__u32 first_packets; /* as in the settings, as all that follow but the ring */
	__u32 features_packets;
	__u32 features_sessions;
	__u32 features_protocols;
	__u32 features_ring_octets;
	__u32 padding;
	__u64 features_restart_ns;
};

/* What we did to an interface, so that exactly that can be undone. */
struct attachment {
	__u32 directions; /* 1 ingress | 2 egress */
	__u32 made_clsact; /* the clsact qdisc is ours */
};

/* What is decided when the programs are loaded. */
struct settings {
	__u32 time_source; /* enum time_source */
	__u32 plain_unlock; /* the CPU keeps stores in order */
	__u32 decap;
	__u32 deny; /* the deny-list is looked at */
	__u32 guard_ports; /* so many distinct ports of its SYNs has a source free; 0: no guard */
	__u32 guard_window_s; /* in that time */
	__u32 guard_block_s; /* what goes beyond is dropped for so long */
	__u32 first_packets; /* so many of a record are listed, at most FIRST_PACKETS_MOST; 0: none */
	__u32 features_packets; /* so many of each session are handed over one by one; 0: none */
	__u32 features_sessions; /* at a time */
	__u32 features_protocols; /* enum features_protocol, a set */
	__u32 padding;
	__u64 features_restart_ns; /* a session that is so long at its limit is captured again */
};

enum features_protocol {
	FEATURES_TCP = 1,
	FEATURES_UDP = 2,
	FEATURES_ICMP = 4, /* and ICMPv6 */
};

/* What each packet of a direction changes.  Directions are often on CPUs of their own: no cache line is shared. */
struct session_side {
	__u64 last_seen_mono_ns;
	__u8 padding[56];
};

/* A session whose packets are captured, by its key: a flow_key without its point, one side first. */
struct session {
	__u64 began_utc_ns; /* first packet */
	__u64 progress; /* round << 32 | packets on the wire in this round */
	__u64 limit_mono_ns; /* when the limit was reached, in the latest round that did */
	__u32 initial_sequence[2]; /* of the first packet's direction, and of the other */
	__u32 points[2]; /* where each is captured: (ifindex << 1 | direction) + 1; 0 = not seen yet */
	__u8 sequence_known[2];
	__u8 turned; /* the first packet came from the key's second side */
	__u8 padding[69];
	struct session_side sides[2]; /* of the first packet's direction, and of the other */
};
_Static_assert(sizeof(struct session) == 240, "session is 240 bytes without holes");

/* How many places of sessions were taken; and what the collector says: how many of these it freed, and the time. */
struct session_gate {
	__u64 taken;
	__u64 freed;
	__s64 utc_offset_ns; /* UTC less the packets' clock */
};

/* One packet of a session, as it goes through the ring. */
struct feature_packet {
	struct flow_key key; /* of the packet */
	__u64 time_mono_ns;
	__u64 interval_ns; /* since the session's packet before, of either direction; 0 for the first */
	__u64 began_utc_ns; /* as the session: the same in each of its packets, which UTC reckoned later would not be */
	__u32 index; /* of the round, from 0; packets on the wire */
	__u32 round;
	__u32 segments; /* packets on the wire that this stands for */
	__u32 kept; /* of them, those within the limit */
	__u32 last_ip_length; /* of the last of them, or the only one */
	__u32 segment_ip_length; /* of the others */
	__u32 headers_length; /* IP and transport */
	__u32 sequence; /* TCP, relative to the direction's first, as the next */
	__u32 acknowledgement; /* relative to the other direction's first; 0 without ACK */
	__u16 fragment; /* flags and offset as in the IPv4 header */
	__u16 tcp_control_bits;
	__u16 window; /* not scaled */
	__u16 udp_length;
	__u8 time_to_live;
	__u8 class_of_service;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 is_reverse; /* not in the direction of the session's first packet */
	__u8 unread; /* its transport header was not there, or not whole */
	__u8 padding[6];
};
_Static_assert(sizeof(struct feature_packet) == 128, "feature_packet is 128 bytes without holes");

/* What became of the packets that features are captured of; of each CPU, packets on the wire. */
struct feature_books {
	__u64 captured_packets;
	__u64 lost_packets; /* the ring was full */
	__u64 refused_packets; /* of sessions without a place */
	__u64 watched_packets; /* of sessions at their limit */
	__u64 elsewhere_packets; /* captured at another point */
	__u64 padding[3]; /* a cache line */
};

/* Whose packets are dropped on ingress, by prefix of the source address. */
struct deny_key {
	__u32 prefix_length; /* of the 128 bits: an IPv4 /24 is 120 */
	__u8 address[16]; /* IPv4 as ::ffff:a.b.c.d */
};

enum deny_kind {
	DENY_NONE = 0,
	DENY_DROP = 1,
	DENY_DRY_RUN = 2, /* counted as if they were dropped */
	DENY_NEVER = 3, /* may not be blocked, by nobody */
};

#define DENY_REASON_MOST 80

struct deny_entry {
	__u64 packets; /* that met it */
	__u64 octets; /* layer 2, as they came in: of packets merged by GRO the headers once */
	__u64 made_mono_ns;
	__u64 expires_mono_ns; /* 0 = never */
	__u32 prefix_length; /* as in the key */
	__u32 kind; /* enum deny_kind */
	__u8 reason[DENY_REASON_MOST]; /* text, UTF-8 */
};
_Static_assert(sizeof(struct deny_entry) == 120, "deny_entry is 120 bytes without holes");

#define GUARD_PORTS_MOST 64

struct guard_source {
	__u8 address[16]; /* IPv4 as ::ffff:a.b.c.d */
};

/* The ports that a source sent SYNs to, and whether it is blocked for that. */
struct guard_entry {
	__u64 lock; /* enum flow_lock */
	__u64 last_seen_mono_ns; /* its latest SYN */
	__u64 blocked_mono_ns; /* since when; 0 = it is not */
	__u64 packets; /* dropped */
	__u64 octets; /* as above */
	__u32 blocks; /* how often it was blocked */
	__u32 trigger_port; /* the port that was one too many */
	__u32 taken; /* of the ports below; these two are of the SYN in hand */
	__u32 room; /* where one is free */
	__u64 seen_mono_ns[GUARD_PORTS_MOST]; /* the latest SYN to each; 0 = free */
	__u16 ports[GUARD_PORTS_MOST];
};
_Static_assert(sizeof(struct guard_entry) == 696, "guard_entry is 696 bytes without holes");

/* How often the guard blocked a source. */
struct guard_books {
	__u64 blocks;
	__u64 packets; /* dropped */
	__u64 octets;
};

enum time_source {
	TIME_MONOTONIC = 0, /* bpf_ktime_get_ns */
	TIME_SKB_TSTAMP = 1, /* skb->tstamp, for captures run through BPF_PROG_TEST_RUN */
	TIME_COARSE = 2, /* bpf_ktime_get_coarse_ns: cheap, as fine as a tick */
};

#define CAPTURED_MOST 3072 /* octets of a packet; a test run takes a page less its own room */

/* One packet of a capture on its way into the program. */
struct captured_packet {
	__u64 time_ns;
	__u32 end; /* where the packet ended on the wire, from the first of `octets` */
	__u32 layer2_length; /* of the frame as it was captured, whatever its link type */
	__u32 length; /* of `octets` */
	__u32 padding;
	__u8 octets[CAPTURED_MOST]; /* an Ethernet frame */
};

/*
 * Octets of a pcap file as they lie in it.  A record of the longest kind that is
 * walked fits in whole; behind them there is room for what is read before it is
 * known to be beyond the end.
 */
#define REPLAY_CHUNK_OCTETS (1 << 19)
#define REPLAY_RECORD_MOST 262144 /* octets of a packet: libpcap's bound for Ethernet */

struct replay_chunk {
	__u8 octets[REPLAY_CHUNK_OCTETS];
	__u8 room[16 + CAPTURED_MOST];
};

/* What is before each packet in a pcap file. */
struct pcap_record {
	__u32 seconds;
	__u32 fraction; /* of the second: in us or ns */
	__u32 captured; /* octets that follow */
	__u32 wire_length;
};

/* Why replay_records does not feed the record that it is at. */
enum replay_stop {
	REPLAY_GOES_ON = 0,
	REPLAY_READY = 1, /* it may be fed, but is not before `before_ns`, or `left` is 0 */
	REPLAY_CUT = 2, /* it is not whole in the chunk */
	REPLAY_ODD = 3, /* what it says is for libpcap to make sense of */
};

/* Where the replay programs stand. */
struct replay_state {
	__u64 cursor; /* next of replay_packets */
	__u64 failed; /* packets that could not be handed on */
	__u64 place; /* of the latest packet in the capture */
	__u64 latest_ns; /* its time */
	/* What follows is of replay_records. */
	__u64 before_ns; /* the capture's time; feed nothing from it on */
	__u64 next_ns; /* of the record at `offset`, where `stop` is REPLAY_READY */
	__u32 left; /* records that may be fed */
	__u32 offset; /* of the next record in the chunk */
	__u32 end; /* of what is in the chunk */
	__u32 stop; /* enum replay_stop */
	__u32 longest; /* octets that a packet may have */
	__u32 fraction_ns; /* nanoseconds in one of a record's fractions: 1000 or 1 */
};

/* What the replay program says in __sk_buff.cb[] of a packet from a capture (TIME_SKB_TSTAMP). */
enum captured {
	CAPTURED_END = 0,
	CAPTURED_LAYER2_LENGTH = 1,
	CAPTURED_LENGTH = 2, /* the buffer is longer */
	CAPTURED_PLACE = 3, /* in the capture from 1 on, 64 bits: of equal times it tells the first */
};

#endif /* FLOWMON_H */
