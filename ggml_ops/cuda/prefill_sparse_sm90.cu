// Sparse attention of many queries on Hopper: every token has its own selection per KV head, and both branches and the gates are one kernel.
//
// The machine of prefill_sm90.cu (wgmma, pages of K and V brought by the bulk tensor copy engine, one persistent thread block an SM, P in
// registers, S of a step issued ahead of O += P V of the step before) on a list of pages: the union of what the tile's tokens selected, made by
// the plan kernel, with a bit a token.
// Warpgroup 0: one warp loads the pages. Warpgroups 1 and 2: 64 query rows each, with Q in registers; each takes the pages that one of its tokens
// selected, two a step, and passes the others by, at its own pace within the ring of pages. A page is loaded once for both. Then the same with
// the window's ring, as a softmax of its own, added to what the first has stored.
// Replaces: gathering selected keys per query, mask, score matrix, softmax and the sum of the branches as passes of their own. Against
// prefill_sparse.cu: products are wasted on more rows (a page is multiplied for 64 rows, not 16), at the rate of wgmma.
// Order of summation: pages of the union, ascending, two a step, a row skipping those that are not its own; the branches in order. Other tokens
// of the launch enter only by rounding (which pages share a step).
#include "prefill_sm90_map.cuh"
#include "prefill_sparse_sm90_rows.cuh"

#define HS_MIN_TOKENS 32
#define HS_MIN_REP 2      // fewer: most rows of a product would belong to tokens that did not select the page
#define HS_MAX_REP 64
#define HS_MAX_WORDS 4096 // bitmap of 8 million positions

#ifdef HS_SM90A

template <int D_QK, int D_V> static __device__ __forceinline__ void hs_sparse_consume(const hs_sparse90 & a, uint32_t smem, hs_sparse_shared & sh) {
    typedef hs_sparse_shape<D_QK, D_V> shape;
    constexpr int n_o = D_V / 2;
    const int wg = threadIdx.x / 128 - 1;
    const float scale = a.scale * HS_LOG2E;
    const uint64_t k0 = hs_desc_at(hs_desc(16, 1024), smem), v0 = hs_desc_at(hs_desc(HS_BOX, 1024), smem + shape::at_v);
    float s[2][32], o[1][n_o], fix[2];
    uint32_t p[2][16], q[D_QK / 4];
    hs_sparse_rows x;
    hs_pages w = { 0, false, 0 };
    for (int u = 0, tile; (tile = hs_sparse_tile(a, u)) >= 0; u++) {
        const int head_kv = tile % a.n_head_kv, first = tile / a.n_head_kv * a.tile_tokens, n_tile = min(a.tile_tokens, a.n_tokens - first);
        const int * order = a.order + (int64_t) tile * HS_TILE_TOKENS;
        w.mine = hs_tokens_of(order, a.n_rep, n_tile, wg);
        hs_start_rows<D_QK>(a, order, first, n_tile, head_kv, wg, x, q);
        for (int n = 0; n < a.n_branch; n++) {
            const int window = a.b[n].window;
            w.ended = false;
            x.m[0] = x.m[1] = HS_START;
            x.l[0] = x.l[1] = 0.0f;
#pragma unroll
            for (int i = 0; i < n_o; i++) {
                o[0][i] = 0.0f;
            }
            hs_step step, then;
            while (hs_find(w, step, sh, INT_MAX)) { // a run of steps: usually all, but it ends where the next is too far ahead
                hs_wgmma_pin(s);
                hs_wgmma_fence();
                hs_multiply_qk<D_QK>(s, q, k0, step);
                hs_wgmma_commit();
                hs_wgmma_wait<0>();
                hs_wgmma_pin(s);
                hs_give_back(sh.empty_k, step);
                hs_soften(s, x, fix, sh, step, scale, window);
#pragma unroll
                for (int i = 0; i < n_o; i++) {
                    o[0][i] *= fix[i / 2 % 2];
                }
                pack<64>(p[0], s[0]);
                pack<64>(p[1], s[1]);
                while (hs_find(w, then, sh, step.item[0] + HS_SLOTS)) {
                    hs_await_v<D_V>(sh, smem + shape::at_v, step, wg);
                    hs_wgmma_pin(s);
                    hs_wgmma_pin(o);
                    hs_wgmma_fence();
                    hs_multiply_qk<D_QK>(s, q, k0, then);
                    hs_wgmma_commit();
                    hs_multiply_pv<D_V>(o, p, v0, step);
                    hs_wgmma_commit();
                    hs_wgmma_wait<1>();
                    hs_wgmma_pin(s);
                    hs_give_back(sh.empty_k, then);
                    hs_soften(s, x, fix, sh, then, scale, window);
                    if (x.l[0] + x.l[1] < 0.0f) { // never: it holds the exponentials before the wait, as in prefill_sm90.cu
                        asm volatile("trap;");
                    }
                    hs_wgmma_wait<0>();
                    hs_wgmma_pin(o);
                    hs_give_back(sh.empty_v, step);
                    if (__any_sync(0xffffffff, fix[0] != 1.0f || fix[1] != 1.0f)) { // seldom after the first steps
#pragma unroll
                        for (int i = 0; i < n_o; i++) {
                            o[0][i] *= fix[i / 2 % 2];
                        }
                    }
                    pack<64>(p[0], s[0]);
                    pack<64>(p[1], s[1]);
                    step = then;
                }
                hs_await_v<D_V>(sh, smem + shape::at_v, step, wg);
                hs_wgmma_pin(o);
                hs_wgmma_fence();
                hs_multiply_pv<D_V>(o, p, v0, step);
                hs_wgmma_commit();
                hs_wgmma_wait<0>();
                hs_wgmma_pin(o);
                hs_give_back(sh.empty_v, step);
            }
            hs_finish<D_V>(a, o, x, n, first, head_kv, wg);
        }
    }
}

#endif // HS_SM90A

template <int D_QK, int D_V> static __global__ void __launch_bounds__(384, 1) sparse_sm90_kernel(const __grid_constant__ hs_sparse90 a,
    const __grid_constant__ hs_sparse_maps maps) {
#ifdef HS_SM90A
    extern __shared__ char dynamic[];
    __shared__ hs_sparse_shared sh; // static shared memory: how the host sees that this body was compiled (hs_sm90_code_here)
    const uint32_t smem = (hs_smem(dynamic) + 1023) / 1024 * 1024;
    if (threadIdx.x == 0) {
        for (int i = 0; i < HS_SLOTS; i++) {
            hs_mbar_init(&sh.full_k[i], 1);
            hs_mbar_init(&sh.full_v[i], 1);
            hs_mbar_init(&sh.empty_k[i], 8); // the consuming warps
            hs_mbar_init(&sh.empty_v[i], 8);
        }
        hs_mbar_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        hs_regs_down<40>();
        if (threadIdx.x < 32) {
            hs_sparse_produce<D_QK, D_V>(a, maps, smem, sh);
        }
    } else {
        hs_regs_up<232>();
        hs_sparse_consume<D_QK, D_V>(a, smem, sh);
    }
#else
    GGML_UNUSED(a);
    GGML_UNUSED(maps);
    NO_DEVICE_CODE;
#endif
}

// --- host ---

static int words_of(const hs_dev_attn & a) { return (int) ((a.b[0].k.max_pages * a.b[0].k.n_slots + 32 * HS_CHUNK - 1) / (32 * HS_CHUNK)); }

static bool maps_of(const hs_dev_attn & a, hs_sparse_maps & maps) {
    for (int n = 0; n < a.n_branch; n++) {
        const hs_dev_branch & b = a.b[n];
        if (!hs_sm90_map(b.k, a.d_qk, b.n_head_kv, &maps.k[n]) || !hs_sm90_map(b.v, a.d_v, b.n_head_kv, &maps.v[n])) {
            return false;
        }
    }
    return true;
}

bool hs_cuda_prefill_sparse_sm90_takes(const hs_dev_attn & a, int cc) {
    const hs_dev_branch & b = a.b[0];
    if (cc != 900 || !b.sel || a.scores || a.n_tokens < HS_MIN_TOKENS || a.block_size != HS_PAGE || words_of(a) > HS_MAX_WORDS) {
        return false;
    }
    if (!(a.scale > 0.0f && a.scale < 1e6f)) {
        return false;
    }
    if (b.n_rep < HS_MIN_REP || b.n_rep > HS_MAX_REP || a.d_qk != a.d_v || (a.d_v != 64 && a.d_v != 128)) {
        return false;
    }
    if ((uintptr_t) a.q % 8 != 0 || (uintptr_t) a.out % 8 != 0 || (uintptr_t) a.gates % 8 != 0) {
        return false;
    }
    for (int n = 0; n < a.n_branch; n++) {
        for (const hs_dev_cache * c : { &a.b[n].k, &a.b[n].v }) {
            if (c->type != GGML_TYPE_F16 || (n == 0 ? !c->table || c->n_slots != HS_PAGE : c->table || c->n_slots < HS_PAGE)) {
                return false;
            }
        }
        if (a.b[n].n_rep != b.n_rep) { // a window with other groups has other tiles
            return false;
        }
    }
    static const bool have = hs_sm90_code_here(sparse_sm90_kernel<128, 128>, sizeof(hs_sparse_shared));
    hs_sparse_maps maps;
    return have && maps_of(a, maps);
}

template <int D_QK, int D_V> static void launch(ggml_backend_cuda_context & ctx, hs_sparse90 & a) {
    hs_sparse_maps maps = {};
    GGML_ASSERT(maps_of(a, maps)); // as in takes
    constexpr int bytes = hs_sparse_shape<D_QK, D_V>::bytes;
    const int n_tiles = (a.n_tokens + a.tile_tokens - 1) / a.tile_tokens;
    a.n_tiles = n_tiles * a.n_head_kv;
    ggml_cuda_pool_alloc<hs_item> items(ctx.pool(), (size_t) a.n_tiles * a.cap[0]);
    ggml_cuda_pool_alloc<int> counts(ctx.pool(), (size_t) a.n_tiles * 2), order(ctx.pool(), (size_t) a.n_tiles * HS_TILE_TOKENS);
    a.items = items.ptr;
    a.counts = counts.ptr;
    a.order = order.ptr;
    hs_plan_kernel<<<dim3(n_tiles, a.n_head_kv, 1), HS_PLAN_THREADS, a.n_words * 8, ctx.stream()>>>(a);
    CUDA_CHECK(cudaGetLastError());
    CUDA_CHECK(cudaFuncSetAttribute(sparse_sm90_kernel<D_QK, D_V>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    const int grid = std::min(a.n_tiles, ggml_cuda_info().devices[ctx.device].nsm);
    sparse_sm90_kernel<D_QK, D_V><<<grid, 384, bytes, ctx.stream()>>>(a, maps);
    CUDA_CHECK(cudaGetLastError());
}

void hs_cuda_prefill_sparse_sm90(ggml_backend_cuda_context & ctx, const hs_dev_attn & given) {
    hs_sparse90 a = {};
    static_cast<hs_dev_attn &>(a) = given;
    a.n_words = words_of(given);
    a.n0 = 0;
    a.n1 = 1; // the plan is of the selections; windows need none
    a.n_rep = a.b[0].n_rep;
    a.n_head_kv = a.b[0].n_head_kv;
    a.tile_tokens = HS_ROWS / a.n_rep;
    a.group = 64 / a.n_rep;
    a.halves = true;
    // the most pages that a token can ask for, and no more than exist (of one sequence a token)
    const int64_t forced = a.b[0].window > 0 ? 1 + a.b[0].window / HS_PAGE + 2 : 0, exist = 32 * (int64_t) a.n_words;
    a.cap[0] = (int) (a.tile_tokens * std::min<int64_t>(a.top_k + forced, exist));
    a.d_v == 64 ? launch<64, 64>(ctx, a) : launch<128, 128>(ctx, a);
}
