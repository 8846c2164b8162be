// The three attention ops on CUDA in their plain form: f32 throughout, right for every shape and type. It serves what the fast kernels do not take.
//
// A block of threads has one (token, query head). Its warps take runs of visible keys in turn, a key at a time, 4 or 8 channels a lane, each warp with an
// online softmax of its own; their states are joined in shared memory. Replaces: mask, score matrix and softmax as passes of their own.
// Order of summation: a warp's runs ascending, then the warps in order; it does not depend on the other tokens of the ubatch.
#include "attn.cuh"

#define HS_WARPS 8
#define HS_CHUNK 32 // keys of a run without block scores
#define HS_HEAD_DIM 256
#define HS_START (-1e30f)

// The kernel's own scratch beside what it is given: block maxima [n_blocks, n_head, n_tokens] and logs of the denominators [n_head, n_tokens].
struct plain : hs_dev_attn { float * raw, * lse; };

struct state { float m, l; float4 o[HS_HEAD_DIM / 128]; };

// Keys first .. end - 1, one at a time; returns the largest logit.
static __device__ float walk(const plain & a, const hs_dev_branch & b, const float4 * q, state & s, int seq, int head_kv, int first, int end) {
    const int lane = threadIdx.x % 32;
    float best = HS_START;
    for (int j = first; j < end; j++) {
        const char * k = hs_dev_row(b.k, seq, head_kv, j), * v = hs_dev_row(b.v, seq, head_kv, j);
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < HS_HEAD_DIM / 128; i++) {
            const int x = 128 * i + 4 * lane;
            if (x < a.d_qk) {
                const float4 y = hs_dev_load4(b.k.type, k, x);
                dot += q[i].x * y.x + q[i].y * y.y + q[i].z * y.z + q[i].w * y.w;
            }
        }
        for (int w = 16; w > 0; w /= 2) {
            dot += __shfl_xor_sync(0xffffffff, dot, w);
        }
        best = fmaxf(best, dot);
        const float m = fmaxf(s.m, dot), fix = expf(s.m - m), p = expf(dot - m);
        s.m = m;
        s.l = s.l * fix + p;
#pragma unroll
        for (int i = 0; i < HS_HEAD_DIM / 128; i++) {
            const int x = 128 * i + 4 * lane;
            if (x < a.d_v) {
                const float4 y = hs_dev_load4(b.v.type, v, x);
                s.o[i] = make_float4(s.o[i].x * fix + p * y.x, s.o[i].y * fix + p * y.y, s.o[i].z * fix + p * y.z, s.o[i].w * fix + p * y.w);
            }
        }
    }
    return best;
}

// Everything up to t, or a window: runs of `step` keys dealt out to the warps. With scores a run is a block, and its maximum is kept.
static __device__ void walk_dense(const plain & a, const hs_dev_branch & b, const float4 * q, state & s, int seq, int head_kv, int t, float * raw) {
    const int step = raw ? a.block_size : HS_CHUNK, first = max(t - b.window + 1, 0);
    for (int r = threadIdx.x / 32; first + (int64_t) r * step <= t; r += HS_WARPS) {
        const int from = first + r * step;
        const float best = walk(a, b, q, s, seq, head_kv, from, min(from + step, t + 1));
        if (raw && threadIdx.x % 32 == 0) {
            raw[r] = best;
        }
    }
}

// The selected blocks below the forced window (all up to t without one), block 0 and that window.
static __device__ void walk_selected(const plain & a, const hs_dev_branch & b, const float4 * q, state & s, int seq, int head_kv, int token, int t) {
    const int32_t * sel = b.sel + ((int64_t) token * b.n_head_kv + head_kv) * a.top_k;
    const int window = b.window > 0 ? max(t - b.window + 1, 0) : t + 1, warp = threadIdx.x / 32;
    const bool zero = b.window > 0 && !(a.top_k > 0 && sel[0] == 0);
    for (int i = warp; i < a.top_k + (zero ? 1 : 0); i += HS_WARPS) {
        const int block = i < a.top_k ? sel[i] : 0;
        if (block >= 0) {
            const int64_t from = (int64_t) block * a.block_size;
            walk(a, b, q, s, seq, head_kv, (int) min(from, (int64_t) window), (int) min(from + a.block_size, (int64_t) window));
        }
    }
    for (int r = warp; window + (int64_t) r * HS_CHUNK <= t; r += HS_WARPS) {
        walk(a, b, q, s, seq, head_kv, window + r * HS_CHUNK, min(window + (r + 1) * HS_CHUNK, t + 1));
    }
}

static __global__ void __launch_bounds__(32 * HS_WARPS) attn_kernel(const plain a) {
    __shared__ float m[HS_WARPS], l[HS_WARPS], o[HS_WARPS][HS_HEAD_DIM];
    const int token = blockIdx.x, head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int t = a.pos[token], seq = a.seq[token];
    const int64_t row = (int64_t) token * a.n_head + head;
    float4 q[HS_HEAD_DIM / 128];
#pragma unroll
    for (int i = 0; i < HS_HEAD_DIM / 128; i++) {
        const int x = 128 * i + 4 * lane;
        const float4 y = x < a.d_qk ? *(const float4 *) (a.q + row * a.d_qk + x) : make_float4(0, 0, 0, 0);
        q[i] = make_float4(y.x * a.scale, y.y * a.scale, y.z * a.scale, y.w * a.scale);
    }
    for (int n = 0; n < a.n_branch; n++) {
        const hs_dev_branch & b = a.b[n];
        state s = { HS_START, 0.0f, {} };
        if (b.sel) {
            walk_selected(a, b, q, s, seq, head / b.n_rep, token, t);
        } else {
            walk_dense(a, b, q, s, seq, head / b.n_rep, t, a.raw ? a.raw + row * a.n_blocks : nullptr);
        }
        __syncthreads(); // the branch before has been read
        m[warp] = s.m;
        l[warp] = s.l;
#pragma unroll
        for (int i = 0; i < HS_HEAD_DIM / 128; i++) {
            *(float4 *) &o[warp][128 * i + 4 * lane] = s.o[i];
        }
        __syncthreads();
        const float sink = b.sinks ? b.sinks[head] : HS_SINK_ABSENT;
        float top = sink > HS_SINK_ABSENT ? sink : HS_START;
        for (int w = 0; w < HS_WARPS; w++) {
            top = fmaxf(top, m[w]);
        }
        float sum = sink > HS_SINK_ABSENT ? expf(sink - top) : 0.0f, keys = 0.0f;
        for (int w = 0; w < HS_WARPS; w++) {
            keys += l[w];
            sum += l[w] * expf(m[w] - top);
        }
        for (int x = threadIdx.x; x < a.d_v; x += blockDim.x) {
            float y = 0.0f;
            for (int w = 0; w < HS_WARPS; w++) {
                y += o[w][x] * expf(m[w] - top);
            }
            y = keys > 0.0f ? y / sum : 0.0f;
            y *= hs_dev_gate(a, token, head, n, x);
            float * out = a.out + row * a.d_v + x;
            *out = n > 0 ? *out + y : y;
        }
        if (a.lse && threadIdx.x == 0) {
            a.lse[row] = top + logf(sum);
        }
    }
}

// scores[g, t, i] = max over the group's heads of (block maximum - log of the denominator)
static __global__ void scores_kernel(const plain a) {
    const int token = blockIdx.x, g = blockIdx.y, n_rep = a.b[0].n_rep, n_head_kv = a.n_head / n_rep;
    for (int i = threadIdx.x; i <= a.pos[token] / a.block_size; i += blockDim.x) {
        float best = -INFINITY;
        for (int r = 0; r < n_rep; r++) {
            const int64_t row = (int64_t) token * a.n_head + g * n_rep + r;
            best = fmaxf(best, a.raw[row * a.n_blocks + i] - a.lse[row]);
        }
        a.scores[((int64_t) token * n_head_kv + g) * a.n_blocks + i] = best;
    }
}

void hs_cuda_attn_plain(ggml_backend_cuda_context & ctx, const hs_dev_attn & given) {
    plain a = {};
    static_cast<hs_dev_attn &>(a) = given;
    const size_t rows = (size_t) a.n_tokens * a.n_head;
    ggml_cuda_pool_alloc<float> raw(ctx.pool()), lse(ctx.pool());
    if (a.scores) {
        a.raw = raw.alloc(rows * a.n_blocks);
        a.lse = lse.alloc(rows);
    }
    attn_kernel<<<dim3(a.n_tokens, a.n_head), 32 * HS_WARPS, 0, ctx.stream()>>>(a);
    if (a.scores) {
        scores_kernel<<<dim3(a.n_tokens, a.b[0].n_head_kv), 128, 0, ctx.stream()>>>(a);
    }
}
