// Attention of few queries, dense (full or window) or sparse, with or without block scores: the kernel.
//
// A warp streams its tiles of 16 keys through a ring of stages in shared memory (cp.async; nothing waits for another warp) and multiplies them on the tensor
// cores with all query heads of the KV head at once: S^T = K Q^T and O^T += V^T P^T, keys and channels in M, heads in N (8 or 16), so K and V are read once a
// group. P turns into an operand by transposing 8 x 8 matrices in registers. Replaces: mask, score matrix, softmax and a second pass for the block maxima,
// which are the maxima that the softmax needs anyway. What no query may see is never read: those rows are zeros in shared memory.
// q8_0: the bytes are streamed as they are and become operands in registers (decode_q8.cuh).
// Order of summation: a warp's tiles ascending, the warps of a thread block in order, then (decode_merge.cu) the thread blocks in order.
#pragma once

#include "decode.cuh"
#include "decode_q8.cuh"

template <int DK, int DV, int NT, bool Q8> struct decode_layout {
    static constexpr int blocks = Q8 && NT == 1 && DK + DV <= 256 ? 3 : 2;                       // thread blocks of an SM
    static constexpr int k_row = Q8 ? DK / 32 * 34 : DK * 2, v_row = Q8 ? DV / 32 * 34 : DV * 2; // bytes in the cache
    static constexpr int k_stride = DK * 2 + 16, v_stride = DV * 2 + 16;                         // of the f16 tile: 8 rows begin in 8 different groups of banks
    static constexpr int k_in = Q8 ? k_row : k_stride, v_in = Q8 ? v_row : v_stride;             // of a stage
    static constexpr int stage = HS_TILE * (k_in + v_in);
    static constexpr int budget = (blocks == 3 ? 18 : 27) * 1024 / stage, stages = budget < 2 ? 2 : budget > 6 ? 6 : budget;
    static constexpr int counts = stages * stage, bytes = counts + 32;                           // of a warp
    static constexpr int chunk = !Q8 ? 16 : k_row % 8 == 0 && v_row % 8 == 0 ? 8 : 4;            // rows of q8_0 lie on multiples of that
    static constexpr int o_stride = DV + 4;                                                      // of the warps' results, in f32
    static_assert(bytes >= (2 * HS_DECODE_REP + HS_DECODE_REP * o_stride) * 4, "the warp's result takes the place of its stages");
    static_assert(stage % 16 == 0 && k_row % chunk == 0 && v_row % chunk == 0, "alignment");
};

// 16 rows into shared memory; lane r (and r + 16) knows where row r lies, -1: it is not there, zeros. Not unrolled: the tiles at the ends of what is seen.
template <int ROW, int STRIDE, int CHUNK> static __device__ __forceinline__ void copy_rows(unsigned to, const char * data, long long offset) {
    constexpr int per = ROW / CHUNK, n = HS_TILE * per;
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int i = 0; i < (n + 31) / 32; i++) {
        const int x = 32 * i + lane, row = x / per, c = x % per * CHUNK;
        const long long at = __shfl_sync(0xffffffff, offset, row % HS_TILE);
        if (n % 32 == 0 || x < n) {
            copy_async<CHUNK>(to + row * STRIDE + c, at >= 0 ? data + at + c : data, at >= 0);
        }
    }
}

// 16 rows that lie one behind the other: all addresses follow from one. ROW and STRIDE as above.
template <int ROW, int STRIDE, int CHUNK, int UNROLL> static __device__ __forceinline__ void copy_run(unsigned to, const char * from) {
    constexpr int per = ROW / CHUNK, n = HS_TILE * per;
    const int lane = threadIdx.x % 32;
#pragma unroll UNROLL
    for (int i = 0; i < (n + 31) / 32; i++) {
        const int x = 32 * i + lane;
        if (n % 32 == 0 || x < n) {
            copy_async<CHUNK>(to + (ROW == STRIDE ? x * CHUNK : x / per * STRIDE + x % per * CHUNK), from + x * CHUNK, true);
        }
    }
}

// The same for q8_0: 16 bytes at a time where the run begins on such a multiple (pages of a multiple of 16 tokens), CHUNK elsewhere.
template <int ROW, int CHUNK> static __device__ __forceinline__ void copy_run_q8(unsigned to, const char * from) {
    if ((uintptr_t) from % 16 == 0) {
        constexpr int n = HS_TILE * ROW / 16;
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < (n + 31) / 32; i++) {
            const int x = 32 * i + lane;
            if (n % 32 == 0 || x < n) {
                copy_async<16>(to + x * 16, from + x * 16, true);
            }
        }
    } else {
        copy_run<ROW, ROW, CHUNK, 1>(to, from);
    }
}

// A key's place in the caches. A tile of 16 keys in one page is a run, and this is its first key in all lanes; else it is the key of the lane's row,
// slot -1: no such key. n: keys of the tile.
struct decode_row { int page, slot, n; bool run; };

// Which tile a warp has next.
struct decode_cursor {
    int u, sub, run, step;
    __device__ __forceinline__ int tile() const { return u * run + sub; }
    __device__ __forceinline__ void next() {
        if (++sub == run) {
            sub = 0;
            u += step;
        }
    }
};

// What a warp works on, the same in all its lanes.
struct decode_work {
    const hs_dev_branch & b;
    const int32_t * sel;
    int n, t, seq, g, n_tiles;
};

static __device__ __forceinline__ decode_row decode_find(const hs_decode & a, const decode_work & w, int tile) {
    decode_row r = { 0, -1, 0, false };
    if (tile < w.n_tiles) {
        const hs_keys keys = hs_tile_keys(a, w.n, w.sel, w.t, tile);
        const int n_slots = w.b.k.n_slots;
        int j = keys.from, p = hs_div(j, a.by_slots[w.n]), slot = j - p * n_slots;
        r.n = keys.end - keys.from;
        r.run = r.n == HS_TILE && slot + HS_TILE <= n_slots;
        if (!r.run) {
            j += threadIdx.x % HS_TILE;
            p = hs_div(j, a.by_slots[w.n]);
            slot = j - p * n_slots;
        }
        if (j < keys.end) {
            r.slot = slot;
            r.page = w.b.k.table ? w.b.k.table[w.seq * w.b.k.max_pages + p] : w.seq;
        }
    }
    return r;
}

template <int DK, int DV, int NT, bool Q8> static __device__ __forceinline__ void decode_fill(const decode_work & w, char * mine, int stage, const decode_row & r) {
    using L = decode_layout<DK, DV, NT, Q8>;
    if (threadIdx.x % 32 == 0) {
        ((int *) (mine + L::counts))[stage] = r.n;
    }
    if (r.n > 0) {
        const hs_dev_cache & k = w.b.k, & v = w.b.v;
        const long long k_at = r.page * k.nb3 + w.g * k.nb2 + r.slot * L::k_row, v_at = r.page * v.nb3 + w.g * v.nb2 + r.slot * L::v_row;
        const unsigned k_to = (unsigned) __cvta_generic_to_shared(mine + stage * L::stage), v_to = k_to + HS_TILE * L::k_in;
        if (!r.run) {
            copy_rows<L::k_row, L::k_in, L::chunk>(k_to, k.data, r.slot < 0 ? -1 : k_at);
            copy_rows<L::v_row, L::v_in, L::chunk>(v_to, v.data, r.slot < 0 ? -1 : v_at);
        } else if constexpr (Q8) {
            copy_run_q8<L::k_row, L::chunk>(k_to, k.data + k_at);
            copy_run_q8<L::v_row, L::chunk>(v_to, v.data + v_at);
        } else {
            copy_run<L::k_row, L::k_in, L::chunk, HS_TILE>(k_to, k.data + k_at);
            copy_run<L::v_row, L::v_in, L::chunk, HS_TILE>(v_to, v.data + v_at);
        }
    }
    copy_commit();
}

// Softmax state of a warp: of heads 8 i + 2 (lane % 4) + {0, 1}; the output's channels 16 x + lane / 4 + {0, 8}.
template <int DV, int NT> struct decode_state { float m[NT][2], l[NT][2], o[DV / 16][NT][4]; };

// One tile of n keys in shared memory; best: the largest logits so far of the run.
template <int DK, int DV, int NT, bool Q8>
static __device__ __forceinline__ void decode_tile(decode_state<DV, NT> & st, float (&best)[NT][2], const unsigned (&q)[NT][DK / 16][2], char * mine,
    int stage, int n, float scale) {
    using L = decode_layout<DK, DV, NT, Q8>;
    const int lane = threadIdx.x % 32;
    const char * tile = mine + stage * L::stage;
    const unsigned base = (unsigned) __cvta_generic_to_shared(tile);
    float s[NT][4] = {};
    if constexpr (Q8) {
        q8_keys<DK, NT>(s, q, tile);
    } else {
        const unsigned at = base + lane % 16 * L::k_stride + lane / 16 * 16;
#pragma unroll
        for (int x = 0; x < DK / 16; x++) {
            unsigned k[4];
            load_matrices(k, at + x * 32);
#pragma unroll
            for (int i = 0; i < NT; i++) {
                mma(s[i], k, q[i][x][0], q[i][x][1]);
            }
        }
    }
    const bool sees0 = (Q8 ? decode_key(lane / 4) : lane / 4) < n, sees1 = (Q8 ? decode_key(lane / 4 + 8) : lane / 4 + 8) < n;
    unsigned p[NT][2];
    float fix[NT][2];
    bool grew = false;
#pragma unroll
    for (int i = 0; i < NT; i++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            s[i][e] = sees0 ? s[i][e] * scale : HS_DECODE_START;
            s[i][2 + e] = sees1 ? s[i][2 + e] * scale : HS_DECODE_START;
            float top = fmaxf(s[i][e], s[i][2 + e]);
            for (int w = 4; w < 32; w *= 2) {
                top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, w));
            }
            best[i][e] = fmaxf(best[i][e], top);
            const float m = fmaxf(st.m[i][e], top);
            grew |= m > st.m[i][e];
            fix[i][e] = __expf(st.m[i][e] - m);
            st.m[i][e] = m;
            s[i][e] = sees0 ? __expf(s[i][e] - m) : 0.0f;
            s[i][2 + e] = sees1 ? __expf(s[i][2 + e] - m) : 0.0f;
        }
        p[i][0] = pack(s[i][0], s[i][1]);
        p[i][1] = pack(s[i][2], s[i][3]);
        const float2 a = __half22float2(*(const half2 *) &p[i][0]), b = __half22float2(*(const half2 *) &p[i][1]); // the sum of what multiplies the values
        st.l[i][0] = st.l[i][0] * fix[i][0] + a.x + b.x;
        st.l[i][1] = st.l[i][1] * fix[i][1] + a.y + b.y;
        p[i][0] = transposed(p[i][0]);
        p[i][1] = transposed(p[i][1]);
    }
    if (__any_sync(0xffffffff, grew)) {
#pragma unroll
        for (int x = 0; x < DV / 16; x++) {
#pragma unroll
            for (int i = 0; i < NT; i++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    st.o[x][i][e] *= fix[i][e % 2];
                }
            }
        }
    }
    if constexpr (Q8) {
        q8_values<DV, NT>(st.o, p, tile + HS_TILE * L::k_row);
    } else {
        const unsigned at = base + HS_TILE * L::k_stride + (lane % 8 + lane / 16 * 8) * L::v_stride + lane / 8 % 2 * 16;
#pragma unroll
        for (int x = 0; x < DV / 16; x++) {
            unsigned v[4];
            load_matrices_trans(v, at + x * 32);
#pragma unroll
            for (int i = 0; i < NT; i++) {
                mma(st.o[x][i], v, p[i][0], p[i][1]);
            }
        }
    }
}

// The warps' states, in shared memory, joined: to the output, or to this thread block's place among the partial results.
template <int DV>
static __device__ __forceinline__ void decode_join(const hs_decode & a, const decode_work & w, const char * smem, int warp_bytes, int token, int split) {
    constexpr int o_stride = DV + 4;
    const int n_rep = w.b.n_rep;
    for (int i = 4 * threadIdx.x; i < n_rep * DV; i += 4 * blockDim.x) {
        const int r = i / DV, x = i % DV, head = w.g * n_rep + r;
        const float sink = a.direct && w.b.sinks ? w.b.sinks[head] : HS_SINK_ABSENT;
        float m[HS_DECODE_WARPS], top = sink > HS_SINK_ABSENT ? sink : HS_DECODE_START, sum = 0.0f;
        float4 o = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int y = 0; y < HS_DECODE_WARPS; y++) {
            m[y] = y < a.warps ? ((const float *) (smem + y * warp_bytes))[r] : HS_DECODE_START;
            top = fmaxf(top, m[y]);
        }
#pragma unroll
        for (int y = 0; y < HS_DECODE_WARPS; y++) {
            if (y < a.warps) {
                const float * s = (const float *) (smem + y * warp_bytes), f = __expf(m[y] - top);
                const float4 z = *(const float4 *) (s + 2 * HS_DECODE_REP + r * o_stride + x);
                sum += s[HS_DECODE_REP + r] * f;
                o = make_float4(o.x + z.x * f, o.y + z.y * f, o.z + z.z * f, o.w + z.w * f);
            }
        }
        if (a.direct) {
            const float all = sum + (sink > HS_SINK_ABSENT ? __expf(sink - top) : 0.0f), e[4] = { o.x, o.y, o.z, o.w };
#pragma unroll
            for (int y = 0; y < 4; y++) {
                a.out[((int64_t) token * a.n_head + head) * DV + x + y] = sum > 0.0f ? e[y] / all * hs_dev_gate(a, token, head, w.n, x + y) : 0.0f;
            }
            continue;
        }
        const int64_t place = (((int64_t) token * w.b.n_head_kv + w.g) * a.splits[w.n] + split) * n_rep + r;
        *(float4 *) (a.part[w.n] + place * DV + x) = o;
        if (x == 0) {
            a.ml[w.n][place] = make_float2(top, sum);
        }
    }
}

template <int DK, int DV, int NT, bool Q8> static __global__ void __launch_bounds__(32 * HS_DECODE_WARPS, decode_layout<DK, DV, NT, Q8>::blocks) decode_kernel(const hs_decode a) {
    using L = decode_layout<DK, DV, NT, Q8>;
    extern __shared__ __align__(16) char smem[];
    wait_for_previous();
    let_next_begin(); // only now: the kernel of the parts' sums reads gates before it waits for this one
    const int n = blockIdx.x < (unsigned) (a.splits[0] * a.b[0].n_head_kv) ? 0 : 1, index = blockIdx.x - n * a.splits[0] * a.b[0].n_head_kv;
    const int token = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = hs_div(index, a.by_splits[n]), split = index - g * a.splits[n];
    decode_work w = { a.b[n], nullptr, n, a.pos[token], a.seq[token], g, 0 };
    w.sel = w.b.sel ? w.b.sel + ((int64_t) token * w.b.n_head_kv + g) * a.top_k : nullptr;
    if (w.sel) {
        prefetch(w.sel); // on its way while the position is
    }
    w.n_tiles = hs_n_tiles(a, n, w.t);
    const int n_splits = hs_n_splits(a, n, w.n_tiles), n_rep = w.b.n_rep;
    if (split >= n_splits) {
        return;
    }
    char * mine = smem + warp * L::bytes;
    decode_cursor here = { warp * n_splits + split, 0, a.run[n], n_splits * a.warps }, ahead = here;

    decode_row found[L::stages - 1];
#pragma unroll
    for (int i = 0; i < L::stages - 1; i++, ahead.next()) {
        found[i] = decode_find(a, w, ahead.tile());
    }
#pragma unroll
    for (int i = 0; i < L::stages - 1; i++) {
        decode_fill<DK, DV, NT, Q8>(w, mine, i, found[i]);
    }
    decode_row next = decode_find(a, w, ahead.tile()); // a step before it is needed: the page's number is on its way during a tile
    ahead.next();
    unsigned q[NT][DK / 16][2]; // on its way while the first tiles are
#pragma unroll
    for (int i = 0; i < NT; i++) {
        const int r = 8 * i + lane / 4, c = lane % 4;
        const float * from = a.q + ((int64_t) token * a.n_head + g * n_rep + (r < n_rep ? r : 0)) * DK;
#pragma unroll
        for (int x = 0; x < DK / 8; x++) {
            const float2 y = *(const float2 *) (from + (Q8 ? q8_channel(x / 4, 8 * c, 2 * (x % 4)) : 8 * x + 2 * c));
            q[i][x / 2][x % 2] = r < n_rep ? pack(clamp_f16(y.x), clamp_f16(y.y)) : 0u;
        }
    }

    decode_state<DV, NT> st = {};
    float best[NT][2];
#pragma unroll
    for (int i = 0; i < NT; i++) {
        st.m[i][0] = st.m[i][1] = best[i][0] = best[i][1] = HS_DECODE_START;
    }
    for (int stage = 0; here.tile() < w.n_tiles; here.next()) {
        copy_wait<L::stages - 2>();
        __syncwarp(); // the tile is there, and the stage that is filled now has been read by all lanes
        decode_fill<DK, DV, NT, Q8>(w, mine, stage == 0 ? L::stages - 1 : stage - 1, next);
        next = decode_find(a, w, ahead.tile());
        ahead.next();
        const int keys = ((const int *) (mine + L::counts))[stage];
        if (keys > 0) {
            decode_tile<DK, DV, NT, Q8>(st, best, q, mine, stage, keys, a.scale);
        }
        stage = stage + 1 == L::stages ? 0 : stage + 1;
        if (a.raw && (here.sub + 1 == here.run || here.tile() + 1 == w.n_tiles)) { // a run has ended
            float * raw = a.raw + (((int64_t) token * w.b.n_head_kv + g) * a.n_blocks * a.runs + here.u) * n_rep;
#pragma unroll
            for (int i = 0; i < NT; i++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int r = 8 * i + 2 * lane + e;
                    if (lane < 4 && r < n_rep) {
                        raw[r] = best[i][e];
                    }
                    best[i][e] = HS_DECODE_START;
                }
            }
        }
    }
    copy_wait<0>();
    __syncwarp();
    float * to = (float *) mine;
#pragma unroll
    for (int i = 0; i < NT; i++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float l = st.l[i][e];
            for (int y = 4; y < 32; y *= 2) {
                l += __shfl_xor_sync(0xffffffff, l, y);
            }
            const int r = 8 * i + 2 * (lane % 4) + e;
            to[r] = st.m[i][e];
            to[HS_DECODE_REP + r] = l;
#pragma unroll
            for (int x = 0; x < DV / 16; x++) {
                const int first = 4 * (lane / 4), y = x % 2 * 2; // q8_0
                to[2 * HS_DECODE_REP + r * L::o_stride + (Q8 ? q8_channel(x / 2, first, y) : 16 * x + lane / 4)] = st.o[x][i][e];
                to[2 * HS_DECODE_REP + r * L::o_stride + (Q8 ? q8_channel(x / 2, first, y + 1) : 16 * x + lane / 4 + 8)] = st.o[x][i][2 + e];
            }
        }
    }
    __syncthreads();
    decode_join<DV>(a, w, smem, L::bytes, token, split);
}

template <int DK, int DV, int NT, bool Q8> static hs_decode_shape decode_shape_of() {
    using L = decode_layout<DK, DV, NT, Q8>;
    return { (size_t) L::bytes, L::blocks, decode_kernel<DK, DV, NT, Q8> };
}

template <int DK, int DV, bool Q8> static hs_decode_shape decode_shape(int n_rep) {
    return n_rep <= 8 ? decode_shape_of<DK, DV, 1, Q8>() : decode_shape_of<DK, DV, 2, Q8>();
}
