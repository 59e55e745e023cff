/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a struct packet to the table.  Rules:
 *
 * - One entry a key.  Whoever misses it inserts one with the packet counted in it;
 *   who loses that race finds the winner's.
 * - A look-up marks an entry as used, and an LRU map evicts what is not.  So a new
 *   entry is not looked up: a flood of single packets evicts itself, not the
 *   flows that go on.
 * - An entry changes under its lock only, so that no count is lost between CPUs
 *   and all fields are of the same packets.  A lock costs one atomic operation;
 *   atomic counters would cost one each.  (An LRU map takes no bpf_spin_lock.)
 * - The lock is held for some 20 ns.  Who cannot have it within LOCK_SPINS tries
 *   (its holder was interrupted) adds packets, octets and flags atomically, apart
 *   from the rest, and goes on; the collector puts the two together.
 * - The collector marks an entry taken, under the lock, before it deletes it.
 *   Who finds it taken looks again, and finds or makes the next one.
 */
#ifndef ACCOUNT_BPF_H
#define ACCOUNT_BPF_H

#define ENTRY_TRIES 4
#define COUNTED IGNORED_REASONS

static __always_inline int try_lock(struct flow_counters *counters)
{
	return __sync_val_compare_and_swap(&counters->lock, LOCK_FREE, LOCK_PACKET) == LOCK_FREE;
}

/* Apart, so that the verifier walks the loop once and not once for every way that leads here. */
SUBPROGRAM int wait_for_lock(struct flow_counters *counters)
{
	if (!counters)
		return 0;
	for (int spin = 0; spin < LOCK_SPINS; spin++)
		if (try_lock(counters))
			return 1;
	return 0;
}

static __always_inline int lock_counters(struct flow_counters *counters)
{
	return LIKELY(try_lock(counters)) || wait_for_lock(counters);
}

/* A plain store releases the lock where the CPU keeps stores in order; elsewhere it takes a barrier. */
static __always_inline void unlock_counters(struct flow_counters *counters)
{
	if (SETTING(plain_unlock)) {
		asm volatile("" ::: "memory");
		*(volatile __u64 *)&counters->lock = LOCK_FREE;
	} else {
		__sync_lock_test_and_set(&counters->lock, LOCK_FREE);
	}
}

static __always_inline __u32 size_bin(__u32 length)
{
	if (length < 128)
		return 0;
	if (length < 256)
		return 1;
	if (length < 512)
		return 2;
	if (length < 1024)
		return 3;
	return length < 1514 ? 4 : 5;
}

static __always_inline __u32 ttl_bin(__u8 ttl)
{
	if (ttl <= 1)
		return 0;
	if (ttl <= 5)
		return 1;
	return ((ttl - 1) >> 5) + 2; /* 6..32, 33..64, ... 225..255 */
}

static __always_inline void note_tunnel(struct flow_counters *counters)
{
	__u32 zero = 0;
	struct tunnel_scratch *scratch = map_lookup(tunnel_scratch, &zero);

	if (!scratch)
		return;
	__builtin_memcpy(counters->tunnel_source, scratch->tunnel.source, 16);
	__builtin_memcpy(counters->tunnel_destination, scratch->tunnel.destination, 16);
	counters->tunnel_identifier = scratch->tunnel.identifier;
	counters->tunnel_type = scratch->tunnel.type;
	counters->tunnel_identified = scratch->tunnel.identified;
	counters->tunnel_vlan_id = scratch->tunnel.vlan_id;
	counters->tunnel_customer_vlan_id = scratch->tunnel.customer_vlan_id;
}

/* What a record says of its first packet, and where minimum and maximum start. */
static __always_inline void begin_record(struct flow_counters *counters, const struct packet *packet)
{
	counters->first_seen_mono_ns = packet->now_mono_ns;
	counters->class_of_service = packet->class_of_service;
	counters->flow_label = packet->flow_label;
	counters->icmp_type = packet->icmp_type;
	counters->icmp_code = packet->icmp_code;
	counters->first_window = packet->window;
	counters->minimum_ip_length = packet->last_ip_length;
	counters->minimum_ttl = packet->ttl;
	counters->minimum_interval_ns = ~0ULL;
	if (packet->mpls_top_label)
		counters->mpls_top_label = packet->mpls_top_label;
	if (SETTING(decap) && packet->key.in_tunnel)
		note_tunnel(counters);
	if (!counters->born_mono_ns)
		counters->born_mono_ns = is_capture() ? packet->place : packet->now_mono_ns;
}

/* The segments of a super-packet arrive together: one interval, and the rest are 0. */
static __always_inline void account_interval(struct flow_counters *counters, const struct packet *packet)
{
	__u64 interval = packet->now_mono_ns - counters->last_seen_mono_ns;
	__u64 low = interval & 0xffffffff, high = interval >> 32;
	__u64 square = low * low;

	if (interval < counters->minimum_interval_ns)
		counters->minimum_interval_ns = interval;
	if (interval > counters->maximum_interval_ns)
		counters->maximum_interval_ns = interval;
	if (RARELY(high)) { /* over 4.3 s: (high * 2^32 + low)^2 in 128 bits */
		__u64 cross = low * high;
		__u64 sum = square + (cross << 33);

		counters->interval_squares_high += high * high + (cross >> 31) + (sum < square);
		square = sum;
	}
	counters->interval_squares_low += square;
	counters->interval_squares_high += counters->interval_squares_low < square;
}

static __always_inline void account_sizes(struct flow_counters *counters, const struct packet *packet)
{
	__u32 full = packet->segments - 1;

	if (RARELY(full)) {
		if (packet->segment_ip_length > counters->maximum_ip_length)
			counters->maximum_ip_length = packet->segment_ip_length;
		counters->size_histogram[size_bin(packet->segment_ip_length)] += full;
	}
	if (packet->last_ip_length > counters->maximum_ip_length)
		counters->maximum_ip_length = packet->last_ip_length;
	if (packet->last_ip_length < counters->minimum_ip_length)
		counters->minimum_ip_length = packet->last_ip_length;
	counters->size_histogram[size_bin(packet->last_ip_length)]++;
}

static __always_inline void account_ttl(struct flow_counters *counters, const struct packet *packet)
{
	if (packet->ttl < counters->minimum_ttl)
		counters->minimum_ttl = packet->ttl;
	if (packet->ttl > counters->maximum_ttl)
		counters->maximum_ttl = packet->ttl;
	counters->ttl_histogram[ttl_bin(packet->ttl)] += packet->segments;
}

/* Under the lock.  Says whether a record began. */
static __always_inline int account_packet(struct flow_counters *counters, struct packet *packet,
					  const struct other_side *other)
{
	int begins = counters->packets == 0;

	/* Another CPU may have read its clock later and come first. */
	if (RARELY(packet->now_mono_ns < counters->last_seen_mono_ns))
		packet->now_mono_ns = counters->last_seen_mono_ns;
	if (RARELY(begins)) {
		begin_record(counters, packet);
	} else {
		if (SETTING(first_packets) && is_listed(counters))
			list_packet(counters, packet);
		account_interval(counters, packet);
	}
	counters->last_seen_mono_ns = packet->now_mono_ns;
	counters->packets += packet->segments;
	counters->octets += packet->wire_ip_octets;
	counters->layer2_octets += packet->wire_layer2_octets;
	if (RARELY(is_dropped(packet))) {
		counters->dropped_packets += packet->segments;
		counters->dropped_octets += packet->wire_ip_octets;
	}
	account_sizes(counters, packet);
	account_ttl(counters, packet);
	if (RARELY(packet->ipv4_options | packet->ipv6_extension_headers)) {
		counters->ipv4_options |= packet->ipv4_options;
		counters->ipv6_extension_headers |= packet->ipv6_extension_headers;
	}
	if (packet->key.protocol == IPPROTO_TCP && !packet->unread)
		account_tcp(counters, packet, other);
	return begins;
}

/* Counters for a flow that has no entry: nobody else sees them before they are inserted. */
static __always_inline struct flow_counters *fresh_counters(void)
{
	__u32 zero = 0;
	struct flow_counters *counters = map_lookup(fresh, &zero);

	if (counters)
		__builtin_memset(counters, 0, sizeof(*counters));
	return counters;
}

/*
 * Without the lock.  An entry that is being taken may have been read already, and
 * one whose record has not begun has no start: nothing is added to either.
 */
static __always_inline __u32 account_late(struct flow_counters *counters, struct packet *packet)
{
	if (*(volatile __u64 *)&counters->lock == LOCK_TAKER || !counters->packets)
		return IGNORED_CONTENDED;
	__sync_fetch_and_add(&counters->late_packets, packet->segments);
	__sync_fetch_and_add(&counters->late_octets, packet->wire_ip_octets);
	__sync_fetch_and_add(&counters->late_layer2_octets, packet->wire_layer2_octets);
	__sync_fetch_and_or(&counters->late_tcp_control_bits, packet->tcp_control_bits);
	packet->late = 1;
	return COUNTED;
}

static __always_inline void compare_directions(const struct flow_counters *counters, struct packet *packet,
					       struct other_side *other)
{
	if (packet->key.protocol != IPPROTO_TCP || packet->unread)
		return;
	if (RARELY(starts_before_highest(counters, packet)))
		look_at_other_side(&packet->key, counters, other);
	if (RARELY((packet->tcp_control_bits & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK)))
		settle_window_scale(&packet->key, packet);
}

/* Makes an entry with the packet counted in it; says whether.  Apart, for the verifier as for the cache: it is rare. */
SUBPROGRAM int account_first(struct packet *packet)
{
	struct flow_counters *counters = fresh_counters();
	struct other_side other = {};

	if (!counters || !packet)
		return 0;
	compare_directions(counters, packet, &other);
	account_packet(counters, packet, &other);
	if (map_insert(flows, &packet->key, counters) != 0)
		return 0;
	packet->entries_made++;
	return 1;
}

/* COUNTED, or the reason why not. */
static __always_inline __u32 account(struct packet *packet, int *begins)
{
	__u32 why = IGNORED_TABLE_FULL;

	for (int try = 0; try < ENTRY_TRIES; try++) {
		struct flow_counters *counters = map_lookup(flows, &packet->key);
		struct other_side other = {};

		if (RARELY(!counters)) {
			if (!account_first(packet))
				continue;
			*begins = 1;
			return COUNTED;
		}
		compare_directions(counters, packet, &other);
		if (RARELY(!lock_counters(counters)))
			return account_late(counters, packet);
		if (LIKELY(counters->state == FLOW_LIVE)) {
			*begins = account_packet(counters, packet, &other);
			unlock_counters(counters);
			return COUNTED;
		}
		unlock_counters(counters);
		why = IGNORED_CONTENDED;
	}
	return why;
}

static __always_inline struct interface_totals *claim_totals(struct interface_totals *point, __u32 slot,
							     __u32 ifindex)
{
	__u32 zero = 0;
	struct totals_in_use *in_use = map_lookup(totals_in_use, &zero);

	if (in_use)
		in_use->slots[slot & (TOTALS_SLOTS - 1)] = 1;
	point->ifindex = ifindex;
	point->in_use = 1;
	return point;
}

static __always_inline struct interface_totals *totals_of(__u32 ifindex, __u32 direction)
{
	__u32 first = bpf_get_smp_processor_id() * TOTALS_SLOTS;
	struct interface_totals *point;

	for (int try = 0; try < TOTALS_TRIES; try++) {
		__u32 slot = ((ifindex + try) << 1 | direction) & (TOTALS_SLOTS - 1);
		__u32 index = first + slot;

		if (slot < 2 && ifindex)
			continue; /* the place of ifindex 0 */
		point = map_lookup(totals, &index);
		if (!point)
			return NULL;
		if (LIKELY(point->ifindex == ifindex && point->in_use))
			return point;
		if (!point->in_use)
			return claim_totals(point, slot, ifindex);
	}
	first += direction;
	point = map_lookup(totals, &first);
	return !point || point->in_use ? point : claim_totals(point, direction, 0);
}

#endif /* ACCOUNT_BPF_H */
