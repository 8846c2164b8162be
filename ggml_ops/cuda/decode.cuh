// Attention of few queries: how the keys of one (token, KV head) are dealt out to warps. Used by the kernels (decode_kernel.cuh), by the joining of their
// partial results (decode_merge.cu) and by the launch (decode.cu).
//
// Everything is counted in tiles of up to 16 keys. A tile never crosses a unit: the block of a selection, or with scores the block whose maximum is wanted.
// Warps take runs of tiles in turn, so that all of them sweep the cache together. The grid is fixed by shapes; a thread block reads the token's position and
// leaves at once when there are fewer tiles than it takes to keep it busy.
#pragma once

#include "attn.cuh"

#define HS_TILE 16
#define HS_DECODE_TOKENS 32
#define HS_DECODE_WARPS 4
#define HS_DECODE_REP 16     // query heads of a KV head, at most
#define HS_DECODE_START (-1e30f)

// Division by a number that the host knows: n / d for 0 <= n < 2^31, exactly.
struct hs_divisor { unsigned mul, shift; };

static inline hs_divisor hs_divisor_of(int d) {
    unsigned shift = 0;
    while (1ull << shift < (unsigned) d) {
        shift++;
    }
    return { (unsigned) (((1ull << 32) * ((1ull << shift) - d)) / d + 1), shift };
}

static __host__ __device__ __forceinline__ int hs_div(int n, hs_divisor d) {
    return (int) (((unsigned) ((uint64_t) (unsigned) n * d.mul >> 32) + (unsigned) n) >> d.shift);
}

struct hs_decode : hs_dev_attn {
    float * raw;     // largest logit of each run of each block [n_rep, runs, n_blocks, n_head_kv, n_tokens], with scores
    float2 * ml[2];  // of a branch: largest logit and sum of the weights [n_rep, splits, n_head_kv, n_tokens]
    float * part[2]; // and the output before division by that sum [d_v, n_rep, splits, n_head_kv, n_tokens]
    int splits[2];   // thread blocks of one (token, KV head), at most
    int unit[2];     // keys of a unit
    int tiles[2];    // tiles of a unit
    int run[2];      // tiles that a warp takes in turn; with scores they divide a unit
    int runs;        // of a unit, with scores
    int warps;       // of a thread block
    hs_divisor by_unit[2], by_tiles[2], by_splits[2], by_slots[2], by_least[2]; // least: tiles that keep a thread block busy
    bool direct;     // one thread block a (token, KV head), one branch, no scores: it writes the output itself
};

struct hs_keys { int from, end; };

static __host__ __device__ __forceinline__ int hs_min(int a, int b) { return a < b ? a : b; }
static __host__ __device__ __forceinline__ int hs_max(int a, int b) { return a > b ? a : b; }
static __host__ __device__ __forceinline__ int hs_tiles(int keys) { return (keys + HS_TILE - 1) / HS_TILE; }

// Tiles of branch n for a query at position t, empty ones included.
static __host__ __device__ __forceinline__ int hs_n_tiles(const hs_decode & a, int n, int t) {
    const hs_dev_branch & b = a.b[n];
    if (b.sel) {
        return b.window > 0 ? (a.top_k + 1) * a.tiles[n] + hs_tiles(hs_min(b.window, t + 1)) : a.top_k * a.tiles[n];
    }
    const int keys = t + 1 - hs_max(t - b.window + 1, 0);
    const int units = hs_div(keys, a.by_unit[n]);
    return units * a.tiles[n] + hs_tiles(keys - units * a.unit[n]);
}

// Keys of tile i < hs_n_tiles. sel: the selection of this (token, KV head). With a forced window: the selected blocks up to it, block 0, and the window.
static __host__ __device__ __forceinline__ hs_keys hs_tile_keys(const hs_decode & a, int n, const int32_t * sel, int t, int i) {
    const hs_dev_branch & b = a.b[n];
    const int u = hs_div(i, a.by_tiles[n]), sub = (i - u * a.tiles[n]) * HS_TILE;
    if (!b.sel) {
        const int first = hs_max(t - b.window + 1, 0) + u * a.unit[n], from = first + sub;
        return { from, hs_min(hs_min(from + HS_TILE, first + a.unit[n]), t + 1) };
    }
    const int window = b.window > 0 ? hs_max(t - b.window + 1, 0) : t + 1, n_units = a.top_k + (b.window > 0 ? 1 : 0);
    if (u >= n_units) {
        const int from = window + (i - n_units * a.tiles[n]) * HS_TILE;
        return { from, hs_min(from + HS_TILE, t + 1) };
    }
    const int block = u < a.top_k ? sel[u] : a.top_k > 0 && sel[0] == 0 ? HS_BLOCK_NONE : 0;
    const int64_t first = (int64_t) block * a.block_size, from = first + sub, limit = first + a.block_size < window ? first + a.block_size : window;
    if (block < 0 || from >= limit) {
        return { 0, 0 };
    }
    return { (int) from, (int) (from + HS_TILE < limit ? from + HS_TILE : limit) };
}

// Thread blocks that share the tiles: all, or fewer when a warp would get less than two tiles or no run.
static __host__ __device__ __forceinline__ int hs_least(const hs_decode & a, int n) { return hs_max(a.run[n], 2) * a.warps; }
static __host__ __device__ __forceinline__ int hs_n_splits(const hs_decode & a, int n, int n_tiles) {
    return hs_max(hs_min(a.splits[n], hs_div(n_tiles + hs_least(a, n) - 1, a.by_least[n])), 1);
}

void hs_cuda_decode_merge(ggml_backend_cuda_context & ctx, const hs_decode & a);

// One kind of cache each (decode_f16.cu, decode_q8.cu). The launch sets a.warps and what follows from the device in `plan` first.
struct hs_decode_shape {
    size_t warp_bytes; // of shared memory
    int blocks;        // thread blocks of an SM
    void (*kernel)(const hs_decode);
};
hs_decode_shape hs_decode_f16(int d_qk, int d_v, int n_rep);
hs_decode_shape hs_decode_q8(int d_qk, int d_v, int n_rep);
