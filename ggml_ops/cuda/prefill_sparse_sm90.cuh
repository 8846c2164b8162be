// What the roles of the sparse Hopper kernel share, and the producer: which pages a tile meets, in which order, through which slots of shared memory.
//
// A tile is up to 128 rows: tile_tokens consecutive tokens of the launch, in the plan's order, times the n_rep query heads of one KV head; row =
// place of the token * n_rep + head. Its items are pages of 64 keys: first the plan's list (prefill_sparse_plan.cuh), ascending, then, with a
// window branch, the runs of ring slots that the tile's windows cover (a run ends with the ring, too). Item number i of a thread block, over all
// its tiles, has slot i % HS_SLOTS of K and of V, and its head at i % HS_HEADS. Each branch has at least one item; the last is marked.
#pragma once

#include "prefill_sm90_rows.cuh"
#include "prefill_sparse_plan.cuh"

#define HS_SLOTS 7
#define HS_HEADS 16 // more than 2 * HS_SLOTS: a head outlives its keys until their products are done (see hs_pages)

struct hs_sparse90 : hs_sparse_job { int n_tiles; };

// What consumers know of an item: its keys are positions from .. hi (hi < from + 64; beyond it the slots may hold anything).
struct hs_sparse_head {
    int from, hi, last, none;
    unsigned long long sel, window; // tokens that see all of it up to their position; tokens that see what lies in their window
};

struct hs_sparse_maps { CUtensorMap k[2], v[2]; }; // of each branch

struct hs_sparse_shared {
    uint64_t full_k[HS_SLOTS], full_v[HS_SLOTS], empty_k[HS_SLOTS], empty_v[HS_SLOTS];
    hs_sparse_head heads[HS_HEADS];
};

template <int D_QK, int D_V> struct hs_sparse_shape {
    static constexpr int k = 64 * D_QK * 2, v = 64 * D_V * 2; // bytes of a slot: [D / 64][64 keys][128 bytes]
    static constexpr int at_v = HS_SLOTS * k, bytes = at_v + HS_SLOTS * v + 1024; // aligned by hand
};

#ifdef HS_SM90A

static __device__ __forceinline__ int hs_sparse_tile(const hs_sparse90 & a, int u) {
    const int64_t i = (int64_t) u * gridDim.x + blockIdx.x;
    return i < a.n_tiles ? (int) i : -1;
}

// By one lane: item `it` to its slots, from `row` on of page (or ring) `page`.
template <int D_QK, int D_V> static __device__ __forceinline__ void hs_sparse_put(const CUtensorMap * map_k, const CUtensorMap * map_v, uint32_t smem,
    hs_sparse_shared & sh, int it, const hs_sparse_head & head, int row, int head_kv, int page) {
    typedef hs_sparse_shape<D_QK, D_V> shape;
    const int slot = it % HS_SLOTS, parity = (it / HS_SLOTS + 1) % 2;
    const uint32_t k = smem + slot * shape::k, v = smem + shape::at_v + slot * shape::v;
    hs_mbar_wait(&sh.empty_k[slot], parity);
    sh.heads[it % HS_HEADS] = head;
    hs_mbar_expect(&sh.full_k[slot], shape::k);
#pragma unroll
    for (int x = 0; x < D_QK / 64; x++) {
        hs_tma_load(k + x * HS_BOX, map_k, &sh.full_k[slot], x * 64, row, head_kv, page);
    }
    hs_mbar_wait(&sh.empty_v[slot], parity);
    hs_mbar_expect(&sh.full_v[slot], shape::v);
#pragma unroll
    for (int x = 0; x < D_V / 64; x++) {
        hs_tma_load(v + x * HS_BOX, map_v, &sh.full_v[slot], x * 64, row, head_kv, page);
    }
}

// The producer, one warp: every lane has an item of the list and loads it when its turn comes.
template <int D_QK, int D_V> static __device__ __forceinline__ void hs_sparse_produce(const hs_sparse90 & a, const hs_sparse_maps & maps,
    uint32_t smem, hs_sparse_shared & sh) {
    const int lane = threadIdx.x % 32;
    int it = 0;
    for (int u = 0, tile; (tile = hs_sparse_tile(a, u)) >= 0; u++) {
        const int head_kv = tile % a.n_head_kv, first = tile / a.n_head_kv * a.tile_tokens, n_tile = min(a.tile_tokens, a.n_tokens - first);
        const int count = a.counts[tile * 2], n_items = max(count, 1);
        const hs_item * items = a.items + (int64_t) tile * a.cap[0];
        if (const int after = hs_sparse_tile(a, u + 1); after >= 0) { // the queries to come, to the cache of the second level
            const int from = after / a.n_head_kv * a.tile_tokens, bytes = a.n_rep * D_QK * 4;
            for (int i = lane; i < min(a.tile_tokens, a.n_tokens - from) * (bytes / 128); i += 32) {
                const int64_t row = (int64_t) (from + i / (bytes / 128)) * a.n_head + after % a.n_head_kv * a.n_rep;
                asm volatile("prefetch.global.L2 [%0];" :: "l"((const char *) (a.q + row * D_QK) + i % (bytes / 128) * 128));
            }
        }
        for (int i0 = 0; i0 < n_items; i0 += 32) {
            hs_sparse_head head = { 0, -1, i0 + lane == n_items - 1, 0, 0, 0 };
            int page = 0;
            if (i0 + lane < count) {
                const hs_item item = items[i0 + lane];
                head.from = item.chunk * HS_PAGE;
                head.hi = min(item.hi, head.from + HS_PAGE - 1);
                head.sel = item.sel;
                head.window = item.window;
                page = a.b[0].k.table[item.seq * a.b[0].k.max_pages + item.chunk];
            }
            const int n = min(n_items - i0, 32);
            for (int i = 0; i < n; i++, it++) {
                if (lane == i) {
                    hs_sparse_put<D_QK, D_V>(&maps.k[0], &maps.v[0], smem, sh, it, head, 0, head_kv, page);
                }
                __syncwarp();
            }
        }
        if (a.n_branch == 1) {
            continue;
        }
        const int window = a.b[1].window, n_slots = a.b[1].k.n_slots;
        int pos[2], seq[2], top = -1;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const bool have = lane + 32 * i < n_tile;
            pos[i] = have ? a.pos[first + lane + 32 * i] : -1;
            seq[i] = have ? a.seq[first + lane + 32 * i] : -1;
            top = max(top, seq[i]);
        }
        top = __reduce_max_sync(0xffffffff, top);
        for (int s = -1; s < top;) {
            const int after = min(seq[0] > s ? seq[0] : INT_MAX, seq[1] > s ? seq[1] : INT_MAX);
            s = __reduce_min_sync(0xffffffff, after);
            const bool in0 = seq[0] == s, in1 = seq[1] == s;
            const int hi = __reduce_max_sync(0xffffffff, max(in0 ? pos[0] : -1, in1 ? pos[1] : -1));
            const int lo = __reduce_min_sync(0xffffffff, min(in0 ? pos[0] : INT_MAX, in1 ? pos[1] : INT_MAX));
            for (int from = max(lo - window + 1, 0), n; from <= hi; from += n, it++) {
                const int row = from % n_slots, end = from + min(min(HS_PAGE, n_slots - row), hi - from + 1);
                n = end - from;
                unsigned in[2];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    in[i] = __ballot_sync(0xffffffff, seq[i] == s && pos[i] >= from && pos[i] - window + 1 < end);
                }
                if (lane == 0) {
                    const hs_sparse_head head = { from, end - 1, s == top && end > hi, 0, 0, (unsigned long long) in[1] << 32 | in[0] };
                    hs_sparse_put<D_QK, D_V>(&maps.k[1], &maps.v[1], smem, sh, it, head, row, head_kv, s);
                }
                __syncwarp();
            }
        }
    }
}

// A consuming warpgroup's way through the items. It takes those that one of its tokens wants, two a step, and gives the others back.
// No deadlock: a warpgroup never waits for an item HS_SLOTS or more beyond one that it has not given back. So the warpgroup that is furthest
// behind waits only for items whose slots are free or being filled.
struct hs_pages {
    int next;                 // item not yet looked at
    bool ended;               // the branch has no more
    unsigned long long mine;  // tokens of the warpgroup
};
struct hs_step { int item[2]; bool single; }; // single: item[1] is item[0] again, and nobody sees it

static __device__ __forceinline__ void hs_give_back(uint64_t * empty, const hs_step & s) {
    if (threadIdx.x % 32 == 0) {
        hs_mbar_arrive(&empty[s.item[0] % HS_SLOTS]);
        if (!s.single) {
            hs_mbar_arrive(&empty[s.item[1] % HS_SLOTS]);
        }
    }
}

// The next step out of items below `limit`, with its K there. false: no such item.
static __device__ __forceinline__ bool hs_find(hs_pages & w, hs_step & s, hs_sparse_shared & sh, int limit) {
    int found = 0;
    while (found < 2 && !w.ended && w.next < limit) {
        const int slot = w.next % HS_SLOTS, parity = w.next / HS_SLOTS % 2;
        hs_mbar_wait(&sh.full_k[slot], parity);
        const hs_sparse_head & head = sh.heads[w.next % HS_HEADS];
        w.ended = head.last;
        if ((head.sel | head.window) & w.mine) {
            s.item[1] = w.next;
            if (found++ == 0) {
                s.item[0] = w.next;
                limit = min(limit, w.next + HS_SLOTS);
            }
        } else {
            hs_mbar_wait(&sh.full_v[slot], parity);
            __syncwarp();
            if (threadIdx.x % 32 == 0) {
                hs_mbar_arrive(&sh.empty_k[slot]);
                hs_mbar_arrive(&sh.empty_v[slot]);
            }
        }
        w.next++;
    }
    s.single = found == 1;
    return found > 0;
}

#endif // HS_SM90A
