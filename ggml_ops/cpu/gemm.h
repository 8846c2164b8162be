// The two small products of attention, in registers: C = A B with the columns of C in vector lanes, and dot products for few rows.
#pragma once

#include "simd.h"

#include <stdbool.h>
#include <stddef.h>

// A block of rows x cols vectors of C (constants after inlining), from column c0 on, all of it in registers. a(i, x) = a[i * a_row + x * a_step]; b and c row-major.
// add: C += A B.
HS_INLINE void mm_block(const int rows, const int cols, int depth, const float * a, ptrdiff_t a_row, ptrdiff_t a_step,
    const float * b, ptrdiff_t b_row, float * c, ptrdiff_t c_row, int c0, bool add) {
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
            bv[j] = vf_load(b + x * b_row + c0 + j * VL);
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
HS_INLINE void mm_strip(const int cols, int rows, int depth, const float * a, ptrdiff_t a_row, ptrdiff_t a_step, const float * b,
    ptrdiff_t b_row, float * c, ptrdiff_t c_row, int c0, bool add) {
    int i = 0;
    for (; i + MM_ROWS <= rows; i += MM_ROWS) {
        mm_block(MM_ROWS, cols, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, c0, add);
    }
    if (i + 4 <= rows) {
        mm_block(4, cols, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, c0, add);
        i += 4;
    }
    if (i + 2 <= rows) {
        mm_block(2, cols, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, c0, add);
        i += 2;
    }
    for (; i < rows; i++) {
        mm_block(1, cols, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, c0, add);
    }
}

// C[rows][n] (+)= A[rows][depth] B[depth][n]; n a multiple of VL. Sums run over `depth` in order, one accumulator an element.
static void mm(int rows, int n, int depth, const float * a, ptrdiff_t a_row, ptrdiff_t a_step, const float * b,
    ptrdiff_t b_row, float * c, ptrdiff_t c_row, bool add) {
    int j = 0;
    if (rows < 4) { // few rows: wide strips, or there are too few independent sums to hide the latency of an FMA
        for (; j + 8 * VL <= n && rows == 1; j += 8 * VL) {
            mm_block(1, 8, depth, a, a_row, a_step, b, b_row, c, c_row, j, add);
        }
        for (; j + 4 * VL <= n; j += 4 * VL) {
            int i = 0;
            for (; i + 2 <= rows; i += 2) {
                mm_block(2, 4, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, j, add);
            }
            if (i < rows) {
                mm_block(1, 4, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, j, add);
            }
        }
    }
    for (; j + 2 * VL <= n; j += 2 * VL) {
        mm_strip(2, rows, depth, a, a_row, a_step, b, b_row, c, c_row, j, add);
    }
    if (j < n) {
        mm_strip(1, rows, depth, a, a_row, a_step, b, b_row, c, c_row, j, add);
    }
}

// S[n_keys] = K[n_keys][d] q, four keys at a time. Lanes are summed last, by the same tree for every key: a logit does not depend on its neighbours.
static void dots(int n_keys, int d, const float * q, const float * k, float * s) {
    for (int j = 0; j < n_keys; j += 4) {
        const float * row[4];
        vf acc[4];
        for (int i = 0; i < 4; i++) {
            row[i] = k + (ptrdiff_t) (j + i < n_keys ? j + i : j) * d;
            acc[i] = vf_set(0.0f);
        }
        for (int x = 0; x < d; x += VL) {
            const vf qv = vf_load(q + x);
            HS_UNROLL
            for (int i = 0; i < 4; i++) {
                acc[i] = vf_fma(qv, vf_load(row[i] + x), acc[i]);
            }
        }
        float four[4];
        vf_sum4(acc[0], acc[1], acc[2], acc[3], four);
        for (int i = 0; i < 4 && j + i < n_keys; i++) {
            s[j + i] = four[i];
        }
    }
}
