/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The transport header: ports or what stands for them, and what TCP needs.  Rules:
 *
 * - A header lies within the IP length, whatever the buffer holds behind it.
 * - What cannot be right is no flow: it is counted by the reason.
 * - A first fragment may end within its transport header (RFC 1858).  That is
 *   nobody's error here: it counts with ports 0, as its later fragments will.
 * - A capture may have cut the header off.  Ports are read if they are there,
 *   and the packet counts all the same.
 */
#ifndef TRANSPORT_BPF_H
#define TRANSPORT_BPF_H

#define TCP_CONTROL_BITS 0x0fff /* RFC 9293: 4 reserved bits and 8 flags */
#define TCP_FIN 0x001
#define TCP_SYN 0x002
#define TCP_RST 0x004
#define TCP_ACK 0x010
#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_MSS 2
#define TCP_OPTION_WINDOW_SCALE 3
#define SCTP_LENGTH 12
#define DCCP_LENGTH 12
#define ICMP_LENGTH 4
#define ICMP_IDENTIFIED_LENGTH 6
#define ESP_LENGTH 8
#define AH_LENGTH 12
#define AH_SPI_OFFSET 4
#define CUT_BY_CAPTURE (IGNORED_REASONS + 1)

/*
 * All options of a SYN, RFC 9293 section 3.1: walked to the end of the list, or
 * to the first that cannot be.  Of interest are MSS and window scale; a scale
 * above 14 counts as 14 (RFC 7323 section 2.3).  MSS << 8 | scale.
 */
SUBPROGRAM int tcp_options_at(struct __sk_buff *skb, __u32 offset, __u32 length)
{
	__u8 options[OPTIONS_ROOM] = {};
	/* Read back from the stack, the verifier forgets its range: one state a turn instead of hundreds. */
	volatile __u8 next = 0;
	__u32 maximum_segment_size = 0, window_scale = TCP_NO_WINDOW_SCALE;

	if (!load_options(skb, offset, options, length))
		return window_scale;
	for (int turn = 0; turn < OPTIONS_MAX; turn++) {
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
			maximum_segment_size = value << 8 | options[(at + 3) & 63];
		if (kind == TCP_OPTION_WINDOW_SCALE && size == 3)
			window_scale = value > 14 ? 14 : value;
		next = at + size;
	}
	return maximum_segment_size << 8 | window_scale;
}

/* Only of a capture can it be missing within the IP length. */
static __always_inline void *transport_header_at(struct __sk_buff *skb, __u32 offset, __u32 length,
						 __u32 *why)
{
	void *header = header_at(skb, offset, length, why);

	if (!header && is_capture() && *why == IGNORED_TRUNCATED)
		*why = CUT_BY_CAPTURE;
	return header;
}

static __always_inline void note_ports(struct packet *packet, __be16 source, __be16 destination)
{
	packet->key.source_port = bpf_ntohs(source);
	packet->key.destination_port = bpf_ntohs(destination);
}

static __always_inline __u32 parse_tcp(struct __sk_buff *skb, struct packet *packet, __u32 offset, __u32 room)
{
	__u32 why, header_length;
	struct tcphdr *tcp;

	if (RARELY(room < sizeof(*tcp)))
		return IGNORED_TRUNCATED;
	tcp = transport_header_at(skb, offset, sizeof(*tcp), &why);
	if (RARELY(!tcp))
		return why;
	header_length = tcp->doff * 4;
	if (RARELY(header_length < sizeof(*tcp)))
		return IGNORED_BAD_TRANSPORT_HEADER;
	if (RARELY(header_length > room)) {
		if (packet->fragment != FRAGMENT_FIRST)
			return IGNORED_BAD_TRANSPORT_HEADER;
		header_length = room; /* its options go on in the next fragment */
	}
	packet->transport_header_length = header_length;
	note_ports(packet, tcp->source, tcp->dest);
	packet->sequence = bpf_ntohl(tcp->seq);
	packet->acknowledgement = bpf_ntohl(tcp->ack_seq);
	packet->window = bpf_ntohs(tcp->window);
	packet->tcp_control_bits = bpf_ntohs(((__be16 *)tcp)[6]) & TCP_CONTROL_BITS;
	if (RARELY(packet->tcp_control_bits & TCP_SYN)) {
		__u32 options = tcp_options_at(skb, offset + sizeof(*tcp), header_length - sizeof(*tcp));

		packet->maximum_segment_size = options >> 8;
		packet->window_scale = options;
	}
	return PARSED;
}

/* UDP, UDP-Lite, SCTP, DCCP: all begin with the ports. */
static __always_inline __u32 parse_ports(struct __sk_buff *skb, struct packet *packet, __u32 offset,
					 __u32 room, __u32 header_length)
{
	__u32 why;
	__be16 *ports;

	if (RARELY(room < header_length))
		return IGNORED_TRUNCATED;
	ports = transport_header_at(skb, offset, header_length, &why);
	if (RARELY(!ports))
		return why;
	packet->transport_header_length = header_length;
	note_ports(packet, ports[0], ports[1]);
	if (SETTING(features_packets) && packet->key.protocol == IPPROTO_UDP)
		packet->udp_length = bpf_ntohs(ports[2]);
	return PARSED;
}

/* ESP and AH: the SPI stands in the key's ports (RFC 4303 section 2.1, RFC 4302 section 2.4). */
static __always_inline __u32 parse_spi(struct __sk_buff *skb, struct packet *packet, __u32 offset, __u32 room,
				       __u32 header_length, __u32 spi_offset)
{
	__u32 why;
	__be16 *spi;

	if (room < header_length)
		return IGNORED_TRUNCATED;
	spi = transport_header_at(skb, offset + spi_offset, sizeof(__be32), &why);
	if (!spi)
		return why;
	packet->transport_header_length = header_length;
	note_ports(packet, spi[0], spi[1]);
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

	if (room < ICMP_LENGTH)
		return IGNORED_TRUNCATED;
	icmp = transport_header_at(skb, offset, ICMP_LENGTH, &why);
	if (!icmp)
		return why;
	packet->transport_header_length = ICMP_LENGTH;
	packet->icmp_type = icmp[0];
	packet->icmp_code = icmp[1];
	query = icmp_query(packet->key.protocol, packet->icmp_type);
	packet->key.destination_port = query ? query << 8 : packet->icmp_type << 8 | packet->icmp_code;
	if (icmp_has_identifier(packet->key.protocol, query) && room >= ICMP_IDENTIFIED_LENGTH) {
		__be16 identifier;

		if (load_bytes(skb, offset + ICMP_LENGTH, &identifier, sizeof(identifier)))
			packet->key.source_port = bpf_ntohs(identifier);
	}
	return PARSED;
}

static __always_inline __u32 parse_transport_at(struct __sk_buff *skb, struct packet *packet, __u32 offset,
						__u32 room)
{
	switch (packet->key.protocol) {
	case IPPROTO_TCP:
		return parse_tcp(skb, packet, offset, room);
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		return parse_ports(skb, packet, offset, room, sizeof(struct udphdr));
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return parse_icmp(skb, packet, offset, room);
	case IPPROTO_SCTP:
		return parse_ports(skb, packet, offset, room, SCTP_LENGTH);
	case IPPROTO_DCCP:
		return parse_ports(skb, packet, offset, room, DCCP_LENGTH);
	case IPPROTO_ESP:
		return parse_spi(skb, packet, offset, room, ESP_LENGTH, 0);
	case IPPROTO_AH:
		return parse_spi(skb, packet, offset, room, AH_LENGTH, AH_SPI_OFFSET);
	default:
		return PARSED;
	}
}

static __always_inline void read_what_was_captured(struct __sk_buff *skb, struct packet *packet, __u32 offset)
{
	__be16 words[2];

	packet->unread = 1;
	if (packet->key.protocol == IPPROTO_AH)
		offset += AH_SPI_OFFSET;
	if (!load_bytes(skb, offset, words, sizeof(words))) {
		packet->fragment = FRAGMENT_NONE; /* nothing to remember of it */
		return;
	}
	if (packet->key.protocol != IPPROTO_ICMP && packet->key.protocol != IPPROTO_ICMPV6)
		note_ports(packet, words[0], words[1]);
}

static __always_inline __u32 parse_transport(struct __sk_buff *skb, struct packet *packet)
{
	__u32 offset = bounded(packet->network_offset + packet->ip_header_length);
	__u32 room = packet->ip_length - packet->ip_header_length;
	__u32 why;

	if (RARELY(packet->fragment == FRAGMENT_LATER)) {
		packet->unread = 1;
		return PARSED;
	}
	why = parse_transport_at(skb, packet, offset, room);
	if (RARELY(why == IGNORED_TRUNCATED) && packet->fragment == FRAGMENT_FIRST) {
		packet->unread = 1;
		packet->orphan = 1;
		return PARSED;
	}
	if (why != CUT_BY_CAPTURE)
		return why;
	read_what_was_captured(skb, packet, offset);
	return PARSED;
}

#endif /* TRANSPORT_BPF_H */
