// Quantised weights times one token: formats and kernel.
//
// All of it is streaming the weights. A warp has rows of its own and brings them, chunk by chunk, through a ring of stages in shared memory (cp.async of
// 16 bytes, whatever the format's blocks are aligned to): some 75 KiB an SM are on their way from the first cycle on, before the kernel of the token's vector
// has ended (weights are written by none). Then the thread block rounds the vector to 8 bits a block of 32, once for all its rows, in the order in which
// lanes want it: 4 lanes have a run of 256 weights, 64 each. Replaces the rounding by a launch of its own and, where the graph has them, the sum with the
// residual and SwiGLU with the second product behind. Order of summation: a lane's runs ascending (every eighth of the row), then lanes in a binary tree.
#pragma once

#include "decode_ptx.cuh"

#define HS_GEMV_WARPS 16 // of a thread block, at most; one an SM, and room for the next kernel's beside it, which fills its rings while this one drains
#define HS_GEMV_RUN 256  // weights of 4 lanes: a super-block, or 8 blocks of 32
#define HS_GEMV_RUNS 8   // of a chunk: one for every 4 lanes of a warp
#define HS_GEMV_AHEAD 6  // groups of four values of the vector that a thread has on their way

struct hs_gemv {
    const char * w[2];  // [n_out][row_bytes]; the second: none, or out = silu(w[0] x) * (w[1] x)
    const float * x;    // [n_in]
    const float * add;  // [n_out] added to the product, or none
    float * out;        // [n_out]; may be add
    int n_in, n_out;
    int64_t row_bytes;
};

// Which of a run's 4 lanes has value v (a multiple of 4), and in which of its four planes of 16 values: consecutive values, or (Q6_K) halves of four
// blocks.
template <bool STRIDED> static __device__ __forceinline__ int gemv_lane(int v) { return STRIDED ? v / 128 * 2 + v / 16 % 2 : v / 64; }
template <bool STRIDED> static __device__ __forceinline__ int gemv_plane(int v) { return STRIDED ? v / 32 % 4 : v / 16 % 4; }

// Where a plane lies in shared memory: 8 lanes (two runs) read 128 bytes in a row.
static __device__ __forceinline__ int gemv_place(int run, int lane, int plane) { return run / 2 * 512 + plane * 128 + run % 2 * 64 + lane * 16; }

// The vector's 64 values of a lane, and what multiplies them: consecutive: s = scale, scale * sum of the one block, then of the other; strided: s the
// scales of the planes, t their 32 * scale * sum.
struct gemv_x {
    int4 v[4];
    float4 s, t;
};

// Products of four unsigned and four signed bytes.
static __device__ __forceinline__ int dot_bytes(unsigned a, int b, int c) {
    int r;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
static __device__ __forceinline__ int dot16(const unsigned (&q)[4], const int4 & x, int sum) {
    return dot_bytes(q[3], x.w, dot_bytes(q[2], x.z, dot_bytes(q[1], x.y, dot_bytes(q[0], x.x, sum))));
}
static __device__ __forceinline__ int dot16_signed(const unsigned (&q)[4], const int4 & x, int sum) {
    return __dp4a((int) q[3], x.w, __dp4a((int) q[2], x.z, __dp4a((int) q[1], x.y, __dp4a((int) q[0], x.x, sum))));
}

// N words at an even address.
template <int N> static __device__ __forceinline__ void words_at(unsigned (&x)[N], const char * at) {
    const unsigned * from = (const unsigned *) ((uintptr_t) at & ~(uintptr_t) 3);
    const unsigned shift = ((uintptr_t) at & 3) * 8;
    unsigned low = from[0];
#pragma unroll
    for (int i = 0; i < N; i++) {
        const unsigned high = from[i + 1];
        x[i] = __funnelshift_r(low, high, shift);
        low = high;
    }
}

static __device__ __forceinline__ float half_at(const char * at) { return __half2float(*(const half *) at); }

// Blocks 2 p and 2 p + 1 of a Q4_K or Q5_K super-block, from its head h: scales and minima are bytes of 6 bits, packed into y, z, w. fix: of the high sum.
static __device__ __forceinline__ float k_sum(const uint4 & h, int p, int low, int high, float fix, const float4 & s) {
    const int shift = p % 2 * 16;
    const unsigned a = h.y >> shift, b = h.z >> shift, c = h.w >> shift;
    const unsigned sc = p < 2 ? a & 0x3f3f : (c & 0x0f0f) | (a >> 2 & 0x3030), m = p < 2 ? b & 0x3f3f : (c >> 4 & 0x0f0f) | (b >> 2 & 0x3030);
    const float2 d = __half22float2(*(const half2 *) &h.x);
    const float sum = (float) ((int) (sc & 255) * low) * s.x + (float) ((int) (sc >> 8 & 255) * high) * fix * s.z;
    return d.x * sum - d.y * ((float) (m & 255) * s.y + (float) (m >> 8 & 255) * s.w);
}

// dot: what lane p of 4 makes of its part of the run at `at`.
template <ggml_type TYPE> struct gemv_format;

template <> struct gemv_format<GGML_TYPE_Q4_K> {
    static constexpr int bytes = 144, stages = 4;
    static constexpr bool strided = false;
    static __device__ __forceinline__ float dot(const char * at, int p, const gemv_x & x) {
        int low = 0, high = 0;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4 q = *(const uint4 *) (at + 16 + 32 * p + 16 * i);
            const unsigned m = 0x0f0f0f0f, h = 0xf0f0f0f0;
            const unsigned l4[4] = { q.x & m, q.y & m, q.z & m, q.w & m }, h4[4] = { q.x & h, q.y & h, q.z & h, q.w & h };
            low = dot16(l4, x.v[i], low);
            high = dot16(h4, x.v[2 + i], high);
        }
        return k_sum(*(const uint4 *) at, p, low, high, 0.0625f, x.s);
    }
};

template <> struct gemv_format<GGML_TYPE_Q5_K> {
    static constexpr int bytes = 176, stages = 3;
    static constexpr bool strided = false;
    static __device__ __forceinline__ float dot(const char * at, int p, const gemv_x & x) {
        int low = 0, high = 0;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4 q = *(const uint4 *) (at + 48 + 32 * p + 16 * i), t = *(const uint4 *) (at + 16 + 16 * i);
            const unsigned qs[4] = { q.x, q.y, q.z, q.w }, top[4] = { t.x, t.y, t.z, t.w };
            unsigned l4[4], h4[4];
#pragma unroll
            for (int y = 0; y < 4; y++) {
                const unsigned bits = top[y] >> 2 * p;
                l4[y] = (qs[y] & 0x0f0f0f0f) | (bits << 4 & 0x10101010);
                h4[y] = (qs[y] >> 4 & 0x0f0f0f0f) | (bits << 3 & 0x10101010);
            }
            low = dot16(l4, x.v[i], low);
            high = dot16(h4, x.v[2 + i], high);
        }
        return k_sum(*(const uint4 *) at, p, low, high, 1.0f, x.s);
    }
};

template <> struct gemv_format<GGML_TYPE_Q6_K> {
    static constexpr int bytes = 210, stages = 3;
    static constexpr bool strided = true;
    static __device__ __forceinline__ float dot(const char * at, int p, const gemv_x & x) {
        const int n = p / 2, l = p % 2 * 16;
        unsigned a[4], b[4], t[4], q[4][4];
        words_at(a, at + n * 64 + l);
        words_at(b, at + n * 64 + 32 + l);
        words_at(t, at + 128 + n * 32 + l);
        const unsigned m = 0x0f0f0f0f, h = 0x30303030;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            q[0][i] = (a[i] & m) | (t[i] << 4 & h);
            q[1][i] = (b[i] & m) | (t[i] << 2 & h);
            q[2][i] = (a[i] >> 4 & m) | (t[i] & h);
            q[3][i] = (b[i] >> 4 & m) | (t[i] >> 2 & h);
        }
        const signed char * sc = (const signed char *) at + 192 + n * 8 + p % 2;
        const float s[4] = { x.s.x, x.s.y, x.s.z, x.s.w }, less[4] = { x.t.x, x.t.y, x.t.z, x.t.w };
        float sum = 0.0f;
#pragma unroll
        for (int g = 0; g < 4; g++) {
            sum += (float) sc[2 * g] * ((float) dot16(q[g], x.v[g], 0) * s[g] - less[g]);
        }
        return half_at(at + 208) * sum;
    }
};

template <> struct gemv_format<GGML_TYPE_Q8_0> {
    static constexpr int bytes = 272, stages = 2;
    static constexpr bool strided = false;
    static __device__ __forceinline__ float dot(const char * at, int p, const gemv_x & x) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const char * block = at + 34 * (2 * p + i);
            unsigned a[4], b[4];
            words_at(a, block + 2);
            words_at(b, block + 18);
            sum += half_at(block) * (float) dot16_signed(b, x.v[2 * i + 1], dot16_signed(a, x.v[2 * i], 0)) * (i ? x.s.z : x.s.x);
        }
        return sum;
    }
};

template <> struct gemv_format<GGML_TYPE_Q4_0> {
    static constexpr int bytes = 144, stages = 4;
    static constexpr bool strided = false;
    static __device__ __forceinline__ float dot(const char * at, int p, const gemv_x & x) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const char * block = at + 18 * (2 * p + i);
            unsigned q[4], low[4], high[4];
            words_at(q, block + 2);
#pragma unroll
            for (int y = 0; y < 4; y++) {
                low[y] = q[y] & 0x0f0f0f0f;
                high[y] = q[y] >> 4 & 0x0f0f0f0f;
            }
            sum += half_at(block) * ((float) dot16(high, x.v[2 * i + 1], dot16(low, x.v[2 * i], 0)) * (i ? x.s.z : x.s.x) - 8.0f * (i ? x.s.w : x.s.y));
        }
        return sum;
    }
};

// The vector in shared memory. Runs come in pairs (gemv_place).
struct gemv_vector {
    char * q;
    float * s, * t; // [lane of a run][4]
    __host__ __device__ static int padded(int n_in) { return (n_in + 2 * HS_GEMV_RUN - 1) / (2 * HS_GEMV_RUN) * (2 * HS_GEMV_RUN); }
    __host__ __device__ static int bytes(int n_in) { return padded(n_in) / 2 * 3; }
};

// Four values of the vector, one of 8 lanes that have a block of 32: to their place, and the block's scale (and sums) to theirs. i: the first one's index.
template <bool STRIDED> static __device__ __forceinline__ void gemv_round(const float4 & v, int i, const gemv_vector & to) {
    float top = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
    for (int w = 1; w < 8; w *= 2) {
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, w));
    }
    const float d = top / 127.0f, by = top > 1e-30f ? 127.0f / top : 0.0f;
    const int x = __float2int_rn(v.x * by), y = __float2int_rn(v.y * by), z = __float2int_rn(v.z * by), w = __float2int_rn(v.w * by);
    const int run = i / HS_GEMV_RUN, at = i % HS_GEMV_RUN, lane = gemv_lane<STRIDED>(at), plane = gemv_plane<STRIDED>(at);
    *(unsigned *) (to.q + gemv_place(run, lane, plane) + at % 16) = (x & 255) | (y & 255) << 8 | (z & 255) << 16 | (unsigned) w << 24;
    int sum = x + y + z + w;
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
    if constexpr (STRIDED) {
        if (threadIdx.x % 4 == 0) {
            to.s[(run * 4 + lane) * 4 + plane] = d;
            to.t[(run * 4 + lane) * 4 + plane] = 32.0f * d * (float) sum;
        }
    } else {
        sum += __shfl_xor_sync(0xffffffff, sum, 4);
        if (threadIdx.x % 8 == 0) {
            *(float2 *) (to.s + (run * 4 + lane) * 4 + plane) = make_float2(d, d * (float) sum); // plane 0 or 2
        }
    }
}

// What a warp has next: a chunk of one of a row's matrices.
struct gemv_cursor {
    int row, mat, chunk;
    __device__ __forceinline__ void next(int mats, int chunks, int step) {
        if (++chunk == chunks) {
            chunk = 0;
            if (++mat == mats) {
                mat = 0;
                row += step;
            }
        }
    }
};

template <ggml_type TYPE> struct gemv_layout {
    static constexpr int chunk = HS_GEMV_RUNS * gemv_format<TYPE>::bytes, stage = chunk + 16, ring = gemv_format<TYPE>::stages * stage; // of a warp
    static_assert(chunk % 16 == 0, "a chunk that begins between multiples of 16 needs one copy more");
};

template <ggml_type TYPE> static __device__ __forceinline__ const char * gemv_from(const hs_gemv & a, const gemv_cursor & c) {
    return (c.mat ? a.w[1] : a.w[0]) + c.row * a.row_bytes + c.chunk * gemv_layout<TYPE>::chunk;
}

// Bytes between a multiple of 16 and a chunk; rows of some formats always begin on one.
template <ggml_type TYPE> static __device__ __forceinline__ int gemv_skew(const char * from) {
    return gemv_format<TYPE>::bytes % 16 ? (int) ((uintptr_t) from % 16) : 0;
}

template <ggml_type TYPE> static __device__ __forceinline__ void gemv_fill(const hs_gemv & a, const gemv_cursor & c, int end, unsigned to) {
    constexpr int full = gemv_layout<TYPE>::chunk;
    if (c.row < end) {
        const char * from = gemv_from<TYPE>(a, c);
        const int skew = gemv_skew<TYPE>(from), left = (int) (a.row_bytes - c.chunk * full), n = (skew + (left < full ? left : full) + 15) / 16;
        from -= skew;
#pragma unroll
        for (int i = 0; i < (full / 16 + (gemv_format<TYPE>::bytes % 16 != 0) + 31) / 32; i++) {
            const int x = 32 * i + threadIdx.x % 32;
            if (x < n) {
                copy_async<16>(to + 16 * x, from + 16 * x, true);
            }
        }
    }
    copy_commit();
}

template <ggml_type TYPE> static __global__ void __launch_bounds__(32 * HS_GEMV_WARPS, 2) gemv_kernel(const hs_gemv a) {
    using F = gemv_format<TYPE>;
    using L = gemv_layout<TYPE>;
    extern __shared__ __align__(16) char smem[]; // the vector, the warps' rings
    let_next_begin();
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
    const int padded = gemv_vector::padded(a.n_in);
    const gemv_vector vector = { smem, (float *) (smem + padded), (float *) (smem + padded) + padded / HS_GEMV_RUN * 16 };
    char * mine = smem + gemv_vector::bytes(a.n_in) + warp * L::ring;
    const unsigned to = (unsigned) __cvta_generic_to_shared(mine);
    const int runs = a.n_in / HS_GEMV_RUN, chunks = (runs + HS_GEMV_RUNS - 1) / HS_GEMV_RUNS, mats = a.w[1] ? 2 : 1;
    const int first = (int) ((int64_t) a.n_out * blockIdx.x / gridDim.x), end = (int) ((int64_t) a.n_out * (blockIdx.x + 1) / gridDim.x);
    gemv_cursor here = { first + warp, 0, 0 }, ahead = here;
#pragma unroll
    for (int i = 0; i < F::stages; i++) {
        gemv_fill<TYPE>(a, ahead, end, to + i * L::stage);
        ahead.next(mats, chunks, warps);
    }
    wait_for_previous();
    for (int i = 4 * threadIdx.x; i < a.n_in; i += 4 * blockDim.x * HS_GEMV_AHEAD) {
        float4 v[HS_GEMV_AHEAD];
#pragma unroll
        for (int u = 0; u < HS_GEMV_AHEAD; u++) {
            const int at = i + 4 * blockDim.x * u;
            v[u] = at < a.n_in ? __ldcg((const float4 *) (a.x + at)) : make_float4(0, 0, 0, 0);
        }
#pragma unroll
        for (int u = 0; u < HS_GEMV_AHEAD; u++) {
            const int at = i + 4 * blockDim.x * u;
            if (at < a.n_in) { // the same in all lanes
                gemv_round<F::strided>(v[u], at, vector);
            }
        }
    }
    __syncthreads();
    float sum = 0.0f, gate = 0.0f, add = 0.0f;
    for (int stage = 0; here.row < end; here.next(mats, chunks, warps)) {
        if (a.add && here.chunk == 0 && lane == 0) {
            add = __ldcg(a.add + here.row); // on its way while the row is
        }
        copy_wait<F::stages - 1>();
        __syncwarp(); // all lanes' copies
        const int r = lane / 4, run = here.chunk * HS_GEMV_RUNS + r;
        if (run < runs) {
            const char * at = mine + stage * L::stage + gemv_skew<TYPE>(gemv_from<TYPE>(a, here)) + r * F::bytes;
            gemv_x x;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x.v[i] = *(const int4 *) (vector.q + gemv_place(run, lane % 4, i));
            }
            x.s = ((const float4 *) vector.s)[run * 4 + lane % 4];
            if constexpr (F::strided) {
                x.t = ((const float4 *) vector.t)[run * 4 + lane % 4];
            }
            sum += F::dot(at, lane % 4, x);
        }
        __syncwarp(); // read by all lanes
        gemv_fill<TYPE>(a, ahead, end, to + stage * L::stage);
        ahead.next(mats, chunks, warps);
        stage = stage + 1 == F::stages ? 0 : stage + 1;
        if (here.chunk + 1 < chunks) {
            continue;
        }
        for (int w = 16; w > 0; w /= 2) {
            sum += __shfl_xor_sync(0xffffffff, sum, w);
        }
        if (here.mat + 1 < mats) {
            gate = sum;
        } else if (lane == 0) {
            a.out[here.row] = mats == 2 ? gate / (1.0f + __expf(-gate)) * sum : sum + add;
        }
        sum = 0.0f;
    }
    copy_wait<0>();
}
