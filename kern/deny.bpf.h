/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whose packets are dropped.  Rules:
 *
 * - Only what comes in is dropped, and it is counted all the same: in its flow,
 *   in the totals, and where it met its entry.
 * - Of the list's prefixes the longest that drops decides; what may never be
 *   blocked stands in the same list, and the guard looks there first.
 * - The clock ends an entry, whether or not anybody takes it out.
 * - The guard drops the first SYN to one port too many itself, and everything from
 *   that source afterwards; a port counts for as long as its latest SYN is in the window.
 * - Who cannot have the lock of a guard's entry is let through.
 * - Without a deny-list and a guard the loader's settings rule all of this out, and
 *   the verifier drops it: it costs nothing.
 */
#ifndef DENY_BPF_H
#define DENY_BPF_H

#define NS_PER_S 1000000000ULL
#define KEPT(field) (*(volatile __u32 *)&(field)) /* in memory, not in a register */
#define ENTRIES_MOST 8 /* prefixes around one address that are looked at */

static __always_inline int is_mapped(const __u8 address[16])
{
	return !*(const __u64 *)address && *(const __u32 *)(address + 8) == bpf_htonl(0xffff);
}

static __always_inline int may_block(const struct packet *packet)
{
	return (SETTING(deny) || SETTING(guard_ports)) && packet->key.direction == FLOW_INGRESS &&
	       !is_capture();
}

static __always_inline int is_dropped(const struct packet *packet)
{
	return may_block(packet) && packet->verdict == VERDICT_DROP;
}

/*
 * What the list says of the source: DENY_DROP, DENY_NEVER or DENY_NONE.  Entries that
 * it meets count it.  An entry that expired or only counts leaves it to shorter prefixes.
 */
static __always_inline __u32 look_up_list(const struct packet *packet)
{
	struct deny_key key = { .prefix_length = 128 };

	__builtin_memcpy(key.address, packet->key.source_address, 16);
	for (int try = 0; try < ENTRIES_MOST; try++) {
		struct deny_entry *entry = map_lookup(deny, &key);

		if (!entry || entry->kind == DENY_NEVER)
			return entry ? DENY_NEVER : DENY_NONE;
		/* The clock is read only for those who stand there. */
		if (!entry->expires_mono_ns || bpf_ktime_get_ns() < entry->expires_mono_ns) {
			__sync_fetch_and_add(&entry->packets, packet->segments);
			__sync_fetch_and_add(&entry->octets, packet->buffer_length);
			if (entry->kind == DENY_DROP)
				return DENY_DROP;
		}
		if (!entry->prefix_length)
			return DENY_NONE;
		key.prefix_length = entry->prefix_length - 1;
	}
	return DENY_NONE;
}

static __always_inline int is_blocked(const struct guard_entry *entry)
{
	return entry->blocked_mono_ns &&
	       bpf_ktime_get_ns() - entry->blocked_mono_ns < SETTING(guard_block_s) * NS_PER_S;
}

/* Drops the packet, on account of the guard. */
static __always_inline void drop_guarded(struct guard_entry *entry, struct packet *packet, int blocks)
{
	__u32 zero = 0;
	struct guard_books *books = map_lookup(guard_books, &zero);

	packet->verdict = VERDICT_DROP;
	__sync_fetch_and_add(&entry->packets, packet->segments);
	__sync_fetch_and_add(&entry->octets, packet->buffer_length);
	if (!books)
		return;
	books->packets += packet->segments;
	books->octets += packet->buffer_length;
	books->blocks += blocks;
}

/* What is known of the source before its packet is read any further. */
SUBPROGRAM int look_up_source(struct packet *packet)
{
	__u32 kind;

	if (!packet)
		return 0;
	/* No IPv4 host sent it, and shall not stand for it; the stack discards such packets itself. */
	if (packet->key.ip_version == IPV6_VERSION && is_mapped(packet->key.source_address)) {
		packet->verdict = VERDICT_NEVER;
		return 0;
	}
	kind = look_up_list(packet);
	if (kind != DENY_NONE) {
		packet->verdict = kind == DENY_NEVER ? VERDICT_NEVER : VERDICT_DROP;
		return 0;
	}
	if (SETTING(guard_ports)) {
		struct guard_source source;
		struct guard_entry *guarded;

		__builtin_memcpy(source.address, packet->key.source_address, 16);
		guarded = map_lookup(guard, &source);
		if (guarded && is_blocked(guarded))
			drop_guarded(guarded, packet, 0);
	}
	return 0;
}

static __always_inline int is_guarded(const struct packet *packet)
{
	return may_block(packet) && packet->key.protocol == IPPROTO_TCP && !packet->unread &&
	       (packet->tcp_control_bits & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/*
 * Whether the port is one too many; it is noted otherwise.  Under the entry's lock.
 * What the loop finds is kept in the entry: there the verifier knows no values,
 * and does not walk each way through the loop apart.
 */
static __always_inline int is_one_too_many(struct guard_entry *entry, __u16 port, __u64 now)
{
	__u64 window = SETTING(guard_window_s) * NS_PER_S;
	__u32 room;

	KEPT(entry->taken) = 0;
	KEPT(entry->room) = GUARD_PORTS_MOST;
	for (__u32 i = 0; i < GUARD_PORTS_MOST && i < SETTING(guard_ports); i++) {
		__u64 seen = entry->seen_mono_ns[i];

		if (!seen || now - seen >= window) {
			KEPT(entry->room) = i;
		} else if (entry->ports[i] == port) {
			entry->seen_mono_ns[i] = now;
			return 0;
		} else {
			KEPT(entry->taken) += 1;
		}
	}
	if (KEPT(entry->taken) >= SETTING(guard_ports))
		return 1;
	room = KEPT(entry->room);
	if (room < GUARD_PORTS_MOST) {
		entry->ports[room] = port;
		entry->seen_mono_ns[room] = now;
	}
	return 0;
}

static __always_inline struct guard_entry *find_or_make_guarded(const struct guard_source *source)
{
	struct guard_entry *entry = map_lookup(guard, source);
	struct guard_entry *blank;
	__u32 zero = 0;

	if (entry)
		return entry;
	blank = map_lookup(blank_guard, &zero);
	if (blank)
		map_insert(guard, source, blank);
	return map_lookup(guard, source);
}

/* Counts the port of a SYN, and blocks its source where it is one too many. */
SUBPROGRAM int guard_ports(struct packet *packet)
{
	struct guard_source source;
	struct guard_entry *entry;
	__u64 now;
	int blocks;

	if (!packet)
		return 0;
	__builtin_memcpy(source.address, packet->key.source_address, 16);
	entry = find_or_make_guarded(&source);
	if (!entry || __sync_val_compare_and_swap(&entry->lock, LOCK_FREE, LOCK_PACKET) != LOCK_FREE)
		return 0;
	now = bpf_ktime_get_ns();
	entry->last_seen_mono_ns = now;
	blocks = is_one_too_many(entry, packet->key.destination_port, now);
	if (blocks) {
		entry->blocked_mono_ns = now;
		entry->trigger_port = packet->key.destination_port;
		entry->blocks++;
	}
	__sync_lock_test_and_set(&entry->lock, LOCK_FREE);
	if (blocks)
		drop_guarded(entry, packet, 1);
	return 0;
}

#endif /* DENY_BPF_H */
