// Attention of few queries: the partial results of the thread blocks of one (token, KV head) become the output, and the block maxima the scores.
//
// Replaces a counter that lets the last thread block do it: that one would have to be zeroed by a launch of its own, and would work alone, while here a
// context of any length is spread. Order of summation: warp w takes parts w, w + 8, ... ascending, then the warps in order; the branches in order.
#include "decode.cuh"

#define HS_MERGE_WARPS 8
#define HS_MERGE_BLOCKS 512 // scores of a thread block
#define HS_MERGE_DIM 256

// Softmax of one head over all parts. By a whole warp; part s lies at ml[s * n_rep].
struct whole { float top, sum, keys; };

static __device__ __forceinline__ whole join(const float2 * ml, int n_rep, int n, float sink) {
    const int lane = threadIdx.x % 32;
    const bool has_sink = sink > HS_SINK_ABSENT;
    whole r = { has_sink ? sink : HS_DECODE_START, 0.0f, 0.0f };
    for (int s = lane; s < n; s += 32) {
        r.top = fmaxf(r.top, ml[s * n_rep].x);
    }
    for (int w = 16; w > 0; w /= 2) {
        r.top = fmaxf(r.top, __shfl_xor_sync(0xffffffff, r.top, w));
    }
    for (int s = lane; s < n; s += 32) {
        const float2 x = ml[s * n_rep];
        r.keys += x.y * expf(x.x - r.top);
    }
    for (int w = 16; w > 0; w /= 2) {
        r.keys += __shfl_xor_sync(0xffffffff, r.keys, w);
    }
    r.sum = r.keys + (has_sink ? expf(sink - r.top) : 0.0f);
    return r;
}

static __device__ void merge_out(const hs_decode & a, int token, int head, int t) {
    __shared__ float sums[HS_MERGE_WARPS][HS_MERGE_DIM];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float out = 0.0f; // of channel threadIdx.x
    for (int n = 0; n < a.n_branch; n++) {
        const hs_dev_branch & b = a.b[n];
        const int n_splits = hs_n_splits(a, n, hs_n_tiles(a, n, t)), g = head / b.n_rep;
        const int64_t place = ((int64_t) token * b.n_head_kv + g) * a.splits[n] * b.n_rep + head % b.n_rep;
        const float2 * ml = a.ml[n] + place;
        const whole all = join(ml, b.n_rep, n_splits, b.sinks ? b.sinks[head] : HS_SINK_ABSENT);
        float4 o[HS_MERGE_DIM / 128] = {};
#pragma unroll 4
        for (int s = warp; s < n_splits; s += HS_MERGE_WARPS) {
            const float f = expf(ml[s * b.n_rep].x - all.top);
            const float * from = a.part[n] + (place + s * b.n_rep) * a.d_v;
#pragma unroll
            for (int i = 0; i < HS_MERGE_DIM / 128; i++) {
                const int x = 128 * i + 4 * lane;
                const float4 y = x < a.d_v ? *(const float4 *) (from + x) : make_float4(0, 0, 0, 0);
                o[i] = make_float4(o[i].x + f * y.x, o[i].y + f * y.y, o[i].z + f * y.z, o[i].w + f * y.w);
            }
        }
        __syncthreads(); // the branch before has been read
#pragma unroll
        for (int i = 0; i < HS_MERGE_DIM / 128; i++) {
            *(float4 *) &sums[warp][128 * i + 4 * lane] = o[i];
        }
        __syncthreads();
        if ((int) threadIdx.x < a.d_v && all.keys > 0.0f) {
            float y = 0.0f;
            for (int i = 0; i < HS_MERGE_WARPS; i++) {
                y += sums[i][threadIdx.x];
            }
            out += y / all.sum * hs_dev_gate(a, token, head, n, threadIdx.x);
        }
    }
    if ((int) threadIdx.x < a.d_v) {
        a.out[((int64_t) token * a.n_head + head) * a.d_v + threadIdx.x] = out;
    }
}

// scores[g, t, i] = max over the group's heads of (block maximum - log of the denominator)
static __device__ void merge_scores(const hs_decode & a, int token, int g, int first, int t) {
    __shared__ float logs[HS_DECODE_REP];
    const hs_dev_branch & b = a.b[0];
    const int end = min(t / a.block_size + 1, first + HS_MERGE_BLOCKS);
    if (first >= end) {
        return;
    }
    const int64_t row = (int64_t) token * b.n_head_kv + g;
    const int n_splits = hs_n_splits(a, 0, hs_n_tiles(a, 0, t));
    for (int r = threadIdx.x / 32; r < b.n_rep; r += HS_MERGE_WARPS) {
        const whole all = join(a.ml[0] + row * a.splits[0] * b.n_rep + r, b.n_rep, n_splits, b.sinks ? b.sinks[g * b.n_rep + r] : HS_SINK_ABSENT);
        if (threadIdx.x % 32 == 0) {
            logs[r] = all.top + logf(all.sum);
        }
    }
    __syncthreads();
    for (int i = first + threadIdx.x; i < end; i += 32 * HS_MERGE_WARPS) {
        const float * raw = a.raw + (row * a.n_blocks + i) * b.n_rep;
        float best = -INFINITY;
        for (int r = 0; r < b.n_rep; r++) {
            best = fmaxf(best, raw[r] - logs[r]);
        }
        a.scores[row * a.n_blocks + i] = best;
    }
}

// Thread blocks: the heads of a token, then the scores of its KV heads, HS_MERGE_BLOCKS each.
static __global__ void __launch_bounds__(32 * HS_MERGE_WARPS) merge_kernel(const hs_decode a) {
    const int token = blockIdx.y, x = blockIdx.x, t = a.pos[token];
    if (x < a.n_head) {
        merge_out(a, token, x, t);
    } else {
        const int y = x - a.n_head, n_head_kv = a.b[0].n_head_kv;
        merge_scores(a, token, y % n_head_kv, y / n_head_kv * HS_MERGE_BLOCKS, t);
    }
}

void hs_cuda_decode_merge(ggml_backend_cuda_context & ctx, const hs_decode & a) {
    const int chunks = a.scores ? (a.n_blocks + HS_MERGE_BLOCKS - 1) / HS_MERGE_BLOCKS : 0;
    merge_kernel<<<dim3(a.n_head + a.b[0].n_head_kv * chunks, a.n_tokens), 32 * HS_MERGE_WARPS, 0, ctx.stream()>>>(a);
}
