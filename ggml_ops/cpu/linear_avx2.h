// A tile of the linear op with AVX2: eight rows in the lanes, twice; vpmaddubsw over four columns at a time.
//
// Replaces: ggml's dot products of one row and one token. Saves: the horizontal sums; weights unpacked once for up to four tokens; for q4 a block's
// products are added as 16-bit numbers (8 x 2 x 15 x 127 < 2^15), so a block is widened once.
// Order of summation: a block's products as integers, blocks ascending in f32, one accumulator an output: the same for any number of tokens or threads.
#pragma once

#include "linear_x.h"

#define LINEAR_AHEAD 4096 // bytes: with few tokens a thread waits for memory, and the hardware's prefetcher stops at every page

HS_INLINE __m256 linear_halves(const uint8_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (const void *) p)); }

HS_INLINE __m256i linear_word(const int8_t * x) { // four columns of a token, to all lanes
    int32_t word;
    memcpy(&word, x, 4);
    return _mm256_set1_epi32(word);
}

HS_INLINE __m256i linear_load(const uint8_t * p) { return _mm256_loadu_si256((const __m256i *) (const void *) p); }

// A block of eight rows and nt tokens: integer dot products, without the offset.
HS_INLINE void linear_dots(const enum ggml_type type, const int nt, const uint8_t * q, const int8_t * x, __m256i * out) {
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
    HS_UNROLL
    for (int i = 0; i < nt; i++) {
        out[i] = _mm256_setzero_si256();
    }
    if (type == GGML_TYPE_Q8_0) { // |w| and x with w's sign: 2 x 127 x 128 fits 16 bits
        HS_UNROLL
        for (int c = 0; c < 8; c++) {
            const __m256i w = _mm256_xor_si256(linear_load(q + 64 * c), _mm256_set1_epi8(-128)), a = _mm256_abs_epi8(w);
            HS_UNROLL
            for (int i = 0; i < nt; i++) {
                const __m256i y = _mm256_sign_epi8(linear_word(x + i * HS_LINEAR_BLOCK + 4 * c), w);
                out[i] = _mm256_add_epi32(out[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, y), ones));
            }
        }
        return;
    }
    HS_UNROLL
    for (int c = 0; c < 4; c++) {
        const __m256i v = linear_load(q + 64 * c), u0 = _mm256_and_si256(v, low), u1 = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
        HS_UNROLL
        for (int i = 0; i < nt; i++) {
            const int8_t * y = x + i * HS_LINEAR_BLOCK + 4 * c;
            out[i] = _mm256_add_epi16(out[i], _mm256_add_epi16(_mm256_maddubs_epi16(u0, linear_word(y)), _mm256_maddubs_epi16(u1, linear_word(y + 16))));
        }
    }
    HS_UNROLL
    for (int i = 0; i < nt; i++) {
        out[i] = _mm256_madd_epi16(out[i], ones);
    }
}

// Rows half * 8 .. half * 8 + 7, tokens slot0 .. slot0 + nt - 1 of a tile of x of `width` (constants after inlining, as are type and ahead).
// ahead: fetch the weights that come next.
HS_INLINE void linear_tokens(const enum ggml_type type, const int width, const int nt, const bool ahead, const struct hs_linear_tile * t,
    char * record, int slot0, int half, float * out) {
    const int factors = type == GGML_TYPE_Q4_1 ? 64 : 32;
    const uint8_t * w = t->w;
    __m256 acc[4];
    HS_UNROLL
    for (int i = 0; i < nt; i++) {
        acc[i] = _mm256_setzero_ps();
    }
    for (int64_t b = 0; b < t->x.n_blocks; b++) {
        for (int i = 0; i < (type == GGML_TYPE_Q8_0 ? 9 : 5) && ahead; i++) {
            _mm_prefetch((const char *) w + LINEAR_AHEAD + 64 * i, _MM_HINT_T0);
        }
        __m256i dot[4];
        linear_dots(type, nt, w + factors + 32 * half, hs_linear_q(record, slot0), dot);
        const __m256 d = linear_halves(w + 16 * half), m = type == GGML_TYPE_Q4_1 ? linear_halves(w + 32 + 16 * half) : d;
        const float * xd = hs_linear_d(record, width) + slot0, * xs = hs_linear_d_sum(record, width) + slot0;
        const int32_t * offset = hs_linear_offset(record, width, false) + slot0;
        HS_UNROLL
        for (int i = 0; i < nt; i++) {
            if (type == GGML_TYPE_Q4_0) {
                dot[i] = _mm256_add_epi32(dot[i], _mm256_set1_epi32(offset[i]));
            }
            acc[i] = _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(xd[i])), _mm256_cvtepi32_ps(dot[i]), acc[i]);
            if (type == GGML_TYPE_Q4_1) {
                acc[i] = _mm256_fmadd_ps(m, _mm256_set1_ps(xs[i]), acc[i]);
            }
        }
        w += factors + (type == GGML_TYPE_Q8_0 ? 512 : 256);
        record += width * HS_LINEAR_RECORD;
    }
    HS_UNROLL
    for (int i = 0; i < nt; i++) {
        _mm256_storeu_ps(out + i * t->stride + 8 * half, acc[i]);
    }
}

HS_INLINE void linear_type(const enum ggml_type type, const struct hs_linear_tile * t) {
    if (t->x.width == 1) {
        linear_tokens(type, 1, 1, true, t, hs_linear_tile_at(&t->x, t->tok0), 0, 0, t->out);
        linear_tokens(type, 1, 1, false, t, hs_linear_tile_at(&t->x, t->tok0), 0, 1, t->out);
        return;
    }
    for (int64_t i = 0; i < t->n_tokens;) {
        char * record = hs_linear_tile_at(&t->x, t->tok0 + i);
        const int slot = (int) (i % HS_LINEAR_TILE);
        float * out = t->out + i * t->stride;
        if (i + 4 <= t->n_tokens) {
            linear_tokens(type, HS_LINEAR_TILE, 4, false, t, record, slot, 0, out);
            linear_tokens(type, HS_LINEAR_TILE, 4, false, t, record, slot, 1, out);
            i += 4;
        } else {
            linear_tokens(type, HS_LINEAR_TILE, 1, false, t, record, slot, 0, out);
            linear_tokens(type, HS_LINEAR_TILE, 1, false, t, record, slot, 1, out);
            i++;
        }
    }
}

#include "linear_types.h"
