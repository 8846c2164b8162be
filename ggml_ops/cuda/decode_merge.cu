// Attention of few queries: the partial results of the thread blocks of one (token, KV head) become the output, and the block maxima the scores.
//
// Replaces a counter that lets the last thread block do it: that one would have to be zeroed by a launch of its own, and would work alone, while here a
// context of any length is spread. It is all latency, so what can be asked for at once is: every warp joins its own parts with their own maximum, one round
// trip to memory, and the warps meet once; where the device can (9.0 and up) the launch and all that does not depend on the parts happen before the kernel of
// the parts has ended. Order of summation: warp w takes parts w, w + (warps), ... ascending, then the warps in order; the branches in order.
#include "decode.cuh"
#include "decode_ptx.cuh"

#define HS_MERGE_WARPS 8
#define HS_MERGE_SECOND 2   // of them for the second branch, where there is one: a window is short
#define HS_MERGE_AT_ONCE 6  // parts of a warp on their way together
#define HS_MERGE_BLOCKS (32 * HS_MERGE_WARPS) // scores of a thread block, one a thread

// The parts of one head that a warp has: o is what lane's channels 128 i + 4 lane + {0, 1, 2, 3} sum up to, QUADS * 128 channels or fewer.
template <int QUADS> struct merge_state {
    float top, sum;
    float4 o[QUADS];
};

template <int QUADS>
static __device__ __forceinline__ merge_state<QUADS> merge_parts(const float2 * ml, const float * part, int n_rep, int d_v, int first, int step, int n) {
    const int lane = threadIdx.x % 32;
    merge_state<QUADS> r = { HS_DECODE_START, 0.0f, {} };
    for (int s = first; s < n; s += step * HS_MERGE_AT_ONCE) {
        float2 x[HS_MERGE_AT_ONCE];
        float4 y[HS_MERGE_AT_ONCE][QUADS];
#pragma unroll
        for (int u = 0; u < HS_MERGE_AT_ONCE; u++) {
            const int at = (s + u * step) * n_rep;
            const bool there = s + u * step < n;
            x[u] = there ? ml[at] : make_float2(HS_DECODE_START, 0.0f);
#pragma unroll
            for (int i = 0; i < QUADS; i++) {
                const int c = 128 * i + 4 * lane;
                y[u][i] = there && c < d_v ? *(const float4 *) (part + (int64_t) at * d_v + c) : make_float4(0, 0, 0, 0);
            }
        }
        float top = r.top;
#pragma unroll
        for (int u = 0; u < HS_MERGE_AT_ONCE; u++) {
            top = fmaxf(top, x[u].x);
        }
        const float fix = __expf(r.top - top);
        r.top = top;
        r.sum *= fix;
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            r.o[i] = make_float4(r.o[i].x * fix, r.o[i].y * fix, r.o[i].z * fix, r.o[i].w * fix);
        }
#pragma unroll
        for (int u = 0; u < HS_MERGE_AT_ONCE; u++) {
            const float f = __expf(x[u].x - top);
            r.sum += x[u].y * f;
#pragma unroll
            for (int i = 0; i < QUADS; i++) {
                const float4 z = y[u][i];
                r.o[i] = make_float4(r.o[i].x + f * z.x, r.o[i].y + f * z.y, r.o[i].z + f * z.z, r.o[i].w + f * z.w);
            }
        }
    }
    return r;
}

template <int QUADS> static __device__ __forceinline__ void merge_out(const hs_decode & a, int token, int head, int t) {
    __shared__ float sums[HS_MERGE_WARPS][128 * QUADS], tops[HS_MERGE_WARPS], weights[HS_MERGE_WARPS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, x = threadIdx.x;
    const int split = a.n_branch > 1 ? HS_MERGE_WARPS - HS_MERGE_SECOND : HS_MERGE_WARPS; // the first warp of the second branch
    const int n = warp < split ? 0 : 1, first = n ? split : 0, step = n ? HS_MERGE_SECOND : split;
    const hs_dev_branch & b = a.b[n];
    const int g = head / b.n_rep, n_splits = hs_n_splits(a, n, hs_n_tiles(a, n, t));
    const int64_t place = ((int64_t) token * b.n_head_kv + g) * a.splits[n] * b.n_rep + head % b.n_rep;
    float gate[2] = {}, sink[2] = { HS_SINK_ABSENT, HS_SINK_ABSENT };
    if (x < a.d_v) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (i < a.n_branch) {
                gate[i] = hs_dev_gate(a, token, head, i, x);
                sink[i] = a.b[i].sinks ? a.b[i].sinks[head] : HS_SINK_ABSENT;
            }
        }
    }
    wait_for_previous();
    const merge_state<QUADS> mine = merge_parts<QUADS>(a.ml[n] + place, a.part[n] + place * a.d_v, b.n_rep, a.d_v, warp - first, step, n_splits);
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        *(float4 *) &sums[warp][128 * i + 4 * lane] = mine.o[i];
    }
    if (lane == 0) {
        tops[warp] = mine.top;
        weights[warp] = mine.sum;
    }
    __syncthreads();
    if (x >= a.d_v) {
        return;
    }
    float top[2], keys[2] = {}, o[2] = {}, out = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        top[i] = sink[i] > HS_SINK_ABSENT ? sink[i] : HS_DECODE_START;
    }
#pragma unroll
    for (int w = 0; w < HS_MERGE_WARPS; w++) {
        top[0] = w < split ? fmaxf(top[0], tops[w]) : top[0];
        top[1] = w < split ? top[1] : fmaxf(top[1], tops[w]);
    }
#pragma unroll
    for (int w = 0; w < HS_MERGE_WARPS; w++) {
        const float f = __expf(tops[w] - (w < split ? top[0] : top[1])), k = weights[w] * f, y = sums[w][x] * f;
        keys[0] += w < split ? k : 0.0f;
        keys[1] += w < split ? 0.0f : k;
        o[0] += w < split ? y : 0.0f;
        o[1] += w < split ? 0.0f : y;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float all = keys[i] + (sink[i] > HS_SINK_ABSENT ? __expf(sink[i] - top[i]) : 0.0f);
        out += i < a.n_branch && keys[i] > 0.0f ? o[i] / all * gate[i] : 0.0f;
    }
    a.out[((int64_t) token * a.n_head + head) * a.d_v + x] = out;
}

// Logarithm of the denominator of one head's softmax. By a whole warp; part s lies at ml[s * n_rep].
static __device__ __forceinline__ float log_sum(const float2 * ml, int n_rep, int n, float sink) {
    const int lane = threadIdx.x % 32;
    const bool has_sink = sink > HS_SINK_ABSENT;
    float own = HS_DECODE_START, sum = 0.0f;
#pragma unroll 1
    for (int s = lane; s < n; s += 32) {
        const float2 x = ml[s * n_rep];
        const float m = fmaxf(own, x.x);
        sum = sum * __expf(own - m) + x.y * __expf(x.x - m);
        own = m;
    }
    float top = has_sink ? fmaxf(sink, own) : own;
    for (int w = 16; w > 0; w /= 2) {
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, w));
    }
    sum *= __expf(own - top);
    for (int w = 16; w > 0; w /= 2) {
        sum += __shfl_xor_sync(0xffffffff, sum, w);
    }
    return top + logf(sum + (has_sink ? __expf(sink - top) : 0.0f));
}

// scores[g, t, i] = max over the group's heads of (block maximum - log of the denominator)
static __device__ __forceinline__ void merge_scores(const hs_decode & a, int token, int g, int first, int t) {
    __shared__ float logs[HS_DECODE_REP];
    const hs_dev_branch & b = a.b[0];
    const int n_tiles = hs_n_tiles(a, 0, t), n_splits = hs_n_splits(a, 0, n_tiles), n_runs = (n_tiles + a.run[0] - 1) / a.run[0];
    const int i = first + threadIdx.x, from = i * a.runs, end = hs_min(from + a.runs, n_runs); // a block's runs
    const int64_t row = (int64_t) token * b.n_head_kv + g;
    const float * raw = a.raw + row * a.n_blocks * a.runs * b.n_rep;
    wait_for_previous();
    if (first * a.runs >= n_runs) { // the same in all threads
        return;
    }
    float best[HS_DECODE_REP]; // on their way while the sums are
#pragma unroll
    for (int r = 0; r < HS_DECODE_REP; r++) {
        best[r] = r < b.n_rep && from < end ? raw[(int64_t) from * b.n_rep + r] : HS_DECODE_START;
    }
#pragma unroll 1
    for (int r = threadIdx.x / 32; r < b.n_rep; r += HS_MERGE_WARPS) {
        const float log = log_sum(a.ml[0] + row * a.splits[0] * b.n_rep + r, b.n_rep, n_splits, b.sinks ? b.sinks[g * b.n_rep + r] : HS_SINK_ABSENT);
        if (threadIdx.x % 32 == 0) {
            logs[r] = log;
        }
    }
#pragma unroll 1
    for (int u = from + 1; u < end; u++) {
#pragma unroll
        for (int r = 0; r < HS_DECODE_REP; r++) {
            best[r] = r < b.n_rep ? fmaxf(best[r], raw[(int64_t) u * b.n_rep + r]) : best[r];
        }
    }
    __syncthreads();
    if (from < end) {
        float score = -INFINITY;
#pragma unroll
        for (int r = 0; r < HS_DECODE_REP; r++) {
            score = r < b.n_rep ? fmaxf(score, best[r] - logs[r]) : score;
        }
        a.scores[row * a.n_blocks + i] = score;
    }
}

// Thread blocks: the heads of a token, then the scores of its KV heads, HS_MERGE_BLOCKS each. 64 registers: so there is room beside the kernel of the parts.
template <int QUADS> static __global__ void __launch_bounds__(32 * HS_MERGE_WARPS, QUADS == 1 ? 4 : 2) merge_kernel(const hs_decode a) {
    let_next_begin(); // whatever is launched early waits for this kernel, and this one for the parts
    const int token = blockIdx.y, x = blockIdx.x, t = a.pos[token];
    if (x < a.n_head) {
        merge_out<QUADS>(a, token, x, t);
    } else {
        const int y = x - a.n_head, n_head_kv = a.b[0].n_head_kv;
        merge_scores(a, token, y % n_head_kv, y / n_head_kv * HS_MERGE_BLOCKS, t);
    }
}

void hs_cuda_decode_merge(ggml_backend_cuda_context & ctx, const hs_decode & a) {
    const int chunks = a.scores ? (a.n_blocks + HS_MERGE_BLOCKS - 1) / HS_MERGE_BLOCKS : 0;
    // Code for 9.0 waits for the kernel before it by itself (wait_for_previous); code for older devices, on whatever device it runs, does not.
    const bool waits = ggml_cuda_highest_compiled_arch(ggml_cuda_info().devices[ctx.device].cc) >= HS_CC_EARLY_LAUNCH;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(a.n_head + a.b[0].n_head_kv * chunks, a.n_tokens);
    config.blockDim = dim3(32 * HS_MERGE_WARPS);
    config.stream = ctx.stream();
    config.attrs = &early;
    config.numAttrs = waits ? 1 : 0;
    CUDA_CHECK(cudaLaunchKernelEx(&config, a.d_v <= 128 ? merge_kernel<1> : merge_kernel<2>, a));
}
