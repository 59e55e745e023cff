/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The IP header, with its options or extension headers.  Rules:
 *
 * - Lengths are the IP header's.  What follows the IP packet is link padding and
 *   counts for layer 2 only.  A length field of 0 means a jumbogram (RFC 2675),
 *   or all there is, where a buffer can be larger than the field can say.
 * - Options of IPv4 are noted and never make a packet's flow doubtful: who sends
 *   broken ones has sent a packet all the same.
 * - Extension headers are walked to the transport, or to a fragment that has none.
 */
#ifndef NETWORK_BPF_H
#define NETWORK_BPF_H

#define IPV4_OPTION_END 0
#define IPV4_OPTION_NOP 1
#define IPV4_OPTION_NUMBER 0x1f
#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV6_VERSION 6
#define IPV6_HOP_BY_HOP 0
#define IPV6_ROUTING 43
#define IPV6_FRAGMENT 44
#define IPV6_ENCAPSULATING_SECURITY 50
#define IPV6_AUTHENTICATION 51
#define IPV6_NO_NEXT_HEADER 59
#define IPV6_DESTINATION_OPTIONS 60
#define IPV6_PAYLOAD_COMPRESSION 108
#define IPV6_MOBILITY 135
#define IPV6_MORE_FRAGMENTS 0x0001
#define IPV6_JUMBO_OPTION 0xc204 /* type and length */
#define IPV6_EXTENSIONS_MAX 16
#define IPV6_HEADERS_MAX 2048 /* octets, all extension headers with them */

/* Bits of ipv6ExtensionHeaders (IANA element 64, with RFC errata 1738). */
enum extension_bits {
	EXTENSION_DESTINATION_OPTIONS = 1 << 0,
	EXTENSION_HOP_BY_HOP = 1 << 1,
	EXTENSION_FIRST_FRAGMENT = 1 << 4,
	EXTENSION_ROUTING = 1 << 5,
	EXTENSION_LATER_FRAGMENT = 1 << 6,
	EXTENSION_MOBILITY = 1 << 12,
	EXTENSION_ENCAPSULATING_SECURITY = 1 << 13,
	EXTENSION_AUTHENTICATION = 1 << 14,
	EXTENSION_PAYLOAD_COMPRESSION = 1 << 15,
};

/* Whether the buffer can hold more than a 16-bit length says: super-packets do, and captures of them. */
static __always_inline int may_exceed_length_field(struct __sk_buff *skb)
{
	return skb->gso_segs > 1 || is_capture();
}

static __always_inline void map_ipv4(__u8 mapped[16], __be32 address)
{
	__u32 *words = (__u32 *)mapped;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = address;
}

/* The set of the options' numbers (RFC 791 section 3.1); walked to the first that cannot be. */
SUBPROGRAM int ipv4_options_at(struct __sk_buff *skb, __u32 offset, __u32 length)
{
	__u8 options[OPTIONS_ROOM] = {};
	volatile __u8 next = 0; /* as in tcp_options_at */
	__u32 seen = 0;

	if (!load_options(skb, offset, options, length))
		return 0;
	for (int turn = 0; turn < OPTIONS_MAX; turn++) {
		__u32 at = next, size = 1;
		__u8 type;

		if (at >= length)
			break;
		type = options[at & 63];
		seen |= 1u << (type & IPV4_OPTION_NUMBER);
		if (type == IPV4_OPTION_END)
			break;
		if (type != IPV4_OPTION_NOP) {
			size = options[(at + 1) & 63];
			if (size < 2 || at + size > length)
				break;
		}
		next = at + size;
	}
	return seen;
}

static __always_inline __u32 parse_ipv4(struct __sk_buff *skb, struct packet *packet)
{
	__u32 why, offset = bounded(packet->network_offset), available = packet->end - offset;
	struct iphdr *ip = header_at(skb, offset, sizeof(*ip), &why);
	__u16 fragment;

	if (RARELY(!ip))
		return why;
	packet->ip_header_length = ip->ihl * 4;
	packet->ip_length = bpf_ntohs(ip->tot_len);
	if (RARELY(packet->ip_length == 0) && may_exceed_length_field(skb))
		packet->ip_length = available;
	if (RARELY(ip->version != 4 || packet->ip_header_length < sizeof(*ip) ||
		   packet->ip_length < packet->ip_header_length || packet->ip_length > available))
		return IGNORED_BAD_IP_HEADER;
	map_ipv4(packet->key.source_address, ip->saddr);
	map_ipv4(packet->key.destination_address, ip->daddr);
	packet->key.ip_version = 4;
	packet->key.protocol = ip->protocol;
	packet->class_of_service = ip->tos;
	packet->ttl = ip->ttl;
	if (SETTING(features_packets))
		packet->fragment_field = bpf_ntohs(ip->frag_off);
	fragment = ip->frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS);
	if (RARELY(fragment)) {
		packet->identification = bpf_ntohs(ip->id);
		packet->fragment =
			fragment & bpf_htons(IPV4_FRAGMENT_OFFSET) ? FRAGMENT_LATER : FRAGMENT_FIRST;
	}
	if (RARELY(packet->ip_header_length > sizeof(*ip))) {
		if (offset + packet->ip_header_length > readable_length(skb))
			return IGNORED_TRUNCATED;
		packet->ipv4_options =
			ipv4_options_at(skb, offset + sizeof(*ip), packet->ip_header_length - sizeof(*ip));
	}
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

static __always_inline __u32 ipv6_extension_bit(__u8 kind, __u8 fragment)
{
	switch (kind) {
	case IPV6_HOP_BY_HOP:
		return EXTENSION_HOP_BY_HOP;
	case IPV6_ROUTING:
		return EXTENSION_ROUTING;
	case IPV6_DESTINATION_OPTIONS:
		return EXTENSION_DESTINATION_OPTIONS;
	case IPV6_MOBILITY:
		return EXTENSION_MOBILITY;
	case IPV6_FRAGMENT:
		return fragment == FRAGMENT_LATER ? EXTENSION_LATER_FRAGMENT : EXTENSION_FIRST_FRAGMENT;
	case IPV6_AUTHENTICATION:
		return EXTENSION_AUTHENTICATION;
	case IPV6_ENCAPSULATING_SECURITY:
		return EXTENSION_ENCAPSULATING_SECURITY;
	case IPV6_PAYLOAD_COMPRESSION:
		return EXTENSION_PAYLOAD_COMPRESSION;
	default:
		return 0;
	}
}

static __always_inline void note_fragment_header(struct packet *packet, const __be16 header[4])
{
	__u16 offset_and_flags = bpf_ntohs(header[1]);

	packet->identification = bpf_ntohl(*(__be32 *)&header[2]);
	packet->fragment_field = offset_and_flags >> 3;
	if (offset_and_flags & IPV6_MORE_FRAGMENTS)
		packet->fragment_field |= IPV4_MORE_FRAGMENTS;
	if (offset_and_flags >> 3)
		packet->fragment = FRAGMENT_LATER;
	else
		packet->fragment = offset_and_flags & IPV6_MORE_FRAGMENTS ? FRAGMENT_FIRST : FRAGMENT_NONE;
}

/*
 * What a payload length of 0 means.  A BIG TCP buffer carries the jumbo option
 * as a jumbogram does (RFC 2675), but its segments will not have that header.
 */
static __always_inline __u32 ipv6_length_beyond_field(struct __sk_buff *skb, struct packet *packet,
						      __u32 offset, __u32 available)
{
	__be16 header[4];

	if (packet->key.protocol == IPV6_NO_NEXT_HEADER)
		return sizeof(struct ipv6hdr);
	if (packet->key.protocol == IPV6_HOP_BY_HOP &&
	    load_bytes(skb, offset + sizeof(struct ipv6hdr), header, sizeof(header)) &&
	    header[1] == bpf_htons(IPV6_JUMBO_OPTION)) {
		if (skb->gso_segs > 1)
			packet->jumbo_header_length = sizeof(header);
		return sizeof(struct ipv6hdr) + bpf_ntohl(*(__be32 *)&header[2]);
	}
	return may_exceed_length_field(skb) ? available : sizeof(struct ipv6hdr);
}

/* One header, at the end of those already walked.  Apart, so that the verifier walks it once and not at every turn. */
SUBPROGRAM int walk_extension(struct __sk_buff *skb, struct packet *packet)
{
	__u32 at, length;
	__be16 header[4];
	__u8 kind;

	if (!packet)
		return IGNORED_NOT_IP;
	kind = packet->key.protocol;
	at = packet->ip_header_length;
	if (at > IPV6_HEADERS_MAX)
		return IGNORED_TOO_MANY_HEADERS;
	if (at + sizeof(header) > packet->ip_length ||
	    !load_bytes(skb, bounded(packet->network_offset) + at, header, sizeof(header)))
		return IGNORED_TRUNCATED;
	length = ipv6_extension_length(kind, bpf_ntohs(header[0]) & 0xff);
	if (at + length > packet->ip_length)
		return IGNORED_BAD_IP_HEADER;
	if (kind == IPV6_FRAGMENT)
		note_fragment_header(packet, header);
	if (!(kind == IPV6_HOP_BY_HOP && packet->jumbo_header_length))
		packet->ipv6_extension_headers |= ipv6_extension_bit(kind, packet->fragment);
	packet->key.protocol = bpf_ntohs(header[0]) >> 8;
	packet->ip_header_length = at + length;
	return PARSED;
}

static __always_inline __u32 walk_extensions(struct __sk_buff *skb, struct packet *packet)
{
	for (int n = 0; n < IPV6_EXTENSIONS_MAX; n++) {
		__u32 why;

		if (!ipv6_extension_length(packet->key.protocol, 0) || packet->fragment == FRAGMENT_LATER)
			break;
		why = walk_extension(skb, packet);
		if (why != PARSED)
			return why;
	}
	if (packet->ip_header_length > IPV6_HEADERS_MAX ||
	    (ipv6_extension_length(packet->key.protocol, 0) && packet->fragment != FRAGMENT_LATER))
		return IGNORED_TOO_MANY_HEADERS;
	if (is_capture() && packet->network_offset + packet->ip_header_length > readable_length(skb))
		return IGNORED_TRUNCATED;
	return PARSED;
}

static __always_inline __u32 parse_ipv6(struct __sk_buff *skb, struct packet *packet)
{
	__u32 why, first_word, offset = bounded(packet->network_offset), available = packet->end - offset;
	struct ipv6hdr *ip = header_at(skb, offset, sizeof(*ip), &why);

	if (RARELY(!ip))
		return why;
	packet->ip_header_length = sizeof(*ip);
	packet->ip_length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	packet->key.protocol = ip->nexthdr;
	if (RARELY(ip->payload_len == 0))
		packet->ip_length = ipv6_length_beyond_field(skb, packet, offset, available);
	first_word = bpf_ntohl(*(__be32 *)ip);
	if (RARELY(first_word >> 28 != IPV6_VERSION || packet->ip_length < sizeof(*ip) ||
		   packet->ip_length > available))
		return IGNORED_BAD_IP_HEADER;
	__builtin_memcpy(packet->key.source_address, &ip->saddr, 16);
	__builtin_memcpy(packet->key.destination_address, &ip->daddr, 16);
	packet->key.ip_version = IPV6_VERSION;
	packet->class_of_service = first_word >> 20;
	packet->flow_label = first_word & 0xfffff;
	packet->ttl = ip->hop_limit;
	if (RARELY(ipv6_extension_length(packet->key.protocol, 0))) {
		why = walk_extensions(skb, packet);
		if (why != PARSED)
			return why;
	}
	/* What ends the walk and hides the transport is an extension header as well. */
	if (packet->fragment != FRAGMENT_LATER)
		packet->ipv6_extension_headers |= ipv6_extension_bit(packet->key.protocol, FRAGMENT_NONE);
	return PARSED;
}

static __always_inline __u32 parse_network(struct __sk_buff *skb, struct packet *packet)
{
	if (packet->ether_type == bpf_htons(ETH_P_IP))
		return parse_ipv4(skb, packet);
	if (packet->ether_type == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(skb, packet);
	return IGNORED_NOT_IP;
}

#endif /* NETWORK_BPF_H */
