// Which keys a tile of query tokens has to meet: the union of its tokens' selections, as a list of chunks of 64 positions with a bit a token.
#pragma once

#include "attn.cuh"

#define HS_CHUNK 64        // positions of an item
#define HS_SUB 16          // positions that are selected together or not at all
#define HS_TILE_TOKENS 64  // bits of a mask
#define HS_PLAN_THREADS 128
#define HS_ALIKE_WORDS 16  // of a list: chunks by which tokens are compared, in words of 32

struct hs_item {
    int chunk, seq, lo, hi;           // positions 64 chunk ..; those outside lo .. hi nobody in the tile sees, their slots may hold anything
    unsigned long long window, sel;   // tokens whose window touches the chunk; tokens that selected it (its first 16 positions if it has a `more`)
};
struct hs_item_more { unsigned long long sel[3], none; }; // the same for positions 16 .., 32 .., 48 ..: blocks that are no multiple of 64

// What both kernels are given: branches n0 .. n1 - 1, which share n_rep.
struct hs_sparse_job : hs_dev_attn {
    hs_item * items;       // [cap[0] + cap[1]] of each tile and KV head
    hs_item_more * more;   // alike, or NULL
    int * counts;          // [2] alike
    int * order;           // [HS_TILE_TOKENS] alike: which token of the tile is the i-th
    int n0, n1, n_rep, n_head_kv, tile_tokens, group, n_words, n_stages, cap[2]; // group: tokens a warp works on
    bool halves;           // or a warpgroup, of two, which share what is loaded
};

static __device__ __forceinline__ int64_t hs_tile_at(const hs_sparse_job & a) { return (int64_t) blockIdx.x * a.n_head_kv + blockIdx.y; }

static __device__ __forceinline__ int64_t hs_list_at(const hs_sparse_job & a, int n) {
    return hs_tile_at(a) * (a.cap[0] + a.cap[1]) + (n > a.n0 ? a.cap[0] : 0);
}

// Range e of the kinds of ranges that a token asks for: its selected blocks, then block 0 and the window. false: empty.
static __device__ __forceinline__ bool hs_range(const hs_sparse_job & a, const hs_dev_branch & b, int n_sel, int e, int64_t token, int t, int & from, int & end) {
    int64_t first = 0, size = a.block_size;
    if (e < n_sel) {
        const int block = b.sel[(token * b.n_head_kv + blockIdx.y) * a.top_k + e];
        if (block < 0) {
            return false;
        }
        first = (int64_t) block * a.block_size;
    } else if (e > n_sel || !b.sel) {
        first = max(t - b.window + 1, 0);
        size = b.window;
    }
    end = (int) min(first + size, (int64_t) t + 1);
    from = (int) min(first, (int64_t) end);
    return from < end;
}

static __device__ __forceinline__ void hs_mark(const hs_sparse_job & a, hs_item * item, hs_item_more * more, unsigned long long bit, bool window, int from, int end) {
    if (window) {
        atomicOr(&item->window, bit);
        return;
    }
    const int c0 = item->chunk * HS_CHUNK;
    if (from < c0 + HS_SUB) { // the ranges of a chunk that begin later leave its first positions out
        if (end > c0) {
            atomicOr(&item->sel, bit);
        }
    }
    for (int s = 1; more && s < HS_CHUNK / HS_SUB; s++) {
        if (from < c0 + (s + 1) * HS_SUB && end > c0 + s * HS_SUB) {
            atomicOr(&more->sel[s - 1], bit);
        }
    }
}

// Ranks of the words of a bitmap: rank[i] = bits set before word i; returns the number of all.
static __device__ int hs_rank_words(const unsigned * bits, int * rank, int n_words) {
    __shared__ int part[HS_PLAN_THREADS];
    const int step = (n_words + HS_PLAN_THREADS - 1) / HS_PLAN_THREADS, from = threadIdx.x * step, end = min(from + step, n_words);
    int sum = 0;
    for (int i = from; i < end; i++) {
        sum += __popc(bits[i]);
    }
    part[threadIdx.x] = sum;
    __syncthreads();
    int before = 0, all = 0;
    for (int i = 0; i < HS_PLAN_THREADS; i++) {
        before += i < (int) threadIdx.x ? part[i] : 0;
        all += part[i];
    }
    for (int i = from; i < end; i++) {
        rank[i] = before;
        before += __popc(bits[i]);
    }
    __syncthreads();
    return all;
}

// By one warp: tokens in groups of such as want the same chunks. The first of a group is the first that is left, the next the one that adds the fewest chunks.
// Products are thus wasted on fewer rows; results do not change, for a row meets its chunks in the same order in any company.
static __device__ __forceinline__ void hs_order(const unsigned (*alike)[HS_ALIKE_WORDS + 1], int * order, int n, int group, int n_words) {
    const int lane = threadIdx.x;
    unsigned long long left = n == 64 ? ~0ull : (1ull << n) - 1;
    unsigned have = 0; // lane w: word w of the group's chunks
    for (int i = 0; i < n; i++) {
        have = i % group == 0 ? 0 : have;
        unsigned best = i % group == 0 ? __ffsll(left) - 1 : UINT_MAX;
        if (i % group != 0) {
            int more[2] = { 0, 0 };
            for (int w = 0; w < n_words; w++) {
                const unsigned had = __shfl_sync(0xffffffff, have, w);
                more[0] += __popc(alike[lane][w] & ~had);
                more[1] += __popc(alike[lane + 32][w] & ~had);
            }
            best = left >> lane & 1 ? (unsigned) more[0] * 64 + lane : UINT_MAX;
            best = left >> (lane + 32) & 1 ? min(best, (unsigned) more[1] * 64 + lane + 32) : best;
            best = __reduce_min_sync(0xffffffff, best) % 64;
        }
        have |= lane < n_words ? alike[best][lane] : 0;
        left &= ~(1ull << best);
        if (lane == 0) {
            order[i] = (int) best;
        }
    }
}

// The same in two groups, the first of `size` tokens, that grow by turns: so neither gets all the misfits, for which the other would have to
// wait.
static __device__ __forceinline__ void hs_order_halves(const unsigned (*alike)[HS_ALIKE_WORDS + 1], int * order, int n, int size, int n_words) {
    const int lane = threadIdx.x;
    unsigned long long left = n == 64 ? ~0ull : (1ull << n) - 1;
    unsigned have[2] = { 0, 0 }; // lane w: word w of the groups' chunks
    int at[2] = { 0, min(size, n) };
    const int end[2] = { at[1], n };
    for (int i = 0; i < n; i++) {
        const bool second = i % 2 ? at[1] < end[1] : at[0] == end[0];
        const bool seed = second && at[1] == end[0]; // its first token: the one least like the first group
        const unsigned mine = second && !seed ? have[1] : have[0];
        int more[2] = { 0, 0 };
        for (int w = 0; w < n_words; w++) {
            const unsigned had = __shfl_sync(0xffffffff, mine, w);
            more[0] += __popc(alike[lane][w] & ~had);
            more[1] += __popc(alike[lane + 32][w] & ~had);
        }
        unsigned best = UINT_MAX;
        for (int h = 0; h < 2; h++) {
            const unsigned worth = i == 0 ? 0 : seed ? 32 * HS_ALIKE_WORDS - more[h] : more[h];
            best = left >> (lane + 32 * h) & 1 ? min(best, worth * 64 + lane + 32 * h) : best;
        }
        best = __reduce_min_sync(0xffffffff, best) % 64;
        const unsigned add = lane < n_words ? alike[best][lane] : 0;
        have[0] |= second ? 0 : add;
        have[1] |= second ? add : 0;
        left &= ~(1ull << best);
        if (lane == 0) {
            order[second ? at[1] : at[0]] = (int) best;
        }
        at[0] += second ? 0 : 1;
        at[1] += second ? 1 : 0;
    }
}

// A block of threads makes the list of one tile, KV head and branch: per sequence of the tile (in the order of their first tokens) a bitmap of the chunks,
// their ranks, then the masks. Chunks come out in ascending order, whatever the order of the threads.
static __global__ void __launch_bounds__(HS_PLAN_THREADS) hs_plan_kernel(const __grid_constant__ hs_sparse_job a) {
    extern __shared__ unsigned bits[];
    __shared__ int pos[HS_TILE_TOKENS], seq[HS_TILE_TOKENS];
    __shared__ unsigned alike[HS_TILE_TOKENS][HS_ALIKE_WORDS + 1];
    int * rank = (int *) bits + a.n_words;
    const int n = a.n0 + blockIdx.z;
    const hs_dev_branch & b = a.b[n];
    const int first = blockIdx.x * a.tile_tokens, n_tile = min(a.tile_tokens, a.n_tokens - first);
    const int n_sel = b.sel ? a.top_k : 0, n_range = b.sel ? n_sel + (b.window > 0 ? 2 : 0) : 1;
    hs_item * items = a.items + hs_list_at(a, n);
    hs_item_more * more = a.more ? a.more + hs_list_at(a, n) : nullptr;
    for (int i = threadIdx.x; i < n_tile; i += HS_PLAN_THREADS) {
        pos[i] = a.pos[first + i];
        seq[i] = a.seq[first + i];
    }
    for (int i = threadIdx.x; i < HS_TILE_TOKENS * (HS_ALIKE_WORDS + 1); i += HS_PLAN_THREADS) {
        alike[0][i] = 0;
    }
    __syncthreads();
    unsigned long long left = n_tile == 64 ? ~0ull : (1ull << n_tile) - 1;
    int count = 0;
    while (left) {
        const int s = seq[__ffsll(left) - 1];
        unsigned long long mine = 0;
        int low = INT_MAX, high = 0;
        for (int i = 0; i < n_tile; i++) {
            if (seq[i] == s) {
                mine |= 1ull << i;
                low = min(low, pos[i]);
                high = max(high, pos[i]);
            }
        }
        for (int i = threadIdx.x; i < a.n_words; i += HS_PLAN_THREADS) {
            bits[i] = 0;
        }
        __syncthreads();
        for (int e = threadIdx.x; e < n_tile * n_range; e += HS_PLAN_THREADS) {
            const int i = e / n_range;
            int from, end;
            if (seq[i] == s && hs_range(a, b, n_sel, e % n_range, first + i, pos[i], from, end)) {
                for (int c = from / HS_CHUNK; c <= (end - 1) / HS_CHUNK; c++) {
                    atomicOr(&bits[c / 32], 1u << c % 32);
                }
            }
        }
        __syncthreads();
        const int all = hs_rank_words(bits, rank, a.n_words);
        for (int i = threadIdx.x; i < a.n_words; i += HS_PLAN_THREADS) {
            int at = count + rank[i];
            for (unsigned word = bits[i]; word; word &= word - 1, at++) {
                items[at] = { 32 * i + __ffs(word) - 1, s, b.sel ? 0 : max(low - b.window + 1, 0), high, 0, 0 };
                if (more) {
                    more[at] = {};
                }
            }
        }
        __syncthreads();
        for (int e = threadIdx.x; e < n_tile * n_range; e += HS_PLAN_THREADS) {
            const int i = e / n_range, r = e % n_range;
            int from, end;
            if (seq[i] == s && hs_range(a, b, n_sel, r, first + i, pos[i], from, end)) {
                for (int c = from / HS_CHUNK; c <= (end - 1) / HS_CHUNK; c++) {
                    const int at = count + rank[c / 32] + __popc(bits[c / 32] & ((1u << c % 32) - 1));
                    hs_mark(a, items + at, more ? more + at : nullptr, 1ull << i, !b.sel || r > n_sel, from, end);
                    if (at < 32 * HS_ALIKE_WORDS) {
                        atomicOr(&alike[i][at / 32], 1u << at % 32);
                    }
                }
            }
        }
        __syncthreads(); // the bitmap is used again
        count += all;
        left &= ~mine;
    }
    if (threadIdx.x == 0) {
        a.counts[hs_tile_at(a) * 2 + blockIdx.z] = count;
    }
    if (blockIdx.z == 0 && threadIdx.x < 32) {
        int * order = a.order + hs_tile_at(a) * HS_TILE_TOKENS;
        const int n_words = min((count + 31) / 32, HS_ALIKE_WORDS);
        a.halves ? hs_order_halves(alike, order, n_tile, a.group, n_words) : hs_order(alike, order, n_tile, a.group, n_words);
    }
}
