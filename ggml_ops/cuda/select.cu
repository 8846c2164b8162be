// Block selection on CUDA. A block of threads has one row (KV head, token): the K-th largest score is found by halving the range of the scores' bits (a float's
// order is that of its bits, the sign turned round), then every block above it is taken, and of the equal ones the lowest. Nothing is sorted: blocks are
// emitted in ascending order. Replaces a sort of the row; a row of n blocks is read 34 times, from the first cache.
#include "launch.cuh"

#define HS_SELECT_THREADS 256

static __device__ __forceinline__ unsigned ordered(float x) {
    const unsigned u = __float_as_uint(x + 0.0f); // -0 is 0
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// Sum over the threads of the block, to all of them.
static __device__ int block_sum(int x) {
    __shared__ int part[HS_SELECT_THREADS / 32];
    for (int w = 16; w > 0; w /= 2) {
        x += __shfl_xor_sync(0xffffffff, x, w);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        part[threadIdx.x / 32] = x;
    }
    __syncthreads();
    int sum = 0;
    for (int w = 0; w < HS_SELECT_THREADS / 32; w++) {
        sum += part[w];
    }
    return sum;
}

// Number of set flags in the threads before this one.
static __device__ int rank_of(bool flag) {
    __shared__ int part[HS_SELECT_THREADS / 32];
    const unsigned votes = __ballot_sync(0xffffffff, flag);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        part[threadIdx.x / 32] = __popc(votes);
    }
    __syncthreads();
    int rank = __popc(votes & ((1u << threadIdx.x % 32) - 1));
    for (unsigned w = 0; w < threadIdx.x / 32; w++) {
        rank += part[w];
    }
    return rank;
}

static __global__ void __launch_bounds__(HS_SELECT_THREADS) select_kernel(const float * scores, const int32_t * pos, int32_t * out, int n_blocks, int n_head_kv,
    int block_size, int top_k) {
    const int64_t row = blockIdx.x;
    const float * s = scores + row * n_blocks;
    int32_t * sel = out + row * top_k;
    const int n = pos[row / n_head_kv] / block_size + 1, k = min(n, top_k);
    unsigned low = 0; // the largest value that at least k scores reach
    for (int bit = 31; bit >= 0 && n > top_k; bit--) {
        const unsigned next = low | 1u << bit;
        int reach = 0;
        for (int i = threadIdx.x; i < n; i += HS_SELECT_THREADS) {
            reach += ordered(s[i]) >= next;
        }
        low = block_sum(reach) >= k ? next : low;
    }
    int above = 0;
    for (int i = threadIdx.x; i < n; i += HS_SELECT_THREADS) {
        above += ordered(s[i]) > low;
    }
    const int ties = k - block_sum(above); // of the blocks with that very score, so many: the lowest
    int taken = 0, tied = 0;
    for (int i0 = 0; i0 < n; i0 += HS_SELECT_THREADS) {
        const int i = i0 + threadIdx.x;
        const unsigned x = i < n ? ordered(s[i]) : 0;
        const bool equal = i < n && n > top_k && x == low;
        const int tie = tied + rank_of(equal);
        const bool take = i < n && (n <= top_k || x > low || (equal && tie < ties));
        const int at = taken + rank_of(take);
        if (take) {
            sel[at] = i;
        }
        tied += block_sum(equal);
        taken += block_sum(take);
    }
    for (int i = k + threadIdx.x; i < top_k; i += HS_SELECT_THREADS) {
        sel[i] = HS_BLOCK_NONE;
    }
}

void hs_cuda_select_blocks(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const hs_op_params * p) {
    const ggml_tensor * scores = dst->src[HS_SELECT_SCORES];
    const int64_t rows = scores->ne[1] * scores->ne[2];
    select_kernel<<<(unsigned) rows, HS_SELECT_THREADS, 0, ctx.stream()>>>((const float *) scores->data, (const int32_t *) dst->src[HS_SELECT_POS_SEQ]->data,
        (int32_t *) dst->data, (int) scores->ne[0], (int) scores->ne[1], p->block_size, p->top_k);
}
