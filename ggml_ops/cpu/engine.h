// The attention engine of one level: items (query tile, head chunk), their walk over the keys, the end of a softmax. Included once per level.
// Who does which item is in schedule.h.
#pragma once

#include "decode.h"
#include "prefill.h"
#include "softmax.h"

// One thread at work.
struct core {
    const struct hs_attn * a;
    float * work;                 // this thread's workspace, aligned
    int32_t tok0, nq, chunk;      // the item: tokens tok0 .. tok0 + nq - 1, query heads chunk * plan.chunk ..
};

static float * thread_work(const struct hs_attn * a, int ith) {
    const uintptr_t at = (uintptr_t) (a->work + ith * a->p->work_elems), line = HS_LANES * sizeof(float);
    return (float *) ((at + line - 1) / line * line);
}

static struct hs_state_head * state_head(float * state) {
    return (struct hs_state_head *) (void *) state;
}

// The rows of nq queries, and the padding that vectors of rows touch.
static void state_clear(const struct hs_plan * pl, float * state, int32_t nq) {
    *state_head(state) = (struct hs_state_head) { -1, -1 };
    for (int b = 0; b < pl->n_branch; b++) {
        for (int32_t r0 = 0; r0 < pl->rows[b]; r0 += pl->sub_rows[b]) {
            const int32_t n = hs_round_lanes(nq * pl->n_rep[b]);
            for (int32_t r = r0; r < r0 + n; r++) {
                state[pl->m[b] + r] = HS_MAX_START;
            }
            memset(state + pl->l[b] + r0, 0, (size_t) n * sizeof(float));
            memset(state + pl->o[b] + (int64_t) r0 * pl->d_v, 0, (size_t) n * (size_t) pl->d_v * sizeof(float));
        }
    }
}

// dst += src, two parts of the same item.
static void state_merge(const struct hs_plan * pl, float * dst, const float * src, int32_t nq, bool scores) {
    struct hs_state_head * dh = state_head(dst);
    const struct hs_state_head * sh = (const struct hs_state_head *) (const void *) src;
    for (int32_t i = sh->first_block; scores && i < sh->end_block; i++) {
        float * d = dst + pl->block_max + (int64_t) i * pl->rows[0];
        const float * s = src + pl->block_max + (int64_t) i * pl->rows[0];
        for (int32_t r = 0; r < pl->rows[0]; r++) {
            d[r] = i < dh->end_block && d[r] > s[r] ? d[r] : s[r];
        }
    }
    dh->end_block = sh->end_block > dh->end_block ? sh->end_block : dh->end_block;
    for (int b = 0; b < pl->n_branch; b++) {
        for (int32_t r = 0; r < pl->rows[b]; r++) {
            if (r % pl->sub_rows[b] >= nq * pl->n_rep[b]) {
                continue;
            }
            float * m = dst + pl->m[b] + r, * l = dst + pl->l[b] + r;
            const float sm = src[pl->m[b] + r], now = sm > *m ? sm : *m;
            const float fd = expf(*m - now), fs = expf(sm - now);
            float * o = dst + pl->o[b] + (int64_t) r * pl->d_v;
            const float * so = src + pl->o[b] + (int64_t) r * pl->d_v;
            for (int32_t d = 0; d < pl->d_v; d += VL) {
                vf_store(o + d, vf_fma(vf_load(o + d), vf_set(fd), vf_mul(vf_load(so + d), vf_set(fs))));
            }
            *l = *l * fd + src[pl->l[b] + r] * fs;
            *m = now;
        }
    }
}

// The rows of KV head `c` of the chunk in branch b, without their queries (sub_queries).
static struct sub sub_make(const struct core * w, float * state, int b, int32_t c) {
    const struct hs_plan * pl = &w->a->plan;
    const struct hs_branch * br = &w->a->branch[b];
    const int64_t r0 = (int64_t) c * pl->sub_rows[b];
    const bool scores = w->a->scores && b == 0;
    struct sub u = {
        .a = w->a, .br = br, .seq = w->a->seq[w->tok0], .head_kv = (int64_t) w->chunk * (pl->chunk / pl->n_rep[b]) + c,
        .nq = w->nq, .n_rep = pl->n_rep[b], .rows = scores || w->nq > 1 ? pl->sub_rows[b] : hs_round_lanes(pl->n_rep[b]),
        .block_size = scores ? w->a->p->block_size : 0, .lanes = pl->n_rep[b] > decode_rows(br), .m = state + pl->m[b] + r0, .l = state + pl->l[b] + r0,
        .o = state + pl->o[b] + r0 * pl->d_v, .block_max = state + pl->block_max, .head = state_head(state),
        .q = w->work + pl->q, .qt = w->work + pl->qt, .s = w->work + pl->s, .kv = w->work + pl->kv,
        .row_fix = w->work + pl->row_fix,
        .kt = w->work + pl->kt, .vt = w->work + pl->vt, .see = (struct see *) (void *) (w->work + pl->see),
        .start = (int32_t *) (void *) (w->work + pl->start), .picks = (int32_t *) (void *) (w->work + pl->picks),
    };
    return u;
}

// Scaled queries as rows, and transposed where rows go to lanes (the padding is zero: its logits are 0 and nobody reads them).
static void sub_queries(struct sub * u, int32_t tok0) {
    const struct hs_plan * pl = &u->a->plan;
    const vf scale = vf_set(u->a->p->scale);
    const int32_t d = pl->d_qk, n = u->nq * u->n_rep;
    for (int32_t r = 0; r < n; r++) {
        const int64_t head = u->head_kv * u->n_rep + r % u->n_rep;
        const float * src = u->a->q + ((int64_t) (tok0 + r / u->n_rep) * pl->n_head + head) * d;
        for (int32_t x = 0; x < d; x += VL) {
            vf_store(u->q + (ptrdiff_t) r * d + x, vf_mul(vf_load(src + x), scale));
        }
    }
    for (int32_t x = 0; x < d && u->lanes; x++) {
        float * t = u->qt + (ptrdiff_t) x * u->rows;
        for (int32_t r = 0; r < n; r++) {
            t[r] = u->q[(ptrdiff_t) r * d + x];
        }
        memset(t + n, 0, (size_t) (u->rows - n) * sizeof(float));
    }
}

static int64_t window_first(const struct sub * u, int64_t t) {
    const int64_t first = t - u->br->window + 1;
    return first > 0 ? first : 0;
}

// Positions that some query of the tile sees through a window.
static struct hs_run dense_span(const struct sub * u, int32_t tok0) {
    struct hs_run span = { INT64_MAX, 0 };
    for (int32_t i = 0; i < u->nq; i++) {
        const int64_t t = u->a->pos[tok0 + i], first = window_first(u, t);
        span.first = first < span.first ? first : span.first;
        span.end = t + 1 > span.end ? t + 1 : span.end;
    }
    return span;
}

// Tiles of keys of a sub. Selections: only for one query.
static int64_t sub_units(const struct sub * u, int32_t tok0) {
    int64_t n;
    if (u->br->sel) {
        n = hs_count_visible(hs_runs_of(u->a, u->br, tok0, u->head_kv));
    } else {
        const struct hs_run span = dense_span(u, tok0);
        n = span.end - span.first;
    }
    return (n + HS_TILE_KEYS - 1) / HS_TILE_KEYS;
}

static struct key_walk key_walk_of(const struct sub * u, int32_t token) {
    struct key_walk w = { .selected = u->br->sel != NULL };
    if (w.selected) {
        w.sel = hs_runs_of(u->a, u->br, token, u->head_kv);
        w.run = hs_next_run(&w.sel);
    } else {
        w.run = dense_span(u, token);
    }
    return w;
}

// One query, window or causal: tiles from..to of the positions in view.
static void walk_dense(struct sub * u, int32_t tok0, int64_t from, int64_t to) {
    const struct hs_run span = dense_span(u, tok0);
    for (int64_t x = from; x < to && span.first + x * HS_TILE_KEYS < span.end; x++) {
        struct hs_run run = { span.first + x * HS_TILE_KEYS, span.first + (x + 1) * HS_TILE_KEYS };
        run.end = run.end < span.end ? run.end : span.end;
        const int32_t nk = (int32_t) (run.end - run.first);
        tile(u, &run, 1, nk);
    }
}

// A selection of one query: its keys are packed into full tiles, whatever the block size.
static void walk_selected(struct sub * u, int32_t tok0, int64_t from, int64_t to) {
    struct hs_runs walk = hs_runs_of(u->a, u->br, tok0, u->head_kv);
    struct hs_run runs[HS_TILE_KEYS], run = hs_next_run(&walk);
    for (int64_t skip = from * HS_TILE_KEYS; run.first < run.end;) { // to the first tile
        const int64_t n = run.end - run.first < skip ? run.end - run.first : skip;
        run.first += n;
        skip -= n;
        if (run.first < run.end) {
            break;
        }
        run = hs_next_run(&walk);
    }
    for (int64_t x = from; x < to && run.first < run.end; x++) {
        int32_t nk = 0, n_runs = 0;
        while (nk < HS_TILE_KEYS && run.first < run.end) {
            const int64_t left = HS_TILE_KEYS - nk, n = run.end - run.first < left ? run.end - run.first : left;
            if (n_runs > 0 && runs[n_runs - 1].end == run.first) {
                runs[n_runs - 1].end += n;
            } else {
                runs[n_runs++] = (struct hs_run) { run.first, run.first + n };
            }
            nk += (int32_t) n;
            run.first += n;
            if (run.first == run.end) {
                run = hs_next_run(&walk);
            }
        }
        tile(u, runs, n_runs, nk);
    }
}

// Tiles from..to of an item, counted through all its subs, into a state. A union of selections is always walked whole.
static void item_walk(const struct core * w, float * state, int64_t from, int64_t to) {
    const struct hs_plan * pl = &w->a->plan;
    int64_t at = 0;
    for (int b = 0; b < pl->n_branch; b++) {
        for (int32_t c = 0; c < pl->chunk / pl->n_rep[b]; c++) {
            struct sub u = sub_make(w, state, b, c);
            if (u.br->sel && u.nq > 1) {
                panel_walk_selected(&u, w->tok0);
                continue;
            }
            const int64_t n = sub_units(&u, w->tok0), first = from > at ? from - at : 0, end = to - at < n ? to - at : n;
            at += n;
            if (first >= end) {
                continue;
            }
            if (u.nq > 1) {
                panel_walk_dense(&u, w->tok0, dense_span(&u, w->tok0), first, end);
                continue;
            }
            sub_queries(&u, w->tok0);
            if (!u.lanes) {
                decode_walk(&u, key_walk_of(&u, w->tok0), first, end);
            } else if (u.br->sel) {
                walk_selected(&u, w->tok0, first, end);
            } else {
                walk_dense(&u, w->tok0, first, end);
            }
        }
    }
}

static int64_t item_units(const struct core * w, float * state) {
    const struct hs_plan * pl = &w->a->plan;
    int64_t n = 0;
    for (int b = 0; b < pl->n_branch; b++) {
        for (int32_t c = 0; c < pl->chunk / pl->n_rep[b]; c++) {
            const struct sub u = sub_make(w, state, b, c);
            n += sub_units(&u, w->tok0);
        }
    }
    return n;
}
