// Decode: one query, the few rows of one KV head, tile after tile of the keys it sees. Included once per level.
//
// Every tile of K and V becomes a list of row addresses, whatever pages, rings or selections they come from; the kernels work on those
// (decode_float.h). While the keys of a tile are at work its values are fetched into the first cache, and while its values are, the next tile's keys:
// a page holds one head's 64 rows in one piece, too short for a prefetcher that has to see a stream first.
#pragma once

#include "decode_float.h"
#include "decode_q8.h"
#include "decode_softmax.h"

// The keys of a query, run by run.
struct key_walk {
    struct hs_runs sel;
    struct hs_run run;
    bool selected;
};

struct key_tile {
    struct tile_rows k, v;
    int64_t first; // position of the first key
};

// n rows of a cache from position j on, behind those that a tile has.
static void tile_append(const struct sub * u, const struct hs_cache * c, int64_t j, int64_t n, struct tile_rows * rows) {
    for (int64_t end = j + n; j < end;) {
        const void * at;
        const int64_t run = cache_run(c, u->seq, u->head_kv, j, end - j, &at);
        const size_t stride = c->t->nb[1];
        for (int64_t i = 0; i < run; i++) {
            rows->row[rows->n + i] = (const char *) at + (size_t) i * stride;
        }
        rows->n += (int32_t) run;
        j += run;
    }
}

static void tile_pad(struct tile_rows * rows) {
    for (int32_t i = rows->n; i % HS_LANES != 0; i++) {
        rows->row[i] = rows->row[rows->n - 1];
    }
}

// The next keys of the walk, up to HS_TILE_KEYS; none: n = 0.
static void next_tile(const struct sub * u, struct key_walk * w, struct key_tile * t) {
    t->k.n = t->v.n = 0;
    t->first = w->run.first;
    while (t->k.n < HS_TILE_KEYS && w->run.first < w->run.end) {
        const int64_t left = HS_TILE_KEYS - t->k.n, have = w->run.end - w->run.first, n = have < left ? have : left;
        tile_append(u, &u->br->k, w->run.first, n, &t->k);
        tile_append(u, &u->br->v, w->run.first, n, &t->v);
        w->run.first += n;
        if (w->run.first == w->run.end && w->selected) {
            w->run = hs_next_run(&w->sel);
        }
    }
    tile_pad(&t->k);
    tile_pad(&t->v);
}

static enum row_type row_type_of(const struct hs_cache * c) {
    return c->t->type == GGML_TYPE_F16 ? ROW_F16 : c->t->type == GGML_TYPE_Q8_0 ? ROW_Q8_0 : ROW_F32;
}

// Up to so many rows are decoded here; more go to lanes, converted keys and the matrix kernel.
static int32_t decode_rows(const struct hs_branch * br) {
#if defined(HS_VNNI)
    if (row_type_of(&br->k) == ROW_Q8_0 && row_type_of(&br->v) == ROW_Q8_0) {
        return INT32_MAX;
    }
#endif
    (void) br;
    return FEW_ROWS;
}

// What all tiles of a walk share.
struct decode {
    struct sub * u;
    enum row_type k, v;
#if defined(HS_VNNI)
    struct q8_query q8;
#endif
};

static struct decode decode_make(struct sub * u) {
    struct decode c = { .u = u, .k = row_type_of(&u->br->k), .v = row_type_of(&u->br->v) };
#if defined(HS_VNNI)
    if (c.k == ROW_Q8_0) {
        c.q8 = q8_query_make(u);
    }
    if (!c.q8.z)
#endif
    decode_spread(u->n_rep, u->a->plan.d_qk, u->q, u->qt);
    return c;
}

static void tile_logits(const struct decode * c, const struct tile_rows * k, const struct ahead * next) {
    struct sub * u = c->u;
#if defined(HS_VNNI)
    if (c->k == ROW_Q8_0 && c->q8.z) {
        q8_dots(u, &c->q8, k, next);
        return;
    }
#endif
    decode_dots(c->k, u->n_rep, u->a->plan.d_qk, u->qt, k, u->kv, u->s, next);
}

static void tile_values(const struct decode * c, const struct tile_rows * v, const struct ahead * next) {
    struct sub * u = c->u;
#if defined(HS_VNNI)
    if (c->v == ROW_Q8_0 && q8_values(u, v, next)) {
        return;
    }
#endif
    decode_values(c->v, u->n_rep, u->a->plan.d_v, u->s, v, u->kv, u->o, next);
}

static void decode_tile(const struct decode * c, const struct key_tile * t, const struct key_tile * next) {
    struct sub * u = c->u;
    const struct ahead values = { &t->v, 0, (int32_t) u->br->v.t->nb[1] }, keys = { &next->k, 0, (int32_t) u->br->k.t->nb[1] };
    if (u->block_size > 0) {
        touch_blocks(u, t->first, t->first + t->k.n);
    }
    tile_logits(c, &t->k, &values);
    tile_softmax(u, t->first, t->k.n);
    tile_values(c, &t->v, &keys);
}

// Tiles from..to of the keys in `w`.
static void decode_walk(struct sub * u, struct key_walk w, int64_t from, int64_t to) {
    for (int64_t skip = from * HS_TILE_KEYS; w.run.first < w.run.end;) { // to the first tile
        const int64_t have = w.run.end - w.run.first, n = have < skip ? have : skip;
        w.run.first += n;
        skip -= n;
        if (w.run.first < w.run.end || !w.selected) {
            break;
        }
        w.run = hs_next_run(&w.sel);
    }
    const struct decode c = decode_make(u);
    struct key_tile tiles[2];
    next_tile(u, &w, &tiles[0]);
    for (int64_t x = from; x < to && tiles[(x - from) % 2].k.n > 0; x++) {
        struct key_tile * next = &tiles[(x - from + 1) % 2];
        if (x + 1 < to) {
            next_tile(u, &w, next);
        } else {
            next->k.n = 0;
        }
        decode_tile(&c, &tiles[(x - from) % 2], next);
    }
}
