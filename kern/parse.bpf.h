/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a socket buffer to a struct packet: whose it is (the flow key) and what
 * accounting needs of it.  Layer by layer:
 *
 *   link.bpf.h ── network.bpf.h ── transport.bpf.h ── fragments.bpf.h
 *                      ▲                 │
 *                      └─ tunnel.bpf.h ◀─┘
 *
 * The deny-list and the guard (deny.bpf.h) look at the outermost IP packet.
 *
 * A super-packet (GSO, GRO) counts as the packets it is on the wire, each but
 * the last of gso_size payload, each with the headers repeated.
 */
#ifndef PARSE_BPF_H
#define PARSE_BPF_H

#include "packet.bpf.h"
#include "link.bpf.h"
#include "network.bpf.h"
#include "transport.bpf.h"
#include "fragments.bpf.h"
#include "tunnel.bpf.h"
#include "deny.bpf.h"

/* Packets on the wire of a buffer with `payload` bytes to be segmented. */
static __always_inline __u32 wire_segments(struct __sk_buff *skb, __u32 payload)
{
	if (skb->gso_segs)
		return skb->gso_segs;
	if (skb->gso_size)
		return payload > skb->gso_size ? (payload + skb->gso_size - 1) / skb->gso_size : 1;
	return 1;
}

static __always_inline void measure(struct __sk_buff *skb, struct packet *packet)
{
	__u32 headers = packet->ip_header_length + packet->transport_header_length;

	if (RARELY(packet->jumbo_header_length)) {
		headers -= packet->jumbo_header_length;
		packet->ip_length -= packet->jumbo_header_length;
		packet->buffer_length -= packet->jumbo_header_length;
	}
	packet->payload_length = packet->ip_length - headers;
	packet->segments = wire_segments(skb, packet->payload_length);
	packet->segment_ip_length = packet->ip_length;
	packet->last_ip_length = packet->ip_length;
	packet->wire_ip_octets = packet->ip_length;
	packet->wire_layer2_octets = packet->buffer_length;
	if (RARELY(packet->segments > 1)) {
		__u32 repeated = packet->segments - 1;
		__u32 payload = skb->gso_size;
		__u32 layer2_extra = skb->vlan_present ? VLAN_TAG_LENGTH : 0;

		if (packet->tunnel_headers)
			headers = packet->tunnel_headers;
		packet->wire_ip_octets += (__u64)repeated * headers;
		packet->wire_layer2_octets +=
			(__u64)repeated * (layer2_extra + packet->network_offset + headers);
		/* Merged from packets of uneven size: nobody knows which, so they count as even. */
		if (!payload || (__u64)repeated * payload >= packet->payload_length)
			payload = packet->payload_length / packet->segments;
		packet->segment_ip_length = headers + payload;
		packet->last_ip_length = packet->ip_length - repeated * payload;
	}
}

/* PARSED, or the reason why the packet has no flow. */
static __always_inline __u32 parse(struct __sk_buff *skb, struct packet *packet, int has_ethernet)
{
	__u32 why = PARSED;

	if (has_ethernet) {
		why = parse_ethernet(skb, packet);
	} else {
		packet->ether_type = skb->protocol;
		if (!is_ip(packet->ether_type))
			why = walk_link_layer(skb, packet, 1);
	}
	if (LIKELY(why == PARSED))
		why = parse_network(skb, packet);
	/* Whatever is wrong behind its addresses, who sent it is known. */
	if (packet->key.ip_version && may_block(packet)) {
		packet->segments = skb->gso_segs ? skb->gso_segs : 1;
		look_up_source(packet);
	}
	if (LIKELY(why == PARSED))
		why = parse_transport(skb, packet);
	if (RARELY(why != PARSED))
		return why;
	if (SETTING(guard_ports) && packet->verdict == VERDICT_NONE && is_guarded(packet))
		guard_ports(packet);
	if (RARELY(packet->fragment))
		settle_fragment(packet, now_ns(skb));
	if (RARELY(SETTING(decap) || skb->gso_segs > 1) && leads_to_tunnel(packet))
		for (int level = 0; level < TUNNEL_LEVELS && leads_to_tunnel(packet); level++)
			if (!enter_tunnel(skb, packet) || !SETTING(decap))
				break;
	measure(skb, packet);
	return PARSED;
}

#endif /* PARSE_BPF_H */
