/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From the first byte of a frame to what it carries.  Rules:
 *
 * - VLAN tags are the inline ones and the one that hardware took off, which is
 *   the outermost.  The first two are kept, more are walked.
 * - LLC/SNAP, MPLS label stacks and PPPoE sessions are walked to the IP packet.
 *   Of a label stack the top is kept.
 */
#ifndef LINK_BPF_H
#define LINK_BPF_H

#define VLAN_TAGS_MAX 4
#define VLAN_TAG_LENGTH 4
#define VLAN_ID_MASK 0x0fff
#define ETH_P_QINQ_OLD 0x9100
#define LLC_SNAP_LENGTH 8
#define MPLS_LABELS_MAX 8
#define MPLS_LABEL_LENGTH 4
#define MPLS_BOTTOM 0x100 /* of the 32 bits of an entry */
#define PPPOE_LENGTH 8 /* with the PPP protocol */
#define PPP_IPV4 0x0021
#define PPP_IPV6 0x0057

static __always_inline int is_vlan_tag(__u16 ether_type)
{
	return ether_type == bpf_htons(ETH_P_8021Q) || ether_type == bpf_htons(ETH_P_8021AD) ||
	       ether_type == bpf_htons(ETH_P_QINQ_OLD);
}

static __always_inline int is_ip(__u16 ether_type)
{
	return ether_type == bpf_htons(ETH_P_IP) || ether_type == bpf_htons(ETH_P_IPV6);
}

static __always_inline void note_vlan(struct packet *packet, __u16 tag_control, int nth)
{
	if (nth == 0)
		packet->key.vlan_id = tag_control & VLAN_ID_MASK;
	if (nth == 1)
		packet->key.customer_vlan_id = tag_control & VLAN_ID_MASK;
}

static __always_inline __u32 walk_vlan_tags(struct __sk_buff *skb, struct packet *packet, int outer)
{
	volatile __u32 walked = packet->network_offset; /* read back, the verifier forgets its value */
	__u16 ether_type = packet->ether_type;
	int taken_off = outer && skb->vlan_present;

	for (int tag = 0; tag < VLAN_TAGS_MAX && is_vlan_tag(ether_type); tag++) {
		__be16 vlan[2];

		if (tag + taken_off == VLAN_TAGS_MAX)
			return IGNORED_TOO_MANY_HEADERS;

		if (!load_bytes(skb, walked, vlan, sizeof(vlan)))
			return IGNORED_TRUNCATED;
		if (outer)
			note_vlan(packet, bpf_ntohs(vlan[0]), tag + taken_off);
		ether_type = vlan[1];
		walked += VLAN_TAG_LENGTH;
	}
	packet->ether_type = ether_type;
	packet->network_offset = walked;
	return is_vlan_tag(ether_type) ? IGNORED_TOO_MANY_HEADERS : PARSED;
}

/* IP is what the first nibble says (RFC 4928 section 3): a label stack has no type field. */
static __always_inline __u32 walk_mpls_labels(struct __sk_buff *skb, struct packet *packet)
{
	volatile __u32 walked = packet->network_offset;
	__u32 entry = 0;
	__u8 first;

	for (int label = 0; label < MPLS_LABELS_MAX && !(entry & MPLS_BOTTOM); label++) {
		__be32 word;

		if (!load_bytes(skb, walked, &word, sizeof(word)))
			return IGNORED_TRUNCATED;
		entry = bpf_ntohl(word);
		if (label == 0)
			packet->mpls_top_label = entry >> 8;
		walked += MPLS_LABEL_LENGTH;
	}
	if (!(entry & MPLS_BOTTOM))
		return IGNORED_TOO_MANY_HEADERS;
	if (!load_bytes(skb, walked, &first, sizeof(first)))
		return IGNORED_TRUNCATED;
	packet->network_offset = walked;
	packet->ether_type = first >> 4 == 4   ? bpf_htons(ETH_P_IP)
			     : first >> 4 == 6 ? bpf_htons(ETH_P_IPV6)
					       : 0;
	return PARSED;
}

static __always_inline __u32 walk_pppoe(struct __sk_buff *skb, struct packet *packet)
{
	__be16 protocol;

	if (!load_bytes(skb, packet->network_offset + PPPOE_LENGTH - 2, &protocol, sizeof(protocol)))
		return IGNORED_TRUNCATED;
	packet->network_offset += PPPOE_LENGTH;
	packet->ether_type = protocol == bpf_htons(PPP_IPV4)   ? bpf_htons(ETH_P_IP)
			     : protocol == bpf_htons(PPP_IPV6) ? bpf_htons(ETH_P_IPV6)
							       : 0;
	return PARSED;
}

/* A length in place of the EtherType: IEEE 802 section 12.2, RFC 1042. */
static __always_inline __u32 walk_llc_snap(struct __sk_buff *skb, struct packet *packet)
{
	__be16 header[LLC_SNAP_LENGTH / 2];

	if (!load_bytes(skb, packet->network_offset, header, sizeof(header)))
		return IGNORED_TRUNCATED;
	if (header[0] != bpf_htons(0xaaaa) || header[1] != bpf_htons(0x0300) || header[2])
		return IGNORED_NOT_IP;
	packet->network_offset += LLC_SNAP_LENGTH;
	packet->ether_type = header[3];
	return PARSED;
}

/*
 * From the EtherType in `packet` on to the IP packet.  `outer`: of the frame
 * itself and not of one in a tunnel, whose tags are not the flow's.
 */
SUBPROGRAM int walk_link_layer(struct __sk_buff *skb, struct packet *packet, int outer)
{
	__u32 why = PARSED;

	if (!packet)
		return IGNORED_NOT_IP;
	if (is_vlan_tag(packet->ether_type))
		why = walk_vlan_tags(skb, packet, outer);
	if (why == PARSED && packet->ether_type == bpf_htons(ETH_P_PPP_SES))
		return walk_pppoe(skb, packet);
	if (why == PARSED && bpf_ntohs(packet->ether_type) < ETH_P_802_3_MIN)
		why = walk_llc_snap(skb, packet);
	if (why != PARSED)
		return why;
	if (packet->ether_type == bpf_htons(ETH_P_MPLS_UC) || packet->ether_type == bpf_htons(ETH_P_MPLS_MC))
		return walk_mpls_labels(skb, packet);
	return PARSED;
}

static __always_inline __u32 parse_ethernet(struct __sk_buff *skb, struct packet *packet)
{
	__u32 why;
	struct ethhdr *ethernet = header_at(skb, 0, sizeof(*ethernet), &why);

	if (RARELY(!ethernet))
		return why;
	packet->ether_type = ethernet->h_proto;
	packet->network_offset = sizeof(*ethernet);
	if (RARELY(skb->vlan_present)) {
		packet->key.vlan_id = skb->vlan_tci & VLAN_ID_MASK;
		packet->buffer_length += VLAN_TAG_LENGTH;
	}
	return LIKELY(is_ip(packet->ether_type)) ? PARSED : walk_link_layer(skb, packet, 1);
}

#endif /* LINK_BPF_H */
