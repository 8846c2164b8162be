// A tile of the linear op with NEON: four rows in the lanes, four times. With HS_DOTPROD (Armv8.2) sdot by a word of the token; without it (Armv8.0)
// products of bytes added as 16-bit numbers.
//
// Replaces: ggml's dot products of one row and one token, and its interleaved q4_0 and q8_0 (four rows, sdot) where it has those. Saves: horizontal
// sums, f16 factors converted one by one, weights unpacked once a token; and what a linear node saves over ggml's (linear.c).
// q4: a block's products fit 16 bits (8 words x 15 x 127, twice that when pairs are added: 30480), so Armv8.0 widens a block once.
// q8_0: two products fit 16 bits (2 x 128 x 127 = 32512), so it widens every other word.
// Order of summation: a block's products as integers, blocks ascending in f32, one accumulator an output: the same for any number of tokens or
// threads, and on both levels.
//
// Instructions of the loop over blocks for 4 rows x 32 columns and one token, alone / among many, as compiled (ours gcc 12, ggml's gcc 12 and
// clang 14; no Arm machine was at hand, nothing here has been timed):
//                          ours                            ggml's, built for the same machine
//                     q4_0     q4_1     q8_0         q4_0       q4_1       q8_0
//   Armv8.0         42 / 38  44 / 40  55 / 55    116 / 116  130 / 130  104 / 104   vec_dot: a row and a token at a time
//   Armv8.2 dotprod 27 / 18  30 / 19  32 / 17     33 / 16    98 / 98    25 / 16    four rows interleaved, but for q4_1
//   Armv8.6 i8mm    27 / 18  30 / 19  32 / 17     40 / 13    98 / 62    31 / 13    the same with smmla, on pairs of tokens
// Alone, both wait for memory. So both levels are `fast`: by far on Armv8.0 and for q4_1, and for q4_0 and q8_0 by what a linear node saves around
// products that cost the same; but with i8mm those two stay with ggml (linear.c). Tried: usmmla on this packing. 18, 19 and 17 again: half as many
// products, but words and tokens to be zipped for them.
#pragma once

#include "linear_x.h"

#define LINEAR_GROUPS (HS_PACK_ROWS / 4)
#define LINEAR_AHEAD  4096 // bytes: with few tokens a thread waits for memory, and the hardware's prefetcher stops at every page
// LINEAR_TOKENS: at most so many at once. LINEAR_SUMS: groups of four rows x tokens whose sums are formed at once; with more tokens than these, four
// tokens after another, the weights in registers (clang 14 mixes them, runs out of registers and loses more than it saves).
#if defined(HS_DOTPROD) && !defined(__clang__)
#define LINEAR_TOKENS 16
#define LINEAR_SUMS   8
#elif defined(HS_DOTPROD)
#define LINEAR_TOKENS 4
#define LINEAR_SUMS   8
#else
#define LINEAR_TOKENS 2
#define LINEAR_SUMS   4
#endif

HS_INLINE float32x4_t linear_halves(const uint8_t * p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }

// Columns 16 * half + 4 c .. + 3 of four rows; q: those rows in the block.
HS_INLINE int8x16_t linear_weights(const enum ggml_type type, const uint8_t * q, const int c, const int half) {
    if (type == GGML_TYPE_Q8_0) {
        return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(q + 64 * (c + 4 * half)), vdupq_n_u8(0x80)));
    }
    const uint8x16_t v = vld1q_u8(q + 64 * c);
    return vreinterpretq_s8_u8(half ? vshrq_n_u8(v, 4) : vandq_u8(v, vdupq_n_u8(15)));
}

#if defined(HS_DOTPROD)
HS_INLINE int32x4_t linear_dot(int32x4_t sum, int8x16_t w, int8x16_t x, const int word) {
    switch (word) { // the instruction's index is part of it
    case 0:  return vdotq_laneq_s32(sum, w, x, 0);
    case 1:  return vdotq_laneq_s32(sum, w, x, 1);
    case 2:  return vdotq_laneq_s32(sum, w, x, 2);
    default: return vdotq_laneq_s32(sum, w, x, 3);
    }
}

// A block of 4 nr rows and nt tokens, added to sum [nr][nt].
HS_INLINE void linear_dots(const enum ggml_type type, const int nr, const int nt, const uint8_t * q, const int8_t * x, int32x4_t * sum) {
    int8x16_t y[2 * LINEAR_SUMS];
    HS_UNROLL
    for (int i = 0; i < 2 * nt; i++) {
        y[i] = vld1q_s8(x + 16 * i);
    }
    HS_UNROLL
    for (int c = 0; c < 4; c++) {
        HS_UNROLL
        for (int i = 0; i < 2 * nr; i++) {
            const int8x16_t w = linear_weights(type, q + 16 * (i / 2), c, i % 2);
            HS_UNROLL
            for (int t = 0; t < nt; t++) {
                sum[i / 2 * nt + t] = linear_dot(sum[i / 2 * nt + t], w, y[2 * t + i % 2], c);
            }
        }
    }
}
#else
HS_INLINE int8x16_t linear_word(int8x16_t x, const int word) { // four columns of a token, to all lanes
    const int32x4_t y = vreinterpretq_s32_s8(x);
    switch (word) { // the instruction's index is part of it
    case 0:  return vreinterpretq_s8_s32(vdupq_laneq_s32(y, 0));
    case 1:  return vreinterpretq_s8_s32(vdupq_laneq_s32(y, 1));
    case 2:  return vreinterpretq_s8_s32(vdupq_laneq_s32(y, 2));
    default: return vreinterpretq_s8_s32(vdupq_laneq_s32(y, 3));
    }
}

// A block of 4 nr rows and nt tokens, added to sum [nr][nt].
HS_INLINE void linear_dots(const enum ggml_type type, const int nr, const int nt, const uint8_t * q, const int8_t * x, int32x4_t * sum) {
    int16x8_t lo[LINEAR_SUMS], hi[LINEAR_SUMS]; // rows 0 and 1, rows 2 and 3
    int32x4_t lo32[LINEAR_SUMS], hi32[LINEAR_SUMS];
    HS_UNROLL
    for (int i = 0; i < nr * nt; i++) {
        lo32[i] = hi32[i] = vdupq_n_s32(0);
    }
    HS_UNROLL
    for (int word = 0; word < 8; word++) {
        // q4: both halves of the bytes in turn; q8_0: as they lie
        const int c = type == GGML_TYPE_Q8_0 ? word % 4 : word / 2, half = type == GGML_TYPE_Q8_0 ? word / 4 : word % 2;
        const bool begin = type == GGML_TYPE_Q8_0 ? word % 2 == 0 : word == 0;
        HS_UNROLL
        for (int i = 0; i < nr * nt; i++) {
            const int8x16_t w = linear_weights(type, q + 16 * (i / nt), c, half);
            const int8x16_t y = linear_word(vld1q_s8(x + i % nt * HS_LINEAR_BLOCK + 16 * half), c);
            lo[i] = begin ? vmull_s8(vget_low_s8(w), vget_low_s8(y)) : vmlal_s8(lo[i], vget_low_s8(w), vget_low_s8(y));
            hi[i] = begin ? vmull_high_s8(w, y) : vmlal_high_s8(hi[i], w, y);
            if (type == GGML_TYPE_Q8_0 && !begin) {
                lo32[i] = vpadalq_s16(lo32[i], lo[i]);
                hi32[i] = vpadalq_s16(hi32[i], hi[i]);
            }
        }
    }
    HS_UNROLL
    for (int i = 0; i < nr * nt; i++) {
        sum[i] = type == GGML_TYPE_Q8_0 ? vaddq_s32(sum[i], vpaddq_s32(lo32[i], hi32[i])) : vpadalq_s16(sum[i], vpaddq_s16(lo[i], hi[i]));
    }
}
#endif

// A block of 4 nr rows from group `first` on and nt tokens of a record, scaled, added to acc [nr][stride].
HS_INLINE void linear_part(const enum ggml_type type, const int width, const int nr, const int nt, const uint8_t * w, char * record, int slot,
    int first, float32x4_t * acc, const int stride) {
    const int factors = type == GGML_TYPE_Q4_1 ? 64 : 32;
    const float * xd = hs_linear_d(record, width) + slot, * xs = hs_linear_d_sum(record, width) + slot;
    const int32_t * offset = hs_linear_offset(record, width, false) + slot;
    int32x4_t sum[LINEAR_SUMS];
    HS_UNROLL
    for (int i = 0; i < nr * nt; i++) {
        sum[i] = vdupq_n_s32(type == GGML_TYPE_Q4_0 ? offset[i % nt] : 0);
    }
    linear_dots(type, nr, nt, w + factors + 16 * first, hs_linear_q(record, slot), sum);
    HS_UNROLL
    for (int r = 0; r < nr; r++) {
        const uint8_t * half = w + 8 * (first + r);
        const float32x4_t d = linear_halves(half), m = type == GGML_TYPE_Q4_1 ? linear_halves(half + 32) : d;
        HS_UNROLL
        for (int i = 0; i < nt; i++) {
            float32x4_t * a = acc + r * stride + i;
            *a = vfmaq_f32(*a, vmulq_n_f32(d, xd[i]), vcvtq_f32_s32(sum[r * nt + i]));
            if (type == GGML_TYPE_Q4_1) {
                *a = vfmaq_n_f32(*a, m, xs[i]);
            }
        }
    }
}

// 4 nr rows from group `first` on, tokens slot0 .. slot0 + nt - 1 of a tile of x of `width` (constants after inlining, as is type).
// ahead: fetch the weights that come next.
HS_INLINE void linear_rows(const enum ggml_type type, const int width, const int nr, const int nt, const bool ahead, const struct hs_linear_tile * t,
    char * record, int slot0, int first, float * out) {
    const uint8_t * w = t->w;
    const int part = nr * nt <= LINEAR_SUMS ? nt : 4;
    float32x4_t acc[LINEAR_TOKENS < LINEAR_SUMS ? LINEAR_SUMS : LINEAR_TOKENS];
    HS_UNROLL
    for (int i = 0; i < nr * nt; i++) {
        acc[i] = vdupq_n_f32(0.0f);
    }
    for (int64_t b = 0; b < t->x.n_blocks; b++) {
        for (int i = 0; i < (type == GGML_TYPE_Q8_0 ? 9 : 5) && ahead; i++) {
            __builtin_prefetch(w + LINEAR_AHEAD + 64 * i);
        }
        HS_UNROLL
        for (int i = 0; i < nt; i += part) {
            linear_part(type, width, nr, part, w, record, slot0 + i, first, acc + i, nt);
            __asm__ volatile(""); // what follows stays behind it: mixed, they need more registers than there are
        }
        w += (type == GGML_TYPE_Q4_1 ? 64 : 32) + (type == GGML_TYPE_Q8_0 ? 512 : 256);
        record += width * HS_LINEAR_RECORD;
    }
    HS_UNROLL
    for (int i = 0; i < nr * nt; i++) {
        vst1q_f32(out + i % nt * t->stride + 4 * (first + i / nt), acc[i]);
    }
}

// All sixteen rows for nt tokens.
HS_INLINE void linear_tokens(const enum ggml_type type, const int width, const int nt, const bool ahead, const struct hs_linear_tile * t,
    char * record, int slot0, float * out) {
    const int most = nt < LINEAR_SUMS ? LINEAR_SUMS / nt : 1, nr = most < LINEAR_GROUPS ? most : LINEAR_GROUPS;
    linear_rows(type, width, nr, nt, ahead, t, record, slot0, 0, out);
    for (int first = nr; first < LINEAR_GROUPS; first += nr) {
        linear_rows(type, width, nr, nt, false, t, record, slot0, first, out);
    }
}

HS_INLINE void linear_type(const enum ggml_type type, const struct hs_linear_tile * t) {
    if (t->x.width == 1) {
        linear_tokens(type, 1, 1, true, t, hs_linear_tile_at(&t->x, t->tok0), 0, t->out);
        return;
    }
    for (int64_t i = 0; i < t->n_tokens; i += HS_LINEAR_TILE) {
        char * record = hs_linear_tile_at(&t->x, t->tok0 + i);
        float * out = t->out + i * t->stride;
        const int n = t->n_tokens - i < HS_LINEAR_TILE ? (int) (t->n_tokens - i) : HS_LINEAR_TILE;
        int at = 0;
        for (; at + LINEAR_TOKENS <= n; at += LINEAR_TOKENS) {
            linear_tokens(type, HS_LINEAR_TILE, LINEAR_TOKENS, at == 0, t, record, at, out + at * t->stride);
        }
        for (; LINEAR_TOKENS > 4 && at + 4 <= n; at += 4) {
            linear_tokens(type, HS_LINEAR_TILE, 4, at == 0, t, record, at, out + at * t->stride);
        }
        if (LINEAR_TOKENS > 2 && at + 2 <= n) {
            linear_tokens(type, HS_LINEAR_TILE, 2, at == 0, t, record, at, out + at * t->stride);
            at += 2;
        }
        if (at < n) {
            linear_tokens(type, HS_LINEAR_TILE, 1, at == 0, t, record, at, out + at * t->stride);
        }
    }
}

#include "linear_types.h"
