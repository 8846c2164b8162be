// Decode: the online softmax of one tile of keys, keys in vector lanes. Included once per level.
//
// Replaces, with AVX-512: a chain of reductions a row. Saves: the rows' latencies (they go through the same instructions, four in one vector), and
// loads and stores between maximum, exponential and sum.
// Order of summation: 64 keys as 4 partial vectors, added as a tree, then tile after tile.
#pragma once

#include "sub.h"

#if defined(HS_SIMD_AVX512)
// Maxima of the blocks that a tile touches. best: maxima of the rows over the whole tile, which usually lies in one block.
static void block_maxima(struct sub * u, int32_t r0, int32_t rows, int64_t j0, int32_t n, const float * best) {
    for (int32_t j = 0; j < n;) {
        const int64_t block = (j0 + j) / u->block_size, left = (block + 1) * u->block_size - j0;
        const int32_t end = left < n ? (int32_t) left : n;
        float * b = u->block_max + block * u->rows + r0;
        for (int32_t r = 0; r < rows; r++) {
            const float x = end - j == n ? best[r] : row_max(u->s + (ptrdiff_t) (r0 + r) * HS_TILE_KEYS + j, end - j);
            b[r] = x > b[r] ? x : b[r];
        }
        j = end;
    }
}

// The maximum (sum: the sum) of each of four vectors: { a, b, c, d } in every quarter.
HS_INLINE vf reduce_4(const bool sum, vf a, vf b, vf c, vf d) {
    const vf p = _mm512_unpacklo_ps(a, b), q = _mm512_unpackhi_ps(a, b), r = _mm512_unpacklo_ps(c, d), s = _mm512_unpackhi_ps(c, d);
    const vf ab = sum ? vf_add(p, q) : vf_max(p, q), cd = sum ? vf_add(r, s) : vf_max(r, s);
    const vf t = _mm512_shuffle_ps(ab, cd, 0x44), u = _mm512_shuffle_ps(ab, cd, 0xee);
    const vf x = sum ? vf_add(t, u) : vf_max(t, u), x2 = _mm512_shuffle_f32x4(x, x, 0x4e);
    const vf y = sum ? vf_add(x, x2) : vf_max(x, x2), y2 = _mm512_shuffle_f32x4(y, y, 0xb1);
    return sum ? vf_add(y, y2) : vf_max(y, y2);
}

// Logits to weights, up to 4 rows from r0 on, of which n keys count; all of them stay in registers in between. One row need not wait for another's
// reductions, and the exponentials do not wait for the old state.
HS_INLINE void softmax_4(struct sub * u, const int rows, int32_t r0, int64_t j0, int32_t n) {
    float * s = u->s + (ptrdiff_t) r0 * HS_TILE_KEYS, * m = u->m + r0, * l = u->l + r0, best[VL], fix[VL];
    vf x[4][4], y[4];
    HS_UNROLL
    for (int r = 0; r < rows; r++) {
        for (int32_t j = n; j < HS_TILE_KEYS; j++) { // a tile that is not full
            s[r * HS_TILE_KEYS + j] = HS_MASKED;
        }
        HS_UNROLL
        for (int i = 0; i < 4; i++) {
            x[r][i] = vf_load(s + r * HS_TILE_KEYS + i * VL);
        }
        y[r] = vf_max(vf_max(x[r][0], x[r][1]), vf_max(x[r][2], x[r][3]));
    }
    const vf most = reduce_4(false, y[0], y[rows > 1], y[rows > 2 ? 2 : 0], y[rows > 3 ? 3 : 0]);
    if (u->block_size > 0) {
        vf_store(best, most);
        block_maxima(u, r0, rows, j0, n, best);
    }
    const __mmask8 some = (__mmask8) ((1 << rows) - 1);
    const __m128 m4 = _mm_maskz_loadu_ps(some, m), l4 = _mm_maskz_loadu_ps(some, l);
    const vf old = _mm512_broadcast_f32x4(m4), now = vf_max(old, most), change = vf_exp(vf_sub(old, now));
    HS_UNROLL
    for (int r = 0; r < rows; r++) {
        const vf top = r == 0 ? _mm512_permute_ps(now, 0x00) : r == 1 ? _mm512_permute_ps(now, 0x55) : r == 2 ? _mm512_permute_ps(now, 0xaa) :
            _mm512_permute_ps(now, 0xff);
        HS_UNROLL
        for (int i = 0; i < 4; i++) {
            x[r][i] = vf_exp(vf_sub(x[r][i], top));
            vf_store(s + r * HS_TILE_KEYS + i * VL, x[r][i]);
        }
        y[r] = vf_add(vf_add(x[r][0], x[r][1]), vf_add(x[r][2], x[r][3]));
    }
    const vf sum = reduce_4(true, y[0], y[rows > 1], y[rows > 2 ? 2 : 0], y[rows > 3 ? 3 : 0]);
    _mm_mask_storeu_ps(m, some, _mm512_castps512_ps128(now));
    _mm_mask_storeu_ps(l, some, _mm_fmadd_ps(l4, _mm512_castps512_ps128(change), _mm512_castps512_ps128(sum)));
    if (_mm_cmp_ps_mask(m4, _mm512_castps512_ps128(now), _CMP_NEQ_OQ) & some) {
        vf_store(fix, change);
        for (int r = 0; r < rows; r++) {
            scale_row(u->o + (ptrdiff_t) (r0 + r) * u->a->plan.d_v, fix[r], u->a->plan.d_v);
        }
    }
}

// Logits of a tile to weights, s[row][HS_TILE_KEYS] of which n keys count: maxima, block maxima, the state. The first key is position j0.
static void tile_softmax(struct sub * u, int64_t j0, int32_t n) {
    for (int32_t r = 0; r < u->n_rep; r += 4) {
        switch (u->n_rep - r) {
            case 1: softmax_4(u, 1, r, j0, n); break;
            case 2: softmax_4(u, 2, r, j0, n); break;
            case 3: softmax_4(u, 3, r, j0, n); break;
            default: softmax_4(u, 4, r, j0, n); break;
        }
    }
}
#else
// The same, row by row.
static void tile_softmax(struct sub * u, int64_t j0, int32_t n) {
    const int32_t d_v = u->a->plan.d_v;
    for (int32_t r = 0; r < u->n_rep; r++) {
        float * s = u->s + (ptrdiff_t) r * HS_TILE_KEYS;
        float best = HS_MASKED;
        for (int32_t j = 0; j < n && u->block_size > 0;) {
            const int64_t block = (j0 + j) / u->block_size, left = (block + 1) * u->block_size - j0;
            const int32_t end = left < n ? (int32_t) left : n;
            const float x = row_max(s + j, end - j);
            float * b = u->block_max + block * u->rows + r;
            *b = x > *b ? x : *b;
            best = x > best ? x : best;
            j = end;
        }
        if (u->block_size <= 0) {
            best = row_max(s, n);
        }
        const float now = best > u->m[r] ? best : u->m[r];
        for (int32_t j = n; j % VL != 0; j++) {
            s[j] = HS_MASKED;
        }
        vf sum = vf_set(0.0f);
        for (int32_t j = 0; j < n; j += VL) {
            const vf e = vf_exp(vf_sub(vf_load(s + j), vf_set(now)));
            vf_store(s + j, e);
            sum = vf_add(sum, e);
        }
        if (now != u->m[r]) {
            const float fix = expf(u->m[r] - now);
            scale_row(u->o + (ptrdiff_t) r * d_v, fix, d_v);
            u->l[r] *= fix;
            u->m[r] = now;
        }
        u->l[r] += vf_sum(sum);
    }
}
#endif
