// q8_0 caches of many queries, as f16 in scratch of the same layout: every page that a sequence of the launch has, or whole rings. Replaces a conversion by
// every tile of queries that meets a page, which keeps tensor cores waiting (an H100 ran 2048 queries on 8192 keys four times slower so); costs one pass
// over the keys, 272 bytes read and 512 written for each pair of rows of 128. A value is d * q rounded to f16.
#include "attn.cuh"

#define HS_WIDEN_TOKENS 64                  // fewer queries read q8_0 as it is
#define HS_WIDEN_SPARSE_TOKENS 512          // these read a part of the pages only, and each sparse layer pays for the pass
#define HS_WIDEN_BYTES ((int64_t) 4 << 30)  // scratch at most
#define HS_WIDEN_THREADS 256

struct widened {
    hs_dev_cache from[2];
    half * to[2];
    const int32_t * last; // [n_seq] largest position of a sequence in this launch, -1: none
};

// Largest position of each sequence of the launch.
static __global__ void last_kernel(const int32_t * pos, const int32_t * seq, int n_tokens, int32_t * last, int n_seq) {
    for (int i = threadIdx.x; i < n_seq; i += blockDim.x) {
        last[i] = -1;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n_tokens; i += blockDim.x) {
        atomicMax(&last[seq[i]], pos[i]);
    }
}

// One KV head of a page (or ring): eight values a thread and turn.
static __device__ __forceinline__ void widen_slab(const char * from, half * to, int n_values) {
    for (int i = threadIdx.x; i < n_values / 8; i += HS_WIDEN_THREADS) {
        const char * block = from + (int64_t) (i / 4) * 34;
        const float d = __half2float(*(const half *) block);
        const char2 * q = (const char2 *) (block + 2 + i % 4 * 8);
        half2 x[4];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const char2 y = q[n];
            x[n] = __floats2half2_rn(d * y.x, d * y.y);
        }
        *(uint4 *) (to + (int64_t) i * 8) = *(const uint4 *) x;
    }
}

// Slabs are dealt to the thread blocks in turn: (sequence, page of its table, KV head); blockIdx.y: keys, values.
static __global__ void __launch_bounds__(HS_WIDEN_THREADS) widen_kernel(const widened a) {
    const hs_dev_cache & c = a.from[blockIdx.y];
    const int64_t pages = c.table ? c.max_pages : 1, slab = (int64_t) c.n_slots * c.d;
    for (int64_t i = blockIdx.x; i < c.n_seq * pages * c.n_head_kv; i += gridDim.x) {
        const int head = (int) (i % c.n_head_kv), seq = (int) (i / c.n_head_kv / pages);
        const int64_t p = i / c.n_head_kv % pages;
        if (a.last[seq] < 0 || (c.table && p * c.n_slots > a.last[seq])) {
            continue;
        }
        const int64_t page = c.table ? c.table[seq * c.max_pages + p] : seq;
        widen_slab(c.data + page * c.nb3 + head * c.nb2, a.to[blockIdx.y] + (page * c.n_head_kv + head) * slab, (int) slab);
    }
}

static int64_t values(const hs_dev_cache & c) { return (int64_t) c.d * c.n_slots * c.n_head_kv * c.n_pages; }

static int64_t bytes(const hs_dev_attn & a) {
    int64_t n = 0;
    for (int i = 0; i < a.n_branch; i++) {
        n += 2 * (values(a.b[i].k) + values(a.b[i].v));
    }
    return n;
}

bool hs_cuda_widen_takes(const hs_dev_attn & a, int cc) {
    for (int i = 0; i < a.n_branch; i++) {
        if (a.b[i].k.type != GGML_TYPE_Q8_0 || a.b[i].v.type != GGML_TYPE_Q8_0) {
            return false;
        }
    }
    return cc >= 800 && a.n_tokens >= (a.b[0].sel ? HS_WIDEN_SPARSE_TOKENS : HS_WIDEN_TOKENS) && bytes(a) <= HS_WIDEN_BYTES;
}

void hs_cuda_widen(ggml_backend_cuda_context & ctx, const hs_dev_attn & given, void (*run)(ggml_backend_cuda_context & ctx, const hs_dev_attn & a)) {
    hs_dev_attn a = given;
    ggml_cuda_pool_alloc<half> scratch(ctx.pool(), bytes(a) / sizeof(half));
    half * at = scratch.get();
    for (int i = 0; i < a.n_branch; i++) {
        ggml_cuda_pool_alloc<int32_t> last(ctx.pool(), a.b[i].k.n_seq);
        hs_dev_cache * c[2] = { &a.b[i].k, &a.b[i].v };
        widened w = { { *c[0], *c[1] }, {}, last.get() };
        for (int x = 0; x < 2; x++) {
            w.to[x] = at;
            at += values(*c[x]);
            c[x]->data = (const char *) w.to[x];
            c[x]->type = GGML_TYPE_F16;
            c[x]->nb1 = 2 * c[x]->d;
            c[x]->nb2 = c[x]->nb1 * c[x]->n_slots;
            c[x]->nb3 = c[x]->nb2 * c[x]->n_head_kv;
        }
        last_kernel<<<1, 1024, 0, ctx.stream()>>>(a.pos, a.seq, a.n_tokens, last.get(), a.b[i].k.n_seq);
        widen_kernel<<<dim3(8 * ggml_cuda_info().devices[ctx.device].nsm, 2), HS_WIDEN_THREADS, 0, ctx.stream()>>>(w);
    }
    run(ctx, a);
}
