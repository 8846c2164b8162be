// Dense attention of many queries on Hopper: wgmma, K and V brought by the bulk tensor copy engine, one persistent thread block an SM.
//
// Warpgroup 0: one warp copies pages of K and V to shared memory, two steps of 128 keys deep (64 at 256 channels); the other three turn the block
// maxima of the tile before into scores. Warpgroups 1 and 2: 64 query rows each, S = Q K^T, softmax, O += P V, with P in registers. The product S of
// a step is issued ahead of O += P V of the step before, so a softmax runs beside a product of its own warpgroup and of the other (they take turns
// in issuing).
// Replaces: mask, score matrix, softmax and a second pass for the block maxima. Saves against mma.sync: operands from shared memory without ldmatrix,
// no address arithmetic in the consuming warps. Rows are packed (token, head of the group): a thread block has the whole group, so it can finish the
// scores.
// Order of summation: keys ascending, KEYS a step; within a step the tensor core's; row sums: a lane's columns, then 4 lanes. It depends on the other
// tokens of the tile only by steps that a row does not see at all (exact zeros).
#include "prefill_sm90_map.cuh"
#include "prefill_sm90_rows.cuh"

#define HS_MIN_TOKENS 32
#define HS_MAX_REP 32

#ifdef HS_SM90A

// A warpgroup's rows of all tiles of this thread block. Barriers 1, 2: whose turn to issue products; 3, 4: the warpgroup's own.
template <int D_QK, int D_V, int KEYS, bool SCORES>
static __device__ __forceinline__ void consume(const hs_sm90 & a, uint32_t smem, hs_sm90_barriers & bars, float2 (*lse)[HS_ROWS]) {
    typedef hs_sm90_shape<D_QK, D_V, KEYS> shape;
    constexpr int n_part = D_V > 128 ? 2 : 1, n = D_V / n_part / 2;
    const int wg = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
    const float scale = a.scale * HS_LOG2E;
    const uint64_t q = hs_desc_at(hs_desc(16, 1024), smem + wg * shape::q), k0 = hs_desc_at(hs_desc(16, 1024), smem + shape::at_k);
    const uint64_t v0 = hs_desc_at(hs_desc(KEYS * 128, 1024), smem + shape::at_v);
    float s[KEYS / 2], o[n_part][n], fix[2];
    uint32_t p[KEYS / 4];
    int it = 0; // steps so far
    if (wg == 1) {
        hs_bar_arrive(1, 256); // warpgroup 0 begins
    }
    for (int u = 0, tile; (tile = hs_tile(a, u)) >= 0; u++) {
        hs_walk w(a, tile);
        hs_bar_sync(3 + wg, 128); // the queries before have been multiplied
        load_q<D_QK>(a, w, smem + wg * shape::q, wg);
        hs_proxy_fence();
        hs_bar_sync(3 + wg, 128);
        hs_rows x;
        start_rows(a, w, x, wg);
#pragma unroll
        for (int i = 0; i < n_part * n; i++) {
            o[i / n][i % n] = 0.0f;
        }
        float * raw = nullptr;
        if (SCORES) {
            raw = a.raw + (int64_t) (blockIdx.x * 2 + u % 2) * a.n_raw * HS_ROWS;
            hs_mbar_wait(&bars.empty_raw[u % 2], (u / 2 + 1) % 2);
        }
        w.advance<KEYS>();
        hs_mbar_wait(&bars.full_k[it % HS_STAGES], it / HS_STAGES % 2);
        hs_wgmma_pin(s);
        hs_wgmma_fence();
        multiply_qk<D_QK, KEYS>(s, q, k0 + it % HS_STAGES * (shape::k >> 4));
        hs_wgmma_commit();
        hs_wgmma_wait<0>();
        hs_wgmma_pin(s);
        if (lane == 0) {
            hs_mbar_arrive(&bars.empty_k[it % HS_STAGES]);
        }
        softmax<KEYS>(s, x, fix, w, scale, raw);
        pack<KEYS>(p, s);
        int written = w.written<KEYS>();
        while (w.advance<KEYS>()) {
            const int before = it++ % HS_STAGES, stage = it % HS_STAGES;
            hs_mbar_wait(&bars.full_v[before], (it - 1) / HS_STAGES % 2);
            if (written < KEYS) {
                zero_tail<D_V, KEYS>(smem + shape::at_v + before * shape::v, written, wg);
            }
            hs_mbar_wait(&bars.full_k[stage], it / HS_STAGES % 2);
            hs_bar_sync(1 + wg, 256);
            hs_wgmma_pin(s);
            hs_wgmma_pin(o);
            hs_wgmma_fence();
            multiply_qk<D_QK, KEYS>(s, q, k0 + stage * (shape::k >> 4));
            hs_wgmma_commit();
            multiply_pv<n_part, n, KEYS>(o, p, v0 + before * (shape::v >> 4));
            hs_wgmma_commit();
            hs_bar_arrive(2 - wg, 256);
            hs_wgmma_wait<1>();
            hs_wgmma_pin(s);
            if (lane == 0) {
                hs_mbar_arrive(&bars.empty_k[stage]);
            }
            softmax<KEYS>(s, x, fix, w, scale, raw);
            // The exponentials belong before the wait, beside the products, but the assembler moves all it can behind it: a branch that needs their
            // sums, and is never taken, holds them.
            if (x.l[0] + x.l[1] < 0.0f) {
                asm volatile("trap;");
            }
            hs_wgmma_wait<0>();
            hs_wgmma_pin(o);
            if (lane == 0) {
                hs_mbar_arrive(&bars.empty_v[before]);
            }
            if (__any_sync(0xffffffff, fix[0] != 1.0f || fix[1] != 1.0f)) { // seldom after the first steps
#pragma unroll
                for (int i = 0; i < n_part * n; i++) {
                    o[i / n][i % n] *= fix[i / 2 % 2];
                }
            }
            pack<KEYS>(p, s);
            written = w.written<KEYS>();
        }
        const int stage = it % HS_STAGES;
        hs_mbar_wait(&bars.full_v[stage], it / HS_STAGES % 2);
        if (written < KEYS) {
            zero_tail<D_V, KEYS>(smem + shape::at_v + stage * shape::v, written, wg);
        }
        hs_wgmma_pin(o);
        hs_wgmma_fence();
        multiply_pv<n_part, n, KEYS>(o, p, v0 + stage * (shape::v >> 4));
        hs_wgmma_commit();
        hs_wgmma_wait<0>();
        hs_wgmma_pin(o);
        if (lane == 0) {
            hs_mbar_arrive(&bars.empty_v[stage]);
        }
        it++;
        store<n_part, n>(a, o, x, w, SCORES ? lse[u % 2] : nullptr);
        if (SCORES) {
            hs_mbar_arrive(&bars.full_raw[u % 2]);
        }
    }
}

#endif // HS_SM90A

template <int D_QK, int D_V, int KEYS, bool SCORES> static __global__ void __launch_bounds__(384, 1) sm90_kernel(const __grid_constant__ hs_sm90 a,
    const __grid_constant__ CUtensorMap map_k, const __grid_constant__ CUtensorMap map_v) {
#ifdef HS_SM90A
    extern __shared__ char dynamic[];
    __shared__ hs_sm90_barriers bars; // static shared memory: how the host sees that this body was compiled (hs_sm90_code_here)
    __shared__ float2 lse[2][HS_ROWS];
    const uint32_t smem = (hs_smem(dynamic) + 1023) / 1024 * 1024;
    if (threadIdx.x == 0) {
        for (int i = 0; i < HS_STAGES; i++) {
            hs_mbar_init(&bars.full_k[i], 1);
            hs_mbar_init(&bars.full_v[i], 1);
            hs_mbar_init(&bars.empty_k[i], 8); // the consuming warps
            hs_mbar_init(&bars.empty_v[i], 8);
        }
        for (int i = 0; i < 2; i++) {
            hs_mbar_init(&bars.full_raw[i], 256);
            hs_mbar_init(&bars.empty_raw[i], 3);
        }
        hs_mbar_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        hs_regs_down<56>();
        if (threadIdx.x < 32) {
            hs_sm90_produce<D_QK, D_V, KEYS>(a, &map_k, &map_v, smem, bars);
        } else if (SCORES) {
            hs_sm90_score(a, lse, bars);
        }
    } else {
        hs_regs_up<224>();
        consume<D_QK, D_V, KEYS, SCORES>(a, smem, bars, lse);
    }
#else
    GGML_UNUSED(a);
    GGML_UNUSED(map_k);
    GGML_UNUSED(map_v);
    NO_DEVICE_CODE;
#endif
}

// --- host ---

static bool cache_takes(const hs_dev_cache & c, int d, int n_head_kv) {
    CUtensorMap map;
    return c.type == GGML_TYPE_F16 && c.table && c.n_slots == HS_PAGE && hs_sm90_map(c, d, n_head_kv, &map);
}

bool hs_cuda_prefill_sm90_takes(const hs_dev_attn & a, int cc) {
    const hs_dev_branch & b = a.b[0];
    if (cc != 900 || a.n_branch != 1 || b.sel || a.gates || b.window != INT32_MAX || a.n_tokens < HS_MIN_TOKENS || b.n_rep > HS_MAX_REP) {
        return false;
    }
    const bool dims = a.d_qk == 192 ? a.d_v == 128 : a.d_qk == a.d_v && (a.d_v == 64 || a.d_v == 128 || a.d_v == 256);
    if (!dims || !(a.scale > 0.0f && a.scale < 1e6f) || (a.scores && a.block_size != HS_PAGE)) {
        return false;
    }
    static const bool have = hs_sm90_code_here(sm90_kernel<128, 128, 128, true>, sizeof(hs_sm90_barriers));
    return have && cache_takes(b.k, a.d_qk, b.n_head_kv) && cache_takes(b.v, a.d_v, b.n_head_kv);
}

template <int D_QK, int D_V, int KEYS, bool SCORES> static void launch(ggml_backend_cuda_context & ctx, hs_sm90 & a) {
    CUtensorMap k, v;
    GGML_ASSERT(hs_sm90_map(a.b[0].k, D_QK, a.b[0].n_head_kv, &k) && hs_sm90_map(a.b[0].v, D_V, a.b[0].n_head_kv, &v)); // as in takes
    a.tokens = HS_ROWS / a.b[0].n_rep;
    a.n_tiles = (a.n_tokens + a.tokens - 1) / a.tokens * a.b[0].n_head_kv;
    const int grid = std::min(a.n_tiles, ggml_cuda_info().devices[ctx.device].nsm);
    ggml_cuda_pool_alloc<float> raw(ctx.pool());
    if (SCORES) {
        constexpr int step = KEYS / HS_PAGE;
        a.n_raw = (a.n_blocks + step - 1) / step * step;
        a.raw = raw.alloc((size_t) grid * 2 * a.n_raw * HS_ROWS);
    }
    constexpr int bytes = hs_sm90_shape<D_QK, D_V, KEYS>::bytes;
    CUDA_CHECK(cudaFuncSetAttribute(sm90_kernel<D_QK, D_V, KEYS, SCORES>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    sm90_kernel<D_QK, D_V, KEYS, SCORES><<<grid, 384, bytes, ctx.stream()>>>(a, k, v);
    CUDA_CHECK(cudaGetLastError());
}

template <int D_QK, int D_V, int KEYS> static void launch(ggml_backend_cuda_context & ctx, hs_sm90 & a) {
    a.scores ? launch<D_QK, D_V, KEYS, true>(ctx, a) : launch<D_QK, D_V, KEYS, false>(ctx, a);
}

void hs_cuda_prefill_sm90(ggml_backend_cuda_context & ctx, const hs_dev_attn & given) {
    hs_sm90 a = {};
    static_cast<hs_dev_attn &>(a) = given;
    switch (a.d_qk) {
        case 64:  return launch<64, 64, 128>(ctx, a);
        case 128: return launch<128, 128, 128>(ctx, a);
        case 192: return launch<192, 128, 128>(ctx, a);
        default:  return launch<256, 256, 64>(ctx, a);
    }
}
