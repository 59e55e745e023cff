// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The programs.  A packet walks so, and goes on as if we were not there, unless
 * its source is denied:
 *
 *   skb ── parse ──▶ struct packet ── account ──▶ entry of `flows`
 *            │                          │
 *            └──── reason why not ──────┴──▶ totals of the observation point
 *                                       └──▶ ring of features, if asked for
 *
 * Four programs observe: two hooks, with or without an Ethernet header.  The
 * others are not attached: the collector runs `take` to take flows out, and
 * `replay` or `replay_records` to feed a capture to the first of the four.
 */
#include "compat.h"
#include "flowmon.h"

SETTINGS;

#include "packet.bpf.h"
#include "maps.bpf.h"
#include "parse.bpf.h"
#include "tcp.bpf.h"
#include "first_packets.bpf.h"
#include "account.bpf.h"
#include "features.bpf.h"

/* What begins afresh with a record. */
#define RECORD_BYTES \
	(sizeof(struct flow_counters) - __builtin_offsetof(struct flow_counters, first_seen_mono_ns))

static __always_inline void add_to_totals(const struct packet *packet, __u32 outcome, int begins)
{
	struct interface_totals *point = totals_of(packet->key.ifindex, packet->key.direction);

	if (!point)
		return;
	point->seen_packets += packet->segments;
	point->seen_octets += packet->wire_layer2_octets;
	point->entries_made += packet->entries_made;
	if (RARELY(is_dropped(packet))) {
		point->dropped_packets += packet->segments;
		point->dropped_octets += packet->wire_layer2_octets;
	}
	if (LIKELY(outcome == COUNTED)) {
		point->counted_packets += packet->segments;
		point->counted_octets += packet->wire_layer2_octets;
		point->flows_inserted += begins;
		point->late_packets += packet->late ? packet->segments : 0;
		point->orphan_fragments += packet->orphan;
		return;
	}
	if (outcome >= IGNORED_REASONS)
		return;
	point->ignored_packets[outcome] += packet->segments;
	point->ignored_octets[outcome] += packet->wire_layer2_octets;
	point->insertions_failed += outcome == IGNORED_TABLE_FULL;
}

/*
 * Where all is inlined, the packet lies in a map and not on the stack: there the
 * verifier knows no values, and does not walk each of the ways to them apart.
 */
#ifdef FLOWMON_BCC
static __always_inline struct packet *new_packet(void)
{
	__u32 zero = 0;
	struct packet *packet = map_lookup(packets, &zero);

	if (packet)
		__builtin_memset(packet, 0, sizeof(*packet));
	return packet;
}
#define NEW_PACKET new_packet
#else
#define NEW_PACKET() (&(struct packet){})
#endif

static __always_inline int observe(struct __sk_buff *skb, __u8 direction, int has_ethernet)
{
	struct packet *packet = NEW_PACKET();
	int begins = 0;
	__u32 outcome;

	if (RARELY(!packet))
		return TC_ACT_UNSPEC;
	packet->key.direction = direction;
	packet->window_scale = TCP_NO_WINDOW_SCALE;
	if (is_capture()) {
		packet->buffer_length = CONTEXT_FIELD(skb, cb[CAPTURED_LAYER2_LENGTH], __u64);
		packet->end = CONTEXT_FIELD(skb, cb[CAPTURED_END], __u64);
		packet->place = CONTEXT_FIELD(skb, cb[CAPTURED_PLACE], __u64) |
				CONTEXT_FIELD(skb, cb[CAPTURED_PLACE + 1], __u64) << 32;
	} else {
		packet->key.ifindex = skb->ifindex;
		packet->buffer_length = skb->len;
		packet->end = skb->len;
	}
	outcome = parse(skb, packet, has_ethernet);
	if (LIKELY(outcome == PARSED)) {
		packet->now_mono_ns = now_ns(skb);
		outcome = account(packet, &begins);
	} else {
		packet->segments = skb->gso_segs ? skb->gso_segs : 1;
		packet->wire_layer2_octets = packet->buffer_length;
	}
	add_to_totals(packet, outcome, begins);
	if (SETTING(features_packets) && outcome == COUNTED)
		capture_features(packet);
	return is_dropped(packet) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

PROGRAM(ingress_ethernet)(struct __sk_buff *skb)
{
	return observe(skb, FLOW_INGRESS, 1);
}

PROGRAM(egress_ethernet)(struct __sk_buff *skb)
{
	return observe(skb, FLOW_EGRESS, 1);
}

PROGRAM(ingress_ip)(struct __sk_buff *skb)
{
	return observe(skb, FLOW_INGRESS, 0);
}

PROGRAM(egress_ip)(struct __sk_buff *skb)
{
	return observe(skb, FLOW_EGRESS, 0);
}

/* Puts what was added without the lock to the copy, and takes it out of the entry. */
static __always_inline void fold_late(struct flow_counters *counters, struct flow_counters *result)
{
	__u16 bits;

	if (!counters->late_packets)
		return;
	result->packets += __sync_lock_test_and_set(&counters->late_packets, 0);
	result->octets += __sync_lock_test_and_set(&counters->late_octets, 0);
	result->layer2_octets += __sync_lock_test_and_set(&counters->late_layer2_octets, 0);
	bits = __sync_lock_test_and_set(&counters->late_tcp_control_bits, 0);
	result->tcp_control_bits |= bits;
}

static __always_inline int lock_for_taking(struct flow_counters *counters)
{
	for (int spin = 0; spin < LOCK_SPINS; spin++)
		if (__sync_val_compare_and_swap(&counters->lock, LOCK_FREE, LOCK_TAKER) == LOCK_FREE)
			return 1;
	return 0;
}

/*
 * Serves the next request of the batch: copies the entry's counters out and,
 * under the same lock, either begins a new record in it or marks it taken, and
 * then deletes it.  Run with BPF_PROG_TEST_RUN, `repeat` = the batch's length.
 * An entry that cannot be locked stays for the next time.
 */
PROGRAM(take)(struct __sk_buff *skb)
{
	struct flow_counters *counters, *result;
	struct take_request *request;
	struct take_books *books;
	__u32 zero = 0, index;

	books = map_lookup(take_books, &zero);
	if (!books)
		return TC_ACT_UNSPEC;
	index = books->cursor;
	request = map_lookup(take_requests, &index);
	result = map_lookup(take_results, &index);
	if (!request || !result)
		return TC_ACT_UNSPEC;
	counters = map_lookup(flows, &request->key);
	request->found = counters && lock_for_taking(counters);
	if (request->found) {
		*result = *counters;
		if (SETTING(first_packets))
			take_list(&request->key, counters, index);
		fold_late(counters, result);
		if (request->keep_entry)
			__builtin_memset(&counters->first_seen_mono_ns, 0, RECORD_BYTES);
		else
			counters->state = FLOW_TAKEN;
		unlock_counters(counters);
		if (!request->keep_entry)
			map_delete(flows, &request->key);
		books->taken_flows += result->packets != 0;
		books->taken_packets += result->packets;
		books->taken_octets += result->layer2_octets;
	}
	books->cursor = index + 1;
	return TC_ACT_UNSPEC;
}

/*
 * Goes on in `replay_target`, which is the program for ingress on Ethernet, with the
 * packet that is in the buffer.  The buffer is as long as any packet: what is left in
 * it of longer ones is not looked at.
 */
static __always_inline void hand_on(struct __sk_buff *skb, struct replay_state *state, __u64 time_ns,
				    __u32 length)
{
	skb->tstamp = time_ns;
	skb->cb[CAPTURED_LENGTH] = length;
	state->latest_ns = time_ns;
	state->place++;
	skb->cb[CAPTURED_PLACE] = state->place;
	skb->cb[CAPTURED_PLACE + 1] = state->place >> 32;
	map_call(replay_target, skb, 0);
	state->failed++; /* not reached, if the call succeeds */
}

/* Feeds the next of `replay_packets`.  Run as `take` is. */
PROGRAM(replay)(struct __sk_buff *skb)
{
	struct captured_packet *packet;
	struct replay_state *state;
	__u32 zero = 0, index, length;

	state = map_lookup(replay_state, &zero);
	if (!state)
		return TC_ACT_UNSPEC;
	index = state->cursor++;
	packet = map_lookup(replay_packets, &index);
	if (!packet)
		return TC_ACT_UNSPEC;
	length = packet->length;
	if (length > CAPTURED_MOST || (length && bpf_skb_store_bytes(skb, 0, packet->octets, length, 0))) {
		state->failed++;
		return TC_ACT_UNSPEC;
	}
	skb->cb[CAPTURED_END] = packet->end;
	skb->cb[CAPTURED_LAYER2_LENGTH] = packet->layer2_length;
	hand_on(skb, state, packet->time_ns, length);
	return TC_ACT_UNSPEC;
}

/* Whether the next record of the chunk is to be fed now; if not, state->stop says why. */
static __always_inline __u32 look_at_record(struct replay_state *state, const struct pcap_record *record)
{
	__u32 octets = state->end - state->offset;

	if (octets < sizeof(*record))
		return REPLAY_CUT;
	if (record->captured > record->wire_length || record->captured > state->longest ||
	    (__u64)record->fraction * state->fraction_ns >= NS_PER_S)
		return REPLAY_ODD;
	if (octets - sizeof(*record) < record->captured)
		return REPLAY_CUT;
	state->next_ns = record->seconds * NS_PER_S + record->fraction * state->fraction_ns;
	return state->next_ns >= state->before_ns || !state->left ? REPLAY_READY : REPLAY_GOES_ON;
}

/*
 * Feeds the next record of `replay_chunk`, one that libpcap would give just so.  Run as
 * `take` is; once it has stopped, it does nothing more.
 */
PROGRAM(replay_records)(struct __sk_buff *skb)
{
	const struct pcap_record *record;
	struct replay_state *state;
	struct replay_chunk *chunk;
	__u32 zero = 0, offset, length;

	state = map_lookup(replay_state, &zero);
	chunk = map_lookup(replay_chunk, &zero);
	if (!state || !chunk || state->stop)
		return TC_ACT_UNSPEC;
	offset = state->offset;
	if (offset >= REPLAY_CHUNK_OCTETS) {
		state->stop = REPLAY_CUT;
		return TC_ACT_UNSPEC;
	}
	record = (void *)&chunk->octets[offset];
	state->stop = look_at_record(state, record);
	if (state->stop)
		return TC_ACT_UNSPEC;
	length = record->captured;
	state->left--;
	state->offset = offset + sizeof(*record) + length;
	skb->cb[CAPTURED_END] = record->wire_length;
	skb->cb[CAPTURED_LAYER2_LENGTH] = record->wire_length;
	if (length > CAPTURED_MOST)
		length = CAPTURED_MOST;
	if (length && bpf_skb_store_bytes(skb, 0, record + 1, length, 0)) {
		state->failed++;
		return TC_ACT_UNSPEC;
	}
	hand_on(skb, state, state->next_ns + 1, length); /* the table's 0 means never */
	return TC_ACT_UNSPEC;
}

#ifndef FLOWMON_BCC
char _license[] SEC("license") = "Dual BSD/GPL";
#endif
