// A tile of the linear op with AVX-512 and VNNI: sixteen rows in the lanes, vpdpbusd over four columns at a time.
//
// Replaces: ggml's dot products of one row and one token (its x86 build has no interleaved form of q4_1 and q8_0). Saves: the horizontal sums, and
// the unpacking and scaling of weights, done once for 16 rows and up to 16 tokens instead of once a product; 27 instructions for 512 weights and one
// token where ggml's q4_1 takes about 190, so one token at a time runs at the speed of memory.
// Order of summation: a block's products as integers, blocks ascending in f32, one accumulator an output: the same for any number of tokens or threads.
#pragma once

#include "linear_x.h"

HS_INLINE __m512 linear_halves(const uint8_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) (const void *) p)); }

#define LINEAR_AHEAD 4096 // bytes: one token at a time waits for memory, and the hardware's prefetcher stops at every page

HS_INLINE __m512i linear_word(const int8_t * x) { // four columns of a token, to all lanes
    int32_t word;
    memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
}

// nt tokens (a constant after inlining, as is the type).
HS_INLINE void linear_tokens(const enum ggml_type type, const int nt, const struct hs_linear_tile * t, int64_t first) {
    const int64_t n_blocks = t->n_in / HS_LINEAR_BLOCK;
    const struct hs_linear_x x = { t->x.q + first * t->n_in, t->x.d + first * n_blocks, t->x.d_sum + first * n_blocks, t->x.offset + first * n_blocks };
    const uint8_t * w = t->w;
    __m512 acc[16];
    HS_UNROLL
    for (int i = 0; i < nt; i++) {
        acc[i] = _mm512_setzero_ps();
    }
    for (int64_t b = 0; b < n_blocks; b++) {
        for (int i = 0; i < (type == GGML_TYPE_Q8_0 ? 9 : 5) && nt == 1; i++) {
            _mm_prefetch((const char *) w + LINEAR_AHEAD + 64 * i, _MM_HINT_T0);
        }
        const __m512 d = linear_halves(w);
        __m512 m = d;
        __m512i u[8];
        if (type == GGML_TYPE_Q4_1) {
            m = linear_halves(w + 32);
        }
        const uint8_t * q = w + (type == GGML_TYPE_Q4_1 ? 64 : 32);
        HS_UNROLL
        for (int c = 0; c < 4; c++) {
            const __m512i v = _mm512_loadu_si512(q + 64 * c);
            if (type == GGML_TYPE_Q8_0) {
                u[c] = v;
                u[c + 4] = _mm512_loadu_si512(q + 64 * (c + 4));
            } else {
                u[c] = _mm512_and_si512(v, _mm512_set1_epi8(15));
                u[c + 4] = _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
            }
        }
        HS_UNROLL
        for (int i = 0; i < nt; i++) {
            const int64_t at = i * n_blocks + b;
            const int8_t * xq = x.q + at * HS_LINEAR_BLOCK;
            __m512i even, odd = _mm512_setzero_si512();
            if (type == GGML_TYPE_Q4_1) {
                even = _mm512_setzero_si512();
            } else {
                even = _mm512_set1_epi32(type == GGML_TYPE_Q8_0 ? 16 * x.offset[at] : x.offset[at]);
            }
            HS_UNROLL
            for (int c = 0; c < 8; c += 2) {
                even = _mm512_dpbusd_epi32(even, u[c], linear_word(xq + 4 * c));
                odd = _mm512_dpbusd_epi32(odd, u[c + 1], linear_word(xq + 4 * c + 4));
            }
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
            acc[i] = _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(x.d[at])), sum, acc[i]);
            if (type == GGML_TYPE_Q4_1) {
                acc[i] = _mm512_fmadd_ps(m, _mm512_set1_ps(x.d_sum[at]), acc[i]);
            }
        }
        w = q + (type == GGML_TYPE_Q8_0 ? 512 : 256);
    }
    HS_UNROLL
    for (int i = 0; i < nt; i++) {
        _mm512_storeu_ps(t->out + (first + i) * t->stride, acc[i]);
    }
}

HS_INLINE void linear_type(const enum ggml_type type, const struct hs_linear_tile * t) {
    int64_t i = 0;
    for (; i + 16 <= t->n_tokens; i += 16) {
        linear_tokens(type, 16, t, i);
    }
    if (i + 8 <= t->n_tokens) {
        linear_tokens(type, 8, t, i);
        i += 8;
    }
    if (i + 4 <= t->n_tokens) {
        linear_tokens(type, 4, t, i);
        i += 4;
    }
    for (; i < t->n_tokens; i++) {
        linear_tokens(type, 1, t, i);
    }
}

static void linear_q4_0(const struct hs_linear_tile * t) { linear_type(GGML_TYPE_Q4_0, t); }
static void linear_q4_1(const struct hs_linear_tile * t) { linear_type(GGML_TYPE_Q4_1, t); }
static void linear_q8_0(const struct hs_linear_tile * t) { linear_type(GGML_TYPE_Q8_0, t); }

static void linear_tile(const struct hs_linear_tile * t) {
    if (t->type == GGML_TYPE_Q8_0) {
        linear_q8_0(t);
    } else if (t->type == GGML_TYPE_Q4_1) {
        linear_q4_1(t);
    } else {
        linear_q4_0(t);
    }
}
