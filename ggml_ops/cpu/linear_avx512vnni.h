// A tile of the linear op with AVX-512 and VNNI: sixteen rows in the lanes, vpdpbusd over four columns at a time.
//
// Replaces: ggml's dot products of one row and one token (its x86 build has no interleaved form of q4_1 and q8_0). Saves: the horizontal sums, and
// the unpacking and scaling of weights, done once for 16 rows and up to 16 tokens instead of once a product; 27 instructions for 512 weights and one
// token where ggml's q4_1 takes about 190, so one token at a time runs at the speed of memory.
// Order of summation: a block's products as integers, blocks ascending in f32, one accumulator an output: the same for any number of tokens or threads.
#pragma once

#include "linear_x.h"

HS_INLINE __m512 linear_halves(const uint8_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) (const void *) p)); }

#define LINEAR_CHAINS 4   // tokens whose sums are formed in turn
#define LINEAR_AHEAD 4096 // bytes: with few tokens a thread waits for memory, and the hardware's prefetcher stops at every page

HS_INLINE __m512i linear_word(const int8_t * x) { // four columns of a token, to all lanes
    int32_t word;
    memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
}

// Tokens slot0 .. slot0 + nt - 1 of a tile of x of `width` (constants after inlining, as are type and ahead).
// ahead: fetch the weights that come next.
HS_INLINE void linear_tokens(const enum ggml_type type, const int width, const int nt, const bool ahead, const struct hs_linear_tile * t, char * record,
    int slot0, float * out) {
    const uint8_t * w = t->w;
    __m512 acc[HS_LINEAR_TILE];
    HS_UNROLL
    for (int i = 0; i < nt; i++) {
        acc[i] = _mm512_setzero_ps();
    }
    for (int64_t b = 0; b < t->x.n_blocks; b++) {
        for (int i = 0; i < (type == GGML_TYPE_Q8_0 ? 9 : 5) && ahead; i++) {
            _mm_prefetch((const char *) w + LINEAR_AHEAD + 64 * i, _MM_HINT_T0);
        }
        const __m512 d = linear_halves(w), m = type == GGML_TYPE_Q4_1 ? linear_halves(w + 32) : d;
        const uint8_t * q = w + (type == GGML_TYPE_Q4_1 ? 64 : 32);
        __m512i u[8];
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
        const int8_t * x = hs_linear_q(record, slot0);
        const float * xd = hs_linear_d(record, width) + slot0, * xs = hs_linear_d_sum(record, width) + slot0;
        const int32_t * offset = hs_linear_offset(record, width, type == GGML_TYPE_Q8_0) + slot0;
        HS_UNROLL
        for (int g = 0; g < nt; g += LINEAR_CHAINS) { // a few tokens in turn: a vpdpbusd need not wait for the one before it
            __m512i sum[LINEAR_CHAINS];
            HS_UNROLL
            for (int i = 0; i < LINEAR_CHAINS && i < nt; i++) {
                sum[i] = type == GGML_TYPE_Q4_1 ? _mm512_setzero_si512() : _mm512_set1_epi32(offset[g + i]);
            }
            HS_UNROLL
            for (int c = 0; c < 8; c++) {
                HS_UNROLL
                for (int i = 0; i < LINEAR_CHAINS && i < nt; i++) {
                    sum[i] = _mm512_dpbusd_epi32(sum[i], u[c], linear_word(x + (g + i) * HS_LINEAR_BLOCK + 4 * c));
                }
            }
            HS_UNROLL
            for (int i = 0; i < LINEAR_CHAINS && i < nt; i++) {
                acc[g + i] = _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(xd[g + i])), _mm512_cvtepi32_ps(sum[i]), acc[g + i]);
                if (type == GGML_TYPE_Q4_1) {
                    acc[g + i] = _mm512_fmadd_ps(m, _mm512_set1_ps(xs[g + i]), acc[g + i]);
                }
            }
        }
        w = q + (type == GGML_TYPE_Q8_0 ? 512 : 256);
        record += width * HS_LINEAR_RECORD;
    }
    HS_UNROLL
    for (int i = 0; i < nt; i++) {
        _mm512_storeu_ps(out + i * t->stride, acc[i]);
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
        if (n == HS_LINEAR_TILE) {
            linear_tokens(type, HS_LINEAR_TILE, HS_LINEAR_TILE, false, t, record, 0, out);
            continue;
        }
        if (n >= 4) {
            linear_tokens(type, HS_LINEAR_TILE, 4, true, t, record, 0, out);
            at = 4;
        } else {
            linear_tokens(type, HS_LINEAR_TILE, 1, true, t, record, 0, out);
            at = 1;
        }
        for (; at + 4 <= n; at += 4) {
            linear_tokens(type, HS_LINEAR_TILE, 4, false, t, record, at, out + at * t->stride);
        }
        for (; at < n; at++) {
            linear_tokens(type, HS_LINEAR_TILE, 1, false, t, record, at, out + at * t->stride);
        }
    }
}

#include "linear_types.h"
