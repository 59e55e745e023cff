/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * One source, two compilers.  clang builds an object with BTF maps that libbpf
 * loads; BCC compiles the same text when it loads, in its own dialect: maps are
 * C++-like objects, settings are macros, and every function is inlined.
 * All difference between the two is in this file, and in new_packet().
 */
#ifndef COMPAT_H
#define COMPAT_H

/* Keeps what is rare out of the way of what every packet runs through: less of it to fetch among other code. */
#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define RARELY(condition) __builtin_expect(!!(condition), 0)

#ifdef FLOWMON_BCC

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include <uapi/linux/pkt_cls.h>

#define PROGRAM(name) int name
#define SETTINGS struct settings
#define SETTING(name) (SETTING_##name)
#define MAP(map_type, name, key_type, value_type, entries, flags) \
	BPF_TABLE_PINNED7(map_type, key_type, value_type, name, entries, PIN_##name, flags)
#define PRIVATE_MAP(map_type, name, key_type, value_type, entries, flags) \
	BPF_F_TABLE(map_type, key_type, value_type, name, entries, flags)
#define MAP_LRU_HASH "lru_hash"
#define MAP_HASH "hash"
#define MAP_LPM_TRIE "lpm_trie"
#define MAP_PERCPU_HASH "percpu_hash"
#define MAP_PERCPU_ARRAY "percpu_array"
#define MAP_ARRAY "array"
#define MAP_PROGRAMS "prog"
/* map_lookup(map, key) and its like become map.lookup(key): BCC takes no macro there, the loader edits the text. */
#define SUBPROGRAM static __always_inline
#define LOCK_SPINS 64 /* all is inlined: the verifier walks every turn on every path */

#else

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define PROGRAM(name) SEC("tc") int name
#define SETTINGS const volatile struct settings settings /* .rodata: the verifier drops what they rule out */
#define SETTING(name) (settings.name)
#define MAP(map_type, map_name, key_type, value_type, entries, flags) \
	struct {                                                      \
		__uint(type, map_type);                               \
		__uint(max_entries, entries);                         \
		__uint(map_flags, flags);                             \
		__type(key, key_type);                                \
		__type(value, value_type);                            \
	} map_name SEC(".maps")
#define PRIVATE_MAP MAP
#define MAP_LRU_HASH BPF_MAP_TYPE_LRU_HASH
#define MAP_HASH BPF_MAP_TYPE_HASH
#define MAP_LPM_TRIE BPF_MAP_TYPE_LPM_TRIE
#define MAP_PERCPU_HASH BPF_MAP_TYPE_PERCPU_HASH
#define MAP_PERCPU_ARRAY BPF_MAP_TYPE_PERCPU_ARRAY
#define MAP_ARRAY BPF_MAP_TYPE_ARRAY
#define MAP_PROGRAMS BPF_MAP_TYPE_PROG_ARRAY
#define SUBPROGRAM __attribute__((noinline))
#define LOCK_SPINS 512 /* about 10 us */
#define map_lookup(map, key) bpf_map_lookup_elem(&map, key)
#define map_insert(map, key, value) bpf_map_update_elem(&map, key, value, BPF_NOEXIST)
#define map_update(map, key, value) bpf_map_update_elem(&map, key, value, BPF_ANY)
#define map_call(map, context, index) bpf_tail_call(context, &map, index)
#define map_delete(map, key) bpf_map_delete_elem(&map, key)

#endif

#endif /* COMPAT_H */
