// Sparse attention of many queries on tensor cores (8.0 and up): every token has its own selection per KV head, and both branches and the gates are one kernel.
//
// A block of threads has a KV head and a tile of consecutive tokens with all heads of the group: 256 (d_v 256: 128) rows of queries. A plan kernel before it
// has listed the union of the tile's selections (prefill_sparse_plan.cuh), and every chunk of 64 keys of the union is brought to shared memory once. Its 8
// warps walk the list each at its own pace, within the ring of chunks: a warp whose tokens did not select a chunk passes it by, 16 rows at a time, and
// the last warp to leave a chunk loads the one that takes its place. So products are wasted only on rows whose 15 neighbours want the chunk, and loads not at all.
// Replaces: gathering selected keys per query, mask, score matrix, softmax and the sum of the branches as passes of their own.
// Order of summation: the chunks of the union, ascending, a row skipping those that are not its own; the branches in order. What a row's sum is made of does not
// depend on its neighbours, only where chunks are cut into products of 16 keys, which positions decide.
#include "prefill_sparse_load.cuh"
#include "prefill_sparse_plan.cuh"

#define HS_WARPS 8
#define HS_MAX_STAGES 5
#define HS_HEADER 64                  // bytes of a stage's copy of its item: hs_item, hs_item_more
#define HS_START (-1e30f)
#define HS_MAX_REP 64
#define HS_BATCH 16                   // outputs of a lane that are read at a time
#define HS_MAX_WORDS 4096             // bitmap of 8 million positions

// Shared memory: queries, stages (K, then V), the stages' items, barriers, counters, {token, position} of each row, {tokens, least position} of each 16.
template <int DQ, int DV, int MT> struct layout {
    static constexpr int rows = HS_WARPS * 16 * MT, q = rows * DQ * 2, stage = HS_CHUNK * (DQ + DV) * 2, rest = HS_MAX_STAGES * (HS_HEADER + 16) + rows * 8 + rows;
    static constexpr int bytes(int n_stages) { return q + n_stages * stage + rest; }
};

// 32 or 16 rows of a warp. Of a tile of 16 a lane has rows lane / 4 and lane / 4 + 8.
template <int DV, int MT> struct rows {
    float o[MT][DV / 8][4], m[MT][2], l[MT][2]; // m: largest logit, times log2(e); l: this lane's columns only
};
struct tile_rows { unsigned long long tokens; int t_min, none; };
struct row_tables { int2 * row; tile_rows * tile; }; // row: token within the block's (-1: none), its position

template <int DV, int MT> static __device__ __forceinline__ void clear(rows<DV, MT> & r) {
#pragma unroll
    for (int x = 0; x < MT; x++) {
        r.m[x][0] = r.m[x][1] = HS_START;
        r.l[x][0] = r.l[x][1] = 0.0f;
#pragma unroll
        for (int c = 0; c < DV / 8; c++) {
            r.o[x][c][0] = r.o[x][c][1] = r.o[x][c][2] = r.o[x][c][3] = 0.0f;
        }
    }
}

template <int ROWS> static __device__ __forceinline__ void find_rows(const hs_sparse_job & a, const row_tables & tables, const int * order, int first, int n_tile) {
    for (int i = threadIdx.x; i < ROWS; i += 32 * HS_WARPS) {
        const int token = i / a.n_rep < n_tile ? order[i / a.n_rep] : -1;
        tables.row[i] = make_int2(token, token < 0 ? -1 : a.pos[first + token]);
    }
    for (int i = threadIdx.x; i < ROWS / 16; i += 32 * HS_WARPS) {
        const int from = 16 * i / a.n_rep, end = min((16 * i + 15) / a.n_rep + 1, n_tile);
        tile_rows tile = { 0, INT_MAX, 0 };
        for (int k = from; k < end; k++) {
            tile.tokens |= 1ull << order[k];
            tile.t_min = min(tile.t_min, a.pos[first + order[k]]);
        }
        tables.tile[i] = tile;
    }
}

// f32 -> halves in shared memory; rows without a query become zeros.
template <int DQ, int ROWS> static __device__ __forceinline__ void load_queries(const hs_sparse_job & a, unsigned dst, const int * order, int first, int n_tile) {
#pragma unroll 8
    for (int i = threadIdx.x; i < ROWS * (DQ / 8); i += 32 * HS_WARPS) {
        const int row = i / (DQ / 8), piece = i % (DQ / 8);
        uint4 x = make_uint4(0, 0, 0, 0);
        if (row / a.n_rep < n_tile) {
            const float * q = a.q + ((int64_t) (first + order[row / a.n_rep]) * a.n_head + blockIdx.y * a.n_rep + row % a.n_rep) * DQ + piece * 8;
            const float4 y = *(const float4 *) q, z = *(const float4 *) (q + 4);
            x = make_uint4(hs_pack_clamped(y.x, y.y), hs_pack_clamped(y.z, y.w), hs_pack_clamped(z.x, z.y), hs_pack_clamped(z.z, z.w));
        }
        hs_store16(dst + hs_piece_at<DQ>(row, piece), x);
    }
}

// By one warp: item i of the list (both branches in a row) and its keys and values into a stage.
template <int DQ, int DV> static __device__ __forceinline__ void load_item(const hs_sparse_job & a, unsigned stage, unsigned header, unsigned full, int i, int count) {
    const int lane = threadIdx.x % 32, n = i < count ? a.n0 : a.n0 + 1;
    const int64_t at = hs_list_at(a, n) + (i < count ? i : i - count);
    if (lane < 2) {
        hs_copy16(header + lane * 16, (const char *) (a.items + at) + lane * 16, 16);
    } else if (lane < 4 && a.more) {
        hs_copy16(header + lane * 16, (const char *) (a.more + at) + (lane - 2) * 16, 16);
    }
    const int4 item = *(const int4 *) (a.items + at);
    const hs_dev_branch & b = a.b[n];
    hs_load_chunk<DQ>(b.k, stage, item.y, blockIdx.y, item.x * HS_CHUNK, item.z, item.w);
    hs_load_chunk<DV>(b.v, stage + HS_CHUNK * DQ * 2, item.y, blockIdx.y, item.x * HS_CHUNK, item.z, item.w);
    hs_barrier_arrive(full);
}

static __device__ __forceinline__ int bit_of(unsigned long long mask, int i) { return i < 0 ? 0 : (int) (mask >> i) & 1; }

// What the rows at `row` see of an item, at the level of 16 keys and of single positions: hides the rest (s = -inf).
template <int N> static __device__ __forceinline__ void hide(const int2 * row, float (&s)[N][4], const hs_item * item, const hs_item_more * more, int part, int window) {
    const int column = threadIdx.x % 4 * 2, c0 = item->chunk * HS_CHUNK + part * 8 * N;
#pragma unroll
    for (int y = 0; y < 2; y++) {
        const int2 me = row[8 * y + threadIdx.x % 32 / 4];
        const int hi = me.y - c0 - column, low = bit_of(item->window, me.x) ? me.y - window + 1 - c0 - column : INT_MAX;
#pragma unroll
        for (int g = 0; g < N / 2; g++) {
            const int group = part * (N / 2) + g, lo = bit_of(group == 0 || !more ? item->sel : more->sel[group - 1], me.x) ? INT_MIN : low;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int at = 16 * g + 8 * (k / 2) + k % 2;
                float & z = s[2 * g + k / 2][2 * y + k % 2];
                z = at >= lo && at <= hi ? z : -INFINITY;
            }
        }
    }
}

// Online softmax of tile x: s becomes the weights, o and l are rescaled. Rows of a tile whose token is not in `sel` (nor hidden above) get the weight 0.
template <int DV, int MT, int N>
static __device__ __forceinline__ void soften(rows<DV, MT> & r, int x, const int2 * row, float (&s)[N][4], float scale, bool hidden, unsigned long long sel) {
    float fix[2];
#pragma unroll
    for (int y = 0; y < 2; y++) {
        const bool see = hidden || bit_of(sel, row[8 * y + threadIdx.x % 32 / 4].x);
        float top = s[0][2 * y];
#pragma unroll
        for (int k = 0; k < N; k++) {
            top = fmaxf(top, fmaxf(s[k][2 * y], s[k][2 * y + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
        const float m = see ? fmaxf(r.m[x][y], top * scale) : r.m[x][y], less = see ? m : -HS_START;
        fix[y] = hs_exp2(r.m[x][y] - m);
        r.m[x][y] = m;
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < N; k++) {
            s[k][2 * y] = hs_exp2(fmaf(s[k][2 * y], scale, -less));
            s[k][2 * y + 1] = hs_exp2(fmaf(s[k][2 * y + 1], scale, -less));
            sum += s[k][2 * y] + s[k][2 * y + 1];
        }
        r.l[x][y] = r.l[x][y] * fix[y] + sum;
    }
    if (__any_sync(0xffffffff, fix[0] != 1.0f || fix[1] != 1.0f)) {
#pragma unroll
        for (int c = 0; c < DV / 8; c++) {
            r.o[x][c][0] *= fix[0];
            r.o[x][c][1] *= fix[0];
            r.o[x][c][2] *= fix[1];
            r.o[x][c][3] *= fix[1];
        }
    }
}

// Part of a chunk, G times 16 keys, for the rows of a warp; tiles that do not want it stay as they are.
template <int DQ, int DV, int MT, int G>
static __device__ __forceinline__ void take_part(rows<DV, MT> & r, const int2 * row, unsigned q, unsigned k, unsigned v, const hs_item * item, const hs_item_more * more,
    int part, const int (&want)[MT], const bool (&hidden)[MT], float scale, int window) {
    int lane = threadIdx.x % 32;
    hs_here(lane);
    float s[MT][2 * G][4];
#pragma unroll
    for (int x = 0; x < MT; x++) {
#pragma unroll
        for (int i = 0; i < 8 * G; i++) {
            s[x][i / 4][i % 4] = 0.0f;
        }
    }
    const int row_q = lane % 16, row_k = lane % 8 + lane / 16 * 8, row_v = lane % 16;
    const unsigned at_q = q + row_q * DQ * 2, at_k = k + row_k * DQ * 2, at_v = v + row_v * DV * 2;
    const int key_q = hs_piece_key<DQ>(row_q), key_k = hs_piece_key<DQ>(row_k), key_v = hs_piece_key<DV>(row_v);
#pragma unroll
    for (int d = DQ / 16 - 1; d >= 0; d--) { // downwards: a large first channel meets the sum last, and is rounded with it once
        unsigned f[MT][4], b[4];
#pragma unroll
        for (int x = 0; x < MT; x++) {
            hs_ldmatrix_if(f[x], at_q + x * 16 * DQ * 2 + ((2 * d + lane / 16) ^ key_q) * 16, want[x]);
        }
#pragma unroll
        for (int g = 0; g < G; g++) {
            hs_ldmatrix(b, at_k + g * 16 * DQ * 2 + ((2 * d + lane / 8 % 2) ^ key_k) * 16);
#pragma unroll
            for (int x = 0; x < MT; x++) {
                hs_mma(s[x][2 * g], f[x], b[0], b[1], want[x]);
                hs_mma(s[x][2 * g + 1], f[x], b[2], b[3], want[x]);
            }
        }
    }
#pragma unroll
    for (int x = 0; x < MT; x++) {
        if (want[x]) {
            if (hidden[x]) {
                hide(row + 16 * x, s[x], item, more, part, window);
            }
            soften(r, x, row + 16 * x, s[x], scale, hidden[x], item->sel);
        }
    }
#pragma unroll
    for (int g = 0; g < G; g++) {
        unsigned p[MT][4], b[4];
#pragma unroll
        for (int x = 0; x < MT; x++) {
            p[x][0] = hs_pack(s[x][2 * g][0], s[x][2 * g][1]);
            p[x][1] = hs_pack(s[x][2 * g][2], s[x][2 * g][3]);
            p[x][2] = hs_pack(s[x][2 * g + 1][0], s[x][2 * g + 1][1]);
            p[x][3] = hs_pack(s[x][2 * g + 1][2], s[x][2 * g + 1][3]);
        }
#pragma unroll
        for (int c = 0; c < DV / 16; c++) {
            hs_ldmatrix_t(b, at_v + g * 16 * DV * 2 + ((2 * c + lane / 16) ^ key_v) * 16);
#pragma unroll
            for (int x = 0; x < MT; x++) {
                hs_mma(r.o[x][2 * c], p[x], b[0], b[1], want[x]);
                hs_mma(r.o[x][2 * c + 1], p[x], b[2], b[3], want[x]);
            }
        }
    }
}

// One chunk, whole or (where the sums leave too few registers for its logits) in two parts.
template <int DQ, int DV, int MT>
static __device__ __forceinline__ void take_chunk(rows<DV, MT> & r, const int2 * row, unsigned q, unsigned k, const hs_item * item, const hs_item_more * more,
    const int (&want)[MT], const bool (&hidden)[MT], float scale, int window) {
    constexpr int G = MT * DV >= 256 && MT > 1 ? 2 : 4;
#pragma unroll 1
    for (int part = 0; part < 4 / G; part++) {
        const unsigned at = part * G * 16 * 2;
        take_part<DQ, DV, MT, G>(r, row, q, k + at * DQ, k + HS_CHUNK * DQ * 2 + at * DV, item, more, part, want, hidden, scale, window);
    }
}

// End of branch n: divide, gate, and write or add to what the branch before (the same thread) has written.
template <int DV, int MT> static __device__ __forceinline__ void finish(const hs_sparse_job & a, const rows<DV, MT> & r, const int2 * row, int n, int first) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int x = 0; x < MT; x++) {
#pragma unroll
        for (int y = 0; y < 2; y++) {
            float l = r.l[x][y];
            l += __shfl_xor_sync(0xffffffff, l, 1);
            l += __shfl_xor_sync(0xffffffff, l, 2);
            const int local = row[16 * x + 8 * y + lane / 4].x;
            if (local < 0) {
                continue;
            }
            const int head = blockIdx.y * a.n_rep + ((warp * MT + x) * 16 + 8 * y + lane / 4) % a.n_rep, token = first + local;
            const float sink = a.b[n].sinks ? a.b[n].sinks[head] : HS_SINK_ABSENT;
            const float base = sink > HS_SINK_ABSENT ? sink * HS_LOG2E : HS_START, top = fmaxf(r.m[x][y], base), fix = hs_exp2(r.m[x][y] - top);
            const float sum = l * fix + (sink > HS_SINK_ABSENT ? hs_exp2(base - top) : 0.0f), by = l > 0.0f ? fix / sum : 0.0f;
            float * out = a.out + ((int64_t) token * a.n_head + head) * DV + lane % 4 * 2;
            const bool channels = a.gates && a.gate_channels > 1;
            const float gate = by * (channels ? 1.0f : hs_dev_gate(a, token, head, n, 0));
#pragma unroll
            for (int c0 = 0; c0 < DV / 8; c0 += HS_BATCH) { // reads in front of the writes: one latency a batch
                float2 z[HS_BATCH];
#pragma unroll
                for (int c = c0; c < c0 + HS_BATCH && c < DV / 8; c++) {
                    z[c - c0] = n > 0 ? *(const float2 *) (out + 8 * c) : make_float2(0.0f, 0.0f);
                }
#pragma unroll
                for (int c = c0; c < c0 + HS_BATCH && c < DV / 8; c++) {
                    const int at = 8 * c + lane % 4 * 2;
                    z[c - c0].x += r.o[x][c][2 * y] * (channels ? gate * hs_dev_gate(a, token, head, n, at) : gate);
                    z[c - c0].y += r.o[x][c][2 * y + 1] * (channels ? gate * hs_dev_gate(a, token, head, n, at + 1) : gate);
                    *(float2 *) (out + 8 * c) = z[c - c0];
                }
            }
        }
    }
}

template <int DQ, int DV, int MT> static __global__ void __launch_bounds__(32 * HS_WARPS, 1) sparse_kernel(const __grid_constant__ hs_sparse_job a) {
    extern __shared__ __align__(128) char memory[];
    using size = layout<DQ, DV, MT>;
    char * const headers = memory + size::q + a.n_stages * size::stage;
    int * const gone = (int *) (headers + HS_MAX_STAGES * (HS_HEADER + 8));
    const row_tables tables = { (int2 *) (gone + 2 * HS_MAX_STAGES), (tile_rows *) ((int2 *) (gone + 2 * HS_MAX_STAGES) + size::rows) };
    const unsigned q = hs_shared(memory), stages = q + size::q, header0 = hs_shared(headers), full = header0 + HS_MAX_STAGES * HS_HEADER;
    const int lane = threadIdx.x % 32, warp = hs_uniform_int(threadIdx.x / 32), first = blockIdx.x * a.tile_tokens, n_tile = min(a.tile_tokens, a.n_tokens - first);
    const int * counts = a.counts + hs_tile_at(a) * 2, * order = a.order + hs_tile_at(a) * HS_TILE_TOKENS;
    const int count = hs_uniform_int(counts[0]), all = count + (a.n1 - a.n0 > 1 ? hs_uniform_int(counts[1]) : 0);
    if (threadIdx.x < HS_MAX_STAGES) {
        hs_barrier_init(full + threadIdx.x * 8, 64); // two arrivals a lane of the warp that loads
        gone[threadIdx.x] = 0;
    }
    __syncthreads();
    for (int i = warp; i < a.n_stages && i < all; i += HS_WARPS) {
        load_item<DQ, DV>(a, stages + i * size::stage, header0 + i * HS_HEADER, full + i * 8, i, count);
    }
    load_queries<DQ, size::rows>(a, q, order, first, n_tile);
    find_rows<size::rows>(a, tables, order, first, n_tile);
    rows<DV, MT> r;
    __syncthreads();
    const float scale = a.scale * HS_LOG2E;
    const int2 * const my_rows = tables.row + warp * 16 * MT;
    const unsigned my_q = q + warp * 16 * MT * DQ * 2;
    int i = 0, stage = 0, parity = 0;
    for (int n = a.n0; n < a.n1; n++) {
        const int window = a.b[n].window;
        clear(r);
        for (const int end = n == a.n0 ? count : all; i < end; i++) {
            hs_barrier_wait(full + stage * 8, parity);
            const hs_item * item = (const hs_item *) (headers + stage * HS_HEADER);
            const hs_item_more * more = a.more ? (const hs_item_more *) (item + 1) : nullptr;
            const unsigned long long sel = item->sel;
            unsigned long long any = item->window | sel, mixed = item->window & ~sel;
            for (int g = 0; more && g < 3; g++) {
                any |= more->sel[g];
                mixed |= sel ^ more->sel[g];
            }
            int want[MT];
            bool hidden[MT], some = false;
#pragma unroll
            for (int x = 0; x < MT; x++) {
                const tile_rows & tile = tables.tile[warp * MT + x];
                want[x] = hs_uniform((any & tile.tokens) != 0);
                hidden[x] = hs_uniform((mixed & tile.tokens) != 0 || item->chunk * HS_CHUNK + HS_CHUNK - 1 > tile.t_min);
                some = some || want[x];
            }
            if (some) {
                take_chunk<DQ, DV, MT>(r, my_rows, my_q, stages + stage * size::stage, item, more, want, hidden, scale, window);
            }
            __syncwarp();
            bool last = true;
            if (lane == 0) {
                __threadfence_block();
                last = atomicAdd(gone + stage, 1) % HS_WARPS == HS_WARPS - 1;
            }
            if (hs_uniform(last) && i + a.n_stages < all) {
                __threadfence_block();
                load_item<DQ, DV>(a, stages + stage * size::stage, header0 + stage * HS_HEADER, full + stage * 8, i + a.n_stages, count);
            }
            if (++stage == a.n_stages) {
                stage = 0;
                parity ^= 1;
            }
        }
        finish(a, r, my_rows, n, first);
    }
}

// Bytes of shared memory that a block of threads may have.
static int shared_limit(int cc) { return cc == 860 || cc == 890 || cc >= 1200 ? 99 * 1024 : cc < 900 ? 163 * 1024 : 227 * 1024; }

template <int DQ, int DV, int MT> static int stages_of(int cc) {
    const int n = (shared_limit(cc) - layout<DQ, DV, MT>::bytes(0)) / layout<DQ, DV, MT>::stage;
    return n < HS_MAX_STAGES ? n : HS_MAX_STAGES;
}

template <int DQ, int DV, int MT> static void launch(ggml_backend_cuda_context & ctx, hs_sparse_job & a) {
    a.n_stages = stages_of<DQ, DV, MT>(ggml_cuda_info().devices[ctx.device].cc);
    a.tile_tokens = layout<DQ, DV, MT>::rows / a.n_rep < HS_TILE_TOKENS ? layout<DQ, DV, MT>::rows / a.n_rep : HS_TILE_TOKENS;
    a.group = 16 * MT / a.n_rep > 1 ? 16 * MT / a.n_rep : 1;
    const int n_tiles = (a.n_tokens + a.tile_tokens - 1) / a.tile_tokens, chunks_a_block = (a.block_size - 1) / HS_CHUNK + (a.block_size % HS_CHUNK ? 2 : 1);
    for (int n = a.n0; n < a.n1; n++) { // the most chunks that tokens can ask for, and no more than exist (of one sequence a token)
        const int64_t window = a.b[n].window > 0 ? a.b[n].window / HS_CHUNK + 2 : 0, exist = 32 * (int64_t) a.n_words;
        const int64_t most = a.b[n].sel ? (int64_t) (a.top_k + (window ? 1 : 0)) * chunks_a_block + window : window;
        a.cap[n - a.n0] = (int) (a.tile_tokens * (most < exist ? most : exist));
    }
    const size_t n_lists = (size_t) n_tiles * a.n_head_kv, n_items = n_lists * (a.cap[0] + a.cap[1]);
    ggml_cuda_pool_alloc<hs_item> items(ctx.pool(), n_items);
    ggml_cuda_pool_alloc<hs_item_more> more(ctx.pool());
    ggml_cuda_pool_alloc<int> counts(ctx.pool(), 2 * n_lists), order(ctx.pool(), HS_TILE_TOKENS * n_lists);
    a.items = items.ptr;
    a.more = a.block_size % HS_CHUNK == 0 ? nullptr : more.alloc(n_items);
    a.counts = counts.ptr;
    a.order = order.ptr;
    hs_plan_kernel<<<dim3(n_tiles, a.n_head_kv, a.n1 - a.n0), HS_PLAN_THREADS, a.n_words * 8, ctx.stream()>>>(a);
    const int bytes = layout<DQ, DV, MT>::bytes(a.n_stages);
    CUDA_CHECK(cudaFuncSetAttribute(sparse_kernel<DQ, DV, MT>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    sparse_kernel<DQ, DV, MT><<<dim3(n_tiles, a.n_head_kv), 32 * HS_WARPS, bytes, ctx.stream()>>>(a);
}

// The head dims there is a kernel for: f(stages_of, launch) of the right one.
struct choice { int (*stages)(int cc); void (*launch)(ggml_backend_cuda_context &, hs_sparse_job &); };
static choice choose(int d_qk, int d_v) {
    if (d_qk == 192 && d_v == 128) {
        return { stages_of<192, 128, 2>, launch<192, 128, 2> };
    }
    switch (d_qk == d_v ? d_qk : 0) {
        case 32: return { stages_of<32, 32, 2>, launch<32, 32, 2> };
        case 64: return { stages_of<64, 64, 2>, launch<64, 64, 2> };
        case 96: return { stages_of<96, 96, 2>, launch<96, 96, 2> };
        case 128: return { stages_of<128, 128, 2>, launch<128, 128, 2> };
        case 256: return { stages_of<256, 256, 1>, launch<256, 256, 1> };
        default: return {};
    }
}

static bool takes_cache(const hs_dev_cache & c, int d, bool pages) {
    return (c.type == GGML_TYPE_F16 || c.type == GGML_TYPE_Q8_0) && (uintptr_t) c.data % 16 == 0 && c.nb1 == (int64_t) ggml_row_size(c.type, d)
        && c.nb2 == c.nb1 * c.n_slots && (pages ? c.table && c.n_slots % HS_SUB == 0 : !c.table);
}

static int words_of(const hs_dev_attn & a) { return (int) ((a.b[0].k.max_pages * a.b[0].k.n_slots + 32 * HS_CHUNK - 1) / (32 * HS_CHUNK)); }

bool hs_cuda_prefill_sparse_takes(const hs_dev_attn & a, int cc) {
    if (cc < 800 || (uintptr_t) a.q % 16 != 0 || (uintptr_t) a.out % 8 != 0 || !a.b[0].sel || a.scores || !(a.scale > 0.0f) || a.block_size % HS_SUB != 0 || words_of(a) > HS_MAX_WORDS) {
        return false;
    }
    for (int n = 0; n < a.n_branch; n++) {
        const hs_dev_branch & b = a.b[n];
        if (b.n_rep > HS_MAX_REP || !takes_cache(b.k, a.d_qk, n == 0) || !takes_cache(b.v, a.d_v, n == 0)) {
            return false;
        }
    }
    const choice c = choose(a.d_qk, a.d_v);
    return c.launch && c.stages(cc) > 0;
}

void hs_cuda_prefill_sparse(ggml_backend_cuda_context & ctx, const hs_dev_attn & given) {
    hs_sparse_job a = {};
    static_cast<hs_dev_attn &>(a) = given;
    a.n_words = words_of(given);
    const bool together = a.n_branch == 1 || a.b[0].n_rep == a.b[1].n_rep;
    for (int n = 0; n < a.n_branch; n += together ? a.n_branch : 1) { // a window with other groups has other tiles
        a.n0 = n;
        a.n1 = together ? a.n_branch : n + 1;
        a.n_rep = a.b[n].n_rep;
        a.n_head_kv = a.b[n].n_head_kv;
        a.cap[0] = a.cap[1] = 0;
        choose(a.d_qk, a.d_v).launch(ctx, a);
    }
}
