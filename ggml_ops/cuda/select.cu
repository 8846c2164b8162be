// Block selection on CUDA. A block of threads has one row (KV head, token) and holds it in registers. The K-th largest score is found 8 bits at a time (a
// float's order is that of its bits, the sign turned round): a histogram in shared memory, and every warp looks up for itself in which bin the K-th lies, so a
// digit costs one barrier. Then every block above it is taken, and of the equal ones the lowest: warps own consecutive runs of blocks, so one more barrier
// gives each where its run begins in the output, and ballots the rest. Replaces a sort of the row; saves all but one read of it. Everything is integer counts:
// no order of summation.
#include "launch.cuh"

#define HS_DIGIT 8
#define HS_BINS (1 << HS_DIGIT)
#define HS_DIGITS (32 / HS_DIGIT)
#define HS_HELD 16         // scores of a thread in registers; those of longer rows are read again
#define HS_SELECT_WARPS 32 // at most

static __device__ __forceinline__ unsigned ordered(float x) {
    const unsigned u = __float_as_uint(x + 0.0f); // -0 is 0
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// A thread's part of its row: index first + 32 * i, i < n_each (the same in all threads); what lies at or beyond n does not count.
struct part {
    const float * s;
    int first, n_each, n;
    unsigned held[HS_HELD];

    // f(index, value, does it count?), in ascending order, by all lanes together
    template <typename F> __device__ __forceinline__ void each(F f) const {
#pragma unroll
        for (int i = 0; i < HS_HELD; i++) {
            if (i < n_each) {
                f(first + 32 * i, held[i], first + 32 * i < n);
            }
        }
        for (int i = HS_HELD; i < n_each; i++) {
            const int at = first + 32 * i;
            f(at, at < n ? ordered(s[at]) : 0u, at < n);
        }
    }
};

// The bin that holds the k-th value counted from the highest bin down; k becomes its rank in that bin. By a whole warp.
static __device__ __forceinline__ unsigned bin_of(const int * bins, int & k) {
    const int lane = threadIdx.x % 32, top = HS_BINS - 1 - lane * (HS_BINS / 32);
    int count[HS_BINS / 32], sum = 0;
#pragma unroll
    for (int i = 0; i < HS_BINS / 32; i++) {
        count[i] = bins[top - i];
        sum += count[i];
    }
    int above = sum;
    for (int w = 1; w < 32; w *= 2) {
        const int x = __shfl_up_sync(0xffffffff, above, w);
        above += lane >= w ? x : 0;
    }
    above -= sum;
    const bool here = above < k && k <= above + sum; // in exactly one lane: as many values as the last digit's bin had are counted, and k of them exist
    int bin = top, rank = k - above;
    bool found = false;
#pragma unroll
    for (int i = 0; i < HS_BINS / 32; i++) {
        if (!found) {
            found = rank <= count[i];
            bin = top - i;
            rank -= found ? 0 : count[i];
        }
    }
    const int lane_of = __ffs(__ballot_sync(0xffffffff, here)) - 1;
    k = __shfl_sync(0xffffffff, rank, lane_of & 31);
    return __shfl_sync(0xffffffff, bin, lane_of & 31);
}

// The k-th largest value of the row; k becomes its rank among the equal ones: so many of them are taken.
static __device__ unsigned kth(const part & p, int (*bins)[HS_BINS], int & k) {
    const int lane = threadIdx.x % 32;
    unsigned known = 0;
    for (int d = 0; d < HS_DIGITS; d++) {
        const int shift = 32 - HS_DIGIT * (d + 1);
        p.each([&](int, unsigned x, bool counts) {
            const bool in = counts && (d == 0 || x >> (shift + HS_DIGIT) == known);
            const unsigned bin = in ? x >> shift & (HS_BINS - 1) : HS_BINS;
            const unsigned same = __match_any_sync(0xffffffff, bin); // scores of like size share a bin: one addition for all of a warp
            if (in && lane == __ffs(same) - 1) {
                atomicAdd(&bins[d][bin], __popc(same));
            }
        });
        __syncthreads();
        known = known << HS_DIGIT | bin_of(bins[d], k);
    }
    return known;
}

static __global__ void __launch_bounds__(32 * HS_SELECT_WARPS) select_kernel(const float * scores, const int32_t * pos, int32_t * out, int n_blocks, int n_head_kv,
    int block_size, int top_k) {
    __shared__ int bins[HS_DIGITS][HS_BINS], n_above[HS_SELECT_WARPS], n_equal[HS_SELECT_WARPS];
    const int64_t row = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n = pos[row / n_head_kv] / block_size + 1;
    int32_t * sel = out + row * top_k;
    if (n <= top_k) {
        for (int i = threadIdx.x; i < top_k; i += blockDim.x) {
            sel[i] = i < n ? i : HS_BLOCK_NONE;
        }
        return;
    }
    part p;
    p.s = scores + row * n_blocks;
    p.n = n;
    p.n_each = (n + blockDim.x - 1) / blockDim.x;
    p.first = warp * 32 * p.n_each + lane;
#pragma unroll
    for (int i = 0; i < HS_HELD; i++) {
        const int at = p.first + 32 * i;
        p.held[i] = i < p.n_each && at < n ? ordered(p.s[at]) : 0;
    }
    for (int i = threadIdx.x; i < HS_DIGITS * HS_BINS; i += blockDim.x) {
        bins[0][i] = 0;
    }
    __syncthreads();
    int ties = top_k;
    const unsigned low = kth(p, bins, ties);
    int above = 0, equal = 0; // of the warp
    p.each([&](int, unsigned x, bool counts) {
        above += __popc(__ballot_sync(0xffffffff, counts && x > low));
        equal += __popc(__ballot_sync(0xffffffff, counts && x == low));
    });
    if (lane == 0) {
        n_above[warp] = above;
        n_equal[warp] = equal;
    }
    __syncthreads();
    above = lane < warp ? n_above[lane] : 0;
    equal = lane < warp ? n_equal[lane] : 0;
    for (int w = 16; w > 0; w /= 2) {
        above += __shfl_xor_sync(0xffffffff, above, w);
        equal += __shfl_xor_sync(0xffffffff, equal, w);
    }
    p.each([&](int at, unsigned x, bool counts) {
        const bool is_above = counts && x > low, is_equal = counts && x == low;
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
    select_kernel<<<(unsigned) rows, threads, 0, ctx.stream()>>>((const float *) scores->data, (const int32_t *) dst->src[HS_SELECT_POS_SEQ]->data,
        (int32_t *) dst->data, n_blocks, (int) scores->ne[1], p->block_size, p->top_k);
}
