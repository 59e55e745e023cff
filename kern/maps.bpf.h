/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps.  Sizes here are placeholders where the loader sets them.
 */
#ifndef MAPS_BPF_H
#define MAPS_BPF_H

#ifndef MAX_FLOWS
#define MAX_FLOWS 65536
#endif
#define MAX_POINTS 4096 /* interfaces times directions with totals of their own */
#define TAKE_BATCH 4096

/* THE flow table. */
MAP(MAP_LRU_HASH, flows, struct flow_key, struct flow_counters, MAX_FLOWS, 0);

/* One element, all zero: what a new entry starts from (too large for the stack). */
MAP(MAP_ARRAY, blank, __u32, struct flow_counters, 1, 0);

MAP(MAP_PERCPU_HASH, totals, struct totals_key, struct interface_totals, MAX_POINTS, 0);
MAP(MAP_ARRAY, blank_totals, __u32, struct interface_totals, 1, 0);

/* How the collector takes flows out: requests in, counters out, read in place. */
MAP(MAP_ARRAY, take_requests, __u32, struct take_request, TAKE_BATCH, BPF_F_MMAPABLE);
MAP(MAP_ARRAY, take_results, __u32, struct flow_counters, TAKE_BATCH, BPF_F_MMAPABLE);
MAP(MAP_ARRAY, take_books, __u32, struct take_books, 1, BPF_F_MMAPABLE);

/* Not used by the programs: what the loader leaves for those who come later. */
MAP(MAP_ARRAY, loaded, __u32, struct loaded_info, 1, 0);
MAP(MAP_HASH, attachments, __u32, struct attachment, MAX_POINTS, 0);

#endif /* MAPS_BPF_H */
