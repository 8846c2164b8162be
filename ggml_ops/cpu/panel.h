// The two matrix products of a tile of keys with many rows. Included once per level.
//
// A tile is HS_TILE_KEYS keys of one KV head, converted to f32 once and laid out in strips of PANEL_W columns: the keys transposed, [strip][d][PANEL_W],
// the values as they are, [strip][key][PANEL_W]. Both products then are the same kernel: C[rows][columns] (+)= A B with one element of A broadcast to
// a register of columns.
// Replaces: products with the queries transposed. Rows of A and C are reached through pointers, so any set of queries meets a tile without being
// packed, and the transposition is paid once a tile of keys, however many queries see it.
// Order of summation: every element of C has one accumulator and runs over A's columns in order, whatever rows share its register block.
#pragma once

#include "panel_simd.h"
#include "rows.h"

// A block of rows x cols vectors in registers. a[i] and c[i]: rows, from the first element of use on.
HS_INLINE void panel_block(const int rows, const int cols, int depth, const float * const * a, ptrdiff_t a0, const float * b, ptrdiff_t b_row,
    float * const * c, ptrdiff_t c0, const bool add) {
    vf acc[PANEL_ROWS][PANEL_COLS];
    const float * ar[PANEL_ROWS];
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        ar[i] = a[i] + a0;
        HS_UNROLL
        for (int j = 0; j < cols; j++) {
            acc[i][j] = add ? vf_load(c[i] + c0 + j * VL) : vf_set(0.0f);
        }
    }
    for (ptrdiff_t x = 0; x < depth; x++) {
        vf bv[PANEL_COLS];
        HS_UNROLL
        for (int j = 0; j < cols; j++) {
            bv[j] = vf_load(b + x * b_row + j * VL);
        }
        HS_UNROLL
        for (int i = 0; i < rows; i++) {
            const vf av = vf_set(ar[i][x]);
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
            vf_store(c[i] + c0 + j * VL, acc[i][j]);
        }
    }
}

HS_INLINE void panel_rows(const int rows, int cols, int depth, const float * const * a, ptrdiff_t a0, const float * b, ptrdiff_t b_row,
    float * const * c, ptrdiff_t c0, const bool add) {
    switch (cols) {
        case 1: panel_block(rows, 1, depth, a, a0, b, b_row, c, c0, add); break;
        case 2: panel_block(rows, 2, depth, a, a0, b, b_row, c, c0, add); break;
#if PANEL_COLS == 4
        case 3: panel_block(rows, 3, depth, a, a0, b, b_row, c, c0, add); break;
        case 4: panel_block(rows, 4, depth, a, a0, b, b_row, c, c0, add); break;
#endif
        default: break;
    }
}

// Up to PANEL_ROWS rows, cols vectors.
HS_INLINE void panel_any(int rows, int cols, int depth, const float * const * a, ptrdiff_t a0, const float * b, ptrdiff_t b_row, float * const * c,
    ptrdiff_t c0, const bool add) {
    if (rows == PANEL_ROWS) {
        panel_rows(PANEL_ROWS, cols, depth, a, a0, b, b_row, c, c0, add);
        return;
    }
#if PANEL_ROWS > 4
    for (; rows >= 4; rows -= 4, a += 4, c += 4) {
        panel_rows(4, cols, depth, a, a0, b, b_row, c, c0, add);
    }
#endif
    for (; rows >= 2; rows -= 2, a += 2, c += 2) {
        panel_rows(2, cols, depth, a, a0, b, b_row, c, c0, add);
    }
    if (rows == 1) {
        panel_rows(1, cols, depth, a, a0, b, b_row, c, c0, add);
    }
}

// s[i][lo .. hi] = q[i] . k[lo .. hi], and what lies in the same vectors on either side. rows <= PANEL_ROWS.
static void panel_scores(int rows, int d, const float * const * q, const float * kt, int lo, int hi, float * const * s) {
    for (int strip = lo / PANEL_W; strip <= hi / PANEL_W; strip++) {
        const int v0 = strip == lo / PANEL_W ? lo % PANEL_W / VL : 0, v1 = strip == hi / PANEL_W ? hi % PANEL_W / VL + 1 : PANEL_COLS;
        panel_any(rows, v1 - v0, d, q, 0, kt + (ptrdiff_t) strip * d * PANEL_W + v0 * VL, PANEL_W, s, strip * PANEL_W + v0 * VL, false);
    }
}

// o[i] += sum over keys lo .. hi of p[i][key] v[key]. rows <= PANEL_ROWS.
static void panel_values(int rows, int d, const float * const * p, const float * v, int lo, int hi, float * const * o) {
    for (int c = 0; c < d; c += PANEL_W) {
        const int w = d - c < PANEL_W ? d - c : PANEL_W;
        panel_any(rows, w / VL, hi - lo + 1, p, lo, v + (ptrdiff_t) c * HS_TILE_KEYS + lo * w, w, o, c, true);
    }
}

// n <= VL keys, f32 rows [n][d] times `scale`, to the columns of a strip [d][PANEL_W]; keys n .. VL - 1 are zero. rows has room for them.
static void panel_pack_keys(float * rows, int n, int d, float scale, float * kt) {
    memset(rows + (ptrdiff_t) n * d, 0, (size_t) ((VL - n) * d) * sizeof(float));
    for (int x = 0; x < d; x += VL) {
        vf_transpose(rows + x, d, kt + (ptrdiff_t) x * PANEL_W, PANEL_W, vf_set(scale));
    }
}

// nk values, f32 rows [nk][d], to strips [strip][key][width].
static void panel_pack_values(const float * rows, int nk, int d, float * v) {
    for (int c = 0; c < d; c += PANEL_W) {
        const int w = d - c < PANEL_W ? d - c : PANEL_W;
        float * to = v + (ptrdiff_t) c * HS_TILE_KEYS;
        for (int j = 0; j < nk; j++) {
            for (int x = 0; x < w; x += VL) {
                vf_store(to + j * w + x, vf_load(rows + (ptrdiff_t) j * d + c + x));
            }
        }
    }
}
