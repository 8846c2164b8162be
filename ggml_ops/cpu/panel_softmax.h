// The rows that meet a tile of keys, and their softmax: logits to weights, running maxima, denominators, block maxima. Included once per level.
//
// While an item is walked, its running maxima are of logits times log2(e). They lag behind the true maximum by up to LAG, which saves most
// rescaling of the outputs and costs no precision: weights then reach 2^LAG. Partial maxima of four rows are joined at a time.
#pragma once

#include "sub.h"
#include "panel.h"

#define LOG2_E  1.44269504088896341f
#define LN_2    0.693147180559945309f
#define LAG     8.0f
#define PANEL_VECTORS (HS_TILE_KEYS / VL)

// A query that sees keys lo..hi of the tile at hand.
struct see { int32_t query, lo, hi; };

// Rows of a tile whose logits exist at a time. Groups of PANEL_ROWS rows share a range of keys lo..hi, the union of theirs.
struct panel_rows {
    int32_t n;
    const float * q[HS_PANEL_ROWS];
    float * s[HS_PANEL_ROWS], * o[HS_PANEL_ROWS]; // s: [HS_TILE_KEYS] a row
    int32_t row[HS_PANEL_ROWS], lo[HS_PANEL_ROWS], hi[HS_PANEL_ROWS];
    int32_t group_lo[HS_PANEL_ROWS], group_hi[HS_PANEL_ROWS];
};

// Where a list of queries has been taken up to: row `rep` of query list[i].
struct panel_at { int32_t i, rep; };

// The next rows of a list of n queries, query-major.
static bool panel_take(const struct sub * u, const struct see * list, int32_t n, struct panel_at * at, struct panel_rows * p) {
    const struct hs_plan * pl = &u->a->plan;
    int32_t x = 0, in_group = 0, g = 0;
    for (; at->i < n && x < HS_PANEL_ROWS; at->i++) {
        const struct see see = list[at->i];
        for (; at->rep < u->n_rep && x < HS_PANEL_ROWS; at->rep++, x++) {
            const int32_t row = see.query * u->n_rep + at->rep;
            p->row[x] = row;
            p->q[x] = u->q + (ptrdiff_t) row * pl->d_qk;
            p->s[x] = u->s + (ptrdiff_t) x * HS_TILE_KEYS;
            p->o[x] = u->o + (ptrdiff_t) row * pl->d_v;
            p->lo[x] = see.lo;
            p->hi[x] = see.hi;
            p->group_lo[g] = in_group == 0 || see.lo < p->group_lo[g] ? see.lo : p->group_lo[g];
            p->group_hi[g] = in_group == 0 || see.hi > p->group_hi[g] ? see.hi : p->group_hi[g];
            in_group = in_group + 1 == PANEL_ROWS ? 0 : in_group + 1;
            g += in_group == 0;
        }
        if (at->rep < u->n_rep) {
            break;
        }
        at->rep = 0;
    }
    p->n = x;
    return x > 0;
}

// Block maxima of a row whose tile holds several blocks, or parts of them.
static void panel_block_maxima(struct sub * u, const struct panel_rows * p, int32_t i, int64_t j0) {
    const float * s = p->s[i];
    for (int32_t j = p->lo[i]; j <= p->hi[i];) {
        const int64_t block = (j0 + j) / u->block_size, left = (block + 1) * u->block_size - j0;
        const int32_t end = left <= p->hi[i] ? (int32_t) left : p->hi[i] + 1;
        const float x = row_max(s + j, end - j) * LN_2;
        float * b = u->block_max + block * u->rows + p->row[i];
        *b = x > *b ? x : *b;
        j = end;
    }
}

// Vectors that hold the keys of row i's group; *whole: the row sees every key of them.
static int32_t panel_vectors(const struct panel_rows * p, int32_t i, int32_t * first, bool * whole) {
    const int32_t g = i / PANEL_ROWS, end = p->group_hi[g] / VL + 1;
    *first = p->group_lo[g] / VL;
    *whole = p->lo[i] <= *first * VL && p->hi[i] >= end * VL - 1;
    return end;
}

// The largest logit of row i among vectors v0 .. v1 - 1, spread over the lanes.
static vf panel_best(const struct panel_rows * p, int32_t i, int32_t v0, int32_t v1) {
    const float * s = p->s[i];
    int32_t first;
    bool whole;
    const int32_t last = panel_vectors(p, i, &first, &whole), end = last < v1 ? last : v1;
    vf best = vf_set(HS_MASKED);
    int32_t j = first > v0 ? first : v0;
    for (; whole && j + PANEL_VECTORS <= end; j += PANEL_VECTORS) {
        HS_UNROLL
        for (int x = 0; x < PANEL_VECTORS; x++) {
            best = vf_max(best, vf_load(s + (j + x) * VL));
        }
    }
    for (; j < end; j++) {
        const vf x = vf_load(s + j * VL);
        best = vf_max(best, whole ? x : vf_only(x, HS_MASKED, p->lo[i] - j * VL, p->hi[i] - j * VL));
    }
    return best;
}

// Logits of row i to weights, zero for keys that it does not see; their sum, spread over the lanes.
static vf panel_row_weights(const struct panel_rows * p, int32_t i, vf m) {
    float * s = p->s[i];
    int32_t first;
    bool whole;
    const int32_t end = panel_vectors(p, i, &first, &whole);
    vf sum = vf_set(0.0f);
    int32_t j = first;
    for (; whole && j + PANEL_VECTORS <= end; j += PANEL_VECTORS) {
        HS_UNROLL
        for (int x = 0; x < PANEL_VECTORS; x++) {
            const vf e = vf_exp2(vf_sub(vf_load(s + (j + x) * VL), m));
            vf_store(s + (j + x) * VL, e);
            sum = vf_add(sum, e);
        }
    }
    for (; j < end; j++) {
        vf e = vf_exp2(vf_sub(vf_load(s + j * VL), m));
        e = whole ? e : vf_only(e, 0.0f, p->lo[i] - j * VL, p->hi[i] - j * VL);
        vf_store(s + j * VL, e);
        sum = vf_add(sum, e);
    }
    return sum;
}

// Block maxima of rows i .. i + 3 (up to p->n), block by block of `step` vectors, the first of them the one of j0; top: the rows' maxima.
static void panel_blocks(struct sub * u, const struct panel_rows * p, int32_t i, int64_t j0, int32_t step, float * top) {
    float * maxima = u->block_max + j0 / u->block_size * u->rows;
    for (int x = 0; x < 4; x++) {
        top[x] = HS_MASKED;
    }
    for (int32_t v = 0; v * VL < HS_TILE_KEYS; v += step, maxima += u->rows) {
        vf best[4];
        float t[4];
        bool seen = false;
        for (int x = 0; x < 4; x++) {
            const bool see = i + x < p->n && p->lo[i + x] < (v + step) * VL && p->hi[i + x] >= v * VL;
            best[x] = see ? panel_best(p, i + x, v, v + step) : vf_set(HS_MASKED);
            seen = seen || see;
        }
        if (!seen) {
            continue;
        }
        vf_max4(best[0], best[1], best[2], best[3], t);
        for (int x = 0; x < 4 && i + x < p->n; x++) {
            if (t[x] > HS_MASKED) {
                float * b = maxima + p->row[i + x];
                *b = t[x] * LN_2 > *b ? t[x] * LN_2 : *b;
                top[x] = t[x] > top[x] ? t[x] : top[x];
            }
        }
    }
}

// Rows i .. i + 3 (up to p->n): running maxima, and the outputs and denominators that hang on them. step: vectors a block, 0 for blocks that do not
// begin and end with vectors.
static void panel_maxima(struct sub * u, const struct panel_rows * p, int32_t i, int64_t j0, int32_t step) {
    float top[4];
    if (u->block_size > 0 && step > 0) {
        panel_blocks(u, p, i, j0, step, top);
    } else {
        vf best[4];
        bool above = false;
        for (int x = 0; x < 4; x++) {
            best[x] = i + x < p->n ? panel_best(p, i + x, 0, HS_TILE_KEYS / VL) : vf_set(HS_MASKED);
            above = above || (i + x < p->n && vf_any_above(best[x], vf_set(u->m[p->row[i + x]] + LAG)));
        }
        for (int x = 0; x < 4 && i + x < p->n && u->block_size > 0; x++) {
            panel_block_maxima(u, p, i + x, j0);
        }
        if (!above) {
            return;
        }
        vf_max4(best[0], best[1], best[2], best[3], top);
    }
    for (int x = 0; x < 4 && i + x < p->n; x++) {
        const int32_t r = p->row[i + x];
        if (top[x] > u->m[r] + LAG) {
            const float fix = exp2f(u->m[r] - top[x]);
            scale_row(p->o[i + x], fix, u->a->plan.d_v);
            u->l[r] *= fix;
            u->m[r] = top[x];
        }
    }
}

// Rows i .. i + 3 (up to p->n): weights and denominators.
static void panel_weights(struct sub * u, const struct panel_rows * p, int32_t i) {
    vf sum[4];
    for (int x = 0; x < 4; x++) {
        sum[x] = i + x < p->n ? panel_row_weights(p, i + x, vf_set(u->m[p->row[i + x]])) : vf_set(0.0f);
    }
    float add[4];
    vf_sum4(sum[0], sum[1], sum[2], sum[3], add);
    for (int x = 0; x < 4 && i + x < p->n; x++) {
        u->l[p->row[i + x]] += add[x];
    }
}
