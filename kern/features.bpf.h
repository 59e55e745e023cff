/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The first packets of each session, one by one, for those who build detectors.  Rules:
 *
 * - A session is a conversation: both directions together.  A direction is captured
 *   at the point (interface and hook) that saw it first, so a packet comes once.
 * - There are places for so many sessions at a time.  Here they are only taken while
 *   one is free; the collector frees those that fell silent, and now and then the one
 *   least used.  So a flood finds no place, and takes none from others.
 * - The limit is in packets on the wire; a super-packet is one record.
 * - A session at its limit is watched on, and captured again when it still goes on
 *   so much later.
 * - A packet of a session at its limit writes to its own direction's cache line only.
 * - Round and index are one number that changes atomically: no index comes twice.
 * - A place that is freed just while another CPU has a packet of it in hand may be
 *   taken anew meanwhile.  That packet is then counted with the new session: nothing
 *   else is done about it, since it would cost each packet a lock.
 * - What finds no room in the ring is counted, and leaves a gap in the indexes.
 */
#ifndef FEATURES_BPF_H
#define FEATURES_BPF_H

#ifdef FLOWMON_BCC /* has neither this kind of map nor this kind of memory */

static __always_inline void capture_features(struct packet *packet)
{
}

#else

#define POINT_SILENT_NS 1000000000ULL

static __always_inline int has_features(const struct packet *packet)
{
	switch (packet->key.protocol) {
	case IPPROTO_TCP:
		return SETTING(features_protocols) & FEATURES_TCP;
	case IPPROTO_UDP:
		return SETTING(features_protocols) & FEATURES_UDP;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return SETTING(features_protocols) & FEATURES_ICMP;
	default:
		return 0;
	}
}

/* The key of both directions: one side, in an order of no meaning, comes first.  Whether the packet was turned round. */
static __always_inline int fill_session_key(struct flow_key *key, const struct flow_key *of)
{
	const __u64 *source = (const __u64 *)of->source_address;
	const __u64 *destination = (const __u64 *)of->destination_address;
	int is_icmp = of->protocol == IPPROTO_ICMP || of->protocol == IPPROTO_ICMPV6;
	int turned;

	if (source[0] != destination[0])
		turned = source[0] > destination[0];
	else if (source[1] != destination[1])
		turned = source[1] > destination[1];
	else
		turned = !is_icmp && of->source_port > of->destination_port;
	*key = *of;
	key->ifindex = 0;
	key->direction = 0;
	if (!turned)
		return 0;
	__builtin_memcpy(key->source_address, of->destination_address, 16);
	__builtin_memcpy(key->destination_address, of->source_address, 16);
	if (!is_icmp) {
		key->source_port = of->destination_port;
		key->destination_port = of->source_port;
	}
	return 1;
}

static __always_inline __u64 since(__u64 then, __u64 now)
{
	return then && then < now ? now - then : 0;
}

/* A place for a session that has none; NULL where all are taken. */
static __always_inline struct session *take_place(const struct flow_key *key, __u64 now_mono_ns, int turned)
{
	__u32 zero = 0;
	struct session_gate *gate = map_lookup(session_gate, &zero);
	struct session *fresh = map_lookup(fresh_session, &zero);

	if (!gate || !fresh || gate->taken - gate->freed >= SETTING(features_sessions))
		return NULL;
	/* All else stays 0. */
	fresh->began_utc_ns = now_mono_ns + gate->utc_offset_ns;
	fresh->sides[0].last_seen_mono_ns = now_mono_ns; /* or it looked silent since ever */
	fresh->turned = turned;
	if (map_insert(sessions, key, fresh) == 0)
		__sync_fetch_and_add(&gate->taken, 1);
	return map_lookup(sessions, key); /* another CPU's, if that was faster */
}

/*
 * Whether this point is the one that captures the direction: the first that comes, or
 * one that sees a packet after that was silent for a while (the path changed).
 */
static __always_inline int captures_here(struct session *session, const struct packet *packet, __u32 way)
{
	__u32 point = (packet->key.ifindex << 1 | packet->key.direction) + 1;
	__u32 owner = session->points[way];

	if (LIKELY(owner == point))
		return 1;
	if (owner && since(session->sides[way].last_seen_mono_ns, packet->now_mono_ns) < POINT_SILENT_NS)
		return 0;
	__sync_val_compare_and_swap(&session->points[way], owner, point);
	return session->points[way] == point;
}

/* The session's latest packet before this one. */
static __always_inline __u64 last_seen(const struct session *session)
{
	__u64 one = session->sides[0].last_seen_mono_ns, other = session->sides[1].last_seen_mono_ns;

	return one > other ? one : other;
}

/* A session at its limit for long enough begins its next round. */
static __always_inline void begin_next_round(struct session *session, __u64 now_mono_ns)
{
	__u64 progress = session->progress, next = ((progress >> 32) + 1) << 32;

	if (!session->limit_mono_ns) { /* not noted yet: several CPUs reached it together */
		session->limit_mono_ns = now_mono_ns;
		return;
	}
	if (since(session->limit_mono_ns, now_mono_ns) < SETTING(features_restart_ns))
		return;
	session->limit_mono_ns = 0; /* before any CPU can reach the next round's */
	__sync_val_compare_and_swap(&session->progress, progress, next);
}

/*
 * Sequence numbers are relative as Wireshark has them: a SYN is 0, and so is the octet
 * before the first that was seen of a direction without one.
 */
static __always_inline void settle_sequences(struct session *session, const struct packet *packet, __u32 way)
{
	__u32 other = way ^ 1;

	if (RARELY(packet->tcp_control_bits & TCP_SYN)) {
		if (!(packet->tcp_control_bits & TCP_ACK) &&
		    session->initial_sequence[way] != packet->sequence)
			session->sequence_known[other] = 0; /* another connection of the same ports */
		session->initial_sequence[way] = packet->sequence;
		session->sequence_known[way] = 1;
	} else if (RARELY(!session->sequence_known[way])) {
		session->initial_sequence[way] = packet->sequence - 1;
		session->sequence_known[way] = 1;
	}
	if (packet->tcp_control_bits & TCP_ACK && !session->sequence_known[other]) {
		session->initial_sequence[other] = packet->acknowledgement - 1;
		session->sequence_known[other] = 1;
	}
}

static __always_inline void fill_feature_packet(struct feature_packet *row, struct session *session,
						const struct packet *packet, __u32 way)
{
	__builtin_memset(row, 0, sizeof(*row));
	row->key = packet->key;
	row->time_mono_ns = packet->now_mono_ns;
	row->interval_ns = since(last_seen(session), packet->now_mono_ns);
	row->began_utc_ns = session->began_utc_ns;
	row->segments = packet->segments;
	row->last_ip_length = packet->last_ip_length;
	row->segment_ip_length = packet->segment_ip_length;
	row->headers_length =
		packet->ip_header_length + packet->transport_header_length - packet->jumbo_header_length;
	row->fragment = packet->fragment_field;
	row->time_to_live = packet->ttl;
	row->class_of_service = packet->class_of_service;
	row->is_reverse = way;
	row->unread = packet->unread;
	if (packet->unread)
		return;
	switch (packet->key.protocol) {
	case IPPROTO_TCP:
		row->tcp_control_bits = packet->tcp_control_bits;
		row->window = packet->window;
		row->sequence = packet->sequence - session->initial_sequence[way & 1];
		if (packet->tcp_control_bits & TCP_ACK)
			row->acknowledgement = packet->acknowledgement - session->initial_sequence[~way & 1];
		break;
	case IPPROTO_UDP:
		row->udp_length = packet->udp_length;
		break;
	default:
		row->icmp_type = packet->icmp_type;
		row->icmp_code = packet->icmp_code;
	}
}

/* Hands the packet over as a row of the ring. */
static __always_inline void hand_over(struct session *session, const struct packet *packet, __u32 way,
				      struct feature_books *books)
{
	__u32 limit = SETTING(features_packets), index;
	struct feature_packet *row;
	__u64 progress;

	progress = __sync_fetch_and_add(&session->progress, packet->segments);
	index = progress;
	if (index >= limit) { /* another CPU's packets took the rest */
		books->watched_packets += packet->segments;
		return;
	}
	if (index + packet->segments >= limit)
		session->limit_mono_ns = packet->now_mono_ns;
	row = bpf_ringbuf_reserve(&feature_ring, sizeof(*row), 0);
	if (!row) {
		books->lost_packets += packet->segments;
		return;
	}
	fill_feature_packet(row, session, packet, way);
	row->index = index;
	row->round = progress >> 32;
	row->kept = packet->segments < limit - index ? packet->segments : limit - index;
	books->captured_packets += row->kept;
	books->watched_packets += packet->segments - row->kept;
	bpf_ringbuf_submit(row, BPF_RB_NO_WAKEUP); /* it is read by the clock */
}

/* Apart, for the verifier: it is walked once. */
SUBPROGRAM int capture_features(struct packet *packet)
{
	__u32 cpu = bpf_get_smp_processor_id(), way;
	struct feature_books *books = map_lookup(feature_books, &cpu);
	struct session *session;
	struct flow_key key;
	int turned;

	if (!books || !packet || !has_features(packet))
		return 0;
	turned = fill_session_key(&key, &packet->key);
	session = map_lookup(sessions, &key);
	if (!session)
		session = take_place(&key, packet->now_mono_ns, turned);
	if (!session) {
		books->refused_packets += packet->segments;
		return 0;
	}
	way = (turned ^ session->turned) & 1;
	if (!captures_here(session, packet, way)) {
		books->elsewhere_packets += packet->segments;
		return 0;
	}
	if (packet->key.protocol == IPPROTO_TCP && !packet->unread)
		settle_sequences(session, packet, way);
	if ((__u32)session->progress >= SETTING(features_packets))
		begin_next_round(session, packet->now_mono_ns);
	if ((__u32)session->progress >= SETTING(features_packets))
		books->watched_packets += packet->segments;
	else
		hand_over(session, packet, way, books);
	session->sides[way].last_seen_mono_ns = packet->now_mono_ns;
	return 0;
}

#endif /* FLOWMON_BCC */

#endif /* FEATURES_BPF_H */
