// What a consuming warpgroup of the Hopper kernel does with its 64 query rows: load, multiply, softmax, store. Accumulators: prefill_sm90_ptx.cuh.
#pragma once

#include "numbers.cuh"
#include "prefill_sm90.cuh"

#ifdef HS_SM90A

// A thread's two rows of the tile.
struct hs_rows {
    int row[2], pos[2], seq[2]; // pos -1: a row of padding
    float m[2], mc[2], l[2];    // maximum; the same times scale, in powers of two; this lane's part of the denominator
};

static __device__ __forceinline__ void start_rows(const hs_sm90 & a, const hs_walk & w, hs_rows & x, int wg) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        x.row[r] = wg * 64 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + r * 8;
        const int token = x.row[r] / a.b[0].n_rep;
        x.pos[r] = token < w.n_tokens ? w.pos[token] : -1;
        x.seq[r] = token < w.n_tokens ? w.seqs[token] : -1;
        x.m[r] = HS_START;
        x.mc[r] = __fmul_rn(HS_START, a.scale * HS_LOG2E);
        x.l[r] = 0.0f;
    }
}

// Queries of 64 rows -> f16 in shared memory, swizzled. A warp writes its own 16 rows.
template <int D_QK> static __device__ __forceinline__ void load_q(const hs_sm90 & a, const hs_walk & w, uint32_t smem, int wg) {
    const int n_rep = a.b[0].n_rep, lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll 16
    for (int i = lane; i < 16 * D_QK / 4; i += 32) {
        const int r = warp * 16 + i / (D_QK / 4), x = i % (D_QK / 4) * 4, row = wg * 64 + r, token = row / n_rep;
        float4 y = make_float4(0, 0, 0, 0);
        if (token < w.n_tokens) {
            y = *(const float4 *) (a.q + ((int64_t) (w.first + token) * a.n_head + w.head_kv * n_rep + row % n_rep) * D_QK + x);
        }
        const uint32_t lo = hs_pack_clamped(y.x, y.y);
        const uint32_t hi = hs_pack_clamped(y.z, y.w);
        const uint32_t at = smem + x / 64 * HS_BOX + r * 128 + ((x % 64 / 8) ^ (r % 8)) * 16 + x % 8 * 2;
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" :: "r"(at), "r"(lo), "r"(hi) : "memory");
    }
}

// Rows of V that no query of the tile sees may hold NaN, which a weight of 0 does not mask: zero them. Both warpgroups do it, with the same bytes.
template <int D_V, int KEYS> static __device__ __noinline__ void zero_tail(uint32_t v, int written, int wg) {
    constexpr int chunks = D_V / 8;
    for (int i = written * chunks + threadIdx.x % 128; i < KEYS * chunks; i += 128) {
        const int r = i / chunks, c = i % chunks;
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" :: "r"(v + c / 8 * KEYS * 128 + r * 128 + c % 8 * 16), "r"(0) : "memory");
    }
    hs_proxy_fence();
    hs_bar_sync(3 + wg, 128);
}

// S = Q K^T of a step.
template <int D_QK, int KEYS> static __device__ __forceinline__ void multiply_qk(float (&s)[KEYS / 2], uint64_t q, uint64_t k) {
#pragma unroll
    for (int i = 0; i < D_QK / 16; i++) {
        hs_wgmma(s, q + i / 4 * (HS_BOX >> 4) + i % 4 * 2, k + i / 4 * (KEYS * 128 >> 4) + i % 4 * 2, i > 0);
    }
}

// O += P V of a step; n_part accumulators of D_V / n_part channels.
template <int N_PART, int N, int KEYS>
static __device__ __forceinline__ void multiply_pv(float (&o)[N_PART][N], const uint32_t (&p)[KEYS / 4], uint64_t v) {
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) {
#pragma unroll
        for (int n = 0; n < N_PART; n++) {
            hs_wgmma_t(o[n], p + 4 * i, v + i * (2048 >> 4) + n * 2 * (KEYS * 128 >> 4));
        }
    }
}

// Logits of a step -> weights in place; returns by what the sums so far shrink. With raw: maxima of its 64-key blocks.
template <int KEYS>
static __device__ __forceinline__ void softmax(float (&s)[KEYS / 2], hs_rows & x, float (&fix)[2], const hs_walk & w, float scale, float * raw) {
    constexpr int n_pages = KEYS / HS_PAGE;
    const int lane = threadIdx.x % 32, lim[2] = { x.seq[0] == w.seq ? x.pos[0] : -1, x.seq[1] == w.seq ? x.pos[1] : -1 };
    if (w.step * KEYS + KEYS - 1 > w.min_pos) {
        const int from = w.step * KEYS + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
            s[i] = from + i / 4 * 8 + i % 2 <= lim[i / 2 % 2] ? s[i] : -INFINITY;
        }
    }
    float top[n_pages][2];
#pragma unroll
    for (int n = 0; n < n_pages; n++) {
        top[n][0] = top[n][1] = -INFINITY;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            top[n][i / 2 % 2] = fmaxf(top[n][i / 2 % 2], s[n * 32 + i]);
        }
    }
    if (raw) {
#pragma unroll
        for (int n = 0; n < n_pages; n++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                top[n][r] = fmaxf(top[n][r], __shfl_xor_sync(0xffffffff, top[n][r], 1));
                top[n][r] = fmaxf(top[n][r], __shfl_xor_sync(0xffffffff, top[n][r], 2));
            }
        }
        const bool second = lane & 1, page = n_pages > 1 && lane & 2; // each lane of the four stores one maximum
        const float best = page ? (second ? top[n_pages - 1][1] : top[n_pages - 1][0]) : (second ? top[0][1] : top[0][0]);
        if ((n_pages > 1 || lane % 4 < 2) && (second ? lim[1] : lim[0]) >= 0) {
            raw[(int64_t) (w.step * n_pages + page) * HS_ROWS + (second ? x.row[1] : x.row[0])] = best;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float m = top[0][r];
        if (n_pages > 1) {
            m = fmaxf(m, top[n_pages - 1][r]);
        }
        if (!raw) {
            m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 2));
        }
        x.m[r] = fmaxf(x.m[r], m);
        const float mc = __fmul_rn(x.m[r], scale); // not fused into the next line: of a row that has seen no key, the rounding of 1e29 would be left
        fix[r] = hs_exp2(x.mc[r] - mc);
        x.mc[r] = mc;
        x.l[r] *= fix[r];
    }
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        s[i] = hs_exp2(fmaf(s[i], scale, -x.mc[i / 2 % 2]));
        x.l[i / 2 % 2] += s[i];
    }
}

template <int KEYS> static __device__ __forceinline__ void pack(uint32_t (&p)[KEYS / 4], const float (&s)[KEYS / 2]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) {
        p[i] = hs_pack(s[2 * i], s[2 * i + 1]);
    }
}

// The rows' results: O over the denominator (sink included), and what the scores need: the denominator's maximum and the log of the rest.
template <int N_PART, int N>
static __device__ __forceinline__ void store(const hs_sm90 & a, const float (&o)[N_PART][N], const hs_rows & x, const hs_walk & w, float2 * lse) {
    const hs_dev_branch & b = a.b[0];
    const int lane = threadIdx.x % 32, d_v = N_PART * N * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float l = x.l[r];
        l += __shfl_xor_sync(0xffffffff, l, 1);
        l += __shfl_xor_sync(0xffffffff, l, 2);
        if (x.pos[r] < 0) {
            continue;
        }
        const int head = w.head_kv * b.n_rep + x.row[r] % b.n_rep, token = w.first + x.row[r] / b.n_rep;
        const float sink = b.sinks ? b.sinks[head] : HS_SINK_ABSENT;
        float top = x.mc[r];
        if (sink > HS_SINK_ABSENT) {
            top = fmaxf(top, sink * HS_LOG2E);
            l = l * hs_exp2(x.mc[r] - top) + hs_exp2(sink * HS_LOG2E - top);
        }
        const float factor = hs_exp2(x.mc[r] - top) / l;
        float * out = a.out + ((int64_t) token * a.n_head + head) * d_v + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < N_PART; n++) {
#pragma unroll
            for (int i = 0; i < N / 4; i++) {
                *(float2 *) (out + n * N * 2 + i * 8) = make_float2(o[n][i * 4 + r * 2] * factor, o[n][i * 4 + r * 2 + 1] * factor);
            }
        }
        if (lse && lane % 4 == 0) {
            lse[x.row[r]] = make_float2(top, log2f(l));
        }
    }
}

#endif // HS_SM90A
