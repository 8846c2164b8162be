// Dense attention of many queries (full with and without block scores, window) on tensor cores of compute capability 8.0 and up, by mma.sync.
//
// A block of 4 warps has ROWS = 64 or 128 query rows: ROWS / n_rep consecutive tokens times the n_rep heads of one KV head, 16 or 32 rows a warp. Keys come in
// steps of 64 (32 at 256 channels): S = Q K^T, softmax in registers, O += P V. K and V of the steps take turns in three buffers, each load one product ahead
// of its use: K of the next step flies during S, V of the next during P V; two barriers a step. Tokens of several sequences in a tile: a walk over the keys of
// each, rows of the others masked. Where a row of keys lies is looked up by one thread (page table or ring), so pages and rings of any size take the same path.
// Replaces: mask, score matrix, softmax, and a second pass for the block maxima: a step's row maxima, which the softmax needs anyway, are stored raw (they stay
// in L2: one piece a resident thread block), and the block that has them subtracts the log of the denominator and takes the group's maximum.
// The running reference of the exponentials moves only when the maximum has grown by more than 2^8, which saves most rescaling of O; rows decide alone.
// Order of summation: keys ascending by steps; within a step the tensor core's; row sums: a lane's columns, then 4 lanes. Other tokens of the launch enter
// only by where the steps begin (multiples of the step) and by steps that a row does not see (exact zeros).
#include "prefill_tile.cuh"

#define HS_LN2 0.6931471805599453f
#define HS_SLACK 8.0f              // powers of two by which weights may exceed 1
#define HS_START (-1e30f)          // row maximum before the first key: finite, so that no inf - inf arises
#define HS_FINE 16                 // keys of a maximum where blocks are no multiple of a step
#define HS_RAW_BYTES ((size_t) 1 << 30)

template <int D_QK, int D_V, int KEYS, int MT> struct dense_shape {
    static constexpr int rows = 64 * MT, q = rows * D_QK * 2, buffer = KEYS * (D_QK > D_V ? D_QK : D_V) * 2, bytes = q + 3 * buffer;
};

// A lane's rows: r = 2 * m-tile + (row g or g + 8).
template <int MT> struct dense_rows { float m[2 * MT], l[2 * MT]; };

template <int MT> static __device__ __forceinline__ int row_of(int r) { return threadIdx.x / 32 * 16 * MT + r / 2 * 16 + r % 2 * 8 + threadIdx.x % 32 / 4; }

// S = Q K^T
template <int D, int KEYS, int MT> static __device__ __forceinline__ void multiply_qk(float (&s)[MT][KEYS / 8][4], const hs_pieces<D> & q, const hs_pieces<D> & k) {
#pragma unroll
    for (int t = 0; t < MT; t++) {
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
            s[t][i / 4][i % 4] = 0.0f;
        }
    }
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        unsigned x[MT][4];
#pragma unroll
        for (int t = 0; t < MT; t++) {
            hs_ldmatrix(x[t], q(step) + t * 16 * D * 2);
        }
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            unsigned y[4];
            hs_ldmatrix(y, k(step) + n * 16 * D * 2);
#pragma unroll
            for (int t = 0; t < MT; t++) {
                hs_mma(s[t][2 * n], x[t], y[0], y[1], 1);
                hs_mma(s[t][2 * n + 1], x[t], y[2], y[3], 1);
            }
        }
    }
}

// O += P V
template <int D, int KEYS, int MT> static __device__ __forceinline__ void multiply_pv(float (&o)[MT][D / 8][4], const unsigned (&p)[MT][KEYS / 16][4], const hs_pieces<D> & v) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            unsigned y[4];
            hs_ldmatrix_t(y, v(n) + step * 16 * D * 2);
#pragma unroll
            for (int t = 0; t < MT; t++) {
                hs_mma(o[t][2 * n], p[t][step], y[0], y[1], 1);
                hs_mma(o[t][2 * n + 1], p[t][step], y[2], y[3], 1);
            }
        }
    }
}

// Keys that a row does not see: -inf.
template <int KEYS, int MT, int ROWS> static __device__ __forceinline__ void mask(float (&s)[MT][KEYS / 8][4], const hs_dense_side<ROWS, KEYS> & side, int seq, int from, int window) {
#pragma unroll
    for (int r = 0; r < 2 * MT; r++) {
        const int row = row_of<MT>(r), pos = side.seq[row] == seq ? side.pos[row] : -1, begin = pos - window + 1;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int j = from + n * 8 + threadIdx.x % 4 * 2 + i;
                float & x = s[r / 2][n][r % 2 * 2 + i];
                x = j <= pos && j >= begin ? x : -INFINITY;
            }
        }
    }
}

// The largest of n-tiles first .. first + n - 1 in every row, in all four lanes.
template <int N_ALL, int MT> static __device__ __forceinline__ void maxima(float (&top)[2 * MT], const float (&s)[MT][N_ALL][4], int first, int n) {
#pragma unroll
    for (int r = 0; r < 2 * MT; r++) {
        top[r] = -INFINITY;
#pragma unroll
        for (int i = 0; i < n; i++) {
            top[r] = fmaxf(top[r], fmaxf(s[r / 2][first + i][r % 2 * 2], s[r / 2][first + i][r % 2 * 2 + 1]));
        }
        top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffff, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffff, top[r], 2));
    }
}

// Each of the four lanes stores the maximum of one row (of two, with one m-tile).
template <int MT> static __device__ __forceinline__ void store_raw(float * raw, const float (&top)[2 * MT], bool mine) {
    const int q = threadIdx.x % 4;
    float x = q % 2 ? top[1] : top[0];
    if (MT > 1) {
        x = q < 2 ? x : q % 2 ? top[2 * MT - 1] : top[2 * MT - 2];
    }
    if (mine) {
        raw[row_of<MT>(q)] = x;
    }
}

// Logits -> weights in f16; sums and O follow where the reference moves. c: scale in powers of two.
template <int D_V, int KEYS, int MT> static __device__ __forceinline__ void softmax(unsigned (&p)[MT][KEYS / 16][4], float (&s)[MT][KEYS / 8][4], const float (&top)[2 * MT],
    dense_rows<MT> & x, float (&o)[MT][D_V / 8][4], float c, float slack) {
    bool grown = false;
#pragma unroll
    for (int r = 0; r < 2 * MT; r++) {
        grown |= top[r] > x.m[r] + slack;
    }
    if (__any_sync(0xffffffff, grown)) {
#pragma unroll
        for (int r = 0; r < 2 * MT; r++) {
            const float m = top[r] > x.m[r] + slack ? top[r] : x.m[r], fix = hs_exp2(__fmul_rn(x.m[r], c) - __fmul_rn(m, c));
            x.m[r] = m;
            x.l[r] *= fix;
#pragma unroll
            for (int n = 0; n < D_V / 8; n++) {
                o[r / 2][n][r % 2 * 2] *= fix;
                o[r / 2][n][r % 2 * 2 + 1] *= fix;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2 * MT; r++) {
        const float mc = __fmul_rn(x.m[r], c);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            const float lo = hs_exp2(fmaf(s[r / 2][n][r % 2 * 2], c, -mc)), hi = hs_exp2(fmaf(s[r / 2][n][r % 2 * 2 + 1], c, -mc));
            x.l[r] += lo + hi;
            p[r / 2][n / 2][n % 2 * 2 + r % 2] = hs_pack(lo, hi);
        }
    }
}

// The rows' results, and what the scores need.
template <int D_V, int MT, int ROWS, int KEYS> static __device__ __forceinline__ void store_out(const hs_dense & a, const float (&o)[MT][D_V / 8][4], const dense_rows<MT> & x,
    hs_dense_side<ROWS, KEYS> & side, int first, int head_kv, int n_rows, float c) {
    const int n_rep = a.b[0].n_rep;
    const float * sinks = a.b[0].sinks;
#pragma unroll
    for (int r = 0; r < 2 * MT; r++) {
        float l = x.l[r];
        l += __shfl_xor_sync(0xffffffff, l, 1);
        l += __shfl_xor_sync(0xffffffff, l, 2);
        const int row = row_of<MT>(r), head = head_kv * n_rep + row % n_rep;
        if (row >= n_rows) {
            continue;
        }
        const float mc = __fmul_rn(x.m[r], c), sink = sinks ? sinks[head] : HS_SINK_ABSENT;
        float top = mc;
        if (sink > HS_SINK_ABSENT) {
            top = fmaxf(mc, sink * HS_LOG2E);
            l = l * hs_exp2(mc - top) + hs_exp2(fmaf(sink, HS_LOG2E, -top));
        }
        const float factor = hs_exp2(mc - top) / l;
        float * out = a.out + ((int64_t) (first + row / n_rep) * a.n_head + head) * D_V + threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < D_V / 8; n++) {
            *(float2 *) (out + n * 8) = make_float2(o[r / 2][n][r % 2 * 2] * factor, o[r / 2][n][r % 2 * 2 + 1] * factor);
        }
        if (threadIdx.x % 4 == 0) {
            side.lse[row] = make_float2(top, log2f(l));
        }
    }
}

// scores[g, t, i] = max over the group's heads of (block maximum - log of the denominator). A thread has eight blocks of a token; neighbours have tokens.
template <int ROWS, int KEYS> static __device__ __forceinline__ void store_scores(const hs_dense & a, const hs_dense_side<ROWS, KEYS> & side, const float * raw, int first, int head_kv,
    int n_rows, float c) {
    const int n_rep = a.b[0].n_rep, n_head_kv = a.b[0].n_head_kv, n_tokens = n_rows / n_rep, each = a.block_size / a.grain;
    int last = 0;
    for (int i = 0; i < n_tokens; i++) {
        last = max(last, side.pos[i * n_rep]);
    }
    for (int x = threadIdx.x; x < (last / a.block_size / 8 + 1) * n_tokens; x += HS_THREADS) {
        const int token = x % n_tokens, from = x / n_tokens * 8, pos = side.pos[token * n_rep], n = min(pos / a.block_size + 1 - from, 8);
        if (n <= 0) {
            continue;
        }
        float best[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            best[i] = -INFINITY;
        }
        for (int r = token * n_rep; r < (token + 1) * n_rep; r++) {
            const float2 l = side.lse[r];
            for (int e = 0; e < each; e++) {
#pragma unroll
                for (int i = 0; i < 8; i++) { // beyond the last visible run: that run again
                    const int run = min((from + i) * each + e, pos / a.grain);
                    best[i] = fmaxf(best[i], fmaf(raw[(int64_t) run * ROWS + r], c, -l.x) - l.y);
                }
            }
        }
        float * out = a.scores + ((int64_t) (first + token) * n_head_kv + head_kv) * a.n_blocks + from;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i < n) {
                out[i] = best[i] * HS_LN2;
            }
        }
    }
}

// All keys of one sequence.
template <int D_QK, int D_V, int KEYS, int MT, bool Q8> static __device__ __forceinline__ void attend(const hs_dense & a, hs_dense_side<64 * MT, KEYS> & side, unsigned smem,
    const hs_span & span, int head_kv, float * raw, dense_rows<MT> & x, float (&o)[MT][D_V / 8][4]) {
    typedef dense_shape<D_QK, D_V, KEYS, MT> shape;
    const hs_dev_branch & b = a.b[0];
    const int lane = threadIdx.x % 32, n = span.hi / KEYS - span.lo / KEYS + 1;
    const float c = a.scale * HS_LOG2E, slack = HS_SLACK / c;
    const hs_rows_of<KEYS, Q8> rows(b, span, head_kv);
    unsigned buf_k = smem + shape::q, buf_v = buf_k + shape::buffer, buf_free = buf_v + shape::buffer;
    rows.put(side.at[0], 0, rows.page(0));
    rows.put(side.at[1], 1, rows.page(1));
    int page = rows.page(2);
    __syncthreads(); // also: the keys before have been used
    hs_load_step<D_QK, KEYS, Q8>(buf_k, b.k.data, side.at[0][0]);
    hs_copy_commit();
    hs_load_step<D_V, KEYS, Q8>(buf_v, b.v.data, side.at[0][1]);
    hs_copy_commit();
    for (int i = 0; i < n; i++) {
        const int from = (span.lo / KEYS + i) * KEYS;
        hs_copy_wait<1>();
        __syncthreads(); // K is there; V and the rows' places of the step before are done with
        if (i + 1 < n) {
            hs_load_step<D_QK, KEYS, Q8>(buf_free, b.k.data, side.at[(i + 1) % 2][0]);
        }
        hs_copy_commit();
        rows.put(side.at[i % 2], i + 2, page);
        page = rows.page(i + 3);
        float s[MT][KEYS / 8][4], top[2 * MT];
        multiply_qk<D_QK, KEYS, MT>(s, hs_pieces<D_QK>(smem, threadIdx.x / 32 * 16 * MT + lane % 16, lane / 16), hs_pieces<D_QK>(buf_k, lane % 8 + lane / 16 * 8, lane / 8 % 2));
        if (from < span.all_from || from + KEYS - 1 > span.all_to) {
            mask<KEYS, MT>(s, side, span.seq, from, b.window);
        }
        maxima<KEYS / 8, MT>(top, s, 0, KEYS / 8);
        if (raw) {
            const bool mine = lane % 4 < 2 * MT && (!span.mixed || side.seq[row_of<MT>(lane % 4 % (2 * MT))] == span.seq);
            if (a.grain == KEYS) {
                store_raw<MT>(raw + (int64_t) (from / KEYS) * shape::rows, top, mine);
            } else {
#pragma unroll
                for (int e = 0; e < KEYS / HS_FINE; e++) {
                    float part[2 * MT];
                    maxima<KEYS / 8, MT>(part, s, e * HS_FINE / 8, HS_FINE / 8);
                    store_raw<MT>(raw + (int64_t) (from / HS_FINE + e) * shape::rows, part, mine);
                }
            }
        }
        unsigned p[MT][KEYS / 16][4];
        softmax<D_V, KEYS, MT>(p, s, top, x, o, c, slack);
        hs_copy_wait<1>();
        __syncthreads(); // V is there, K is done with
        if (i + 1 < n) {
            hs_load_step<D_V, KEYS, Q8>(buf_k, b.v.data, side.at[(i + 1) % 2][1]);
        }
        hs_copy_commit();
        multiply_pv<D_V, KEYS, MT>(o, p, hs_pieces<D_V>(buf_v, lane % 16, lane / 16));
        const unsigned old_k = buf_k, old_v = buf_v;
        buf_k = buf_free;
        buf_v = old_k;
        buf_free = old_v;
    }
}

template <int D_QK, int D_V, int KEYS, int MT, bool Q8> static __global__ void __launch_bounds__(HS_THREADS, MT > 1 || D_QK > 128 ? 2 : 3) dense_kernel(
    const __grid_constant__ hs_dense a) {
    constexpr int rows = 64 * MT;
    extern __shared__ __align__(128) char dynamic[];
    __shared__ hs_dense_side<rows, KEYS> side;
    const unsigned smem = hs_shared(dynamic);
    const int n_head_kv = a.b[0].n_head_kv;
    float * raw = a.raw ? a.raw + (int64_t) blockIdx.x * a.n_raw * rows : nullptr;
    for (int tile = blockIdx.x; tile < a.n_tiles;) { // late tokens, which see most keys, first
        const int head_kv = tile % n_head_kv, first = (a.n_tiles / n_head_kv - 1 - tile / n_head_kv) * a.tokens;
        const int n_rows = min(a.tokens, a.n_tokens - first) * a.b[0].n_rep;
        hs_load_queries<D_QK, rows, KEYS>(a, smem, side, first, head_kv, n_rows);
        if (threadIdx.x == 0) {
            side.next = a.next ? (int) gridDim.x + atomicAdd(a.next, 1) : INT_MAX;
        }
        __syncthreads();
        dense_rows<MT> x;
        float o[MT][D_V / 8][4];
#pragma unroll
        for (int r = 0; r < 2 * MT; r++) {
            x.m[r] = HS_START;
            x.l[r] = 0.0f;
#pragma unroll
            for (int i = 0; i < D_V / 4; i++) {
                o[r / 2][i / 2][r % 2 * 2 + i % 2] = 0.0f;
            }
        }
        for (int seq = hs_span_of(side.pos, side.seq, n_rows, -1, a.b[0].window).next; seq != INT_MAX;) {
            const hs_span span = hs_span_of(side.pos, side.seq, n_rows, seq, a.b[0].window);
            attend<D_QK, D_V, KEYS, MT, Q8>(a, side, smem, span, head_kv, raw, x, o);
            seq = span.next;
        }
        const float c = a.scale * HS_LOG2E;
        store_out<D_V, MT>(a, o, x, side, first, head_kv, n_rows, c);
        __syncthreads();
        if (raw) {
            store_scores(a, side, raw, first, head_kv, n_rows, c);
        }
        tile = side.next;
        __syncthreads(); // shared memory is free for the next tile
    }
}

// --- host ---

static bool cache_takes(const hs_dev_cache & c) {
    const int unit = c.type == GGML_TYPE_F16 ? 16 : 2; // of a row's place
    return (c.type == GGML_TYPE_F16 || c.type == GGML_TYPE_Q8_0) && (uintptr_t) c.data % unit == 0 && c.nb1 % unit == 0 && c.nb2 % unit == 0 && c.nb3 % unit == 0 &&
        c.n_pages * c.nb3 / unit < (int64_t) HS_NO_ROW;
}

bool hs_cuda_prefill_takes(const hs_dev_attn & a, int cc) {
    const hs_dev_branch & b = a.b[0];
    if (cc < 800 || a.n_branch != 1 || b.sel || a.gates || b.n_rep > 64 || b.k.type != b.v.type || !cache_takes(b.k) || !cache_takes(b.v)) {
        return false;
    }
    const bool same = a.d_qk == a.d_v && (a.d_qk == 64 || a.d_qk == 96 || a.d_qk == 128 || a.d_qk == 256);
    return (same || (a.d_qk == 192 && a.d_v == 128)) && a.scale > 1e-6f && a.scale < 1e6f && (!a.scores || a.block_size % HS_FINE == 0);
}

template <int D_QK, int D_V, int KEYS, int MT, bool Q8> static void launch(ggml_backend_cuda_context & ctx, hs_dense & a) {
    typedef dense_shape<D_QK, D_V, KEYS, MT> shape;
    const auto kernel = dense_kernel<D_QK, D_V, KEYS, MT, Q8>;
    int resident = 0;
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape::bytes));
    CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, HS_THREADS, shape::bytes));
    a.tokens = shape::rows / a.b[0].n_rep;
    a.n_tiles = (a.n_tokens + a.tokens - 1) / a.tokens * a.b[0].n_head_kv;
    int grid = std::min(a.n_tiles, std::max(resident, 1) * ggml_cuda_info().devices[ctx.device].nsm);
    ggml_cuda_pool_alloc<float> raw(ctx.pool());
    ggml_cuda_pool_alloc<int> next(ctx.pool());
    if (a.scores) {
        a.grain = a.block_size % KEYS == 0 ? KEYS : HS_FINE;
        a.n_raw = (int) (((int64_t) a.n_blocks * a.block_size + KEYS - 1) / KEYS * KEYS / a.grain); // whole steps
        const size_t piece = (size_t) a.n_raw * shape::rows;
        grid = std::min(grid, (int) std::max<size_t>(HS_RAW_BYTES / (piece * sizeof(float)), 1));
        a.raw = raw.alloc(piece * grid);
    }
    if (grid < a.n_tiles) {
        a.next = next.alloc(1);
        CUDA_CHECK(cudaMemsetAsync(a.next, 0, sizeof(int), ctx.stream()));
    }
    kernel<<<grid, HS_THREADS, shape::bytes, ctx.stream()>>>(a);
    CUDA_CHECK(cudaGetLastError());
}

template <bool Q8> static void launch_dims(ggml_backend_cuda_context & ctx, hs_dense & a, bool many) {
    constexpr int mt = Q8 ? 1 : 2; // dequantising needs the registers
    switch (a.d_qk) {
        case 64:  return launch<64, 64, 64, mt, Q8>(ctx, a);
        case 96:  return launch<96, 96, 64, mt, Q8>(ctx, a);
        case 128: return many ? launch<128, 128, 64, mt, Q8>(ctx, a) : launch<128, 128, 64, 1, Q8>(ctx, a);
        case 192: return launch<192, 128, 64, 1, Q8>(ctx, a);
        default:  return launch<256, 256, 32, 1, Q8>(ctx, a);
    }
}

void hs_cuda_prefill(ggml_backend_cuda_context & ctx, const hs_dev_attn & given) {
    hs_dense a = {};
    static_cast<hs_dev_attn &>(a) = given;
    const int tokens = 128 / a.b[0].n_rep, tiles = (a.n_tokens + tokens - 1) / tokens * a.b[0].n_head_kv; // of 128 rows
    const bool many = 2 * tiles >= 3 * ggml_cuda_info().devices[ctx.device].nsm;                          // else tiles of 64, to fill the device
    a.b[0].k.type == GGML_TYPE_F16 ? launch_dims<false>(ctx, a, many) : launch_dims<true>(ctx, a, many);
}
