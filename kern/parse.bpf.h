/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a socket buffer to a struct packet: whose it is (the flow key) and what
 * accounting needs of it.  Rules:
 *
 * - A header is read only where it lies within the packet; where it is not in
 *   the linear part of the buffer, it is pulled there.
 * - Lengths are the IP header's.  What follows the IP packet is link padding and
 *   counts for layer 2 only.  A length field of 0 (BIG TCP) means all there is.
 * - A super-packet (GSO, GRO) counts as the packets it is on the wire, each but
 *   the last of gso_size payload, each with the headers repeated.
 * - What cannot be right is no flow: it is counted by the reason.
 */
#ifndef PARSE_BPF_H
#define PARSE_BPF_H

#define VLAN_TAGS_MAX 2
#define VLAN_TAG_LENGTH 4
#define VLAN_ID_MASK 0x0fff
#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV6_VERSION 6
#define IPV6_HOP_BY_HOP 0
#define IPV6_ROUTING 43
#define IPV6_FRAGMENT 44
#define IPV6_AUTHENTICATION 51
#define IPV6_DESTINATION_OPTIONS 60
#define IPV6_MOBILITY 135
#define IPV6_EXTENSIONS_MAX 8
#define IPV6_HEADERS_MAX 2048 /* octets, all extension headers with them */
#define TCP_CONTROL_BITS 0x0fff /* RFC 9293: 4 reserved bits and 8 flags */
#define TCP_FIN 0x001
#define TCP_SYN 0x002
#define TCP_RST 0x004
#define TCP_ACK 0x010
#define TCP_OPTIONS_MAX 40
#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_MSS 2
#define TCP_OPTION_WINDOW_SCALE 3
#define PARSED IGNORED_REASONS /* not a reason: the packet has its flow */

struct packet {
	struct flow_key key;
	__u64 now_mono_ns;
	__u32 layer2_length; /* Ethernet header and tags, 0 on layer-3 devices */
	__u32 ip_header_length;
	__u32 transport_header_length; /* what segmentation repeats */
	__u32 ip_length; /* of the whole super-packet */
	__u32 buffer_length; /* layer 2, with a tag that hardware took off */
	__u32 payload_length; /* transport payload of the whole super-packet */
	__u32 segments; /* packets on the wire */
	__u32 segment_ip_length; /* of every segment but the last */
	__u32 last_ip_length;
	__u64 wire_ip_octets;
	__u64 wire_layer2_octets;
	__u32 flow_label;
	__u32 sequence;
	__u32 acknowledgement;
	__u16 tcp_control_bits;
	__u16 window;
	__u16 maximum_segment_size;
	__u8 window_scale;
	__u8 class_of_service;
	__u8 ttl;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 later_fragment; /* carries no transport header */
	__u8 late; /* counted without the lock */
	__u8 entries_made;
	__u8 window_refused; /* the other SYN came without a window scale */
};

/*
 * A packet pointer, read from the context each time: compilers would keep the
 * 32-bit field and extend it later, where it is a mere number to the verifier.
 */
#define PACKET_POINTER(skb, field)                                                                        \
	({                                                                                                \
		void *pointer;                                                                            \
		asm volatile(                                                                             \
			"%[pointer] = *(u32 *)(%[context] + %[offset])"                                   \
			: [pointer] "=r"(pointer)                                                         \
			: [context] "r"(skb), [offset] "i"(__builtin_offsetof(struct __sk_buff, field))); \
		pointer;                                                                                  \
	})

/*
 * The header of `length` bytes at `offset`, readable, or NULL with *why set.
 * Pointers from earlier calls are invalid afterwards (the buffer may move).
 */
static __always_inline void *header_at(struct __sk_buff *skb, __u32 offset, __u32 length, __u32 *why)
{
	void *header = PACKET_POINTER(skb, data) + offset;

	if (header + length <= PACKET_POINTER(skb, data_end))
		return header;
	if (offset + length > skb->len) {
		*why = IGNORED_TRUNCATED;
		return NULL;
	}
	*why = IGNORED_NO_MEMORY;
	if (bpf_skb_pull_data(skb, offset + length))
		return NULL;
	header = PACKET_POINTER(skb, data) + offset;
	return header + length <= PACKET_POINTER(skb, data_end) ? header : NULL;
}

static __always_inline int is_vlan_tag(__u16 ether_type)
{
	return ether_type == bpf_htons(ETH_P_8021Q) || ether_type == bpf_htons(ETH_P_8021AD);
}

/* Ethernet and VLAN tags, inline or taken off by hardware; the outermost tag is the flow's. */
static __always_inline __u32 parse_ethernet(struct __sk_buff *skb, struct packet *packet, __u16 *ether_type)
{
	__u32 why;
	struct ethhdr *ethernet = header_at(skb, 0, sizeof(*ethernet), &why);

	if (!ethernet)
		return why;
	*ether_type = ethernet->h_proto;
	packet->layer2_length = sizeof(*ethernet);
	if (skb->vlan_present) {
		packet->key.vlan_id = skb->vlan_tci & VLAN_ID_MASK;
		packet->buffer_length += VLAN_TAG_LENGTH;
	}
	for (int tag = 0; tag < VLAN_TAGS_MAX && is_vlan_tag(*ether_type); tag++) {
		__be16 *vlan = header_at(skb, packet->layer2_length, VLAN_TAG_LENGTH, &why);

		if (!vlan)
			return why;
		if (tag == 0 && !skb->vlan_present)
			packet->key.vlan_id = bpf_ntohs(vlan[0]) & VLAN_ID_MASK;
		*ether_type = vlan[1];
		packet->layer2_length += VLAN_TAG_LENGTH;
	}
	return PARSED;
}

static __always_inline void map_ipv4(__u8 mapped[16], __be32 address)
{
	__u32 *words = (__u32 *)mapped;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = address;
}

static __always_inline __u32 parse_ipv4(struct __sk_buff *skb, struct packet *packet)
{
	__u32 why, available = skb->len - packet->layer2_length;
	struct iphdr *ip = header_at(skb, packet->layer2_length, sizeof(*ip), &why);

	if (!ip)
		return why;
	packet->ip_header_length = ip->ihl * 4;
	packet->ip_length = bpf_ntohs(ip->tot_len);
	if (packet->ip_length == 0 && skb->gso_segs > 1)
		packet->ip_length = available;
	if (ip->version != 4 || packet->ip_header_length < sizeof(*ip) ||
	    packet->ip_length < packet->ip_header_length || packet->ip_length > available)
		return IGNORED_BAD_IP_HEADER;
	map_ipv4(packet->key.source_address, ip->saddr);
	map_ipv4(packet->key.destination_address, ip->daddr);
	packet->key.ip_version = 4;
	packet->key.protocol = ip->protocol;
	packet->class_of_service = ip->tos;
	packet->ttl = ip->ttl;
	packet->later_fragment = (ip->frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET)) != 0;
	return PARSED;
}

/* Octets of an extension header, 0 for what is none (RFC 8200 section 4, RFC 4302 section 2.2). */
static __always_inline __u32 ipv6_extension_length(__u8 kind, __u8 length)
{
	switch (kind) {
	case IPV6_HOP_BY_HOP:
	case IPV6_ROUTING:
	case IPV6_DESTINATION_OPTIONS:
	case IPV6_MOBILITY:
		return (length + 1) * 8;
	case IPV6_FRAGMENT:
		return 8;
	case IPV6_AUTHENTICATION:
		return (length + 2) * 4;
	default:
		return 0;
	}
}

/*
 * Walks the extension headers to the transport, or to a fragment that has none.
 * Loaded and not pointed at: they are rare, and every pointer would double the
 * ways that the verifier has to walk.
 */
static __always_inline __u32 parse_ipv6_extensions(struct __sk_buff *skb, struct packet *packet)
{
	volatile __u32 walked = packet->ip_header_length; /* forgets its range, as in parse_syn_options */
	__u8 header[8];

	for (int n = 0; n < IPV6_EXTENSIONS_MAX; n++) {
		__u8 kind = packet->key.protocol;
		__u32 at = walked, length;

		if (!ipv6_extension_length(kind, 0))
			break;
		if (at + sizeof(header) > packet->ip_length)
			return IGNORED_TRUNCATED;
		if (bpf_skb_load_bytes(skb, packet->layer2_length + at, header, sizeof(header)))
			return IGNORED_TRUNCATED;
		length = ipv6_extension_length(kind, header[1]);
		if (at + length > packet->ip_length)
			return IGNORED_BAD_IP_HEADER;
		walked = at + length;
		packet->key.protocol = header[0];
		if (kind == IPV6_FRAGMENT && (header[2] << 8 | header[3]) >> 3) {
			packet->later_fragment = 1;
			break;
		}
	}
	if (walked > IPV6_HEADERS_MAX)
		return IGNORED_BAD_IP_HEADER;
	packet->ip_header_length = walked;
	return PARSED;
}

static __always_inline __u32 parse_ipv6(struct __sk_buff *skb, struct packet *packet)
{
	__u32 why, first_word, available = skb->len - packet->layer2_length;
	struct ipv6hdr *ip = header_at(skb, packet->layer2_length, sizeof(*ip), &why);

	if (!ip)
		return why;
	packet->ip_header_length = sizeof(*ip);
	packet->ip_length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (ip->payload_len == 0 && skb->gso_segs > 1)
		packet->ip_length = available;
	first_word = bpf_ntohl(*(__be32 *)ip);
	if (first_word >> 28 != IPV6_VERSION || packet->ip_length > available)
		return IGNORED_BAD_IP_HEADER;
	__builtin_memcpy(packet->key.source_address, &ip->saddr, 16);
	__builtin_memcpy(packet->key.destination_address, &ip->daddr, 16);
	packet->key.ip_version = IPV6_VERSION;
	packet->key.protocol = ip->nexthdr;
	packet->class_of_service = first_word >> 20;
	packet->flow_label = first_word & 0xfffff;
	packet->ttl = ip->hop_limit;
	return parse_ipv6_extensions(skb, packet);
}

/*
 * All options of a SYN, RFC 9293 section 3.1: walked to the end of the list, or
 * to the first that cannot be.  MSS and window scale are kept; a scale above 14
 * counts as 14 (RFC 7323 section 2.3).
 */
static __always_inline void parse_syn_options(struct __sk_buff *skb, struct packet *packet, __u32 offset,
					      __u32 length)
{
	__u8 options[64] = {};
	/* Read back from the stack, the verifier forgets its range: one state a turn instead of hundreds. */
	volatile __u8 next = 0;

	if (length == 0 || length > TCP_OPTIONS_MAX || bpf_skb_load_bytes(skb, offset, options, length))
		return;
	for (int turn = 0; turn < TCP_OPTIONS_MAX; turn++) {
		__u32 at = next;
		__u8 kind, size, value;

		if (at >= length)
			break;
		kind = options[at & 63];
		size = options[(at + 1) & 63];
		value = options[(at + 2) & 63];
		if (kind == TCP_OPTION_END)
			break;
		if (kind == TCP_OPTION_NOP)
			size = 1;
		else if (size < 2 || at + size > length)
			break;
		if (kind == TCP_OPTION_MSS && size == 4)
			packet->maximum_segment_size = value << 8 | options[(at + 3) & 63];
		if (kind == TCP_OPTION_WINDOW_SCALE && size == 3)
			packet->window_scale = value > 14 ? 14 : value;
		next = at + size;
	}
}

static __always_inline __u32 parse_tcp(struct __sk_buff *skb, struct packet *packet, __u32 offset, __u32 room)
{
	__u32 why, header_length;
	struct tcphdr *tcp;

	if (room < sizeof(*tcp))
		return IGNORED_TRUNCATED;
	tcp = header_at(skb, offset, sizeof(*tcp), &why);
	if (!tcp)
		return why;
	header_length = tcp->doff * 4;
	if (header_length < sizeof(*tcp) || header_length > room)
		return IGNORED_BAD_TRANSPORT_HEADER;
	packet->transport_header_length = header_length;
	packet->key.source_port = bpf_ntohs(tcp->source);
	packet->key.destination_port = bpf_ntohs(tcp->dest);
	packet->sequence = bpf_ntohl(tcp->seq);
	packet->acknowledgement = bpf_ntohl(tcp->ack_seq);
	packet->window = bpf_ntohs(tcp->window);
	packet->tcp_control_bits = bpf_ntohs(((__be16 *)tcp)[6]) & TCP_CONTROL_BITS;
	if (packet->tcp_control_bits & TCP_SYN)
		parse_syn_options(skb, packet, offset + sizeof(*tcp), header_length - sizeof(*tcp));
	return PARSED;
}

static __always_inline __u32 parse_udp(struct __sk_buff *skb, struct packet *packet, __u32 offset, __u32 room)
{
	__u32 why;
	struct udphdr *udp;

	if (room < sizeof(*udp))
		return IGNORED_TRUNCATED;
	udp = header_at(skb, offset, sizeof(*udp), &why);
	if (!udp)
		return why;
	packet->transport_header_length = sizeof(*udp);
	packet->key.source_port = bpf_ntohs(udp->source);
	packet->key.destination_port = bpf_ntohs(udp->dest);
	return PARSED;
}

/* The query that an ICMP message belongs to: its own type, or that of what it answers; 0 = neither. */
static __always_inline __u8 icmp_query(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMP)
		switch (type) {
		case 0: /* echo reply, echo */
		case 8:
			return 8;
		case 13: /* timestamp, information, address mask: the reply is the next type */
		case 15:
		case 17:
			return type;
		case 14:
		case 16:
		case 18:
			return type - 1;
		default:
			return 0;
		}
	switch (type) {
	case 128: /* echo, router and neighbour discovery */
	case 133:
	case 135:
		return type;
	case 129:
	case 134:
	case 136:
		return type - 1;
	default:
		return 0;
	}
}

/* ICMPv6 discovery has no identifier, all the other queries have. */
static __always_inline int icmp_has_identifier(__u8 protocol, __u8 query)
{
	return query && (protocol == IPPROTO_ICMP || query == 128);
}

static __always_inline __u32 parse_icmp(struct __sk_buff *skb, struct packet *packet, __u32 offset,
					__u32 room)
{
	__u32 why;
	__u8 *icmp, query;

	if (room < 4)
		return IGNORED_TRUNCATED;
	icmp = header_at(skb, offset, 4, &why);
	if (!icmp)
		return why;
	packet->transport_header_length = 4;
	packet->icmp_type = icmp[0];
	packet->icmp_code = icmp[1];
	query = icmp_query(packet->key.protocol, packet->icmp_type);
	packet->key.icmp_class = query ? query << 8 : packet->icmp_type << 8 | packet->icmp_code;
	if (icmp_has_identifier(packet->key.protocol, query) && room >= 6) {
		__be16 *identifier = header_at(skb, offset + 4, 2, &why);

		if (!identifier)
			return why;
		packet->key.source_port = bpf_ntohs(*identifier);
		packet->key.destination_port = packet->key.source_port;
	}
	return PARSED;
}

static __always_inline __u32 parse_transport(struct __sk_buff *skb, struct packet *packet)
{
	__u32 offset = packet->layer2_length + packet->ip_header_length;
	__u32 room = packet->ip_length - packet->ip_header_length;

	/* Changes nothing, but tells the verifier a bound that it lost where the ways join. */
	asm volatile("%0 &= 0xfff" : "+r"(offset));
	if (packet->later_fragment)
		return PARSED;
	switch (packet->key.protocol) {
	case IPPROTO_TCP:
		return parse_tcp(skb, packet, offset, room);
	case IPPROTO_UDP:
		return parse_udp(skb, packet, offset, room);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return parse_icmp(skb, packet, offset, room);
	default:
		return PARSED;
	}
}

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

	packet->payload_length = packet->ip_length - headers;
	packet->segments = wire_segments(skb, packet->payload_length);
	packet->segment_ip_length = packet->ip_length;
	packet->last_ip_length = packet->ip_length;
	packet->wire_ip_octets = packet->ip_length;
	packet->wire_layer2_octets = packet->buffer_length;
	if (packet->segments > 1) {
		__u32 repeated = packet->segments - 1;
		__u32 payload = skb->gso_size;

		packet->wire_ip_octets += (__u64)repeated * headers;
		packet->wire_layer2_octets += (__u64)repeated * (packet->buffer_length - skb->len +
								 packet->layer2_length + headers);
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
	__u16 ether_type = 0;
	__u32 why;

	if (has_ethernet) {
		why = parse_ethernet(skb, packet, &ether_type);
		if (why != PARSED)
			return why;
	} else {
		ether_type = skb->protocol;
	}
	if (ether_type == bpf_htons(ETH_P_IP))
		why = parse_ipv4(skb, packet);
	else if (ether_type == bpf_htons(ETH_P_IPV6))
		why = parse_ipv6(skb, packet);
	else
		return IGNORED_NOT_IP;
	if (why != PARSED)
		return why;
	why = parse_transport(skb, packet);
	if (why != PARSED)
		return why;
	measure(skb, packet);
	return PARSED;
}

#endif /* PARSE_BPF_H */
