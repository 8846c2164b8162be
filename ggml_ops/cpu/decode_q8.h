// Decode over q8_0 caches with integer dot products (vpdpbusd: bytes without sign times bytes with, sums of four in i32). Levels with HS_VNNI.
//
// Replaces, for a tile of 64 keys: conversion of every byte to f32, f32 products, horizontal sums. Saves: two thirds of the instructions.
// Logits: the query is rounded to 16 bits a head (its largest element is 32767) and split into two bytes; key bytes are transposed so that keys lie
// in lanes. Products and sums over a block of 32 are exact integers, blocks are added in f32, in order.
// Values: the weight of a (key, block of 32) is p times the block's factor, rounded to 16 bits against the largest weight of the tile (65535) and
// split likewise. Sums over a tile are exact integers, tiles are added in f32, in order.
// Error against f32 arithmetic on the same cache: see docs/performance.md; NMSE about 1e-9.
#pragma once

#include "decode_float.h"

#if defined(HS_VNNI)

#define Q8_BLOCKS 8 // of 32: d <= 256
#define Q8_ROWS   4 // query heads at a time

// acc += products of u's bytes without sign and s's bytes with, four a lane. As an instruction because gcc 12 copies every accumulator of the
// intrinsic to another register and back.
HS_INLINE void q8_dot4(__m512i * acc, __m512i u, __m512i s) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*acc) : "v"(u), "v"(s));
}

// The query heads of one KV head: for every 4 elements of d, for every head, their high bytes and their low bytes.
// q = scale * (256 high + low - 32768).
struct q8_query {
    const uint32_t * z;
    const float * scale;
};

// Scaled queries with larger elements keep to f32 products. With usual keys their logits would be in the thousands, and off by more than 1e-2.
#define Q8_QUERY_MAX 16.0f

// z NULL: an element is too large.
static struct q8_query q8_query_make(const struct sub * u) {
    const int32_t d = u->a->plan.d_qk, n = u->n_rep;
    uint8_t * z = (uint8_t *) (void *) u->qt;
    float * scale = u->qt + (ptrdiff_t) n * d / 2; // behind z
    for (int32_t r = 0; r < n; r++) {
        const float * q = u->q + (ptrdiff_t) r * d;
        vf best = vf_set(0.0f);
        for (int32_t x = 0; x < d; x += VL) {
            best = vf_max(best, _mm512_abs_ps(vf_load(q + x)));
        }
        const float most = vf_hmax(best), f = most > 1e-30f ? 32767.0f / most : 0.0f;
        if (most > Q8_QUERY_MAX) {
            return (struct q8_query) { NULL, NULL };
        }
        scale[r] = most / 32767.0f;
        for (int32_t x = 0; x < d; x += VL) {
            const __m512i i = _mm512_add_epi32(_mm512_cvtps_epi32(vf_mul(vf_load(q + x), vf_set(f))), _mm512_set1_epi32(32768));
            uint8_t lo[16], hi[16];
            _mm_storeu_si128((__m128i *) (void *) lo, _mm512_cvtepi32_epi8(i));
            _mm_storeu_si128((__m128i *) (void *) hi, _mm512_cvtepi32_epi8(_mm512_srli_epi32(i, 8)));
            for (int32_t e = 0; e < VL; e += 4) {
                memcpy(z + ((x + e) / 4 * n + r) * 8, hi + e, 4);
                memcpy(z + ((x + e) / 4 * n + r) * 8 + 4, lo + e, 4);
            }
        }
    }
    return (struct q8_query) { (const uint32_t *) (const void *) z, scale };
}

// Factors of one block of 16 keys.
HS_INLINE vf q8_factors(const void * const * row, int32_t block) {
    const char * at = (const char *) (uintptr_t) (block * sizeof(struct q8_0_block));
    const __m256i a = _mm512_i64gather_epi32(_mm512_loadu_si512(row), at, 1), b = _mm512_i64gather_epi32(_mm512_loadu_si512(row + 8), at, 1);
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1)));
}

// Two rows' bytes of one block, side by side.
HS_INLINE __m512i q8_pair(const void * a, const void * b, int32_t block) {
    const __m256i x = _mm256_loadu_si256((const __m256i *) (const void *) ((const struct q8_0_block *) a)[block].q);
    const __m256i y = _mm256_loadu_si256((const __m256i *) (const void *) ((const struct q8_0_block *) b)[block].q);
    return _mm512_inserti64x4(_mm512_castsi256_si512(x), y, 1);
}

// One block of 8 keys (of which q8_pair took 4 and 4) as t[e]: dword e of bytes 0..15 in lanes 0 and 2, of bytes 16..31 in lanes 1 and 3.
HS_INLINE void q8_transpose_8(const void * const * row, int32_t block, __m512i * t) {
    const __m512i z0 = q8_pair(row[0], row[4], block), z1 = q8_pair(row[1], row[5], block);
    const __m512i z2 = q8_pair(row[2], row[6], block), z3 = q8_pair(row[3], row[7], block);
    const __m512i a = _mm512_unpacklo_epi32(z0, z1), b = _mm512_unpackhi_epi32(z0, z1);
    const __m512i c = _mm512_unpacklo_epi32(z2, z3), d = _mm512_unpackhi_epi32(z2, z3);
    t[0] = _mm512_unpacklo_epi64(a, c);
    t[1] = _mm512_unpackhi_epi64(a, c);
    t[2] = _mm512_unpacklo_epi64(b, d);
    t[3] = _mm512_unpackhi_epi64(b, d);
}

// Keys to lanes: kt[block][dword of the block][key], -128 times the sum of a block's bytes, and the factors.
static void q8_transpose(const struct tile_rows * k, int32_t n_blocks, int32_t * kt, int32_t * sums, float * factor,
    const struct ahead * next) {
    const __m512i c128 = _mm512_set1_epi8((char) 0x80);
    for (int32_t j = 0; j < k->n; j += VL) {
        for (int32_t b = 0; b < n_blocks; b++) {
            if (64 * b < next->to && j < next->rows->n) {
                HS_UNROLL
                for (int32_t i = 0; i < VL; i++) {
                    __builtin_prefetch((const char *) next->rows->row[j + i] + 64 * b, 0, 2);
                }
            }
            vf_store(factor + b * HS_TILE_KEYS + j, q8_factors(k->row + j, b));
            __m512i lo[4], hi[4], sum = _mm512_setzero_si512();
            q8_transpose_8(k->row + j, b, lo);
            q8_transpose_8(k->row + j + 8, b, hi);
            HS_UNROLL
            for (int32_t e = 0; e < 4; e++) {
                const __m512i x = _mm512_shuffle_i32x4(lo[e], hi[e], 0x88), y = _mm512_shuffle_i32x4(lo[e], hi[e], 0xdd);
                _mm512_storeu_si512(kt + (b * 8 + e) * HS_TILE_KEYS + j, x);
                _mm512_storeu_si512(kt + (b * 8 + e + 4) * HS_TILE_KEYS + j, y);
                q8_dot4(&sum, c128, x);
                q8_dot4(&sum, c128, y);
            }
            _mm512_storeu_si512(sums + b * HS_TILE_KEYS + j, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
        }
    }
}

// Logits of `rows` heads (from r0 of n on) and 16 * groups keys.
HS_INLINE void q8_dots_block(const int rows, const int groups, int32_t n_blocks, const struct q8_query * q, int32_t r0, int32_t n, const int32_t * kt,
    const int32_t * sums, const float * factor, float * s) {
    vf out[4][4];
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        HS_UNROLL
        for (int g = 0; g < groups; g++) {
            out[i][g] = vf_set(0.0f);
        }
    }
    for (int32_t b = 0; b < n_blocks; b++) {
        __m512i hi[4][4], lo[4][4], k[4];
        HS_UNROLL
        for (int i = 0; i < rows; i++) {
            HS_UNROLL
            for (int g = 0; g < groups; g++) {
                hi[i][g] = _mm512_loadu_si512(sums + b * HS_TILE_KEYS + g * VL);
                lo[i][g] = _mm512_setzero_si512();
            }
        }
        for (int32_t e = 0; e < 8; e++) {
            HS_UNROLL
            for (int g = 0; g < groups; g++) {
                k[g] = _mm512_loadu_si512(kt + (b * 8 + e) * HS_TILE_KEYS + g * VL);
            }
            const uint32_t * z = q->z + ((b * 8 + e) * n + r0) * 2;
            HS_UNROLL
            for (int i = 0; i < rows; i++) {
                const __m512i zh = _mm512_set1_epi32((int32_t) z[2 * i]), zl = _mm512_set1_epi32((int32_t) z[2 * i + 1]);
                HS_UNROLL
                for (int g = 0; g < groups; g++) {
                    q8_dot4(&hi[i][g], zh, k[g]);
                    q8_dot4(&lo[i][g], zl, k[g]);
                }
            }
        }
        HS_UNROLL
        for (int g = 0; g < groups; g++) {
            const vf f = vf_load(factor + b * HS_TILE_KEYS + g * VL);
            HS_UNROLL
            for (int i = 0; i < rows; i++) {
                const __m512i x = _mm512_add_epi32(_mm512_slli_epi32(hi[i][g], 8), lo[i][g]);
                out[i][g] = vf_fma(_mm512_cvtepi32_ps(x), f, out[i][g]);
            }
        }
    }
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        HS_UNROLL
        for (int g = 0; g < groups; g++) {
            vf_store(s + i * HS_TILE_KEYS + g * VL, vf_mul(out[i][g], vf_set(q->scale[r0 + i])));
        }
    }
}

HS_INLINE void q8_dots_pass(const int rows, const int groups, int32_t n_keys, int32_t n_blocks, const struct q8_query * q, int32_t r0, int32_t n,
    const int32_t * kt, const int32_t * sums, const float * factor, float * s) {
    int32_t j = 0;
    for (; j + (groups - 1) * VL < n_keys; j += groups * VL) {
        q8_dots_block(rows, groups, n_blocks, q, r0, n, kt + j, sums + j, factor + j, s + j);
    }
    for (; j < n_keys; j += VL) {
        q8_dots_block(rows, 1, n_blocks, q, r0, n, kt + j, sums + j, factor + j, s + j);
    }
}

static void q8_dots(struct sub * u, const struct q8_query * q, const struct tile_rows * k, const struct ahead * next) {
    int32_t sums[Q8_BLOCKS * HS_TILE_KEYS] __attribute__((aligned(64)));
    float factor[Q8_BLOCKS * HS_TILE_KEYS] __attribute__((aligned(64)));
    const int32_t n_blocks = u->a->plan.d_qk / 32, n = u->n_rep;
    int32_t * kt = (int32_t *) (void *) u->kv;
    q8_transpose(k, n_blocks, kt, sums, factor, next);
    for (int32_t r = 0; r < n; r += Q8_ROWS) {
        float * s = u->s + (ptrdiff_t) r * HS_TILE_KEYS;
        switch (n - r) {
            case 1: q8_dots_pass(1, 4, k->n, n_blocks, q, r, n, kt, sums, factor, s); break;
            case 2: q8_dots_pass(2, 4, k->n, n_blocks, q, r, n, kt, sums, factor, s); break;
            case 3: q8_dots_pass(3, 2, k->n, n_blocks, q, r, n, kt, sums, factor, s); break;
            default: q8_dots_pass(4, 2, k->n, n_blocks, q, r, n, kt, sums, factor, s); break;
        }
    }
}

// Weights of some heads: w[head][block][key / 4] = { low bytes of 4 keys, their high bytes, -, - }; unit[head][block]: the value of 1.
// p and factor are 0 behind the tile's last key.
static void q8_weights(int32_t rows, int32_t n_blocks, const float * p, const float * factor, uint32_t * w, float * unit) {
    const __m512i split = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, -1, -1, -1, -1, -1, -1, -1, -1));
    const int32_t n = rows * n_blocks;
    vf most[Q8_ROWS * Q8_BLOCKS];
    float scale[Q8_ROWS * Q8_BLOCKS];
    for (int32_t r = 0; r < rows; r++) {
        const float * pr = p + r * HS_TILE_KEYS;
        const vf p0 = vf_load(pr), p1 = vf_load(pr + VL), p2 = vf_load(pr + 2 * VL), p3 = vf_load(pr + 3 * VL);
        for (int32_t b = 0; b < n_blocks; b++) {
            const float * f = factor + b * HS_TILE_KEYS;
            const vf x = vf_max(vf_mul(p0, vf_load(f)), vf_mul(p1, vf_load(f + VL)));
            most[r * n_blocks + b] = vf_max(x, vf_max(vf_mul(p2, vf_load(f + 2 * VL)), vf_mul(p3, vf_load(f + 3 * VL))));
        }
    }
    for (int32_t i = n; i % VL != 0; i++) {
        most[i] = vf_set(0.0f);
    }
    for (int32_t i = 0; i < n; i += VL) {
        const vf all = vf_maxs(most + i);
        vf_store(unit + i, vf_mul(all, vf_set(1.0f / 65535.0f)));
        vf_store(scale + i, _mm512_maskz_div_ps(_mm512_cmp_ps_mask(all, _mm512_set1_ps(1e-30f), _CMP_GT_OQ), vf_set(65535.0f), all));
    }
    for (int32_t r = 0; r < rows; r++) {
        const float * pr = p + r * HS_TILE_KEYS;
        const vf p0 = vf_load(pr), p1 = vf_load(pr + VL), p2 = vf_load(pr + 2 * VL), p3 = vf_load(pr + 3 * VL);
        for (int32_t b = 0; b < n_blocks; b++) {
            const vf x[4] = { p0, p1, p2, p3 }, s = vf_set(scale[r * n_blocks + b]), bits = vf_set(8388608.0f); // 2^23
            HS_UNROLL
            for (int i = 0; i < 4; i++) { // the integer stands in the lowest bits
                const vf y = vf_fma(vf_mul(x[i], vf_load(factor + b * HS_TILE_KEYS + i * VL)), s, bits);
                _mm512_storeu_si512(w + (r * n_blocks + b) * HS_TILE_KEYS + i * VL, _mm512_shuffle_epi8(_mm512_castps_si512(y), split));
            }
        }
    }
}

// o[rows][32 columns of one block] += weights times values. w_row: distance of heads in w; in unit it is d / 32.
HS_INLINE void q8_values_block(const int rows, int32_t b, const struct tile_rows * v, const uint32_t * w, int32_t w_row, const float * unit,
    int32_t d, float * o, const struct ahead * next) {
    const __m512i words = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2,
        17, 1, 16, 0);
    __m512i hi[4][2], lo[4][2];
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        hi[i][0] = hi[i][1] = lo[i][0] = lo[i][1] = _mm512_setzero_si512();
    }
    const bool fetch = next && 64 * b < next->to;
    for (int32_t j = 0; j < v->n; j += 4) {
        const void * const * row = v->row + j;
        if (fetch && j < next->rows->n) {
            HS_UNROLL
            for (int i = 0; i < 4; i++) {
                __builtin_prefetch((const char *) next->rows->row[j + i] + 64 * b, 0, 2);
            }
        }
        // Bytes of keys 0, 1 and of keys 2, 3 interleaved, then the pairs: dwords of 4 keys; x: columns 0..7, 16..23, y: 8..15, 24..31.
        const __m512i even = q8_pair(row[0], row[2], b), odd = q8_pair(row[1], row[3], b);
        const __m512i x = _mm512_permutexvar_epi16(words, _mm512_unpacklo_epi8(even, odd));
        const __m512i y = _mm512_permutexvar_epi16(words, _mm512_unpackhi_epi8(even, odd));
        HS_UNROLL
        for (int i = 0; i < rows; i++) {
            const __m512i wl = _mm512_set1_epi32((int32_t) w[i * w_row + j]), wh = _mm512_set1_epi32((int32_t) w[i * w_row + j + 1]);
            q8_dot4(&lo[i][0], wl, x);
            q8_dot4(&lo[i][1], wl, y);
            q8_dot4(&hi[i][0], wh, x);
            q8_dot4(&hi[i][1], wh, y);
        }
    }
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        const vf x = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(hi[i][0], 8), lo[i][0]));
        const vf y = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(hi[i][1], 8), lo[i][1]));
        const vf f = vf_set(unit[i * d / 32]);
        float * out = o + i * d;
        vf_store(out, vf_fma(_mm512_shuffle_f32x4(x, y, 0x44), f, vf_load(out)));
        vf_store(out + VL, vf_fma(_mm512_shuffle_f32x4(x, y, 0xee), f, vf_load(out + VL)));
    }
}

HS_INLINE void q8_values_pass(const int rows, int32_t n_blocks, const struct tile_rows * v, const uint32_t * w, const float * unit, float * o,
    const struct ahead * next) {
    for (int32_t b = 0; b < n_blocks; b++) {
        q8_values_block(rows, b, v, w + b * HS_TILE_KEYS, n_blocks * HS_TILE_KEYS, unit + b, n_blocks * 32, o + b * 32, next);
    }
}

// False: a factor is below 0 (ggml writes none), nothing done.
static bool q8_values(struct sub * u, const struct tile_rows * v, const struct ahead * next) {
    float factor[Q8_BLOCKS * HS_TILE_KEYS] __attribute__((aligned(64))), unit[Q8_ROWS * Q8_BLOCKS];
    const int32_t n_blocks = u->a->plan.d_v / 32, n = u->n_rep;
    uint32_t * w = (uint32_t *) (void *) u->kv;
    __mmask16 below = 0;
    if (v->n <= HS_TILE_KEYS - VL) {
        memset(factor, 0, sizeof(factor));
    }
    for (int32_t j = 0; j < v->n; j += VL) {
        for (int32_t b = 0; b < n_blocks; b++) {
            const vf x = q8_factors(v->row + j, b);
            below |= _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
            vf_store(factor + b * HS_TILE_KEYS + j, x);
        }
    }
    if (below) {
        return false;
    }
    for (int32_t r = 0; r < n; r += Q8_ROWS) {
        const int32_t rows = n - r < Q8_ROWS ? n - r : Q8_ROWS;
        float * o = u->o + (ptrdiff_t) r * u->a->plan.d_v;
        const struct ahead * fetch = r == 0 ? next : NULL;
        q8_weights(rows, n_blocks, u->s + (ptrdiff_t) r * HS_TILE_KEYS, factor, w, unit);
        switch (rows) {
            case 1: q8_values_pass(1, n_blocks, v, w, unit, o, fetch); break;
            case 2: q8_values_pass(2, n_blocks, v, w, unit, o, fetch); break;
            case 3: q8_values_pass(3, n_blocks, v, w, unit, o, fetch); break;
            default: q8_values_pass(4, n_blocks, v, w, unit, o, fetch); break;
        }
    }
    return true;
}
#endif
