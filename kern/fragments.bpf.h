/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whose the later fragments of a datagram are.  Rules:
 *
 * - The first fragment has the transport header.  What it says is remembered for
 *   30 s, as long as Linux keeps fragments of IPv4.
 * - A later fragment belongs to the flow of the first, if that came before it.
 *   Else it is an orphan: counted with ports 0, and as such.  So is a fragment
 *   that is the first but too short for the transport header.
 */
#ifndef FRAGMENTS_BPF_H
#define FRAGMENTS_BPF_H

#define FRAGMENTS_LIFE_NS 30000000000ULL

static __always_inline void fill_fragment_key(struct fragment_key *key, const struct packet *packet)
{
	__builtin_memcpy(key->source_address, packet->key.source_address, 16);
	__builtin_memcpy(key->destination_address, packet->key.destination_address, 16);
	key->identification = packet->identification;
	key->ifindex = packet->key.ifindex;
	key->tunnel = packet->key.tunnel;
	/* IPv6 fragments of one datagram may name different next headers: only the first's counts. */
	key->protocol = packet->key.ip_version == 4 ? packet->key.protocol : 0;
	key->ip_version = packet->key.ip_version;
	key->direction = packet->key.direction;
	key->in_tunnel = packet->key.in_tunnel;
}

/* The key of a fragment's flow is whole afterwards, as far as it can be. */
SUBPROGRAM int settle_fragment(struct packet *packet, __u64 now_mono_ns)
{
	struct fragment_owner *owner;
	struct fragment_key key;

	if (!packet || packet->orphan)
		return 0;
	fill_fragment_key(&key, packet);
	if (packet->fragment == FRAGMENT_FIRST) {
		struct fragment_owner first = {
			.seen_mono_ns = now_mono_ns,
			.source_port = packet->key.source_port,
			.destination_port = packet->key.destination_port,
			.protocol = packet->key.protocol,
			.icmp_type = packet->icmp_type,
			.icmp_code = packet->icmp_code,
		};

		map_update(fragments, &key, &first);
		return 0;
	}
	owner = map_lookup(fragments, &key);
	if (!owner || now_mono_ns - owner->seen_mono_ns > FRAGMENTS_LIFE_NS) {
		packet->orphan = 1;
		return 0;
	}
	packet->key.source_port = owner->source_port;
	packet->key.destination_port = owner->destination_port;
	packet->key.protocol = owner->protocol;
	packet->icmp_type = owner->icmp_type;
	packet->icmp_code = owner->icmp_code;
	return 0;
}

#endif /* FRAGMENTS_BPF_H */
