// Attention of few queries, dense (full or window) or sparse, with or without block scores: the kernel.
//
// A warp streams its tiles of 16 keys through a ring of stages in shared memory (cp.async; nothing waits for another warp) and multiplies them on the tensor
// cores with all query heads of the KV head at once: S^T = K Q^T and O^T += V^T P^T, keys and channels in M, heads in N (8 or 16), so K and V are read once a
// group. P turns into an operand by transposing 8 x 8 matrices in registers. Replaces: mask, score matrix, softmax and a second pass for the block maxima,
// which are the maxima that the softmax needs anyway. What no query may see is never read: those rows are zeros in shared memory.
// q8_0: the bytes are streamed as they are; keys become f16 integers (exact) and their factors multiply the sums of a block of 32 in f32, values become
// f16 (integer times factor, rounded).
// Order of summation: a warp's tiles ascending, the warps of a thread block in order, then (decode_merge.cu) the thread blocks in order.
#pragma once

#include "decode.cuh"

template <int DK, int DV, bool Q8> struct decode_layout {
    static constexpr int k_row = Q8 ? DK / 32 * 34 : DK * 2, v_row = Q8 ? DV / 32 * 34 : DV * 2; // bytes in the cache
    static constexpr int k_stride = DK * 2 + 16, v_stride = DV * 2 + 16;                         // of the f16 tile: 8 rows begin in 8 different groups of banks
    static constexpr int k_in = Q8 ? k_row : k_stride, v_in = Q8 ? v_row : v_stride;             // of a stage
    static constexpr int tile = HS_TILE * (k_stride + v_stride), stage = HS_TILE * (k_in + v_in);
    static constexpr int budget = (27 * 1024 - (Q8 ? tile : 0)) / stage, stages = budget < 2 ? 2 : budget > 6 ? 6 : budget; // two thread blocks an SM
    static constexpr int counts = stages * stage + (Q8 ? tile : 0), bytes = counts + 32;         // of a warp
    static constexpr int chunk = !Q8 ? 16 : k_row % 8 == 0 && v_row % 8 == 0 ? 8 : 4;            // rows of q8_0 lie on multiples of that
    static constexpr int o_stride = DV + 4;                                                      // of the warps' results, in f32
    static_assert(bytes >= (2 * HS_DECODE_REP + HS_DECODE_REP * o_stride) * 4, "the warp's result takes the place of its stages");
    static_assert(stage % 16 == 0 && k_row % chunk == 0 && v_row % chunk == 0, "alignment");
};

template <int N> static __device__ __forceinline__ void copy_async(unsigned to, const char * from, bool real) {
    const int bytes = real ? N : 0; // the rest is zeros
    if constexpr (N == 16) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(from), "r"(bytes), "n"(N) : "memory");
    }
}
static __device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> static __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

static __device__ __forceinline__ void load_matrices(unsigned (&x)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
}
static __device__ __forceinline__ void load_matrices_trans(unsigned (&x)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
}
static __device__ __forceinline__ unsigned transposed(unsigned x) {
    unsigned y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
static __device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ unsigned pack(float x, float y) {
    const half2 h = __floats2half2_rn(x, y);
    return *(const unsigned *) &h;
}
static __device__ __forceinline__ float clamp_f16(float x) { return fminf(fmaxf(x, -65504.0f), 65504.0f); }

// 16 rows into shared memory; lane r (and r + 16) knows where row r lies, -1: it is not there, zeros.
template <int ROW, int STRIDE, int CHUNK> static __device__ __forceinline__ void copy_rows(unsigned to, const char * data, long long offset) {
    constexpr int per = ROW / CHUNK, n = HS_TILE * per;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < (n + 31) / 32; i++) {
        const int x = 32 * i + lane, row = x / per, c = x % per * CHUNK;
        const long long at = __shfl_sync(0xffffffff, offset, row % HS_TILE);
        if (n % 32 == 0 || x < n) {
            copy_async<CHUNK>(to + row * STRIDE + c, at >= 0 ? data + at + c : data, at >= 0);
        }
    }
}

// 16 rows that lie one behind the other: all addresses follow from one. ROW and STRIDE as above.
template <int ROW, int STRIDE, int CHUNK> static __device__ __forceinline__ void copy_run(unsigned to, const char * from) {
    constexpr int per = ROW / CHUNK, n = HS_TILE * per;
    const int lane = threadIdx.x % 32;
#pragma unroll
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
        copy_run<ROW, ROW, CHUNK>(to, from);
    }
}

// 16 rows of q8_0 -> f16, times the factor of the block or as integers.
template <int D, int STRIDE, bool FACTOR> static __device__ __forceinline__ void unpack_rows(char * to, const char * from) {
    constexpr int row_bytes = D / 32 * 34;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        const int x = 32 * i + lane, row = x / (D / 8), e = x % (D / 8) * 8;
        const char * block = from + row * row_bytes + e / 32 * 34;
        const half2 d = __half2half2(*(const half *) block), bias = __float2half2_rn(1152.0f);
        unsigned out[4];
#pragma unroll
        for (int y = 0; y < 4; y++) { // 0x6400 + (byte ^ 0x80) is the half 1024 + 128 + byte
            const unsigned w = *(const unsigned short *) (block + 2 + e % 32 + 2 * y) ^ 0x8080u, h = __byte_perm(w, 0x64646464u, 0x4140);
            half2 v = __hsub2(*(const half2 *) &h, bias);
            v = FACTOR ? __hmul2(v, d) : v;
            out[y] = *(const unsigned *) &v;
        }
        *(uint4 *) (to + row * STRIDE + 2 * e) = make_uint4(out[0], out[1], out[2], out[3]);
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
        int j = keys.from, p = j / n_slots, slot = j - p * n_slots;
        r.n = keys.end - keys.from;
        r.run = r.n == HS_TILE && slot + HS_TILE <= n_slots;
        if (!r.run) {
            j += threadIdx.x % HS_TILE;
            p = j / n_slots;
            slot = j - p * n_slots;
        }
        if (j < keys.end) {
            r.slot = slot;
            r.page = w.b.k.table ? w.b.k.table[w.seq * w.b.k.max_pages + p] : w.seq;
        }
    }
    return r;
}

template <int DK, int DV, bool Q8> static __device__ __forceinline__ void decode_fill(const decode_work & w, char * mine, int stage, const decode_row & r) {
    using L = decode_layout<DK, DV, Q8>;
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
            copy_run<L::k_row, L::k_in, L::chunk>(k_to, k.data + k_at);
            copy_run<L::v_row, L::v_in, L::chunk>(v_to, v.data + v_at);
        }
    }
    copy_commit();
}

// Softmax state of a warp: of heads 8 i + 2 (lane % 4) + {0, 1}; the output's channels 16 x + lane / 4 + {0, 8}.
template <int DV, int NT> struct decode_state { float m[NT][2], l[NT][2], o[DV / 16][NT][4]; };

// One tile of n keys in shared memory; best: the largest logits so far of the block.
template <int DK, int DV, int NT, bool Q8>
static __device__ __forceinline__ void decode_tile(decode_state<DV, NT> & st, float (&best)[NT][2], const unsigned (&q)[NT][DK / 16][2], char * mine,
    int stage, int n, float scale) {
    using L = decode_layout<DK, DV, Q8>;
    const int lane = threadIdx.x % 32, row = lane / 4;
    char * tile = mine + stage * L::stage;
    const char * raw = tile;
    if constexpr (Q8) {
        tile = mine + L::stages * L::stage;
        unpack_rows<DK, L::k_stride, false>(tile, raw);
        unpack_rows<DV, L::v_stride, true>(tile + HS_TILE * L::k_stride, raw + HS_TILE * L::k_row);
        __syncwarp();
    }
    const unsigned base = (unsigned) __cvta_generic_to_shared(tile);
    const unsigned k_at = base + lane % 16 * L::k_stride + lane / 16 * 16;
    const unsigned v_at = base + HS_TILE * L::k_stride + (lane % 8 + lane / 16 * 8) * L::v_stride + lane / 8 % 2 * 16;
    float s[NT][4] = {};
#pragma unroll
    for (int x = 0; x < DK / 32; x++) {
        float c[NT][4] = {};
#pragma unroll
        for (int y = 2 * x; y < 2 * x + 2; y++) {
            unsigned k[4];
            load_matrices(k, k_at + y * 32);
#pragma unroll
            for (int i = 0; i < NT; i++) {
                mma(Q8 ? c[i] : s[i], k, q[i][y][0], q[i][y][1]);
            }
        }
        if constexpr (Q8) {
            const float d0 = __half2float(*(const half *) (raw + row * L::k_row + x * 34));
            const float d1 = __half2float(*(const half *) (raw + (row + 8) * L::k_row + x * 34));
#pragma unroll
            for (int i = 0; i < NT; i++) {
                s[i][0] += d0 * c[i][0];
                s[i][1] += d0 * c[i][1];
                s[i][2] += d1 * c[i][2];
                s[i][3] += d1 * c[i][3];
            }
        }
    }
    const bool sees0 = row < n, sees1 = row + 8 < n;
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
#pragma unroll
    for (int x = 0; x < DV / 16; x++) {
        unsigned v[4];
        load_matrices_trans(v, v_at + x * 32);
#pragma unroll
        for (int i = 0; i < NT; i++) {
            mma(st.o[x][i], v, p[i][0], p[i][1]);
        }
    }
}

// The warps' states, in shared memory, joined: to the output, or to this thread block's place among the partial results.
template <int DV>
static __device__ __forceinline__ void decode_join(const hs_decode & a, const decode_work & w, const char * smem, int warp_bytes, int token, int split) {
    constexpr int o_stride = DV + 4;
    const int n_rep = w.b.n_rep;
    for (int i = threadIdx.x; i < n_rep * DV; i += blockDim.x) {
        const int r = i / DV, x = i % DV, head = w.g * n_rep + r;
        const float sink = a.direct && w.b.sinks ? w.b.sinks[head] : HS_SINK_ABSENT;
        float top = sink > HS_SINK_ABSENT ? sink : HS_DECODE_START;
        for (int y = 0; y < a.warps; y++) {
            top = fmaxf(top, ((const float *) (smem + y * warp_bytes))[r]);
        }
        float sum = 0.0f, o = 0.0f;
        for (int y = 0; y < a.warps; y++) {
            const float * s = (const float *) (smem + y * warp_bytes), f = expf(s[r] - top);
            sum += s[HS_DECODE_REP + r] * f;
            o += s[2 * HS_DECODE_REP + r * o_stride + x] * f;
        }
        if (a.direct) {
            const float all = sum + (sink > HS_SINK_ABSENT ? expf(sink - top) : 0.0f);
            a.out[((int64_t) token * a.n_head + head) * DV + x] = sum > 0.0f ? o / all * hs_dev_gate(a, token, head, w.n, x) : 0.0f;
            continue;
        }
        const int64_t place = (((int64_t) token * w.b.n_head_kv + w.g) * a.splits[w.n] + split) * n_rep + r;
        a.part[w.n][place * DV + x] = o;
        if (x == 0) {
            a.ml[w.n][place] = make_float2(top, sum);
        }
    }
}

template <int DK, int DV, int NT, bool Q8> static __global__ void __launch_bounds__(32 * HS_DECODE_WARPS, 2) decode_kernel(const hs_decode a) {
    using L = decode_layout<DK, DV, Q8>;
    extern __shared__ __align__(16) char smem[];
    const int n = blockIdx.x < (unsigned) (a.splits[0] * a.b[0].n_head_kv) ? 0 : 1, index = blockIdx.x - n * a.splits[0] * a.b[0].n_head_kv;
    const int token = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = index / a.splits[n], split = index % a.splits[n];
    decode_work w = { a.b[n], nullptr, n, a.pos[token], a.seq[token], g, 0 };
    w.n_tiles = hs_n_tiles(a, n, w.t);
    const int n_splits = hs_n_splits(a, n, w.n_tiles), n_rep = w.b.n_rep;
    if (split >= n_splits) {
        return;
    }
    w.sel = w.b.sel ? w.b.sel + ((int64_t) token * w.b.n_head_kv + g) * a.top_k : nullptr;
    char * mine = smem + warp * L::bytes;
    decode_cursor here = { warp * n_splits + split, 0, a.run[n], n_splits * a.warps }, ahead = here;

    decode_row found[L::stages - 1];
#pragma unroll
    for (int i = 0; i < L::stages - 1; i++, ahead.next()) {
        found[i] = decode_find(a, w, ahead.tile());
    }
    unsigned q[NT][DK / 16][2];
#pragma unroll
    for (int i = 0; i < NT; i++) {
        const int r = 8 * i + lane / 4;
        const float * from = a.q + ((int64_t) token * a.n_head + g * n_rep + (r < n_rep ? r : 0)) * DK + lane % 4 * 2;
#pragma unroll
        for (int x = 0; x < DK / 8; x++) {
            const float2 y = *(const float2 *) (from + 8 * x);
            q[i][x / 2][x % 2] = r < n_rep ? pack(clamp_f16(y.x), clamp_f16(y.y)) : 0u;
        }
    }
#pragma unroll
    for (int i = 0; i < L::stages - 1; i++) {
        decode_fill<DK, DV, Q8>(w, mine, i, found[i]);
    }
    decode_row next = decode_find(a, w, ahead.tile()); // a step before it is needed: the page's number is on its way during a tile
    ahead.next();

    decode_state<DV, NT> st = {};
    float best[NT][2];
#pragma unroll
    for (int i = 0; i < NT; i++) {
        st.m[i][0] = st.m[i][1] = best[i][0] = best[i][1] = HS_DECODE_START;
    }
    for (int stage = 0; here.tile() < w.n_tiles; here.next()) {
        copy_wait<L::stages - 2>();
        __syncwarp(); // the tile is there, and the stage that is filled now has been read by all lanes
        decode_fill<DK, DV, Q8>(w, mine, stage == 0 ? L::stages - 1 : stage - 1, next);
        next = decode_find(a, w, ahead.tile());
        ahead.next();
        const int keys = ((const int *) (mine + L::counts))[stage];
        if (keys > 0) {
            decode_tile<DK, DV, NT, Q8>(st, best, q, mine, stage, keys, a.scale);
        }
        stage = stage + 1 == L::stages ? 0 : stage + 1;
        if (a.raw && (here.sub + 1 == here.run || here.tile() + 1 == w.n_tiles)) {
            float * raw = a.raw + (((int64_t) token * w.b.n_head_kv + g) * a.n_blocks + here.u) * n_rep;
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
                to[2 * HS_DECODE_REP + r * L::o_stride + 16 * x + lane / 4] = st.o[x][i][e];
                to[2 * HS_DECODE_REP + r * L::o_stride + 16 * x + lane / 4 + 8] = st.o[x][i][2 + e];
            }
        }
    }
    __syncthreads();
    decode_join<DV>(a, w, smem, L::bytes, token, split);
}

template <int DK, int DV, bool Q8> static hs_decode_shape decode_shape(int n_rep) {
    return { (size_t) decode_layout<DK, DV, Q8>::bytes, n_rep <= 8 ? decode_kernel<DK, DV, 1, Q8> : decode_kernel<DK, DV, 2, Q8> };
}
