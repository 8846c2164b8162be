// The online softmax of several queries: a tile of keys meets the rows of all queries that see it. Included once per level.
//
// Replaces: score matrix, mask and softmax as separate passes. Saves: their memory; and keys and values are converted and laid out once for all rows of
// an item (hundreds to thousands), however scattered the queries are that see them.
// Order of summation: keys ascending within a tile and tile after tile in f32. The tiles depend on positions and selections only, and every row is
// summed alone, so neither the other queries of an item nor the number of threads matter beyond the choice of the few-rows kernel.
// While an item is walked, its running maxima are of logits times log2(e). They lag behind the true maximum by up to LAG, which saves most
// rescaling of the outputs and costs no precision: weights then reach 2^LAG.
#pragma once

#include "panel.h"
#include "few.h"

#define LOG2_E  1.44269504088896341f
#define LN_2    0.693147180559945309f
#define LAG     8.0f
#define PANEL_VECTORS (HS_TILE_KEYS / VL)
#define PANEL_FEW 8 // up to so many rows of a tile, dot products with the keys as they lie beat their transposition

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
        const float x = few_max(s + j, end - j) * LN_2;
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

// The largest logit of row i, spread over the lanes.
static vf panel_best(const struct panel_rows * p, int32_t i) {
    const float * s = p->s[i];
    int32_t first;
    bool whole;
    const int32_t end = panel_vectors(p, i, &first, &whole);
    if (whole && end - first == PANEL_VECTORS) {
        vf best = vf_load(s);
        HS_UNROLL
        for (int j = 1; j < PANEL_VECTORS; j++) {
            best = vf_max(best, vf_load(s + j * VL));
        }
        return best;
    }
    vf best = vf_set(HS_MASKED);
    for (int32_t j = first; j < end; j++) {
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
    if (whole && end - first == PANEL_VECTORS) {
        HS_UNROLL
        for (int j = 0; j < PANEL_VECTORS; j++) {
            const vf e = vf_exp2(vf_sub(vf_load(s + j * VL), m));
            vf_store(s + j * VL, e);
            sum = vf_add(sum, e);
        }
        return sum;
    }
    for (int32_t j = first; j < end; j++) {
        vf e = vf_exp2(vf_sub(vf_load(s + j * VL), m));
        e = whole ? e : vf_only(e, 0.0f, p->lo[i] - j * VL, p->hi[i] - j * VL);
        vf_store(s + j * VL, e);
        sum = vf_add(sum, e);
    }
    return sum;
}

// Rows i .. i + 3 (up to p->n): running maxima, and the outputs and denominators that hang on them. `whole`: the tile lies in one block.
static void panel_maxima(struct sub * u, const struct panel_rows * p, int32_t i, int64_t j0, bool whole) {
    vf best[4];
    bool above = u->block_size > 0;
    for (int x = 0; x < 4; x++) {
        best[x] = i + x < p->n ? panel_best(p, i + x) : vf_set(HS_MASKED);
        above = above || (i + x < p->n && vf_any_above(best[x], vf_set(u->m[p->row[i + x]] + LAG)));
    }
    if (!above) {
        return;
    }
    float top[4];
    vf_max4(best[0], best[1], best[2], best[3], top);
    for (int x = 0; x < 4 && i + x < p->n; x++) {
        const int32_t r = p->row[i + x];
        if (u->block_size > 0 && whole) {
            float * b = u->block_max + j0 / u->block_size * u->rows + r;
            *b = top[x] * LN_2 > *b ? top[x] * LN_2 : *b;
        } else if (u->block_size > 0) {
            panel_block_maxima(u, p, i + x, j0);
        }
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

// Logits of few rows, whose keys lie in u->kv as rows: dot products, query by query.
static void panel_few_scores(const struct sub * u, const struct panel_rows * p, float scale) {
    const int32_t d = u->a->plan.d_qk;
    for (int32_t i = 0; i < p->n; i++) {
        float * s = p->s[i] + p->lo[i];
        const int32_t n = p->hi[i] - p->lo[i] + 1;
        dots(1, n, d, p->q[i], u->kv + (ptrdiff_t) p->lo[i] * d, s, HS_TILE_KEYS);
        for (int32_t j = 0; j < n; j++) {
            s[j] *= scale;
        }
    }
}

// Values to strips, converted on the way where a strip is made of whole blocks of the type.
static void panel_load_values(struct sub * u, int64_t j0, int32_t nk) {
    const struct hs_cache * c = &u->br->v;
    const int32_t d = (int32_t) c->t->ne[0];
    if (PANEL_W % 32 != 0 && c->t->type == GGML_TYPE_Q8_0) {
        load_rows(c, u->seq, u->head_kv, j0, nk, u->kv);
        panel_pack_values(u->kv, nk, d, u->vt);
        return;
    }
    for (int32_t j = 0; j < nk;) {
        const void * at;
        const int32_t n = (int32_t) cache_run(c, u->seq, u->head_kv, j0 + j, nk - j, &at);
        for (int32_t i = 0; i < n; i++, j++) {
            for (int32_t x = 0; x < d; x += PANEL_W) {
                const int32_t w = d - x < PANEL_W ? d - x : PANEL_W;
                const char * src = (const char *) at + (size_t) i * c->t->nb[1] + ggml_row_size(c->t->type, x);
                convert_row(c->t->type, src, u->vt + (ptrdiff_t) x * HS_TILE_KEYS + j * w, w);
            }
        }
    }
}

// Keys and values of the tile after the one at hand, on their way to the second cache piece by piece. A page is too short for a prefetcher that has to
// see a stream first, and a tile of few rows is done before its successor would come from memory.
struct panel_ahead {
    const struct sub * u;
    const struct hs_cache * c; // keys, then values, then NULL
    int64_t j0, j, end;
    const char * at, * stop;
};

static struct panel_ahead panel_ahead_of(const struct sub * u, int64_t j0, int64_t end) {
    return (struct panel_ahead) { .u = u, .c = j0 < end ? &u->br->k : NULL, .j0 = j0, .j = j0, .end = end };
}

static void panel_ahead_lines(struct panel_ahead * x, int32_t n) {
    for (; n > 0 && x->c; n--) {
        if (x->at >= x->stop) {
            if (x->j == x->end) {
                x->c = x->c == &x->u->br->k ? &x->u->br->v : NULL;
                x->j = x->j0;
                continue;
            }
            const void * at;
            const int64_t run = cache_run(x->c, x->u->seq, x->u->head_kv, x->j, x->end - x->j, &at);
            x->at = at;
            x->stop = x->at + (size_t) run * x->c->t->nb[1];
            x->j += run;
        }
        __builtin_prefetch(x->at, 0, 2);
        x->at += 64;
    }
}

// Lines of rows that come next, on their way from the second cache while the rows before them are at work.
static void panel_fetch(const struct panel_rows * p, int32_t i, const float * const * rows, int32_t elems, const bool written) {
    for (int32_t r = i; r < i + PANEL_ROWS && r < p->n; r++) {
        for (int32_t x = 0; x < elems; x += 16) {
            written ? __builtin_prefetch(rows[r] + x, 1) : __builtin_prefetch(rows[r] + x, 0);
        }
    }
}

// The tile at hand: nk keys from position j0 on.
struct panel_keys {
    int64_t j0;
    int32_t nk, lines;   // lines: of the next tile, fetched beside each register block
    bool whole;          // it lies in one block
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
        panel_maxima(u, p, i, k->j0, k->whole);
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

// Keys to strips, a vector of them at a time.
static void panel_load_keys(struct sub * u, int64_t j0, int32_t nk, float scale) {
    const int32_t d = u->a->plan.d_qk;
    for (int32_t j = 0; j < nk; j += VL) {
        const int32_t n = nk - j < VL ? nk - j : VL;
        load_rows(&u->br->k, u->seq, u->head_kv, j0 + j, n, u->kv);
        panel_pack_keys(u->kv, n, d, scale, u->kt + (ptrdiff_t) (j / PANEL_W) * d * PANEL_W + j % PANEL_W);
    }
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
        .whole = u->block_size > 0 && j0 / u->block_size == (j0 + nk - 1) / u->block_size, .ahead = panel_ahead_of(u, next.first, next.end),
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
