/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is known of the packet in hand, and how its bytes are read.  Rules:
 *
 * - Offsets count from the first byte of the buffer.  A header is read only
 *   where it lies within the buffer; where it is not in its linear part, it is
 *   pulled there.
 * - `end` is where the packet ends on the wire.  A capture may hold less (the
 *   snap length), a live buffer never does.
 */
#ifndef PACKET_BPF_H
#define PACKET_BPF_H

#define HEADERS_MAX 0xfff /* octets from the first byte to the last header's; a mask */
#define PARSED IGNORED_REASONS /* not a reason: the packet has its flow */

struct packet {
	struct flow_key key;
	__u64 now_mono_ns;
	__u64 place; /* in the capture; 0 where there is none */
	__u64 wire_ip_octets;
	__u64 wire_layer2_octets;
	__u32 network_offset; /* of the IP header */
	__u32 end;
	__u32 ip_header_length; /* with options and extension headers */
	__u32 transport_header_length;
	__u32 ip_length; /* of the whole super-packet */
	__u32 buffer_length; /* layer 2, with a tag that hardware took off */
	__u32 payload_length; /* transport payload of the whole super-packet */
	__u32 segments; /* packets on the wire */
	__u32 segment_ip_length; /* of every segment but the last */
	__u32 last_ip_length;
	__u32 flow_label;
	union {
		__u32 sequence;
		__u32 udp_length; /* UDP, where features are captured */
	};
	__u32 acknowledgement;
	__u32 identification; /* of a fragment */
	__u32 ipv4_options;
	__u32 ipv6_extension_headers;
	__u32 mpls_top_label;
	__u32 tunnel_headers; /* octets from this IP packet's start to the one inside; or 0 */
	__u16 ether_type; /* network order */
	__u16 tcp_control_bits;
	__u16 window;
	__u16 maximum_segment_size;
	__u8 window_scale;
	__u8 class_of_service;
	__u8 ttl;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 fragment; /* enum fragment */
	__u8 unread; /* carries no transport header, or a capture cut it off */
	__u8 orphan; /* a fragment of nobody knows whom */
	__u8 jumbo_header_length; /* the header that only a BIG TCP buffer has, not its segments */
	__u8 late; /* counted without the lock */
	__u8 entries_made;
	__u8 window_refused; /* the other SYN came without a window scale */
	__u8 verdict; /* enum verdict */
	__u16 fragment_field; /* flags and offset as in the IPv4 header, where features are captured */
};
_Static_assert(sizeof(struct packet) % 8 == 0, "handed to functions whole: no byte undefined");

/* What the deny-list and the guard say of the packet's source. */
enum verdict {
	VERDICT_NONE,
	VERDICT_NEVER, /* may not be blocked */
	VERDICT_DROP,
};

enum fragment {
	FRAGMENT_NONE,
	FRAGMENT_FIRST,
	FRAGMENT_LATER,
};

/*
 * A field of the context, by an instruction of its own: compilers would compute
 * the address, or keep a packet pointer as the 32-bit number that it looks like.
 */
#define CONTEXT_FIELD(skb, field, type)                                                                   \
	({                                                                                                \
		type value;                                                                               \
		asm volatile(                                                                             \
			"%[value] = *(u32 *)(%[context] + %[offset])"                                     \
			: [value] "=r"(value)                                                             \
			: [context] "r"(skb), [offset] "i"(__builtin_offsetof(struct __sk_buff, field))); \
		value;                                                                                    \
	})
#define PACKET_POINTER(skb, field) CONTEXT_FIELD(skb, field, void *)

/* Whether packets come from a capture, with what their buffers do not say in cb[]: see CAPTURED_*. */
static __always_inline int is_capture(void)
{
	return SETTING(time_source) == TIME_SKB_TSTAMP;
}

static __always_inline __u64 now_ns(struct __sk_buff *skb)
{
	if (SETTING(time_source) == TIME_SKB_TSTAMP)
		return skb->tstamp;
	if (SETTING(time_source) == TIME_COARSE)
		return bpf_ktime_get_coarse_ns();
	return bpf_ktime_get_ns();
}

/* An offset with a bound that the verifier can see; it loses them where ways join. */
static __always_inline __u32 bounded(__u32 offset)
{
	asm volatile("%0 &= %1" : "+r"(offset) : "i"(HEADERS_MAX));
	return offset;
}

/* Octets of the packet that can be read. */
static __always_inline __u32 readable_length(struct __sk_buff *skb)
{
	return is_capture() ? CONTEXT_FIELD(skb, cb[CAPTURED_LENGTH], __u64) : skb->len;
}

/*
 * The header of `length` bytes at `offset`, readable, or NULL with *why set.
 * Pointers from earlier calls are invalid afterwards (the buffer may move).
 */
static __always_inline void *header_at(struct __sk_buff *skb, __u32 offset, __u32 length, __u32 *why)
{
	void *header = PACKET_POINTER(skb, data) + offset;

	if (is_capture() && RARELY(offset + length > readable_length(skb))) {
		*why = IGNORED_TRUNCATED;
		return NULL;
	}
	if (LIKELY(header + length <= PACKET_POINTER(skb, data_end)))
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

/*
 * Copies what is rare instead of pointing at it: every packet pointer doubles
 * the ways that the verifier has to walk.  Says whether it was there.
 */
static __always_inline int load_bytes(struct __sk_buff *skb, __u32 offset, void *to, __u32 length)
{
	if (is_capture() && offset + length > readable_length(skb))
		return 0;
	return bpf_skb_load_bytes(skb, offset, to, length) == 0;
}

/* All options behind a header: 40 octets at most, since header lengths are 4 bits of words. */
#define OPTIONS_MAX 40
#define OPTIONS_ROOM 64

static __always_inline int load_options(struct __sk_buff *skb, __u32 offset, __u8 options[OPTIONS_ROOM],
					__u32 length)
{
	__u32 last = length - 1;

	if (last >= OPTIONS_MAX)
		return 0;
	asm volatile("%0 &= 0x3f" : "+r"(last)); /* what was just checked, where the verifier sees it */
	return load_bytes(skb, offset, options, last + 1);
}

#endif /* PACKET_BPF_H */
