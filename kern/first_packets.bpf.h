/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The first packets of a record: their lengths and times.  Rules:
 *
 * - What a record's first arrival was is in its counters, as long as there is no
 *   second: so a list is made by the second, and a flood of single packets makes
 *   none.
 * - A list is written under the lock of its entry of `flows`, while the record has
 *   fewer packets than are listed.
 * - It says which record it is of.  One that an evicted entry left behind is of
 *   another, and never taken for this one's.
 * - Lists may be evicted apart from the entries, and a load may ask for longer ones.
 *   Then the record's is lost: half of it would be a wrong one.
 * - A super-packet is one arrival of several packets: here is no loop over them.
 * - Late packets (see account.bpf.h) are not listed.
 */
#ifndef FIRST_PACKETS_BPF_H
#define FIRST_PACKETS_BPF_H

static __always_inline __u16 fitting(__u64 number)
{
	return number > 0xffff ? 0xffff : number;
}

static __always_inline void list_arrival(struct first_packets *list, __u64 time_mono_ns, __u64 segments,
					 __u32 segment_length, __u32 last_length)
{
	__u32 at = list->arrivals;

	if (at >= FIRST_PACKETS_MOST)
		return;
	asm volatile("%0 &= %1" : "+r"(at) : "i"(FIRST_PACKETS_MOST - 1)); /* where the verifier sees it */
	list->times_mono_ns[at] = time_mono_ns;
	list->segments[at] = fitting(segments);
	list->segment_lengths[at] = fitting(segment_length);
	list->last_lengths[at] = fitting(last_length);
	list->arrivals = at + 1;
	list->packets += segments;
}

/* Whether the record has had one arrival only: an interval takes two. */
static __always_inline int is_first_arrival(const struct flow_counters *counters)
{
	return counters->minimum_interval_ns == ~0ULL;
}

/* Whether a packet is one of the first, or makes the list that the first arrival had no need of. */
static __always_inline int is_listed(const struct flow_counters *counters)
{
	return counters->packets < SETTING(first_packets) || is_first_arrival(counters);
}

/* Begins a list with the record's first arrival, which the counters still tell: their minimum is its last segment. */
static __always_inline void begin_list(struct first_packets *list, const struct flow_counters *counters)
{
	__u64 segments = counters->packets;
	__u32 last = counters->minimum_ip_length, each = last;

	if (segments > 1)
		each = (counters->octets - last) / (segments - 1);
	list->began_mono_ns = counters->first_seen_mono_ns;
	list->packets = 0;
	list->arrivals = 0;
	if (segments)
		list_arrival(list, counters->first_seen_mono_ns, segments, each, last);
}

/* Whether a list is of the record, and has all that it should by now. */
static __always_inline int is_whole(const struct first_packets *list, const struct flow_counters *counters)
{
	return list->began_mono_ns == counters->first_seen_mono_ns &&
	       (list->packets == counters->packets || list->packets >= SETTING(first_packets));
}

/* Puts a packet on the record's list.  Under the lock, before the packet is counted; the record has begun. */
SUBPROGRAM int list_packet(struct flow_counters *counters, struct packet *packet)
{
	struct first_packets *list;
	__u32 zero = 0;
	int begins;

	if (!counters || !packet)
		return 0;
	begins = is_first_arrival(counters);
	if (begins)
		list = map_lookup(fresh_list, &zero);
	else
		list = map_lookup(first_packets, &packet->key);
	if (!list)
		return 0;
	if (begins)
		begin_list(list, counters);
	else if (!is_whole(list, counters))
		return 0;
	list_arrival(list, packet->now_mono_ns, packet->segments, packet->segment_ip_length,
		     packet->last_ip_length);
	if (begins)
		map_update(first_packets, &packet->key, list);
	return 0;
}

/* Hands a flow's list to the collector, and takes it out of the map.  Under the lock, before the record ends. */
SUBPROGRAM int take_list(struct flow_key *key, struct flow_counters *counters, __u32 index)
{
	struct first_packets *list, *result = map_lookup(take_lists, &index);

	if (!key || !counters || !result)
		return 0;
	if (!counters->packets || is_first_arrival(counters)) {
		begin_list(result, counters);
		return 0;
	}
	list = map_lookup(first_packets, key);
	if (list && is_whole(list, counters))
		*result = *list;
	else
		result->arrivals = FIRST_PACKETS_LOST;
	if (list)
		map_delete(first_packets, key);
	return 0;
}

#endif /* FIRST_PACKETS_BPF_H */
