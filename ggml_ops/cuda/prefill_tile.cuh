// Tiles of the dense prefill kernel (prefill.cu): which keys they see, and how those come to shared memory as f16.
//
// Fragments of mma.m16n8k16 (g = lane / 4, q = lane % 4): A: a0 rows g, columns 2q..; a1 row g + 8; a2, a3 the same 8 columns on. B: b0 rows 2q.. of column g,
// b1 8 rows on. C: c0, c1 row g, columns 2q, 2q + 1; c2, c3 row g + 8. So C of two neighbouring n-tiles, packed, is A of the product that follows.
// ldmatrix gives lane i the words that lie at row i / 4, halves 2 (i % 4).. of each 8x8 matrix: A by rows, B of Q K^T by rows of K, B of P V by rows of V, transposed.
#pragma once

#include "attn.cuh"
#include "prefill_sparse_mma.cuh" // ldmatrix, mma, asynchronous copies, swizzle

#define HS_THREADS 128
#define HS_NO_ROW (1u << 31) // a key that no query of the tile sees: zeros, so that an unwritten NaN meets no product

struct hs_dense : hs_dev_attn {
    float * raw;  // [n_raw, rows of a tile] maxima of runs of `grain` keys, one such piece a thread block, or NULL
    int * next;   // tiles given out beyond the first gridDim.x, or NULL: there are no more
    int n_raw, grain, tokens, n_tiles;
};

// What a tile keeps in static shared memory.
template <int ROWS, int KEYS> struct hs_dense_side {
    int pos[ROWS], seq[ROWS];
    float2 lse[ROWS];              // of the denominator, in powers of two: its reference, log of the rest
    unsigned at[2][2][KEYS];       // [step % 2][K or V]: where the rows of a step lie, in units of 16 bytes (q8_0: 2), or HS_NO_ROW
    int next;
};

// Offsets of the 16-byte pieces that a lane names to ldmatrix: row `row`, piece 2 * step + half, for every step: by[step % n] + step / n * n * 32.
template <int D> struct hs_pieces {
    static constexpr int n = D % 64 == 0 ? 4 : 2;
    unsigned by[n];
    __host__ __device__ __forceinline__ hs_pieces(unsigned base, int row, int half) {
        const unsigned first = base + row * D * 2 + ((half ^ hs_piece_key<D>(row)) << 4);
#pragma unroll
        for (int i = 0; i < n; i++) {
            by[i] = first ^ (i << 5);
        }
    }
    __host__ __device__ __forceinline__ unsigned operator()(int step) const { return by[step % n] + step / n * n * 32; }
};

// The rows of the tile that belong to one sequence, and the keys they see together.
struct hs_span {
    int seq, next, lo, hi; // next: the sequence after it, INT_MAX: none
    int all_from, all_to;  // keys that every row of the tile sees; empty if there are rows of other sequences
    bool mixed;
};

static __device__ __forceinline__ hs_span hs_span_of(const int * pos, const int * seqs, int n_rows, int seq, int window) {
    int hi = -1, lo = INT_MAX, next = INT_MAX, other = 0;
    for (int i = threadIdx.x % 32; i < n_rows; i += 32) {
        const int s = seqs[i], p = pos[i];
        hi = s == seq ? max(hi, p) : hi;
        lo = s == seq ? min(lo, p) : lo;
        next = s > seq ? min(next, s) : next;
        other |= s != seq;
    }
    hs_span x;
    x.seq = seq;
    x.next = __reduce_min_sync(0xffffffff, next);
    x.hi = __reduce_max_sync(0xffffffff, hi);
    lo = __reduce_min_sync(0xffffffff, lo);
    x.mixed = __reduce_or_sync(0xffffffff, other) != 0;
    x.lo = max(lo - window + 1, 0); // window > 0
    x.all_from = x.mixed ? INT_MAX : max(x.hi - window + 1, 0);
    x.all_to = x.mixed ? -1 : lo;
    return x;
}

// Where one thread's row of a step lies: thread x has key x of K, or x - KEYS of V. The page is looked up a step before it is needed.
template <int KEYS, bool Q8> struct hs_rows_of {
    const hs_dev_cache & c;
    int head, seq, lo, hi, key;

    __device__ __forceinline__ hs_rows_of(const hs_dev_branch & b, const hs_span & x, int head_kv) : c(threadIdx.x < KEYS ? b.k : b.v), head(head_kv), seq(x.seq), lo(x.lo),
        hi(x.hi), key(x.lo / KEYS * KEYS + threadIdx.x % KEYS) {}
    __device__ __forceinline__ bool sees(int step) const {
        const int j = key + step * KEYS;
        return threadIdx.x < 2 * KEYS && j >= lo && j <= hi;
    }
    __device__ __forceinline__ int page(int step) const { return c.table && sees(step) ? c.table[seq * c.max_pages + (key + step * KEYS) / c.n_slots] : seq; }
    __device__ __forceinline__ void put(unsigned (*at)[KEYS], int step, int page) const {
        if (threadIdx.x < 2 * KEYS) {
            const int64_t byte = page * c.nb3 + head * c.nb2 + (key + step * KEYS) % c.n_slots * c.nb1;
            at[threadIdx.x / KEYS][threadIdx.x % KEYS] = sees(step) ? (unsigned) (byte >> (Q8 ? 1 : 4)) : HS_NO_ROW;
        }
    }
};

// Eight q8_0 values as halves, exact to half an ulp of f16.
static __device__ __forceinline__ uint4 hs_dequantise8(const char * block, int x) {
    const float d = __half2float(*(const half *) block);
    const char2 * q = (const char2 *) (block + 2 + x);
    const char2 a = q[0], b = q[1], c = q[2], e = q[3];
    return make_uint4(hs_pack(d * a.x, d * a.y), hs_pack(d * b.x, d * b.y), hs_pack(d * c.x, d * c.y), hs_pack(d * e.x, d * e.y));
}

// A step of K or V -> shared memory. f16: asynchronous. q8_0: dequantised on the way.
template <int D, int KEYS, bool Q8> static __device__ __forceinline__ void hs_load_step(unsigned dst, const char * data, const unsigned * at) {
    constexpr int pieces = D / 8, rounds = KEYS * pieces / HS_THREADS, unroll = Q8 ? 4 : rounds;
    static_assert(KEYS * pieces % HS_THREADS == 0, "whole rounds");
#pragma unroll(unroll)
    for (int i = 0; i < rounds; i++) {
        const unsigned x = threadIdx.x + i * HS_THREADS;
        const unsigned row = HS_THREADS % pieces == 0 ? threadIdx.x / pieces + i * (HS_THREADS / pieces) : x / pieces; // the first form: a constant apart
        const unsigned c = HS_THREADS % pieces == 0 ? threadIdx.x % pieces : x % pieces;
        const unsigned from = at[row], to = dst + hs_piece_at<D>(row, c);
        if (Q8) {
            uint4 y = make_uint4(0, 0, 0, 0);
            if (from < HS_NO_ROW) {
                y = hs_dequantise8(data + (int64_t) from * 2 + c / 4 * 34, c % 4 * 8);
            }
            hs_store16(to, y);
        } else {
            hs_copy16(to, data + c * 16u + (uint64_t) (from & ~HS_NO_ROW) * 16, from < HS_NO_ROW ? 16 : 0); // no row: nothing is read
        }
    }
}

// Queries of the tile -> f16 in shared memory; rows of padding are zeros.
template <int D, int ROWS, int KEYS> static __device__ __forceinline__ void hs_load_queries(const hs_dense & a, unsigned to,
    hs_dense_side<ROWS, KEYS> & side, int first, int head_kv, int n_rows) {
    const int n_rep = a.b[0].n_rep;
#pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * D / 8; i += HS_THREADS) {
        const int row = i / (D / 8), c = i % (D / 8);
        float4 x[2] = {};
        if (row < n_rows) {
            const float4 * q = (const float4 *) (a.q + ((int64_t) (first + row / n_rep) * a.n_head + head_kv * n_rep + row % n_rep) * D) + c * 2;
            x[0] = q[0];
            x[1] = q[1];
        }
        unsigned y[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float lo = j % 2 ? x[j / 2].z : x[j / 2].x, hi = j % 2 ? x[j / 2].w : x[j / 2].y;
            y[j] = hs_pack_clamped(lo, hi);
        }
        hs_store16(to + hs_piece_at<D>(row, c), make_uint4(y[0], y[1], y[2], y[3]));
    }
    for (int row = threadIdx.x; row < ROWS; row += HS_THREADS) {
        side.pos[row] = row < n_rows ? a.pos[first + row / n_rep] : -1;
        side.seq[row] = row < n_rows ? a.seq[first + row / n_rep] : -1;
    }
}

static __device__ __forceinline__ void hs_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> static __device__ __forceinline__ void hs_copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
