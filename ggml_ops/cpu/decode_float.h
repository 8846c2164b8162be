// Decode: logits and weighted sums of one query's few rows, straight from cache rows. Included once per level.
//
// Replaces: conversion of a tile to f32 rows, then dot products and a small matrix product. Saves: the store and reload of the converted tile; every
// key and value is converted once, in registers, for all query heads of its group (up to 8 of them).
// Order of summation: a logit is VL partial sums along d, added as a tree; an output element is summed over keys in order.
// Rows come as pointers, so it does not matter how a selection scatters them; memory beyond the row in work is fetched ahead by the same pointers.
#pragma once

#include "sub.h"

enum row_type { ROW_F32, ROW_F16, ROW_Q8_0 };

// The rows of one tile of K or V: n keys, padded by repetition to a multiple of HS_LANES.
struct tile_rows {
    const void * row[HS_TILE_KEYS];
    int32_t n;
};

// What will be needed next: bytes from..to of some rows. With every row at work one of them is asked for, evenly, since a core has only 16 misses in
// flight. To the second cache: fetching to the first one holds those 16 for longer than the caches behind take to run ahead by themselves.
struct ahead {
    const struct tile_rows * rows;
    int32_t from, to;
};

HS_INLINE void fetch_ahead(const struct ahead * a, int32_t j) {
    if (j < a->rows->n) {
        const char * p = a->rows->row[j];
        for (int32_t x = a->from; x < a->to; x += 64) {
            __builtin_prefetch(p + x, 0, 2);
        }
    }
}

// VL elements from x on of a row; type is a compile-time constant after inlining, as are rows, keys and cols below.
HS_INLINE vf row_load(const enum row_type type, const void * row, int x) {
    if (type == ROW_F16) {
        return vf_load_f16((const uint16_t *) row + x);
    }
    return vf_load((const float *) row + x);
}

// q as [d / VL][n][VL], n heads: the dot kernel walks it with one pointer.
static void decode_spread(int32_t n, int32_t d, const float * q, float * out) {
    for (int32_t r = 0; r < n; r++) {
        for (int32_t x = 0; x < d; x += VL) {
            vf_store(out + (x / VL * n + r) * VL, vf_load(q + r * d + x));
        }
    }
}

// Logits of `rows` of n query heads and of `keys` keys: s[i * HS_TILE_KEYS + j].
HS_INLINE void decode_dots_block(const enum row_type type, const int rows, const int keys, int n, int d, const float * q, const void * const * row,
    float * s) {
    const char * k[16];
    vf acc[16];
    HS_UNROLL
    for (int i = 0; i < 16; i++) {
        acc[i] = vf_set(0.0f);
    }
    HS_UNROLL
    for (int j = 0; j < keys; j++) {
        k[j] = row[j];
    }
    for (int x = 0; x < d; x += 32) {
        HS_UNROLL
        for (int y = 0; y < 32; y += VL) {
            vf b[16];
            HS_UNROLL
            for (int j = 0; j < keys; j++) {
                b[j] = row_load(type, k[j], x + y);
            }
            HS_UNROLL
            for (int i = 0; i < rows; i++) {
                const vf a = vf_load(q + i * VL);
                HS_UNROLL
                for (int j = 0; j < keys; j++) {
                    acc[i * keys + j] = vf_fma(a, b[j], acc[i * keys + j]);
                }
            }
            q += n * VL;
        }
    }
#if defined(HS_SIMD_AVX512)
    vf_store_sums(acc, rows, keys, s, HS_TILE_KEYS);
#else
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        vf_sum4(acc[i * keys], acc[i * keys + 1], acc[i * keys + 2], acc[i * keys + 3], s + i * HS_TILE_KEYS);
    }
#endif
}

HS_INLINE void decode_dots_pass(const enum row_type type, const int rows, const int keys, int n, int d, const float * q, const struct tile_rows * k,
    float * s, const struct ahead * next) {
    for (int32_t j = 0; j < k->n; j += keys) {
        HS_UNROLL
        for (int32_t i = 0; i < keys && next; i++) {
            fetch_ahead(next, j + i);
        }
        decode_dots_block(type, rows, keys, n, d, q, k->row + j, s + j);
    }
}

// All rows: as few passes over the keys as registers allow. The first pass fetches ahead. q: decode_spread's.
HS_INLINE void decode_dots_any(const enum row_type type, int rows, int d, const float * q, const struct tile_rows * k, float * s,
    const struct ahead * next) {
    for (int i = 0; i < rows;) {
        const int left = rows - i, n = rows;
        const float * qi = q + (ptrdiff_t) i * VL;
        float * si = s + (ptrdiff_t) i * HS_TILE_KEYS;
        const struct ahead * fetch = i == 0 ? next : NULL;
#if defined(HS_SIMD_AVX512)
        switch (left) {
            case 1: decode_dots_pass(type, 1, 16, n, d, qi, k, si, fetch); break;
            case 2: decode_dots_pass(type, 2, 8, n, d, qi, k, si, fetch); break;
            case 3: decode_dots_pass(type, 3, 4, n, d, qi, k, si, fetch); break;
            case 4: decode_dots_pass(type, 4, 4, n, d, qi, k, si, fetch); break;
            case 5: decode_dots_pass(type, 5, 2, n, d, qi, k, si, fetch); break;
            case 6: decode_dots_pass(type, 6, 2, n, d, qi, k, si, fetch); break;
            case 7: decode_dots_pass(type, 7, 2, n, d, qi, k, si, fetch); break;
            default: decode_dots_pass(type, 8, 2, n, d, qi, k, si, fetch); break;
        }
        i += left < 8 ? left : 8;
#else
        if (left >= 4 && DOT_ROWS >= 4) {
            decode_dots_pass(type, 4, 4, n, d, qi, k, si, fetch);
            i += 4;
        } else if (left >= 2) {
            decode_dots_pass(type, 2, 4, n, d, qi, k, si, fetch);
            i += 2;
        } else {
            decode_dots_pass(type, 1, 4, n, d, qi, k, si, fetch);
            i += 1;
        }
#endif
    }
}

// q8_0 rows go through a buffer: with several passes over them, converting in registers costs more than storing once.
static void decode_convert(const struct tile_rows * from, int d, float * buffer, struct tile_rows * to, const struct ahead * next) {
    for (int32_t j = 0; j < (from->n + HS_LANES - 1) / HS_LANES * HS_LANES; j++) {
        fetch_ahead(next, j);
        convert_row(GGML_TYPE_Q8_0, from->row[j], buffer + (ptrdiff_t) j * d, d);
        to->row[j] = buffer + (ptrdiff_t) j * d;
    }
    to->n = from->n;
}

static void decode_dots(enum row_type type, int rows, int d, const float * q, const struct tile_rows * k, float * buffer, float * s,
    const struct ahead * next) {
    if (type == ROW_F16) {
        decode_dots_any(ROW_F16, rows, d, q, k, s, next);
    } else if (type == ROW_F32) {
        decode_dots_any(ROW_F32, rows, d, q, k, s, next);
    } else {
        struct tile_rows f;
        decode_convert(k, d, buffer, &f, next);
        decode_dots_any(ROW_F32, rows, d, q, &f, s, NULL);
    }
}

// o[rows][cols * VL] += p[rows][n] V[n][..], columns x on; all sums stay in registers while the tile's rows pass.
HS_INLINE void decode_values_block(const enum row_type type, const int rows, const int cols, int d, const float * p, const struct tile_rows * v,
    int x, float * o, const struct ahead * next) {
    vf acc[8][8];
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        HS_UNROLL
        for (int c = 0; c < cols; c++) {
            acc[i][c] = vf_load(o + i * d + x + c * VL);
        }
    }
    for (int32_t j = 0; j < v->n; j++) {
        if (next) {
            fetch_ahead(next, j);
        }
        vf b[8];
        HS_UNROLL
        for (int c = 0; c < cols; c++) {
            b[c] = row_load(type, v->row[j], x + c * VL);
        }
        HS_UNROLL
        for (int i = 0; i < rows; i++) {
            const vf a = vf_set(p[i * HS_TILE_KEYS + j]);
            HS_UNROLL
            for (int c = 0; c < cols; c++) {
                acc[i][c] = vf_fma(a, b[c], acc[i][c]);
            }
        }
    }
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        HS_UNROLL
        for (int c = 0; c < cols; c++) {
            vf_store(o + i * d + x + c * VL, acc[i][c]);
        }
    }
}

// The part of the rows ahead that belongs to columns x .. x + n - 1 of d.
HS_INLINE struct ahead ahead_part(const struct ahead * a, int x, int n, int d) {
    const struct ahead part = { a->rows, a->to * x / d / 64 * 64, x + n == d ? a->to : a->to * (x + n) / d / 64 * 64 };
    return part;
}

// Blocks of `wide` vectors, then of 2 (d is a multiple of 32, so that is enough).
HS_INLINE void decode_values_pass(const enum row_type type, const int rows, const int wide, int d, const float * p, const struct tile_rows * v,
    float * o, const struct ahead * next) {
    for (int x = 0; x < d;) {
        const int n = x + wide * VL <= d ? wide * VL : 2 * VL;
        const struct ahead part = next ? ahead_part(next, x, n, d) : (struct ahead) { 0 };
        if (n == wide * VL) {
            decode_values_block(type, rows, wide, d, p, v, x, o, next ? &part : NULL);
        } else {
            decode_values_block(type, rows, 2, d, p, v, x, o, next ? &part : NULL);
        }
        x += n;
    }
}

HS_INLINE void decode_values_any(const enum row_type type, int rows, int d, const float * p, const struct tile_rows * v, float * o,
    const struct ahead * next) {
    for (int i = 0; i < rows;) {
        const int left = rows - i;
        const float * pi = p + (ptrdiff_t) i * HS_TILE_KEYS;
        float * oi = o + (ptrdiff_t) i * d;
        const struct ahead * fetch = i == 0 ? next : NULL;
#if defined(HS_SIMD_AVX512)
        switch (left) {
            case 1: decode_values_pass(type, 1, 8, d, pi, v, oi, fetch); break;
            case 2: decode_values_pass(type, 2, 8, d, pi, v, oi, fetch); break;
            case 3: decode_values_pass(type, 3, 4, d, pi, v, oi, fetch); break;
            case 4: decode_values_pass(type, 4, 4, d, pi, v, oi, fetch); break;
            case 5: decode_values_pass(type, 5, 4, d, pi, v, oi, fetch); break;
            case 6: decode_values_pass(type, 6, 4, d, pi, v, oi, fetch); break;
            case 7: decode_values_pass(type, 7, 2, d, pi, v, oi, fetch); break;
            default: decode_values_pass(type, 8, 2, d, pi, v, oi, fetch); break;
        }
        i += left < 8 ? left : 8;
#elif defined(HS_SIMD_AVX2)
        switch (left) {
            case 1: decode_values_pass(type, 1, 8, d, pi, v, oi, fetch); break;
            case 2: decode_values_pass(type, 2, 4, d, pi, v, oi, fetch); break;
            case 3: decode_values_pass(type, 3, 2, d, pi, v, oi, fetch); break;
            case 5: decode_values_pass(type, 5, 2, d, pi, v, oi, fetch); break;
            case 6: decode_values_pass(type, 6, 2, d, pi, v, oi, fetch); break;
            default: decode_values_pass(type, 4, 2, d, pi, v, oi, fetch); break;
        }
        i += left > 6 ? 4 : left;
#else
        if (left >= 4) {
            decode_values_pass(type, 4, 4, d, pi, v, oi, fetch);
            i += 4;
        } else if (left >= 2) {
            decode_values_pass(type, 2, 4, d, pi, v, oi, fetch);
            i += 2;
        } else {
            decode_values_pass(type, 1, 8, d, pi, v, oi, fetch);
            i += 1;
        }
#endif
    }
}

static void decode_values(enum row_type type, int rows, int d, const float * p, const struct tile_rows * v, float * buffer, float * o,
    const struct ahead * next) {
    if (type == ROW_F16) {
        decode_values_any(ROW_F16, rows, d, p, v, o, next);
    } else if (type == ROW_F32) {
        decode_values_any(ROW_F32, rows, d, p, v, o, next);
    } else {
        struct tile_rows f;
        decode_convert(v, d, buffer, &f, next);
        decode_values_any(ROW_F32, rows, d, p, &f, o, NULL);
    }
}
