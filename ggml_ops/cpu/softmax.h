// The online softmax of one query with many rows: a tile of up to HS_TILE_KEYS keys meets its rows of one KV head. Included once per level.
//
// Replaces: score matrix, mask and softmax as separate passes. Saves: their memory, and the conversion of K and V, done once for all rows of a tile.
// Order of summation: keys ascending within a tile and tile after tile in f32, rescaled when the running maximum moves; the tiles depend on
// positions only, not on the number of threads (threads that share an item add their parts at its end).
#pragma once

#include "sub.h"

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

// Many rows: rows in vector lanes, s = exp(logits) as [nk][rows].
static void lanes_scores(struct sub * u, const float * k, int64_t j0, int32_t nk) {
    const int32_t d = u->a->plan.d_qk, n = (u->n_rep + VL - 1) / VL * VL;
    mm(nk, n, d, k, d, 1, u->qt, u->rows, u->s, u->rows, false);
    for (int32_t x = 0; x < n; x += VL) {
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
    for (int32_t r = 0; r < u->n_rep; r++) {
        if (u->row_fix[r] != 1.0f) {
            scale_row(u->o + (ptrdiff_t) r * u->a->plan.d_v, u->row_fix[r], u->a->plan.d_v);
        }
    }
}

// One tile: the nk keys of `runs`, all of which the query sees. Block maxima need a single run.
static void tile(struct sub * u, const struct hs_run * runs, int32_t n_runs, int32_t nk) {
    const int32_t d_v = u->a->plan.d_v;
    const int64_t j0 = runs[0].first;
    if (u->block_size > 0) {
        touch_blocks(u, j0, j0 + nk);
    }
    lanes_scores(u, load_runs(u, &u->br->k, runs, n_runs), j0, nk);
    mm(u->n_rep, d_v, nk, u->s, 1, u->rows, load_runs(u, &u->br->v, runs, n_runs), d_v, u->o, d_v, true);
}
