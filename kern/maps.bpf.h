/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps.  Sizes here are placeholders where the loader sets them.
 */
#ifndef MAPS_BPF_H
#define MAPS_BPF_H

#ifndef MAX_FLOWS
#define MAX_FLOWS 65536
#endif
#define MAX_ATTACHED 4096
#ifndef TOTALS_CPUS
#define TOTALS_CPUS 1
#endif
#define MAX_FRAGMENTED 4096 /* fragmented datagrams under way */
#define TAKE_BATCH 4096
#define MAX_DENIED 65536
#ifndef MAX_GUARDED
#define MAX_GUARDED 1
#endif
#ifndef MAX_LISTED
#define MAX_LISTED 1
#endif
#ifndef TAKE_LISTED
#define TAKE_LISTED 1
#endif
#ifndef REPLAY_BATCH
#define REPLAY_BATCH 1
#endif

/* THE flow table. */
MAP(MAP_LRU_HASH, flows, struct flow_key, struct flow_counters, MAX_FLOWS, 0);

/* What a new entry is made in (too large for the stack). */
PRIVATE_MAP(MAP_PERCPU_ARRAY, fresh, __u32, struct flow_counters, 1, 0);

/* A plain array, since the collector reads it in place; and which slots are in use on any CPU. */
MAP(MAP_ARRAY, totals, __u32, struct interface_totals, TOTALS_CPUS *TOTALS_SLOTS, BPF_F_MMAPABLE);
MAP(MAP_ARRAY, totals_in_use, __u32, struct totals_in_use, 1, BPF_F_MMAPABLE);

/* Whose the later fragments of a datagram are. */
struct fragment_key {
	__u8 source_address[16];
	__u8 destination_address[16];
	__u32 identification;
	__u32 ifindex;
	__u32 tunnel; /* or VLANs */
	__u8 protocol;
	__u8 ip_version;
	__u8 direction;
	__u8 in_tunnel;
};
_Static_assert(sizeof(struct fragment_key) == 48, "fragment_key has no holes");

struct fragment_owner {
	__u64 seen_mono_ns;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 padding;
};

PRIVATE_MAP(MAP_LRU_HASH, fragments, struct fragment_key, struct fragment_owner, MAX_FRAGMENTED, 0);

/* The packet inside a tunnel, while it is looked at, and the tunnel: too large for the stack. */
struct tunnel {
	__u8 source[16];
	__u8 destination[16];
	__u32 identifier;
	__u8 type; /* enum tunnel_type */
	__u8 identified; /* identifier holds */
	__u8 padding[2];
	__u16 vlan_id; /* of the frame outside */
	__u16 customer_vlan_id;
};

struct tunnel_scratch {
	struct packet inner;
	struct tunnel candidate; /* until the packet inside is found to be whole */
	struct tunnel tunnel;
};

#ifdef FLOWMON_BCC
PRIVATE_MAP(MAP_PERCPU_ARRAY, packets, __u32, struct packet, 1, 0); /* the one in hand: see new_packet() */
#endif
PRIVATE_MAP(MAP_PERCPU_ARRAY, tunnel_scratch, __u32, struct tunnel_scratch, 1, 0);

/* The deny-list, with what may never be on it; and the guard's registry, of size 1 where there is no guard. */
MAP(MAP_LPM_TRIE, deny, struct deny_key, struct deny_entry, MAX_DENIED, BPF_F_NO_PREALLOC);
MAP(MAP_LRU_HASH, guard, struct guard_source, struct guard_entry, MAX_GUARDED, 0);
MAP(MAP_ARRAY, blank_guard, __u32, struct guard_entry, 1, 0);
MAP(MAP_PERCPU_ARRAY, guard_books, __u32, struct guard_books, 1, 0);

/*
 * The first packets of records that have two arrivals or more; what they are made in; and those of the flows that
 * are taken, in step with take_results. Of size 1 where none are listed.
 */
MAP(MAP_LRU_HASH, first_packets, struct flow_key, struct first_packets, MAX_LISTED, 0);
PRIVATE_MAP(MAP_PERCPU_ARRAY, fresh_list, __u32, struct first_packets, 1, 0);
MAP(MAP_ARRAY, take_lists, __u32, struct first_packets, TAKE_LISTED, BPF_F_MMAPABLE);

/* How the collector takes flows out: requests in, counters out, read in place. */
MAP(MAP_ARRAY, take_requests, __u32, struct take_request, TAKE_BATCH, BPF_F_MMAPABLE);
MAP(MAP_ARRAY, take_results, __u32, struct flow_counters, TAKE_BATCH, BPF_F_MMAPABLE);
MAP(MAP_ARRAY, take_books, __u32, struct take_books, 1, BPF_F_MMAPABLE);

#ifndef FLOWMON_BCC
/* Whose packets are captured one by one, and the packets; of size 1 and a page where none are. */
MAP(MAP_HASH, sessions, struct flow_key, struct session, 1, 0);
PRIVATE_MAP(MAP_PERCPU_ARRAY, fresh_session, __u32, struct session, 1, 0);
MAP(MAP_ARRAY, session_gate, __u32, struct session_gate, 1, BPF_F_MMAPABLE);
MAP(MAP_ARRAY, feature_books, __u32, struct feature_books, TOTALS_CPUS, BPF_F_MMAPABLE);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} feature_ring SEC(".maps");
#endif

/* A capture's packets on their way into the program that meets those of an interface. */
PRIVATE_MAP(MAP_ARRAY, replay_packets, __u32, struct captured_packet, REPLAY_BATCH, BPF_F_MMAPABLE);
PRIVATE_MAP(MAP_ARRAY, replay_chunk, __u32, struct replay_chunk, 1, BPF_F_MMAPABLE);
PRIVATE_MAP(MAP_ARRAY, replay_state, __u32, struct replay_state, 1, BPF_F_MMAPABLE);
PRIVATE_MAP(MAP_PROGRAMS, replay_target, __u32, __u32, 1, 0);

/* Not used by the programs: what the loader leaves for those who come later. */
MAP(MAP_ARRAY, loaded, __u32, struct loaded_info, 1, 0);
MAP(MAP_HASH, attachments, __u32, struct attachment, MAX_ATTACHED, 0);

#endif /* MAPS_BPF_H */
