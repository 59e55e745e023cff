/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a TCP segment says about its direction.  Sequence numbers compare modulo
 * 2^32 (RFC 9293 section 3.4).  A segment that starts before the highest
 * sequence number sent is, by Wireshark's rules and in their order:
 *
 *   keep-alive      at most one byte of payload, just below the highest number,
 *                   and no SYN, FIN or RST: neither of the two
 *   retransmission  all of it was acknowledged already (spurious), or
 *   retransmission  it starts where the other side has sent two or more
 *                   duplicate ACKs within the last 20 ms (fast), or
 *   out of order    the highest number advanced less than a round trip ago (the
 *                   handshake's; 3 ms where that was not seen) and the segment
 *                   does not end at it, or else
 *   retransmission
 *
 * More than one byte from just below the highest number is new data after a
 * window probe: neither, unless spurious.  The other direction is looked up
 * only for such segments, so ordinary packets do not pay for it.
 */
#ifndef TCP_BPF_H
#define TCP_BPF_H

#define FAST_RETRANSMISSION_NS 20000000ULL
#define DEFAULT_ROUND_TRIP_NS 3000000ULL

enum sequence_verdict {
	SEQUENCE_NEW,
	SEQUENCE_RETRANSMITTED,
	SEQUENCE_OUT_OF_ORDER,
};

/* What the verdict needs of the other direction. */
struct other_side {
	__u64 last_seen_mono_ns;
	__u64 round_trip_ns; /* of the handshake, 0 = not seen */
	__u32 last_ack;
	__u8 duplicate_acks;
	__u8 known;
};

static __always_inline int sequence_before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

/* SYN and FIN take a place in the sequence, together one as in Wireshark. */
static __always_inline __u32 sequence_length(const struct packet *packet)
{
	return packet->payload_length + !!(packet->tcp_control_bits & (TCP_SYN | TCP_FIN));
}

/* The initiator's entry holds both ends: its SYN, and the ACK that ends the handshake. */
static __always_inline __u64 handshake_ns(const struct flow_counters *initiator)
{
	if (!initiator->syn_mono_ns || initiator->first_ack_mono_ns <= initiator->syn_mono_ns)
		return 0;
	return initiator->first_ack_mono_ns - initiator->syn_mono_ns;
}

static __always_inline struct flow_counters *other_direction(const struct flow_key *key)
{
	struct flow_key reverse = *key;
	struct flow_counters *counters;

	__builtin_memcpy(reverse.source_address, key->destination_address, 16);
	__builtin_memcpy(reverse.destination_address, key->source_address, 16);
	reverse.source_port = key->destination_port;
	reverse.destination_port = key->source_port;
	reverse.direction = !key->direction;
	counters = map_lookup(flows, &reverse);
	if (counters)
		return counters;
	/* A mirror port shows both directions on one hook. */
	reverse.direction = key->direction;
	return map_lookup(flows, &reverse);
}

static __always_inline void look_at_other_side(const struct flow_key *key, const struct flow_counters *own,
					       struct other_side *other)
{
	const struct flow_counters *reverse = other_direction(key);

	other->round_trip_ns = handshake_ns(own);
	if (!reverse)
		return;
	other->known = reverse->sequence_known;
	other->last_ack = reverse->last_ack;
	other->duplicate_acks = reverse->duplicate_acks;
	other->last_seen_mono_ns = reverse->last_seen_mono_ns;
	if (!other->round_trip_ns)
		other->round_trip_ns = handshake_ns(reverse);
}

/* Window scaling holds only where both SYNs offer it (RFC 7323 section 2.2). */
static __always_inline void settle_window_scale(const struct flow_key *key, struct packet *packet)
{
	struct flow_counters *initiator = other_direction(key);

	if (!initiator || !initiator->syn_mono_ns)
		return;
	if (packet->window_scale == TCP_NO_WINDOW_SCALE)
		initiator->window_shift = 0;
	else if (initiator->window_scale == TCP_NO_WINDOW_SCALE)
		packet->window_refused = 1;
}

static __always_inline enum sequence_verdict
judge(const struct flow_counters *counters, const struct packet *packet, const struct other_side *other)
{
	__u32 length = sequence_length(packet);
	__u32 end = packet->sequence + length;
	int just_below = packet->sequence == counters->next_sequence - 1;
	__u64 round_trip = other->round_trip_ns ? other->round_trip_ns : DEFAULT_ROUND_TRIP_NS;

	if (just_below && packet->payload_length <= 1 && !(packet->tcp_control_bits & (TCP_SYN | TCP_FIN)))
		return SEQUENCE_NEW;
	if (other->known && packet->payload_length &&
	    !sequence_before(other->last_ack, packet->sequence + packet->payload_length))
		return SEQUENCE_RETRANSMITTED;
	if (just_below && packet->payload_length > 1)
		return SEQUENCE_NEW;
	if (other->known && other->duplicate_acks >= 2 && other->last_ack == packet->sequence &&
	    packet->now_mono_ns - other->last_seen_mono_ns < FAST_RETRANSMISSION_NS)
		return SEQUENCE_RETRANSMITTED;
	if (packet->now_mono_ns - counters->next_sequence_mono_ns < round_trip &&
	    end != counters->next_sequence)
		return SEQUENCE_OUT_OF_ORDER;
	return SEQUENCE_RETRANSMITTED;
}

static __always_inline int starts_before_highest(const struct flow_counters *counters,
						 const struct packet *packet)
{
	return counters->sequence_known && sequence_length(packet) && !(packet->tcp_control_bits & TCP_RST) &&
	       sequence_before(packet->sequence, counters->next_sequence);
}

/* A SYN with another initial sequence number opens a new connection on the same ports. */
static __always_inline void begin_connection(struct flow_counters *counters, const struct packet *packet)
{
	counters->syn_mono_ns = packet->now_mono_ns;
	counters->maximum_segment_size = packet->maximum_segment_size;
	counters->window_scale = packet->window_scale;
	counters->window_shift = packet->window_scale == TCP_NO_WINDOW_SCALE || packet->window_refused
					 ? 0
					 : packet->window_scale;
	if (counters->sequence_known && counters->initial_sequence == packet->sequence)
		return;
	counters->initial_sequence = packet->sequence;
	counters->first_ack_mono_ns = 0;
	counters->sequence_known = 0;
	counters->duplicate_acks = 0;
	counters->tcp_closing = 0;
}

static __always_inline void account_sequence(struct flow_counters *counters, const struct packet *packet,
					     const struct other_side *other)
{
	__u32 end = packet->sequence + sequence_length(packet);

	if (RARELY(starts_before_highest(counters, packet))) {
		switch (judge(counters, packet, other)) {
		case SEQUENCE_RETRANSMITTED:
			counters->retransmitted_packets += packet->segments;
			counters->retransmitted_octets += packet->payload_length;
			break;
		case SEQUENCE_OUT_OF_ORDER:
			counters->out_of_order_packets += packet->segments;
			counters->out_of_order_octets += packet->payload_length;
			break;
		default:
			break;
		}
	}
	if (!counters->sequence_known || sequence_before(counters->next_sequence, end)) {
		counters->sequence_known = 1;
		counters->next_sequence = end;
		counters->next_sequence_mono_ns = packet->now_mono_ns;
	}
}

/* Same place, same ACK, same window, no payload (RFC 5681 section 2, less the outstanding data). */
static __always_inline void account_ack(struct flow_counters *counters, const struct packet *packet)
{
	if (packet->acknowledgement != counters->last_ack)
		counters->duplicate_acks = 0;
	else if (!packet->payload_length && !(packet->tcp_control_bits & (TCP_SYN | TCP_FIN)) &&
		 packet->window && packet->window == counters->raw_window &&
		 packet->sequence == counters->next_sequence && counters->duplicate_acks < 255)
		counters->duplicate_acks++;
	counters->last_ack = packet->acknowledgement;
	counters->raw_window = packet->window;
}

static __always_inline void account_window(struct flow_counters *counters, const struct packet *packet)
{
	__u32 window = packet->window;

	if (!(packet->tcp_control_bits & TCP_SYN))
		window <<= counters->window_shift & 15;
	if (!counters->windows_seen || window < counters->minimum_window)
		counters->minimum_window = window;
	if (!counters->windows_seen || window > counters->maximum_window)
		counters->maximum_window = window;
	counters->windows_seen = 1;
}

/* Under the entry's lock. */
static __always_inline void account_tcp(struct flow_counters *counters, const struct packet *packet,
					const struct other_side *other)
{
	__u16 bits = packet->tcp_control_bits;

	counters->tcp_control_bits |= bits;
	if (RARELY(bits & TCP_RST)) {
		counters->rst_packets += packet->segments;
		counters->tcp_closing |= TCP_CLOSING_RST;
		return;
	}
	if (RARELY(bits & TCP_SYN)) {
		counters->syn_packets += packet->segments;
		begin_connection(counters, packet);
	}
	account_sequence(counters, packet, other);
	account_ack(counters, packet);
	account_window(counters, packet);
	if (RARELY(bits & TCP_FIN)) {
		counters->fin_packets++; /* the last segment's, when a super-packet is cut up */
		counters->tcp_closing |= TCP_CLOSING_FIN;
	}
	if (!counters->first_ack_mono_ns && (bits & TCP_ACK) && !(bits & (TCP_SYN | TCP_FIN)) &&
	    !packet->payload_length)
		counters->first_ack_mono_ns = packet->now_mono_ns;
}

#endif /* TCP_BPF_H */
