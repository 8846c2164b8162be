// The online softmax: one tile of up to HS_TILE_KEYS keys meets the rows of one KV head. Included once per level.
//
// Replaces: score matrix, mask and softmax as separate passes. Saves: their memory, and the conversion of K and V, done once for all rows of a tile.
// Order of summation: keys ascending within a tile and tile after tile in f32, rescaled when the running maximum moves; the tiles depend on
// positions only, not on the number of threads (threads that share an item add their parts at its end).
#pragma once

#include "few.h"

// Maximum over keys of one vector of rows; with block maxima, block by block.
static vf lanes_max(struct sub * u, int32_t x, int64_t j0, int32_t nk) {
    const float * s = u->s + x;
    vf all = vf_set(HS_MASKED);
    for (int32_t j = 0; j < nk;) {
        const int64_t block = u->block_size > 0 ? (j0 + j) / u->block_size : 0;
        const int64_t left = u->block_size > 0 ? (block + 1) * u->block_size - j0 : nk;
        const int32_t end = left < nk ? (int32_t) left : nk;
        vf best = vf_set(HS_MASKED);
        for (; j < end; j++) {
            best = vf_max(best, vf_load(s + (ptrdiff_t) j * u->rows));
        }
        all = vf_max(all, best);
        if (u->block_size > 0) {
            float * b = u->block_max + block * u->rows + x;
            vf_store(b, vf_max(vf_load(b), best));
        }
    }
    return all;
}

// Logits that a row does not see become HS_MASKED. Nothing to do for tiles that every query sees whole: most of them.
static void lanes_mask(struct sub * u, int32_t c0, int32_t c1, int32_t nk) {
    bool cut = false;
    for (int32_t i = 0; i < u->nq; i++) {
        cut = cut || u->lo[i] > 0 || u->hi[i] < nk - 1;
    }
    if (!cut) {
        return;
    }
    for (int32_t r = c0; r < c1; r++) { // rows of the padding see everything; nobody reads them
        const int32_t i = r / u->n_rep;
        u->row_lo[r] = i < u->nq ? (float) u->lo[i] : 0.0f;
        u->row_hi[r] = i < u->nq ? (float) u->hi[i] : (float) nk;
    }
    for (int32_t x = c0; x < c1; x += VL) {
        const vf lo = vf_load(u->row_lo + x), hi = vf_load(u->row_hi + x);
        for (int32_t j = 0; j < nk; j++) {
            float * s = u->s + (ptrdiff_t) j * u->rows + x;
            vf_store(s, vf_keep((float) j, lo, hi, vf_load(s)));
        }
    }
}

// Many rows: rows in vector lanes, s = exp(logits) as [nk][rows]; columns c0..c1 (multiples of VL), rows r0..r1 of o.
static void lanes_scores(struct sub * u, const float * k, int64_t j0, int32_t nk, int32_t r0, int32_t r1) {
    const int32_t d = u->a->plan.d_qk, c0 = r0 / VL * VL, c1 = (r1 + VL - 1) / VL * VL;
    mm(nk, c1 - c0, d, k, d, 1, u->qt + c0, u->rows, u->s + c0, u->rows, false);
    lanes_mask(u, c0, c1, nk);
    for (int32_t x = c0; x < c1; x += VL) {
        const vf old = vf_load(u->m + x), now = vf_max(old, lanes_max(u, x, j0, nk));
        const vf fix = vf_exp(vf_sub(old, now));
        vf sum = vf_set(0.0f);
        for (int32_t j = 0; j < nk; j++) {
            float * s = u->s + (ptrdiff_t) j * u->rows + x;
            const vf e = vf_exp(vf_sub(vf_load(s), now));
            vf_store(s, e);
            sum = vf_add(sum, e);
        }
        vf_store(u->m + x, now);
        vf_store(u->l + x, vf_fma(vf_load(u->l + x), fix, sum));
        vf_store(u->row_fix + x, fix);
    }
    for (int32_t r = r0; r < r1; r++) {
        if (u->row_fix[r] != 1.0f) {
            scale_row(u->o + (ptrdiff_t) r * u->a->plan.d_v, u->row_fix[r], u->a->plan.d_v);
        }
    }
}

// One tile: the keys of `runs` (nk in all), of which query i sees lo[i]..hi[i]. Block maxima need a single run.
static void tile(struct sub * u, const struct hs_run * runs, int32_t n_runs, int32_t nk) {
    const int32_t d_v = u->a->plan.d_v;
    const int64_t j0 = runs[0].first;
    int32_t n_see = 0;
    for (int32_t i = 0; i < u->nq; i++) {
        n_see += u->lo[i] <= u->hi[i];
    }
    if (n_see == 0) {
        return;
    }
    if (u->block_size > 0) {
        touch_blocks(u, j0, j0 + nk);
    }
    // All rows at once, unless few of the queries see the tile: then query by query, on the same converted rows.
    // (By lanes only if no two queries share a vector.)
    const bool all = u->lanes && 2 * n_see >= u->nq, one = !u->lanes || u->n_rep <= FEW_ROWS || u->n_rep % VL != 0;
    const float * k = load_runs(u, &u->br->k, runs, n_runs);
    if (all) {
        lanes_scores(u, k, j0, nk, 0, u->nq * u->n_rep);
    }
    for (int32_t i = 0; i < u->nq && !all; i++) {
        if (u->lo[i] <= u->hi[i]) {
            if (one) {
                few_scores(u, k, j0, i);
            } else {
                lanes_scores(u, k, j0, nk, i * u->n_rep, (i + 1) * u->n_rep);
            }
        }
    }
    const float * v = load_runs(u, &u->br->v, runs, n_runs);
    if (all) {
        mm(u->nq * u->n_rep, d_v, nk, u->s, 1, u->rows, v, d_v, u->o, d_v, true);
    }
    for (int32_t i = 0; i < u->nq && !all; i++) {
        if (u->lo[i] <= u->hi[i]) {
            if (one) {
                few_values(u, v, i);
            } else {
                mm(u->n_rep, d_v, nk, u->s + i * u->n_rep, 1, u->rows, v, d_v, u->o + (ptrdiff_t) i * u->n_rep * d_v, d_v, true);
            }
        }
    }
}
