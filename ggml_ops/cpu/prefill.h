// The online softmax of several queries: a tile of keys meets the rows of all queries that see it. Included once per level.
//
// Replaces: score matrix, mask and softmax as separate passes. Saves: their memory; and keys and values are converted and laid out once for all rows of
// an item (hundreds to thousands), however scattered the queries are that see them.
// Order of summation: keys ascending within a tile and tile after tile in f32. The tiles depend on positions and selections only, and every row is
// summed alone, so neither the other queries of an item nor the number of threads matter beyond the choice of the few-rows kernel.
#pragma once

#include "panel_load.h"

#define PANEL_FEW 8 // up to so many rows of a tile, dot products with the keys as they lie beat their transposition

// Logits of few rows, whose keys lie in u->kv as rows: dot products, query by query.
static void panel_few_scores(const struct sub * u, const struct panel_rows * p, float scale) {
    const int32_t d = u->a->plan.d_qk;
    for (int32_t i = 0; i < p->n; i++) {
        float * s = p->s[i] + p->lo[i];
        const int32_t n = p->hi[i] - p->lo[i] + 1;
        dots(n, d, p->q[i], u->kv + (ptrdiff_t) p->lo[i] * d, s);
        for (int32_t j = 0; j < n; j++) {
            s[j] *= scale;
        }
    }
}

// The tile at hand: nk keys from position j0 on.
struct panel_keys {
    int64_t j0;
    int32_t nk, lines;   // lines: of the next tile, fetched beside each register block
    int32_t step;        // vectors a block, 0: blocks begin or end inside vectors
    bool few, values;    // few rows: their logits are there already; values are converted
    struct panel_ahead ahead;
};

// The rows of p against the tile. Values are converted only now, so that the keys are in the first cache for the first rows, and the values then.
static void panel_run(struct sub * u, const struct panel_rows * p, struct panel_keys * k) {
    const struct hs_plan * pl = &u->a->plan;
    const float * const * s = (const float * const *) p->s, * const * o = (const float * const *) p->o;
    for (int32_t i = 0; i < p->n && !k->few; i += PANEL_ROWS) {
        const int32_t g = i / PANEL_ROWS, rows = p->n - i < PANEL_ROWS ? p->n - i : PANEL_ROWS;
        panel_fetch(p, i, s, HS_TILE_KEYS, true);
        panel_fetch(p, i + PANEL_ROWS, p->q, pl->d_qk, false);
        panel_ahead_lines(&k->ahead, k->lines);
        panel_scores(rows, pl->d_qk, p->q + i, u->kt, p->group_lo[g], p->group_hi[g], p->s + i);
    }
    for (int32_t i = 0; i < p->n; i += 4) {
        panel_maxima(u, p, i, k->j0, k->step);
        panel_weights(u, p, i);
    }
    if (!k->values) {
        panel_load_values(u, k->j0, k->nk);
        k->values = true;
    }
    for (int32_t i = 0; i < p->n; i += PANEL_ROWS) {
        const int32_t g = i / PANEL_ROWS, rows = p->n - i < PANEL_ROWS ? p->n - i : PANEL_ROWS;
        panel_fetch(p, i + PANEL_ROWS, s, HS_TILE_KEYS, false);
        panel_fetch(p, i + PANEL_ROWS, o, pl->d_v, true);
        panel_ahead_lines(&k->ahead, k->lines);
        panel_values(rows, pl->d_v, s + i, u->vt, p->group_lo[g], p->group_hi[g], p->o + i);
    }
}

static int32_t panel_step(const struct sub * u, int64_t j0, int32_t nk) {
    const int32_t size = u->block_size;
    return size == 0 ? 0 : j0 / size == (j0 + nk - 1) / size ? HS_TILE_KEYS / VL : size % VL == 0 && j0 % size == 0 ? size / VL : 0;
}

// One tile: nk keys from position j0 on, and the n queries that see some of them. `next`: keys of the tile behind it, or none.
static void panel_tile(struct sub * u, int64_t j0, int32_t nk, const struct see * see, int32_t n, struct hs_run next) {
    const float scale = u->a->p->scale * LOG2_E;
    struct panel_rows p;
    if (n == 0) {
        return;
    }
    if (u->block_size > 0) {
        touch_blocks(u, j0, j0 + nk);
    }
    const int64_t n_lines = (next.end - next.first) * (int64_t) (u->br->k.t->nb[1] + u->br->v.t->nb[1]) / 64;
    struct panel_keys k = {
        .j0 = j0, .nk = nk, .lines = (int32_t) n_lines * PANEL_ROWS / (2 * n * u->n_rep) + 1, .few = n * u->n_rep <= PANEL_FEW,
        .step = panel_step(u, j0, nk), .ahead = panel_ahead_of(u, next.first, next.end),
    };
    struct panel_at at = { 0, 0 };
    panel_take(u, see, n, &at, &p);
    if (k.few) {
        load_rows(&u->br->k, u->seq, u->head_kv, j0, nk, u->kv);
        panel_few_scores(u, &p, scale);
    } else {
        panel_load_keys(u, j0, nk, scale);
    }
    do {
        panel_run(u, &p, &k);
    } while (panel_take(u, see, n, &at, &p));
}

// The item's queries in one piece: in the op's q the tokens of a head lie a power of two apart, all in few sets of a cache.
static void panel_begin(struct sub * u, int32_t tok0) {
    const struct hs_plan * pl = &u->a->plan;
    const int64_t n = (int64_t) u->n_rep * pl->d_qk;
    for (int32_t i = 0; i < u->nq; i++) {
        const float * src = u->a->q + (int64_t) (tok0 + i) * pl->n_head * pl->d_qk + u->head_kv * n;
        memcpy(u->q + i * n, src, (size_t) n * sizeof(float));
    }
}

// Running maxima as the other paths and item_finish keep them.
static void panel_end(struct sub * u) {
    for (int32_t r = 0; r < u->nq * u->n_rep; r++) {
        u->m[r] = u->m[r] > HS_MAX_START ? u->m[r] * LN_2 : HS_MAX_START;
    }
}

static int32_t clamp(int64_t x, int64_t lo, int64_t hi) {
    return (int32_t) (x < lo ? lo : x > hi ? hi : x);
}

// Window or causal: tiles from..to of the positions in view.
static void panel_walk_dense(struct sub * u, int32_t tok0, struct hs_run span, int64_t from, int64_t to) {
    panel_begin(u, tok0);
    for (int64_t x = from; x < to && span.first + x * HS_TILE_KEYS < span.end; x++) {
        const int64_t j0 = span.first + x * HS_TILE_KEYS, left = span.end - j0;
        const int32_t nk = left < HS_TILE_KEYS ? (int32_t) left : HS_TILE_KEYS;
        int32_t n = 0;
        for (int32_t i = 0; i < u->nq; i++) {
            const int64_t t = u->a->pos[tok0 + i];
            const struct see s = { i, clamp(t - u->br->window + 1 - j0, 0, nk), clamp(t - j0, -1, nk - 1) };
            u->see[n] = s;
            n += s.lo <= s.hi;
        }
        const int64_t next = j0 + nk, end = next + HS_TILE_KEYS < span.end ? next + HS_TILE_KEYS : span.end;
        panel_tile(u, j0, nk, u->see, n, (struct hs_run) { next, x + 1 < to ? end : next });
    }
    panel_end(u);
}

// Selections: they are turned round, from blocks by query to queries by block (a counting sort; hs_runs says which blocks a query sees).
// u->start[b] becomes the end of block b's entries in u->picks; an entry is 2 * query, plus 1 if the query sees the block from its first key on
// (selected, or block 0) and not only from the forced window's first.
static int64_t panel_turn(struct sub * u, int32_t tok0) {
    const int64_t size = u->a->p->block_size;
    int64_t n_blocks = 0;
    for (int32_t i = 0; i < u->nq; i++) {
        const int64_t own = u->a->pos[tok0 + i] / size + 1;
        n_blocks = own > n_blocks ? own : n_blocks;
    }
    memset(u->start, 0, (size_t) (n_blocks + 1) * sizeof(*u->start));
    for (int pass = 0; pass < 2; pass++) {
        for (int32_t i = 0; i < u->nq; i++) {
            const struct hs_runs q = hs_runs_of(u->a, u->br, tok0 + i, u->head_kv);
            const int64_t own = q.t / size, tail = q.tail ? q.window_first / size : own + 1; // blocks from `tail` on hold the window
            const bool zero = q.zero && (q.top_k == 0 || q.sel[0] != 0);
            int64_t done = -1;
            for (int32_t x = zero ? -1 : 0; x < q.top_k && (x < 0 || q.sel[x] >= 0); x++) {
                const int64_t b = x < 0 ? 0 : q.sel[x];
                if (b > own) {
                    break;
                }
                for (int64_t w = done + 1 > tail ? done + 1 : tail; w < b; w++) {
                    pass == 0 ? u->start[w + 1]++ : (u->picks[u->start[w]++] = 2 * i);
                }
                pass == 0 ? u->start[b + 1]++ : (u->picks[u->start[b]++] = 2 * i + 1);
                done = b;
            }
            for (int64_t w = done + 1 > tail ? done + 1 : tail; w <= own; w++) {
                pass == 0 ? u->start[w + 1]++ : (u->picks[u->start[w]++] = 2 * i);
            }
        }
        for (int64_t b = 0; b < n_blocks && pass == 0; b++) {
            u->start[b + 1] += u->start[b];
        }
    }
    return n_blocks;
}

// The first key tile of the first block from `b` on that some query sees, up to position `end`.
static struct hs_run panel_next_tile(const struct sub * u, int64_t b, int64_t n_blocks, int64_t end) {
    const int64_t size = u->a->p->block_size;
    for (; b < n_blocks; b++) {
        if (u->start[b] > (b > 0 ? u->start[b - 1] : 0)) {
            const int64_t first = b * size, n = size < HS_TILE_KEYS ? size : HS_TILE_KEYS;
            return (struct hs_run) { first, first + n < end ? first + n : end };
        }
    }
    return (struct hs_run) { 0, 0 };
}

// Block after block that some query of the tile sees.
static void panel_walk_selected(struct sub * u, int32_t tok0) {
    const int64_t size = u->a->p->block_size, n_blocks = panel_turn(u, tok0);
    int64_t end = 0;
    panel_begin(u, tok0);
    for (int32_t i = 0; i < u->nq; i++) {
        end = u->a->pos[tok0 + i] >= end ? u->a->pos[tok0 + i] + 1 : end;
    }
    for (int64_t b = 0; b < n_blocks; b++) {
        const int32_t * picks = u->picks + (b > 0 ? u->start[b - 1] : 0), n_picks = (int32_t) (u->picks + u->start[b] - picks);
        for (int64_t j0 = b * size; j0 < (b + 1) * size && n_picks > 0; j0 += HS_TILE_KEYS) {
            const int64_t left = (b + 1) * size - j0;
            const int32_t nk = left < HS_TILE_KEYS ? (int32_t) left : HS_TILE_KEYS;
            int32_t n = 0, last = -1;
            for (int32_t i = 0; i < n_picks; i++) {
                const int64_t t = u->a->pos[tok0 + picks[i] / 2], first = picks[i] % 2 ? j0 : t - u->br->window + 1;
                const struct see s = { picks[i] / 2, clamp(first - j0, 0, nk), clamp(t - j0, -1, nk - 1) };
                u->see[n] = s;
                n += s.lo <= s.hi;
                last = s.hi > last ? s.hi : last;
            }
            const struct hs_run inside = { j0 + nk, j0 + 2 * nk < end ? j0 + 2 * nk : end };
            panel_tile(u, j0, last + 1, u->see, n, left > nk && inside.first < end ? inside : panel_next_tile(u, b + 1, n_blocks, end));
        }
    }
    panel_end(u);
}
