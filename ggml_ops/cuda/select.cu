// Block selection on CUDA. A block of threads has one row (KV head, token) and holds it in registers, as integers of the same order (a float's order is that of
// its bits, the sign turned round). The K-th largest is found by bisection, two bits at a time from the highest bit in which the scores differ: every warp counts
// what reaches each of three thresholds, one barrier, and it ends as soon as exactly K scores reach one, usually after half of the bits. Then every block above
// it is taken, and of the equal ones the lowest: warps own consecutive runs of blocks, so one more barrier gives each where its run begins in the output, and
// ballots the rest. Replaces a sort of the row; saves all but one read of it, and a histogram whose counters collide because scores are alike. Everything is
// integer counts: no order of summation.
#include "early.cuh"
#include "launch.cuh"

#define HS_SELECT_WARPS 32 // at most
#define HS_SELECT_BITS 2   // of a step; the thresholds' counts are packed into words below
#define HS_SELECT_STEPS (32 / HS_SELECT_BITS)

static __device__ __forceinline__ unsigned ordered(float x) {
    const unsigned u = __float_as_uint(x + 0.0f); // -0 is 0
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// A thread's part of its row: index first + 32 * i, i < n_each (the same in all threads); what lies at or beyond n does not count and is 0.
// HELD of its scores are in registers; those of longer rows are read again.
template <int HELD> struct part {
    const float * s;
    int first, n_each, n;
    unsigned held[HELD];

    // f(index, value), in ascending order, by all lanes together
    template <typename F> __device__ __forceinline__ void each(F f) const {
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if (i < n_each) {
                f(first + 32 * i, held[i]);
            }
        }
        for (int i = HELD; i < n_each; i++) {
            const int at = first + 32 * i;
            f(at, at < n ? ordered(s[at]) : 0u);
        }
    }
};

struct select_shared {
    unsigned all, any;                     // bits that all scores have, and that any has
    int reach[HS_SELECT_STEPS][3];         // scores that reach the thresholds of a step
    int above[HS_SELECT_WARPS], equal[HS_SELECT_WARPS];
};

// A value that exactly k scores reach, or if equal scores prevent that, the k-th largest. There are more than k.
template <int HELD> static __device__ __forceinline__ unsigned kth(const part<HELD> & p, select_shared & sh, int k) {
    const int lane = threadIdx.x % 32;
    unsigned all = 0xffffffffu, any = 0;
    p.each([&](int at, unsigned x) {
        all &= at < p.n ? x : 0xffffffffu;
        any |= x;
    });
    all = __reduce_and_sync(0xffffffff, all);
    any = __reduce_or_sync(0xffffffff, any);
    if (lane == 0) {
        atomicAnd(&sh.all, all);
        atomicOr(&sh.any, any);
    }
    __syncthreads();
    const unsigned differ = sh.all ^ sh.any;
    int bit = (32 - __clz(differ) + HS_SELECT_BITS - 1) / HS_SELECT_BITS * HS_SELECT_BITS; // the first `bit` bits from the right are open
    unsigned known = bit < 32 ? sh.all >> bit << bit : 0u; // at least k scores reach it
    for (int step = 0; bit > 0; step++) {
        bit -= HS_SELECT_BITS;
        const unsigned one = 1u << bit, t1 = known + one, t2 = known + 2 * one, t3 = known + 3 * one;
        int n1 = 0, n2 = 0, n3 = 0;
        p.each([&](int, unsigned x) { // 0 reaches none of them
            n1 += x >= t1;
            n2 += x >= t2;
            n3 += x >= t3;
        });
        n1 = __reduce_add_sync(0xffffffff, n1);
        n2 = __reduce_add_sync(0xffffffff, n2);
        n3 = __reduce_add_sync(0xffffffff, n3);
        if (lane < 3) {
            atomicAdd(&sh.reach[step][lane], lane == 0 ? n1 : lane == 1 ? n2 : n3);
        }
        __syncthreads();
        const int * reach = sh.reach[step];
        const int r1 = reach[0], r2 = reach[1], r3 = reach[2], r = r3 >= k ? r3 : r2 >= k ? r2 : r1;
        known = r3 >= k ? t3 : r2 >= k ? t2 : r1 >= k ? t1 : known;
        if (r == k) {
            break;
        }
    }
    return known;
}

template <int HELD> static __global__ void __launch_bounds__(32 * HS_SELECT_WARPS) select_kernel(const float * scores, const int32_t * pos, int32_t * out, int n_blocks,
    int n_head_kv, int block_size, int top_k) {
    __shared__ select_shared sh;
    wait_for_previous();
    const int64_t row = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n = pos[row / n_head_kv] / block_size + 1;
    int32_t * sel = out + row * top_k;
    if (n <= top_k) {
        for (int i = threadIdx.x; i < top_k; i += blockDim.x) {
            sel[i] = i < n ? i : HS_BLOCK_NONE;
        }
        return;
    }
    part<HELD> p;
    p.s = scores + row * n_blocks;
    p.n = n;
    p.n_each = (n + blockDim.x - 1) / blockDim.x;
    p.first = warp * 32 * p.n_each + lane;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const int at = p.first + 32 * i;
        p.held[i] = i < p.n_each && at < n ? ordered(p.s[at]) : 0u;
    }
    if (threadIdx.x < 3 * HS_SELECT_STEPS) {
        sh.reach[0][threadIdx.x] = 0;
    }
    if (threadIdx.x == 0) {
        sh.all = 0xffffffffu;
        sh.any = 0;
    }
    __syncthreads();
    const unsigned low = kth(p, sh, top_k);
    int above = 0, equal = 0; // of the lane, then of the warp
    p.each([&](int at, unsigned x) {
        above += x > low;
        equal += at < n && x == low;
    });
    above = __reduce_add_sync(0xffffffff, above);
    equal = __reduce_add_sync(0xffffffff, equal);
    if (lane == 0) {
        sh.above[warp] = above;
        sh.equal[warp] = equal;
    }
    __syncthreads();
    const bool real = lane < (int) blockDim.x / 32;
    above = real ? sh.above[lane] : 0;
    equal = real && lane < warp ? sh.equal[lane] : 0;
    const int ties = top_k - (int) __reduce_add_sync(0xffffffff, above); // so many of the equal ones are taken
    above = __reduce_add_sync(0xffffffff, lane < warp ? above : 0);
    equal = __reduce_add_sync(0xffffffff, equal);
    p.each([&](int at, unsigned x) {
        const bool is_above = x > low, is_equal = at < n && x == low;
        const unsigned va = __ballot_sync(0xffffffff, is_above), ve = __ballot_sync(0xffffffff, is_equal), before = (1u << lane) - 1;
        const int tie = equal + __popc(ve & before), place = above + __popc(va & before) + min(tie, ties);
        if (is_above || (is_equal && tie < ties)) {
            sel[place] = at;
        }
        above += __popc(va);
        equal += __popc(ve);
    });
}

void hs_cuda_select_blocks(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const hs_op_params * p) {
    const ggml_tensor * scores = dst->src[HS_SELECT_SCORES];
    const int64_t rows = scores->ne[1] * scores->ne[2];
    const int n_blocks = (int) scores->ne[0];
    const int threads = rows > 1024 || n_blocks <= 256 ? 128 : n_blocks <= 4096 ? 512 : 32 * HS_SELECT_WARPS; // many rows fill the device, few must be quick
    const auto kernel = n_blocks <= 4 * threads ? select_kernel<4> : select_kernel<16>; // short code: few instructions to fetch when it has not run for a while
    hs_launch_early(ctx, true, kernel, dim3((unsigned) rows), threads, 0, (const float *) scores->data, (const int32_t *) dst->src[HS_SELECT_POS_SEQ]->data,
        (int32_t *) dst->data, n_blocks, (int) scores->ne[1], p->block_size, p->top_k);
}
