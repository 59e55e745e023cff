// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What bench/ measures with, and beside.
 *
 *   empty    nothing: what running a program costs at all
 *   look_up  the least that a flow monitor does: a key of 12 octets, one look-up
 *   learn    puts that key into the table where it is looked up
 *   walk     makes the frame one of another flow, and goes on in `target`
 *   advance  makes a TCP segment the next of its flow, and goes on in `target`
 *
 * What the last two cost themselves is what they take with empty as the target.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ETHERTYPE 12
#define IP_START 14
#define PROTOCOL 23
#define ADDRESSES 26
#define PORTS 34
#define SEQUENCE_IPV4 38
#define SEQUENCE_IPV6 58
#define OCTETS_READ 62
#define SCATTER 0x9e3779b1u /* odd: times this, a number below a power of two is another one below it */
#define FLOW_BITS 24 /* of the source address, 10.0.0.0/8; what is above goes into the port */

struct floor_key {
	__u32 source;
	__u32 destination;
	__u32 ports;
};

/* step: the next frame's number. mask: flows less one, a power of two less one. octets: of a segment. */
struct walk_state {
	__u64 step;
	__u32 mask;
	__u32 octets;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct floor_key);
	__type(value, __u64);
} floor_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct walk_state);
} walk_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} target SEC(".maps");

SEC("tc")
int empty(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

/* Ethernet, IPv4 without options, TCP. */
static __always_inline int read_key(struct __sk_buff *skb, struct floor_key *key)
{
	void *start = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (start + SEQUENCE_IPV4 > end)
		return 0;
	if (*(__u16 *)(start + ETHERTYPE) != bpf_htons(0x0800))
		return 0;
	if (*(__u8 *)(start + IP_START) != 0x45 || *(__u8 *)(start + PROTOCOL) != 6)
		return 0;
	key->source = *(__u32 *)(start + ADDRESSES);
	key->destination = *(__u32 *)(start + ADDRESSES + 4);
	key->ports = *(__u32 *)(start + PORTS);
	return 1;
}

SEC("tc")
int look_up(struct __sk_buff *skb)
{
	struct floor_key key;

	if (read_key(skb, &key))
		bpf_map_lookup_elem(&floor_flows, &key);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int learn(struct __sk_buff *skb)
{
	struct floor_key key;
	__u64 seen = 1;

	if (read_key(skb, &key))
		bpf_map_update_elem(&floor_flows, &key, &seen, BPF_ANY);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int walk(struct __sk_buff *skb)
{
	void *start = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct walk_state *state;
	__u32 zero = 0, flow;

	state = bpf_map_lookup_elem(&walk_state, &zero);
	if (!state || start + SEQUENCE_IPV4 > end)
		return TC_ACT_SHOT;
	flow = (__u32)state->step++ * SCATTER & state->mask;
	*(__u32 *)(start + ADDRESSES) = bpf_htonl(10u << FLOW_BITS | (flow & ((1u << FLOW_BITS) - 1)));
	*(__u16 *)(start + PORTS) = bpf_htons(1024 + (flow >> FLOW_BITS));
	bpf_tail_call(skb, &target, 0);
	return TC_ACT_SHOT; /* not reached: the caller sees it by the result */
}

SEC("tc")
int advance(struct __sk_buff *skb)
{
	void *start = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct walk_state *state;
	__u32 zero = 0, *sequence;

	state = bpf_map_lookup_elem(&walk_state, &zero);
	if (!state || start + OCTETS_READ > end)
		return TC_ACT_SHOT;
	sequence = start + SEQUENCE_IPV4;
	if (*(__u16 *)(start + ETHERTYPE) == bpf_htons(0x86dd))
		sequence = start + SEQUENCE_IPV6;
	*sequence = bpf_htonl((__u32)state->step++ * state->octets);
	bpf_tail_call(skb, &target, 0);
	return TC_ACT_SHOT; /* as above */
}

char _license[] SEC("license") = "Dual BSD/GPL";
