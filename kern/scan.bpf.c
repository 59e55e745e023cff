// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * How the collector looks at the whole table: it asks which conversations may be
 * over, and gets these whole.  Rules:
 *
 * - `find` visits every entry, adds up what is in the table, and marks the
 *   conversation of each entry that is due by itself: silent for the idle
 *   timeout, closed and silent for the linger, or a record of the active
 *   timeout's age.  A conversation that is over has such an entry.
 * - `fetch` hands out all entries of marked conversations, of a slice of them at a
 *   time.  A mark stands for a hash that both directions share at every point,
 *   so a conversation comes whole; that another has the same mark costs rows, no more.
 * - Both only read.  A visit marks no entry as used, unlike a look-up.
 *
 * A visit costs a sixth of a look-up by the batch: nothing is copied of what goes on.
 * The programs are of type SYSCALL; each collector loads its own.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_helpers.h>
#include "flowmon.h"

#define MARK_WORDS 65536 /* 4 Mi marks */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1); /* the loader puts the table here */
	__type(key, struct flow_key);
	__type(value, struct flow_counters);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the loader says how many */
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct scan_row);
} scan_rows SEC(".maps");

struct marks {
	__u64 words[MARK_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct marks);
} scan_marks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct scan_state);
} scan_state SEC(".maps");

static __always_inline __u64 mixed(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9E3779B97F4A7C15ULL;
	return hash ^ hash >> 32;
}

/* The same of both directions at every point: what belongs to a side is mixed by itself, and added. */
static __always_inline __u64 conversation(const struct flow_key *key, __u64 seed)
{
	const __u64 *words = (const __u64 *)key; /* two addresses of two words */
	int is_icmp = key->protocol == IPPROTO_ICMP || key->protocol == IPPROTO_ICMPV6;
	__u64 one = mixed(mixed(seed, words[0]), words[1]);
	__u64 other = mixed(mixed(seed, words[2]), words[3]);
	__u64 sides;

	/* Identifier and message class of ICMP are of neither side. */
	if (is_icmp)
		sides = mixed(one + other, (__u64)key->source_port << 16 | key->destination_port);
	else
		sides = mixed(one, key->source_port) + mixed(other, key->destination_port);
	return mixed(sides, (__u64)key->tunnel << 32 | (__u64)key->in_tunnel << 16 | key->protocol << 8 |
				    key->ip_version);
}

static __always_inline __u64 elapsed(__u64 now, __u64 since)
{
	return since < now ? now - since : 0;
}

static __always_inline int is_due(const struct flow_counters *counters, __u64 packets,
				  const struct scan_state *scan)
{
	__u64 silent = elapsed(scan->now_mono_ns, counters->last_seen_mono_ns);
	__u64 begun = counters->first_seen_mono_ns;

	if (silent >= scan->idle_ns || (counters->tcp_closing && silent >= scan->linger_ns))
		return 1;
	/* Late packets alone do not begin a record: it begins where the entry left off. */
	return packets && elapsed(scan->now_mono_ns, begun ?: counters->last_seen_mono_ns) >= scan->active_ns;
}

static long find_one(void *map, struct flow_key *key, struct flow_counters *counters, void *context)
{
	__u64 packets = counters->packets + counters->late_packets;
	__u32 zero = 0;
	struct scan_state *scan = bpf_map_lookup_elem(&scan_state, &zero);
	struct marks *marks;
	__u64 hash;

	if (!scan)
		return 1;
	scan->entries++;
	scan->flows += packets != 0;
	scan->packets += packets;
	scan->layer2_octets += counters->layer2_octets + counters->late_layer2_octets;
	if (!is_due(counters, packets, scan))
		return 0;
	scan->due_entries++;
	marks = bpf_map_lookup_elem(&scan_marks, &zero);
	if (!marks)
		return 1;
	hash = conversation(key, scan->seed);
	marks->words[hash >> 6 & (MARK_WORDS - 1)] |= 1ULL << (hash & 63);
	return 0;
}

static long fetch_one(void *map, struct flow_key *key, struct flow_counters *counters, void *context)
{
	__u32 zero = 0, index;
	struct scan_state *scan = bpf_map_lookup_elem(&scan_state, &zero);
	struct marks *marks = bpf_map_lookup_elem(&scan_marks, &zero);
	struct scan_row *row;
	__u64 hash;

	if (!scan || !marks)
		return 1;
	hash = conversation(key, scan->seed);
	if ((hash >> 32) * scan->slices >> 32 != scan->slice)
		return 0;
	if (!(marks->words[hash >> 6 & (MARK_WORDS - 1)] >> (hash & 63) & 1))
		return 0;
	index = scan->rows;
	row = bpf_map_lookup_elem(&scan_rows, &index);
	if (!row) {
		scan->overflow = 1;
		return 1;
	}
	scan->rows = index + 1;
	__builtin_memcpy(&row->key, key, sizeof(row->key));
	row->last_seen_mono_ns = counters->last_seen_mono_ns;
	row->born_mono_ns = counters->born_mono_ns;
	row->first_seen_mono_ns = counters->first_seen_mono_ns ?: row->last_seen_mono_ns;
	row->packets = counters->packets + counters->late_packets;
	row->layer2_octets = counters->layer2_octets + counters->late_layer2_octets;
	row->tcp_closing = counters->tcp_closing;
	return 0;
}

SEC("syscall") int find(void *context)
{
	bpf_for_each_map_elem(&flows, find_one, NULL, 0);
	return 0;
}

SEC("syscall") int fetch(void *context)
{
	bpf_for_each_map_elem(&flows, fetch_one, NULL, 0);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
