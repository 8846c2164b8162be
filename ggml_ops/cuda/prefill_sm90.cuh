// What the roles of the Hopper kernel share: the shape of a tile, its shared memory, and the walk over keys that every warp makes for itself.
//
// A tile is up to 128 rows: HS_ROWS / n_rep consecutive tokens of the launch times the n_rep query heads of one KV head; row = token * n_rep + head.
// Its keys come in steps of KEYS (one or two pages), sequence by sequence in ascending order (usually there is one), each from key 0 to the largest
// position that the tile's tokens of the sequence have. Every warp derives the same steps from the positions, so the roles need not talk about them.
#pragma once

#include "attn.cuh"
#include "numbers.cuh"
#include "prefill_sm90_ptx.cuh"

#define HS_ROWS 128       // query rows a tile: two warpgroups of 64
#define HS_PAGE 64        // keys a page, and a block of the scores
#define HS_BOX (64 * 128) // bytes of a box: 64 rows of 64 halves
#define HS_STAGES 2       // steps of K and of V in shared memory
#define HS_START (-1e30f) // row maximum before the first key; finite, so that no inf - inf arises

struct hs_sm90 : hs_dev_attn {
    float * raw;            // [n_raw, HS_ROWS] raw block maxima, two a thread block, or NULL
    int n_raw;              // n_blocks, rounded up to whole steps
    int tokens;             // a tile: HS_ROWS / n_rep
    int n_tiles;
};

template <int D_QK, int D_V, int KEYS> struct hs_sm90_shape {
    static constexpr int q = 64 * D_QK * 2;     // bytes of a warpgroup's queries: [D_QK / 64][64 rows][128 bytes]
    static constexpr int k = KEYS * D_QK * 2;   // of a step of K: [D_QK / 64][KEYS][128 bytes]
    static constexpr int v = KEYS * D_V * 2;
    static constexpr int at_k = 2 * q, at_v = at_k + HS_STAGES * k, end = at_v + HS_STAGES * v;
    static constexpr int bytes = end + 1024;    // dynamic shared memory is aligned by hand
};

struct hs_sm90_barriers {
    uint64_t full_k[HS_STAGES], full_v[HS_STAGES], empty_k[HS_STAGES], empty_v[HS_STAGES];
    uint64_t full_raw[2], empty_raw[2];         // a tile's block maxima: written, read
};

#ifdef HS_SM90A

// The u-th tile of this thread block, or -1. Long tiles (late tokens) first, dealt to the thread blocks back and forth: that evens out their lengths.
static __device__ __forceinline__ int hs_tile(const hs_sm90 & a, int u) {
    const int n = gridDim.x, i = u * n + (u % 2 ? n - 1 - (int) blockIdx.x : (int) blockIdx.x);
    return i < a.n_tiles ? i : -1;
}

struct hs_walk {
    const int32_t * pos, * seqs;    // of the tile's tokens
    int n_tokens, first, head_kv;   // tokens in the tile, the first of them
    int seq, next, step, n_steps, max_pos, min_pos;

    __device__ __forceinline__ hs_walk(const hs_sm90 & a, int tile) {
        const int n_head_kv = a.b[0].n_head_kv, n = a.n_tiles / n_head_kv;
        head_kv = tile % n_head_kv;
        first = (n - 1 - tile / n_head_kv) * a.tokens;
        n_tokens = min(a.tokens, a.n_tokens - first);
        pos = a.pos + first;
        seqs = a.seq + first;
        step = n_steps = 0;
        seq = -1;
        segment();
    }
    // Positions of the tile's tokens of `seq` (min_pos: -1 if there are others), and the sequence after it.
    __device__ __forceinline__ void segment() {
        int hi = -1, lo = INT_MAX, after = INT_MAX;
        for (int i = threadIdx.x % 32; i < n_tokens; i += 32) {
            const int s = seqs[i], p = pos[i];
            hi = s == seq ? max(hi, p) : hi;
            lo = min(lo, s == seq ? p : -1);
            after = s > seq ? min(after, s) : after;
        }
        max_pos = __reduce_max_sync(0xffffffff, hi);
        min_pos = __reduce_min_sync(0xffffffff, lo);
        next = __reduce_min_sync(0xffffffff, after);
    }
    template <int KEYS> __device__ __forceinline__ bool advance() {
        if (++step < n_steps) {
            return true;
        }
        if (next == INT_MAX) {
            return false;
        }
        seq = next;
        segment();
        step = 0;
        n_steps = max_pos / KEYS + 1;
        return true;
    }
    // Keys of this step that are written for sure; the rest may be NaN.
    template <int KEYS> __device__ __forceinline__ int written() const { return min(KEYS, max_pos + 1 - step * KEYS); }
};

// --- the producer: one warp, copies by its first lane ---

template <int D_QK, int D_V, int KEYS>
static __device__ __forceinline__ void hs_sm90_produce(const hs_sm90 & a, const CUtensorMap * map_k, const CUtensorMap * map_v, uint32_t smem,
    hs_sm90_barriers & bars) {
    typedef hs_sm90_shape<D_QK, D_V, KEYS> shape;
    constexpr int n_pages = KEYS / HS_PAGE;
    const int lane = threadIdx.x % 32;
    int it = 0;
    for (int u = 0, tile; (tile = hs_tile(a, u)) >= 0; u++) {
        hs_walk w(a, tile);
        int ahead = 0; // the lanes hold 32 entries of the page table
        while (w.advance<KEYS>()) {
            const int page = w.step * n_pages, stage = it % HS_STAGES, parity = (it / HS_STAGES + 1) % 2;
            if (page % 32 == 0) {
                ahead = (page + lane) * HS_PAGE <= w.max_pos ? a.b[0].k.table[w.seq * a.b[0].k.max_pages + page + lane] : 0;
            }
            const int n = min(n_pages, (w.written<KEYS>() + HS_PAGE - 1) / HS_PAGE);
            int at[n_pages];
#pragma unroll
            for (int i = 0; i < n_pages; i++) {
                at[i] = __shfl_sync(0xffffffff, ahead, page % 32 + i);
            }
            if (lane == 0) {
                const uint32_t k = smem + shape::at_k + stage * shape::k, v = smem + shape::at_v + stage * shape::v;
                hs_mbar_wait(&bars.empty_k[stage], parity);
                hs_mbar_expect(&bars.full_k[stage], n * D_QK / 64 * HS_BOX);
#pragma unroll
                for (int i = 0; i < n_pages; i++) {
                    for (int x = 0; x < D_QK / 64 && i < n; x++) {
                        hs_tma_load(k + x * KEYS * 128 + i * HS_BOX, map_k, &bars.full_k[stage], x * 64, 0, w.head_kv, at[i]);
                    }
                }
                hs_mbar_wait(&bars.empty_v[stage], parity);
                hs_mbar_expect(&bars.full_v[stage], n * D_V / 64 * HS_BOX);
#pragma unroll
                for (int i = 0; i < n_pages; i++) {
                    for (int x = 0; x < D_V / 64 && i < n; x++) {
                        hs_tma_load(v + x * KEYS * 128 + i * HS_BOX, map_v, &bars.full_v[stage], x * 64, 0, w.head_kv, at[i]);
                    }
                }
            }
            __syncwarp();
            it++;
        }
    }
}

// --- block scores, by the producer's three neighbour warps: S[g, t, i] = max over the group of (block maximum - log of the denominator) ---

static __device__ __forceinline__ void hs_sm90_score(const hs_sm90 & a, const float2 (*lse)[HS_ROWS], hs_sm90_barriers & bars) {
    const int n_rep = a.b[0].n_rep, n_head_kv = a.b[0].n_head_kv;
    const float scale = a.scale * HS_LOG2E;
    for (int u = 0, tile; (tile = hs_tile(a, u)) >= 0; u++) {
        const int n_tiles = a.n_tiles / n_head_kv, head_kv = tile % n_head_kv, first = (n_tiles - 1 - tile / n_head_kv) * a.tokens;
        const int n_tokens = min(a.tokens, a.n_tokens - first);
        int last = 0;
        for (int i = threadIdx.x % 32; i < n_tokens; i += 32) {
            last = max(last, a.pos[first + i]);
        }
        last = __reduce_max_sync(0xffffffff, last) / HS_PAGE;
        const float * raw = a.raw + (int64_t) (blockIdx.x * 2 + u % 2) * a.n_raw * HS_ROWS;
        hs_mbar_wait(&bars.full_raw[u % 2], u / 2 % 2);
        for (int x = threadIdx.x - 32; x < (last / 8 + 1) * n_tokens; x += 96) { // eight blocks of a token; neighbours: tokens
            const int token = x % n_tokens, from = x / n_tokens * 8, t = first + token, end = min(from + 8, a.pos[t] / HS_PAGE + 1);
            float * out = a.scores + ((int64_t) t * n_head_kv + head_kv) * a.n_blocks;
            for (int i = from; i < end; i++) {
                float best = -INFINITY;
                for (int r = token * n_rep; r < (token + 1) * n_rep; r++) {
                    const float2 l = lse[u % 2][r];
                    best = fmaxf(best, fmaf(raw[(int64_t) i * HS_ROWS + r], scale, -l.x) - l.y);
                }
                out[i] = best * 0.6931471805599453f;
            }
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            hs_mbar_arrive(&bars.empty_raw[u % 2]);
        }
    }
}

#endif // HS_SM90A
