/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Into a tunnel: from the packet outside to the one inside.  Rules:
 *
 * - A tunnel is entered only where all of it is understood and the packet inside
 *   is whole.  Else the packet outside has its own flow, as without decapsulation.
 * - Of nested tunnels the innermost is kept.
 * - Flows of the same addresses in different tunnels are different flows.  What
 *   tells tunnels apart is the same both ways: kind and identifier, but not a
 *   GTP-U TEID; and the outer addresses where there may be no identifier.
 * - A super-packet repeats all headers, those inside as well; so it is looked
 *   into even where flows are the outer ones.
 */
#ifndef TUNNEL_BPF_H
#define TUNNEL_BPF_H

#define TUNNEL_LEVELS 4
#define GRE_CHECKSUM 0x8000
#define GRE_KEY 0x2000
#define GRE_SEQUENCE 0x1000
#define GRE_KNOWN_FLAGS (GRE_CHECKSUM | GRE_KEY | GRE_SEQUENCE)
#define GRE_LENGTH 4
#define VXLAN_PORT 4789
#define VXLAN_PORT_LINUX 8472 /* what Linux took before there was one */
#define VXLAN_VNI_HOLDS 0x08000000
#define VXLAN_LENGTH 8
#define GENEVE_PORT 6081
#define GENEVE_LENGTH 8
#define GTP_U_PORT 2152
#define GTP_U_LENGTH 8
#define GTP_U_VERSION_1 0x30 /* version and protocol type */
#define GTP_U_VERSION_MASK 0xf0
#define GTP_U_OPTIONAL 0x07
#define GTP_U_EXTENSION 0x04
#define GTP_U_EXTENSIONS_MAX 4
#define GTP_U_DATA 255

#define ETHERNET_INSIDE bpf_htons(ETH_P_TEB)
#define NOT_UNDERSTOOD 0xffffffff

static __always_inline int leads_to_tunnel(const struct packet *packet)
{
	if (packet->unread)
		return 0;
	switch (packet->key.protocol) {
	case IPPROTO_IPIP:
	case IPPROTO_IPV6:
	case IPPROTO_GRE:
		return 1;
	case IPPROTO_UDP:
		return packet->key.destination_port == VXLAN_PORT ||
		       packet->key.destination_port == VXLAN_PORT_LINUX ||
		       packet->key.destination_port == GENEVE_PORT ||
		       packet->key.destination_port == GTP_U_PORT;
	default:
		return 0;
	}
}

/* The readers of a tunnel's header: octets of it, or NOT_UNDERSTOOD. */

/* RFC 2784, RFC 2890. */
static __always_inline __u32 read_gre(struct __sk_buff *skb, struct tunnel_scratch *scratch, __u32 offset)
{
	__be16 header[2];
	__u32 length = GRE_LENGTH;
	__u16 flags;

	if (!load_bytes(skb, offset, header, sizeof(header)))
		return NOT_UNDERSTOOD;
	flags = bpf_ntohs(header[0]);
	if (flags & ~GRE_KNOWN_FLAGS)
		return NOT_UNDERSTOOD;
	scratch->inner.ether_type = header[1];
	scratch->candidate.type = TUNNEL_GRE;
	if (flags & GRE_CHECKSUM)
		length += 4;
	if (flags & GRE_KEY) {
		__be32 key;

		if (!load_bytes(skb, offset + length, &key, sizeof(key)))
			return NOT_UNDERSTOOD;
		scratch->candidate.identifier = bpf_ntohl(key);
		scratch->candidate.identified = 1;
		length += 4;
	}
	if (flags & GRE_SEQUENCE)
		length += 4;
	return length;
}

/* RFC 7348 section 5. */
static __always_inline __u32 read_vxlan(struct __sk_buff *skb, struct tunnel_scratch *scratch, __u32 offset)
{
	__be32 header[2];

	if (!load_bytes(skb, offset, header, sizeof(header)) || !(header[0] & bpf_htonl(VXLAN_VNI_HOLDS)))
		return NOT_UNDERSTOOD;
	scratch->inner.ether_type = ETHERNET_INSIDE;
	scratch->candidate.type = TUNNEL_VXLAN;
	scratch->candidate.identifier = bpf_ntohl(header[1]) >> 8;
	scratch->candidate.identified = 1;
	return VXLAN_LENGTH;
}

/* RFC 8926 section 3.4. */
static __always_inline __u32 read_geneve(struct __sk_buff *skb, struct tunnel_scratch *scratch, __u32 offset)
{
	__be32 header[2];
	__u32 first;

	if (!load_bytes(skb, offset, header, sizeof(header)))
		return NOT_UNDERSTOOD;
	first = bpf_ntohl(header[0]);
	if (first >> 30)
		return NOT_UNDERSTOOD;
	scratch->inner.ether_type = bpf_htons(first & 0xffff);
	scratch->candidate.type = TUNNEL_GENEVE;
	scratch->candidate.identifier = bpf_ntohl(header[1]) >> 8;
	scratch->candidate.identified = 1;
	return GENEVE_LENGTH + (first >> 24 & 0x3f) * 4;
}

/* 3GPP TS 29.281 section 5: an extension header is a length in words, and ends with the type of the next. */
static __always_inline __u32 read_gtp_u(struct __sk_buff *skb, struct tunnel_scratch *scratch, __u32 offset)
{
	volatile __u32 length = GTP_U_LENGTH;
	__be32 header[2];
	__u32 first;
	__u8 next = 0, version;

	if (!load_bytes(skb, offset, header, sizeof(header)))
		return NOT_UNDERSTOOD;
	first = bpf_ntohl(header[0]);
	if ((first >> 24 & GTP_U_VERSION_MASK) != GTP_U_VERSION_1 || (first >> 16 & 0xff) != GTP_U_DATA)
		return NOT_UNDERSTOOD;
	scratch->candidate.type = TUNNEL_GTP_U;
	scratch->candidate.identifier = bpf_ntohl(header[1]);
	scratch->candidate.identified = 1;
	if (first >> 24 & GTP_U_OPTIONAL) {
		if (!load_bytes(skb, offset + GTP_U_LENGTH + 3, &next, sizeof(next)))
			return NOT_UNDERSTOOD;
		length += 4;
	}
	if (!(first >> 24 & GTP_U_EXTENSION))
		next = 0;
	for (int extension = 0; extension < GTP_U_EXTENSIONS_MAX && next; extension++) {
		__u32 at = length;
		__u8 words;

		if (!load_bytes(skb, offset + at, &words, sizeof(words)) || !words)
			return NOT_UNDERSTOOD;
		at = (at + words * 4) & HEADERS_MAX;
		if (!load_bytes(skb, offset + at - 1, &next, sizeof(next)))
			return NOT_UNDERSTOOD;
		length = at;
	}
	if (next || !load_bytes(skb, offset + length, &version, sizeof(version)))
		return NOT_UNDERSTOOD;
	scratch->inner.ether_type = version >> 4 == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	return length;
}

static __always_inline __u32 read_tunnel(struct __sk_buff *skb, struct tunnel_scratch *scratch,
					 const struct packet *packet, __u32 offset)
{
	switch (packet->key.protocol) {
	case IPPROTO_GRE:
		return read_gre(skb, scratch, offset);
	case IPPROTO_IPIP:
		scratch->inner.ether_type = bpf_htons(ETH_P_IP);
		scratch->candidate.type = packet->key.ip_version == 4 ? TUNNEL_IPIP : TUNNEL_FOUR_IN_6;
		return 0;
	case IPPROTO_IPV6:
		scratch->inner.ether_type = bpf_htons(ETH_P_IPV6);
		scratch->candidate.type = packet->key.ip_version == 4 ? TUNNEL_SIX_IN_4 : TUNNEL_SIX_IN_6;
		return 0;
	default:
		break;
	}
	switch (packet->key.destination_port) {
	case GENEVE_PORT:
		return read_geneve(skb, scratch, offset);
	case GTP_U_PORT:
		return read_gtp_u(skb, scratch, offset);
	default:
		return read_vxlan(skb, scratch, offset);
	}
}

/* The finaliser of MurmurHash3 (public domain), whole: neighbouring addresses must not show in a sum of two. */
static __always_inline __u64 mixed(__u64 value)
{
	value ^= value >> 33;
	value *= 0xff51afd7ed558ccdULL;
	value ^= value >> 33;
	value *= 0xc4ceb9fe1a85ec53ULL;
	return value ^ value >> 33;
}

static __always_inline __u64 hash_of_address(const __u8 address[16])
{
	const __u64 *words = (const __u64 *)address;

	return mixed(mixed(words[0]) ^ words[1]);
}

/* `outer`: what tells flows apart outside, VLANs or another tunnel. */
static __always_inline __u32 hash_of_tunnel(const struct tunnel *tunnel, __u32 outer)
{
	__u64 hash = mixed((__u64)outer << 16 | tunnel->identified << 8 | tunnel->type);

	if (tunnel->type != TUNNEL_GTP_U)
		hash = mixed(hash ^ tunnel->identifier);
	if (tunnel->type != TUNNEL_VXLAN && tunnel->type != TUNNEL_GENEVE)
		hash ^= hash_of_address(tunnel->source) + hash_of_address(tunnel->destination);
	return mixed(hash);
}

/* What the packet inside does not share with the one outside. */
static __always_inline void begin_inner(struct packet *inner)
{
	inner->key.source_port = 0;
	inner->key.destination_port = 0;
	inner->transport_header_length = 0;
	inner->ipv4_options = 0;
	inner->ipv6_extension_headers = 0;
	inner->flow_label = 0;
	inner->fragment = FRAGMENT_NONE;
	inner->fragment_field = 0;
	inner->jumbo_header_length = 0;
	inner->icmp_type = 0;
	inner->icmp_code = 0;
}

static __always_inline int parse_inner(struct __sk_buff *skb, struct packet *inner)
{
	if (inner->ether_type == ETHERNET_INSIDE) {
		__be16 ether_type;

		if (!load_bytes(skb, inner->network_offset + 2 * ETH_ALEN, &ether_type, sizeof(ether_type)))
			return 0;
		inner->ether_type = ether_type;
		inner->network_offset += ETH_HLEN;
		if (!is_ip(ether_type) && walk_link_layer(skb, inner, 0) != PARSED)
			return 0;
	}
	if (inner->network_offset > HEADERS_MAX / 2 || inner->network_offset > inner->end)
		return 0;
	return parse_network(skb, inner) == PARSED && parse_transport(skb, inner) == PARSED;
}

/*
 * Looks into the tunnel that `packet` leads to; whether that could be read.  With
 * decapsulation `packet` is the one inside afterwards.
 */
SUBPROGRAM int enter_tunnel(struct __sk_buff *skb, struct packet *packet)
{
	struct tunnel_scratch *scratch;
	struct packet *inner;
	__u32 zero = 0, offset, length;

	scratch = map_lookup(tunnel_scratch, &zero);
	if (!packet || !scratch)
		return 0;
	inner = &scratch->inner;
	*inner = *packet;
	begin_inner(inner);
	scratch->candidate.identifier = 0;
	scratch->candidate.identified = 0;
	/* Of the outer transports only UDP has a header: a tunnel's own begins behind it, as GRE's does behind IP. */
	offset = packet->network_offset + packet->ip_header_length + packet->transport_header_length;
	offset = bounded(offset);
	length = read_tunnel(skb, scratch, packet, offset);
	if (length == NOT_UNDERSTOOD)
		return 0;
	inner->network_offset = offset + length;
	inner->end = packet->network_offset + packet->ip_length;
	if (!parse_inner(skb, inner))
		return 0;
	if (!SETTING(decap)) {
		packet->tunnel_headers = inner->network_offset - packet->network_offset +
					 inner->ip_header_length + inner->transport_header_length;
		return 1;
	}
	__builtin_memcpy(scratch->candidate.source, packet->key.source_address, 16);
	__builtin_memcpy(scratch->candidate.destination, packet->key.destination_address, 16);
	if (!packet->key.in_tunnel) {
		scratch->candidate.vlan_id = packet->key.vlan_id;
		scratch->candidate.customer_vlan_id = packet->key.customer_vlan_id;
	}
	inner->key.tunnel = hash_of_tunnel(&scratch->candidate, packet->key.tunnel);
	inner->key.in_tunnel = 1;
	scratch->tunnel = scratch->candidate;
	if (inner->fragment)
		settle_fragment(inner, now_ns(skb));
	*packet = *inner;
	return 1;
}

#endif /* TUNNEL_BPF_H */
