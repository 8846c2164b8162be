// Rows of a cache -> halves in shared memory, by one warp: f16 by asynchronous copies, q8_0 through registers.
#pragma once

#include "prefill_sparse_mma.cuh"
#include "cache.cuh"

// 4 signed bytes times d, as halves: byte + 128 under the exponent of 1024 is 1024 + byte + 128.
static __device__ __forceinline__ uint2 hs_bytes_to_half(unsigned q, half2 d) {
    const unsigned u = q ^ 0x80808080u, lo = __byte_perm(u, 0x64646464u, 0x4140), hi = __byte_perm(u, 0x64646464u, 0x4342);
    const half2 base = __floats2half2_rn(1152.0f, 1152.0f);
    const half2 x = __hmul2(__hsub2(*(const half2 *) &lo, base), d), y = __hmul2(__hsub2(*(const half2 *) &hi, base), d);
    return make_uint2(*(const unsigned *) &x, *(const unsigned *) &y);
}

// A block of q8_0 (34 bytes, at a multiple of 2): its factor and 8 words of 4 bytes, by aligned words that stay within it.
static __device__ __forceinline__ half2 hs_read_q8(const char * block, unsigned (&q)[8]) {
    if ((uintptr_t) block & 2) {
        const unsigned * w = (const unsigned *) (block + 2);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            q[i] = w[i];
        }
        return __half2half2(*(const half *) block);
    }
    const unsigned * w = (const unsigned *) block;
    unsigned x = w[0];
    const unsigned d = x;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const unsigned y = i < 7 ? w[i + 1] : *(const unsigned short *) (w + 8);
        q[i] = __byte_perm(x, y, 0x5432);
        x = y;
    }
    return __half2half2(__ushort_as_half((unsigned short) d));
}

template <int D> static __device__ __noinline__ void hs_load_q8(const hs_dev_cache & c, unsigned dst, int seq, int head_kv, int first, int lo, int hi) {
#pragma unroll 2
    for (int i = threadIdx.x % 32; i < 64 * (D / 32); i += 32) {
        const int row = i / (D / 32), part = i % (D / 32), j = first + row;
        unsigned q[8] = {};
        half2 d = __floats2half2_rn(0.0f, 0.0f);
        if (j >= lo && j <= hi) {
            d = hs_read_q8(hs_dev_row(c, seq, head_kv, j) + part * 34, q);
        }
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const uint2 x = hs_bytes_to_half(q[2 * p], d), y = hs_bytes_to_half(q[2 * p + 1], d);
            hs_store16(dst + hs_piece_at<D>(row, part * 4 + p), make_uint4(x.x, x.y, y.x, y.y));
        }
    }
}

// Positions first .. first + 63 of a sequence and KV head; those outside lo .. hi become zeros, for their slots may hold NaN.
// Pages hold a multiple of 16 positions, and so 16 rows lie in a run; the rows of a ring are looked up singly.
template <int D> static __device__ __forceinline__ void hs_load_chunk(const hs_dev_cache & c, unsigned dst, int seq, int head_kv, int first, int lo, int hi) {
    constexpr int pieces = D / 8;
    const int lane = threadIdx.x % 32;
    if (c.type != GGML_TYPE_F16) {
        hs_load_q8<D>(c, dst, seq, head_kv, first, lo, hi);
    } else if (c.table) {
#pragma unroll 1
        for (int g = 0; g < 4; g++) {
            const char * run = hs_dev_row(c, seq, head_kv, min(first + 16 * g, hi & ~15));
            const unsigned to = dst + g * 16 * D * 2;
            const int end = hi - first - 16 * g;
#pragma unroll
            for (int x = 0; x < pieces / 2; x++) {
                const int i = 32 * x + lane, row = i / pieces;
                hs_copy16(to + hs_piece_at<D>(row, i % pieces), run + i * 16, row <= end ? 16 : 0);
            }
        }
    } else {
#pragma unroll 2
        for (int i = lane; i < 64 * pieces; i += 32) {
            const int row = i / pieces, piece = i % pieces, j = first + row;
            const char * from = hs_dev_row(c, seq, head_kv, min(max(j, lo), hi)) + piece * 16;
            hs_copy16(dst + hs_piece_at<D>(row, piece), from, j >= lo && j <= hi ? 16 : 0);
        }
    }
}
