// Keys and values of a tile on their way from a cache to the panel kernels' strips, and what is fetched ahead of its use. Included once per level.
#pragma once

#include "panel_softmax.h"

// Keys to strips, a vector of them at a time.
static void panel_load_keys(struct sub * u, int64_t j0, int32_t nk, float scale) {
    const int32_t d = u->a->plan.d_qk;
    for (int32_t j = 0; j < nk; j += VL) {
        const int32_t n = nk - j < VL ? nk - j : VL;
        load_rows(&u->br->k, u->seq, u->head_kv, j0 + j, n, u->kv);
        panel_pack_keys(u->kv, n, d, scale, u->kt + (ptrdiff_t) (j / PANEL_W) * d * PANEL_W + j % PANEL_W);
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
