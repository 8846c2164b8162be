// What a consuming warpgroup of the sparse Hopper kernel does with its 64 query rows: load, multiply, softmax, finish. Accumulators:
// prefill_sm90_ptx.cuh.
#pragma once

#include "prefill_sparse_sm90.cuh"

#ifdef HS_SM90A

// A thread's two rows of the tile.
struct hs_sparse_rows {
    int token[2], pos[2]; // token: within the tile; of padding: 63, which then no token has (HS_MIN_REP), and position -1
    float m[2], l[2];     // largest logit, in powers of two; this lane's part of the denominator
};

static __device__ __forceinline__ int hs_row_of(int wg, int r) { return wg * 64 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + r * 8; }
static __device__ __forceinline__ bool hs_bit(unsigned long long mask, int i) { return mask >> i & 1; }

// An item's slot, in a register that the compiler knows to be the same in all lanes.
static __device__ __forceinline__ int hs_slot(int item) { return (int) __reduce_max_sync(0xffffffff, (unsigned) item % HS_SLOTS); }

// Tokens of rows 64 wg .. 64 wg + 63.
static __device__ __forceinline__ unsigned long long hs_tokens_of(const int * order, int n_rep, int n_tile, int wg) {
    const int from = 64 * wg / n_rep, end = min((64 * wg + 63) / n_rep + 1, n_tile);
    unsigned long long mine = 0;
    for (int i = from + (int) threadIdx.x % 32; i < end; i += 32) {
        mine |= 1ull << order[i];
    }
    const unsigned lo = __reduce_or_sync(0xffffffff, (unsigned) mine), hi = __reduce_or_sync(0xffffffff, (unsigned) (mine >> 32));
    return (unsigned long long) hi << 32 | lo;
}

// Which rows a thread has, and its part of their queries as the left operand of S.
template <int D_QK> static __device__ __forceinline__ void hs_start_rows(const hs_sparse90 & a, const int * order, int first, int n_tile,
    int head_kv, int wg, hs_sparse_rows & x, uint32_t (&q)[D_QK / 4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = hs_row_of(wg, r), place = row / a.n_rep;
        const bool have = place < n_tile;
        x.token[r] = have ? order[place] : 63;
        x.pos[r] = have ? a.pos[first + x.token[r]] : -1;
        const float * from = a.q + ((int64_t) (first + x.token[r]) * a.n_head + head_kv * a.n_rep + row % a.n_rep) * D_QK + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < D_QK / 8; i++) {
            const float2 y = have ? *(const float2 *) (from + i * 8) : make_float2(0.0f, 0.0f);
            q[i / 2 * 4 + i % 2 * 2 + r] = hs_pack_clamped(y.x, y.y);
        }
    }
}

// S = Q K^T of two pages.
template <int D_QK>
static __device__ __forceinline__ void hs_multiply_qk(float (&s)[2][32], const uint32_t (&q)[D_QK / 4], uint64_t k, const hs_step & step) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const uint64_t at = k + hs_slot(step.item[n]) * (64 * D_QK * 2 >> 4);
#pragma unroll
        for (int i = 0; i < D_QK / 16; i++) {
            hs_wgmma(s[n], q + 4 * i, at + i / 4 * (HS_BOX >> 4) + i % 4 * 2, i > 0);
        }
    }
}

// O += P V of two pages.
template <int D_V>
static __device__ __forceinline__ void hs_multiply_pv(float (&o)[1][D_V / 2], const uint32_t (&p)[2][16], uint64_t v, const hs_step & step) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
        multiply_pv<1, D_V / 2, 64>(o, p[n], v + hs_slot(step.item[n]) * (64 * D_V * 2 >> 4));
    }
}

// V of a step is there, and its rows that may hold NaN are zeros.
template <int D_V> static __device__ __forceinline__ void hs_await_v(hs_sparse_shared & sh, uint32_t v, const hs_step & step, int wg) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const int slot = step.item[n] % HS_SLOTS;
        hs_mbar_wait(&sh.full_v[slot], step.item[n] / HS_SLOTS % 2);
        const hs_sparse_head & head = sh.heads[step.item[n] % HS_HEADS];
        const int written = head.hi - head.from + 1;
        if (written < 64) {
            zero_tail<D_V, 64>(v + slot * 64 * D_V * 2, written, wg);
        }
    }
}

// Logits of a step -> weights in place; returns by what the sums so far shrink. A warp none of whose rows sees a page makes zeros of it. A row
// that does not see it gets its weights as 2^(s - inf); single keys are hidden only where a row of the warp sees a part of the page, or where
// keys may be NaN.
static __device__ __forceinline__ void hs_soften(float (&s)[2][32], hs_sparse_rows & x, float (&fix)[2], const hs_sparse_shared & sh,
    const hs_step & step, float scale, int window) {
    float top[2] = { -INFINITY, -INFINITY };
    bool sees[2][2], any[2];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const hs_sparse_head & head = sh.heads[step.item[n] % HS_HEADS];
        const int from = head.from, end = head.hi;
        const unsigned long long sel = n > 0 && step.single ? 0 : head.sel, win = n > 0 && step.single ? 0 : head.window;
        bool part = from + 63 > end;
        int lo[2], hi[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const bool whole = hs_bit(sel, x.token[r]);
            sees[n][r] = whole || hs_bit(win, x.token[r]);
            lo[r] = whole ? from : x.pos[r] - window + 1;
            hi[r] = sees[n][r] ? min(x.pos[r], end) : INT_MIN;
            part = part || (sees[n][r] && (lo[r] > from || hi[r] < from + 63));
        }
        any[n] = __any_sync(0xffffffff, sees[n][0] || sees[n][1]);
        if (!any[n]) {
            continue;
        }
        if (__any_sync(0xffffffff, part)) {
            const int j = from + threadIdx.x % 4 * 2;
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const int at = j + i / 4 * 8 + i % 2;
                s[n][i] = at >= lo[i / 2 % 2] && at <= hi[i / 2 % 2] ? s[n][i] : -INFINITY;
            }
        }
        float best[2] = { -INFINITY, -INFINITY };
#pragma unroll
        for (int i = 0; i < 32; i++) {
            best[i / 2 % 2] = fmaxf(best[i / 2 % 2], s[n][i]);
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = sees[n][r] ? fmaxf(top[r], best[r]) : top[r];
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffff, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffff, top[r], 2));
        const float m = fmaxf(x.m[r], __fmul_rn(top[r], scale)); // not fused into what follows: the same number is subtracted from all keys
        fix[r] = hs_exp2(x.m[r] - m);
        x.m[r] = m;
        x.l[r] *= fix[r];
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
        if (!any[n]) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                asm volatile("mov.b32 %0, 0;" : "=f"(s[n][i]));
            }
            continue;
        }
        const float less[2] = { sees[n][0] ? x.m[0] : INFINITY, sees[n][1] ? x.m[1] : INFINITY };
#pragma unroll
        for (int i = 0; i < 32; i++) {
            s[n][i] = hs_exp2(fmaf(s[n][i], scale, -less[i / 2 % 2]));
            x.l[i / 2 % 2] += s[n][i];
        }
    }
}

// Two instructions where the exact one is a loop of cases: its error is that of two roundings.
static __device__ __forceinline__ float hs_fast_sigmoid(float x) { return __fdividef(1.0f, 1.0f + hs_exp2(-x * HS_LOG2E)); }

// End of branch n: divide, gate, and write or add to what the branch before (the same thread) has written.
template <int D_V> static __device__ __forceinline__ void hs_finish(const hs_sparse90 & a, const float (&o)[1][D_V / 2], const hs_sparse_rows & x,
    int n, int first, int head_kv, int wg) {
    const int lane = threadIdx.x % 32;
    const bool channels = a.gates && a.gate_channels > 1;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float l = x.l[r];
        l += __shfl_xor_sync(0xffffffff, l, 1);
        l += __shfl_xor_sync(0xffffffff, l, 2);
        if (x.pos[r] < 0) {
            continue;
        }
        const int head = head_kv * a.n_rep + hs_row_of(wg, r) % a.n_rep, token = first + x.token[r];
        const float sink = a.b[n].sinks ? a.b[n].sinks[head] : HS_SINK_ABSENT;
        const bool sinks = sink > HS_SINK_ABSENT;
        const float top = sinks ? fmaxf(x.m[r], sink * HS_LOG2E) : x.m[r], keep = hs_exp2(x.m[r] - top);
        const float sum = l * keep + (sinks ? hs_exp2(sink * HS_LOG2E - top) : 0.0f);
        const float by = (l > 0.0f ? keep / sum : 0.0f) * (channels ? 1.0f : hs_dev_gate(a, token, head, n, 0));
        const float * gates = channels ? a.gates + (((int64_t) token * 2 + n) * a.n_head + head) * D_V + lane % 4 * 2 : nullptr;
        float * out = a.out + ((int64_t) token * a.n_head + head) * D_V + lane % 4 * 2;
#pragma unroll
        for (int i0 = 0; i0 < D_V / 8; i0 += 16) { // reads in front of the writes: one latency a batch
            float2 z[16], g[16];
#pragma unroll
            for (int i = i0; i < i0 + 16 && i < D_V / 8; i++) {
                g[i - i0] = channels ? *(const float2 *) (gates + 8 * i) : make_float2(0.0f, 0.0f);
                z[i - i0] = n > 0 ? *(const float2 *) (out + 8 * i) : make_float2(0.0f, 0.0f);
            }
#pragma unroll
            for (int i = i0; i < i0 + 16 && i < D_V / 8; i++) {
                z[i - i0].x += o[0][i * 4 + r * 2] * (channels ? by * hs_fast_sigmoid(g[i - i0].x) : by);
                z[i - i0].y += o[0][i * 4 + r * 2 + 1] * (channels ? by * hs_fast_sigmoid(g[i - i0].y) : by);
                *(float2 *) (out + 8 * i) = z[i - i0];
            }
        }
    }
}

#endif // HS_SM90A
