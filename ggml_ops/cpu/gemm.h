// The two small products of attention, in registers: C = A B with the columns of C in vector lanes, and dot products for few rows.
#pragma once

#include "simd.h"

#include <stdbool.h>
#include <stddef.h>

// VL elements from index i of an f32 or (half) f16 array; half is a compile-time constant after inlining, as are rows and cols below.
HS_INLINE vf load_any(const bool half, const void * p, ptrdiff_t i) {
    return half ? vf_load_f16((const uint16_t *) p + i) : vf_load((const float *) p + i);
}

// A block of rows x cols vectors of C, from column c0 on, all of it in registers. a(i, x) = a[i * a_row + x * a_step]; b and c row-major.
// add: C += A B.
HS_INLINE void mm_block(const bool half, const int rows, const int cols, int depth, const float * a, ptrdiff_t a_row, ptrdiff_t a_step,
    const void * b, ptrdiff_t b_row, float * c, ptrdiff_t c_row, int c0, bool add) {
    c += c0;
    vf acc[MM_ROWS][8];
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        HS_UNROLL
        for (int j = 0; j < cols; j++) {
            acc[i][j] = add ? vf_load(c + i * c_row + j * VL) : vf_set(0.0f);
        }
    }
    for (int x = 0; x < depth; x++) {
        vf bv[8];
        HS_UNROLL
        for (int j = 0; j < cols; j++) {
            bv[j] = load_any(half, b, x * b_row + c0 + j * VL);
        }
        HS_UNROLL
        for (int i = 0; i < rows; i++) {
            const vf av = vf_set(a[i * a_row + x * a_step]);
            HS_UNROLL
            for (int j = 0; j < cols; j++) {
                acc[i][j] = vf_fma(av, bv[j], acc[i][j]);
            }
        }
    }
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        HS_UNROLL
        for (int j = 0; j < cols; j++) {
            vf_store(c + i * c_row + j * VL, acc[i][j]);
        }
    }
}

// All rows of a column strip of `cols` vectors. The strip of B stays in the first cache while the rows pass.
HS_INLINE void mm_strip(const bool half, const int cols, int rows, int depth, const float * a, ptrdiff_t a_row, ptrdiff_t a_step, const void * b,
    ptrdiff_t b_row, float * c, ptrdiff_t c_row, int c0, bool add) {
    int i = 0;
    for (; i + MM_ROWS <= rows; i += MM_ROWS) {
        mm_block(half, MM_ROWS, cols, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, c0, add);
    }
    if (i + 4 <= rows) {
        mm_block(half, 4, cols, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, c0, add);
        i += 4;
    }
    if (i + 2 <= rows) {
        mm_block(half, 2, cols, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, c0, add);
        i += 2;
    }
    for (; i < rows; i++) {
        mm_block(half, 1, cols, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, c0, add);
    }
}

// C[rows][n] (+)= A[rows][depth] B[depth][n]; n a multiple of VL. Sums run over `depth` in order, one accumulator an element.
HS_INLINE void mm_any(const bool half, int rows, int n, int depth, const float * a, ptrdiff_t a_row, ptrdiff_t a_step, const void * b,
    ptrdiff_t b_row, float * c, ptrdiff_t c_row, bool add) {
    int j = 0;
    if (rows < 4) { // few rows: wide strips, or there are too few independent sums to hide the latency of an FMA
        for (; j + 8 * VL <= n && rows == 1; j += 8 * VL) {
            mm_block(half, 1, 8, depth, a, a_row, a_step, b, b_row, c, c_row, j, add);
        }
        for (; j + 4 * VL <= n; j += 4 * VL) {
            int i = 0;
            for (; i + 2 <= rows; i += 2) {
                mm_block(half, 2, 4, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, j, add);
            }
            if (i < rows) {
                mm_block(half, 1, 4, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, j, add);
            }
        }
    }
    for (; j + 2 * VL <= n; j += 2 * VL) {
        mm_strip(half, 2, rows, depth, a, a_row, a_step, b, b_row, c, c_row, j, add);
    }
    if (j < n) {
        mm_strip(half, 1, rows, depth, a, a_row, a_step, b, b_row, c, c_row, j, add);
    }
}

static void mm(int rows, int n, int depth, const float * a, ptrdiff_t a_row, ptrdiff_t a_step, const float * b, ptrdiff_t b_row, float * c,
    ptrdiff_t c_row, bool add) {
    mm_any(false, rows, n, depth, a, a_row, a_step, b, b_row, c, c_row, add);
}

// rows x DOT_KEYS dot products of length d, keys from element k0 on: s[i][0..3]. Lanes are summed last, so the order is fixed by VL alone.
HS_INLINE void dot_block(const bool half, const int rows, int d, const float * q, const void * k, ptrdiff_t k0, float * s, ptrdiff_t s_row) {
    vf acc[DOT_ROWS][DOT_KEYS];
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        HS_UNROLL
        for (int j = 0; j < DOT_KEYS; j++) {
            acc[i][j] = vf_set(0.0f);
        }
    }
    for (int x = 0; x < d; x += VL) {
        vf kv[DOT_KEYS];
        HS_UNROLL
        for (int j = 0; j < DOT_KEYS; j++) {
            kv[j] = load_any(half, k, k0 + j * d + x);
        }
        HS_UNROLL
        for (int i = 0; i < rows; i++) {
            const vf qv = vf_load(q + i * d + x);
            HS_UNROLL
            for (int j = 0; j < DOT_KEYS; j++) {
                acc[i][j] = vf_fma(qv, kv[j], acc[i][j]);
            }
        }
    }
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        vf_sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3], s + i * s_row);
    }
}

HS_INLINE float dot_one(const bool half, int d, const float * q, const void * k, ptrdiff_t k0) {
    vf acc = vf_set(0.0f);
    for (int x = 0; x < d; x += VL) {
        acc = vf_fma(vf_load(q + x), load_any(half, k, k0 + x), acc);
    }
    float out[4];
    vf_sum4(acc, acc, acc, acc, out); // the same tree as in dot_block: a key's logit does not depend on its neighbours
    return out[0];
}

// S[rows][n_keys] = Q[rows][d] K[n_keys][d]^T, for few rows.
HS_INLINE void dots_any(const bool half, int rows, int n_keys, int d, const float * q, const void * k, float * s, ptrdiff_t s_row) {
    int i = 0;
    for (; i < rows; i += i + DOT_ROWS <= rows ? DOT_ROWS : 1) {
        int j = 0;
        for (; j + DOT_KEYS <= n_keys; j += DOT_KEYS) {
            if (i + DOT_ROWS <= rows) {
                dot_block(half, DOT_ROWS, d, q + i * d, k, (ptrdiff_t) j * d, s + i * s_row + j, s_row);
            } else {
                dot_block(half, 1, d, q + i * d, k, (ptrdiff_t) j * d, s + i * s_row + j, s_row);
            }
        }
        for (; j < n_keys; j++) {
            for (int r = i; r < (i + DOT_ROWS <= rows ? i + DOT_ROWS : i + 1); r++) {
                s[r * s_row + j] = dot_one(half, d, q + r * d, k, (ptrdiff_t) j * d);
            }
        }
    }
}

static void dots(int rows, int n_keys, int d, const float * q, const float * k, float * s, ptrdiff_t s_row) {
    dots_any(false, rows, n_keys, d, q, k, s, s_row);
}
