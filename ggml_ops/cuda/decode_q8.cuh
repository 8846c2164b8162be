// Attention of few queries, q8_0: operands of the tensor cores straight from the cache's bytes in shared memory.
//
// Replaces a tile of f16 in shared memory: rows were unpacked into it two bytes at a time and read back as matrices, which cost more of the shared memory's
// time than the stream from the device's. Here a lane picks the bytes that its part of an operand needs, as whole words, because keys and channels may come in
// any order as long as both factors of a product agree:
//   keys: row i of the tile's operands is key decode_key(i), so that a lane of the values has four keys in a row;
//   channels: two blocks are 68 bytes, 17 words: a factor and bytes 0, 1; seven words of bytes 2 to 29; bytes 30, 31 and a factor; eight words of bytes.
//   A block with an even number is read as words that begin at byte 30, 2, 6, ...; one with an odd number as words that begin at byte 0, 4, ...
// Keys become f16 integers (exact) and their factors multiply the sums of a block in f32; values become f16 (integer times factor, rounded).
#pragma once

#include "decode_ptx.cuh"

#define HS_Q8_PAIR 68 // bytes of two blocks
#define HS_Q8_MID 8   // the word that ends the first of them
#define HS_Q8_ODD 9   // the first word of the second one's bytes

static __host__ __device__ __forceinline__ int decode_key(int row) { return row % 8 / 2 * 4 + row % 2 + row / 8 * 2; }

// Channel of byte i of a lane's run of bytes, the run beginning at byte `first` of block x.
static __host__ __device__ __forceinline__ int q8_channel(int x, int first, int i) { return 32 * x + ((first + i - (x % 2 ? 0 : 2)) & 31); }

// Bytes 2 i and 2 i + 1 of a word of bytes ^ 0x80, as halves: 0x6400 + (byte ^ 0x80) is 1024 + 128 + byte.
template <int I> static __device__ __forceinline__ half2 q8_halves(unsigned flipped) {
    const unsigned h = __byte_perm(flipped, 0x64646464u, I ? 0x4342 : 0x4140);
    return __hsub2(*(const half2 *) &h, __float2half2_rn(1152.0f));
}
static __device__ __forceinline__ unsigned q8_bits(half2 h) { return *(const unsigned *) &h; }
// The first lane's word of an even block: its upper half from the block's beginning, its lower half from the end.
static __device__ __forceinline__ unsigned q8_even(unsigned word, unsigned mid, bool first) { return __byte_perm(word, mid, first ? 0x3254 : 0x3210); }

// s += K q of 16 keys; k: their rows. Byte 8 (lane % 4) + 2 i and its neighbour of a block are the operand's columns 2 (lane % 4) + 8 (i % 2) of step i / 2.
template <int D, int NT> static __device__ __forceinline__ void q8_keys(float (&s)[NT][4], const unsigned (&q)[NT][D / 16][2], const char * k) {
    constexpr int row_bytes = D / 32 * 34;
    const int lane = threadIdx.x % 32, c = lane % 4;
#pragma unroll
    for (int p = 0; p < D / 64; p++) {
        unsigned x[2][2][2]; // [block][row][word]
        half d[2][2];        // [block][row]
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const unsigned * w = (const unsigned *) (k + decode_key(lane / 4 + 8 * h) * row_bytes + p * HS_Q8_PAIR);
            const unsigned head = w[0], mid = w[HS_Q8_MID];
            x[0][h][0] = q8_even(w[2 * c], mid, c == 0);
            x[0][h][1] = w[2 * c + 1];
            x[1][h][0] = w[HS_Q8_ODD + 2 * c];
            x[1][h][1] = w[HS_Q8_ODD + 2 * c + 1];
            d[0][h] = __ushort_as_half((unsigned short) head);
            d[1][h] = __ushort_as_half((unsigned short) (mid >> 16));
        }
#pragma unroll
        for (int b = 0; b < 2; b++) {
            float sum[NT][4] = {};
#pragma unroll
            for (int y = 0; y < 2; y++) {
                const unsigned w0 = x[b][0][y] ^ 0x80808080u, w1 = x[b][1][y] ^ 0x80808080u;
                const unsigned a[4] = { q8_bits(q8_halves<0>(w0)), q8_bits(q8_halves<0>(w1)), q8_bits(q8_halves<1>(w0)), q8_bits(q8_halves<1>(w1)) };
#pragma unroll
                for (int i = 0; i < NT; i++) {
                    mma(sum[i], a, q[i][4 * p + 2 * b + y][0], q[i][4 * p + 2 * b + y][1]);
                }
            }
            const float d0 = __half2float(d[b][0]), d1 = __half2float(d[b][1]);
#pragma unroll
            for (int i = 0; i < NT; i++) {
                s[i][0] += d0 * sum[i][0];
                s[i][1] += d0 * sum[i][1];
                s[i][2] += d1 * sum[i][2];
                s[i][3] += d1 * sum[i][3];
            }
        }
    }
}

// Two tiles of 16 channels from a block's words of keys 4 (lane % 4) + {0, 1, 2, 3}: channels 4 (lane / 4) + {0, 1} and {2, 3}, + 1 in the operand's row + 8.
template <int NT> static __device__ __forceinline__ void q8_block(float (&o0)[NT][4], float (&o1)[NT][4], const unsigned (&w)[4], half2 d0, half2 d1,
    const unsigned (&p)[NT][2]) {
    unsigned x[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        x[j] = w[j] ^ 0x80808080u;
    }
#pragma unroll
    for (int y = 0; y < 2; y++) {
        const unsigned e = __byte_perm(x[0], x[1], y ? 0x7362 : 0x5140), f = __byte_perm(x[2], x[3], y ? 0x7362 : 0x5140);
        const unsigned a[4] = { q8_bits(__hmul2(q8_halves<0>(e), d0)), q8_bits(__hmul2(q8_halves<1>(e), d0)), q8_bits(__hmul2(q8_halves<0>(f), d1)),
            q8_bits(__hmul2(q8_halves<1>(f), d1)) };
#pragma unroll
        for (int i = 0; i < NT; i++) {
            mma(y ? o1[i] : o0[i], a, p[i][0], p[i][1]);
        }
    }
}

// o += V^T p of 16 keys; v: their rows.
template <int D, int NT> static __device__ __forceinline__ void q8_values(float (&o)[D / 16][NT][4], const unsigned (&p)[NT][2], const char * v) {
    constexpr int row_bytes = D / 32 * 34;
    const int lane = threadIdx.x % 32, r = lane / 4;
#pragma unroll
    for (int y = 0; y < D / 64; y++) {
        unsigned head[4], mid[4], even[4], odd[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const unsigned * w = (const unsigned *) (v + (lane % 4 * 4 + j) * row_bytes + y * HS_Q8_PAIR);
            head[j] = w[0];
            mid[j] = w[HS_Q8_MID];
            even[j] = q8_even(w[r], mid[j], r == 0);
            odd[j] = w[HS_Q8_ODD + r];
        }
        unsigned d[4];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            d[j] = __byte_perm(head[2 * j], head[2 * j + 1], 0x5410);
            d[2 + j] = __byte_perm(mid[2 * j], mid[2 * j + 1], 0x7632);
        }
        q8_block<NT>(o[4 * y], o[4 * y + 1], even, *(const half2 *) &d[0], *(const half2 *) &d[1], p);
        q8_block<NT>(o[4 * y + 2], o[4 * y + 3], odd, *(const half2 *) &d[2], *(const half2 *) &d[3], p);
    }
}
