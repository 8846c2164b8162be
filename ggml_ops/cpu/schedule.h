// Which thread does what. Included once per level by level_*.c, which names the level.
//
// Many items (prefill): whole items from a shared counter, the last query tile first, since causal attention makes it the longest.
// Few items (decode): all tiles of keys of all items in one line, cut into equal pieces, one a thread. A thread then holds at most two items of
// which it has only a part: one that began before its piece (state 0) and one that goes on behind it (state 1). The last thread that is done adds
// the parts up.
// Whole items give the same bits for any number of threads; added parts differ by f32 rounding. Selections are cut into single queries, which the decode
// kernels take: with q8_0 caches and VNNI they round queries to 16 bits (decode_q8.h).
#pragma once

#include "finish.h"

// The tile of tokens that ends before `end`: its first token; false at the beginning of the ubatch.
static bool previous_tile(const struct hs_attn * a, int32_t tq, int32_t end, int32_t * first) {
    if (end <= 0) {
        return false;
    }
    int32_t x = end - 1;
    while (x > 0 && end - x < tq && a->seq[x - 1] == a->seq[end - 1]) {
        x--;
    }
    *first = x;
    return true;
}

static int64_t count_tiles(const struct hs_attn * a, int32_t tq) {
    int64_t n = 0;
    for (int32_t end = a->n_tokens, first; previous_tile(a, tq, end, &first); end = first) {
        n++;
    }
    return n;
}

static void run_items(struct core * w, int32_t tq) {
    const struct hs_attn * a = w->a;
    const int32_t n_chunks = a->plan.n_head / a->plan.chunk;
    int32_t end = a->n_tokens, first;
    int64_t item = 0; // of the tile that ends at `end`, chunk 0
    int64_t mine = __atomic_fetch_add(&a->p->sync_next, 1, __ATOMIC_RELAXED);
    for (; previous_tile(a, tq, end, &first); end = first, item += n_chunks) {
        for (; mine < item + n_chunks; mine = __atomic_fetch_add(&a->p->sync_next, 1, __ATOMIC_RELAXED)) {
            w->tok0 = first;
            w->nq = end - first;
            w->chunk = (int32_t) (mine - item);
            state_clear(&a->plan, w->work, w->nq);
            item_walk(w, w->work, 0, INT64_MAX);
            item_finish(w, w->work);
        }
    }
}

// The items that a piece [from, to) of the line of tiles touches; in `merge` mode, instead, all items that were cut are added up and finished.
static void run_pieces(struct core * w, int32_t tq, int ith, int nth, bool merge) {
    const struct hs_attn * a = w->a;
    const struct hs_plan * pl = &a->plan;
    int64_t total = 0, at = 0;
    for (int pass = 0; pass < 2; pass++) {
        const int64_t from = total * ith / nth, to = total * (ith + 1) / nth;
        for (int32_t end = a->n_tokens, first; previous_tile(a, tq, end, &first); end = first) {
            for (w->chunk = 0; w->chunk < pl->n_head / pl->chunk; w->chunk++) {
                w->tok0 = first;
                w->nq = end - first;
                const int64_t n = item_units(w, w->work), last = at + n;
                if (pass == 0) {
                    total += n;
                    continue;
                }
                if (merge) {
                    float * sum = NULL;
                    for (int i = 0; i < nth; i++) { // ascending: block maxima are joined at their ends
                        const int64_t f = total * i / nth, t = total * (i + 1) / nth;
                        if (f >= last || t <= at || f >= t || (f <= at && t >= last)) {
                            continue;
                        }
                        float * part = thread_work(a, i) + (f > at ? 0 : pl->state_elems);
                        if (sum) {
                            state_merge(pl, sum, part, w->nq, a->scores != NULL);
                        }
                        sum = sum ? sum : part;
                    }
                    if (sum) {
                        item_finish(w, sum);
                    }
                } else if (n == 0 ? (from <= at && at < to) || (at == total && ith == nth - 1) : from < last && to > at && from < to) {
                    float * state = w->work + (from > at ? 0 : pl->state_elems);
                    state_clear(pl, state, w->nq);
                    item_walk(w, state, from > at ? from - at : 0, to < last ? to - at : n);
                    if (n == 0 || (from <= at && to >= last)) {
                        item_finish(w, state);
                    }
                }
                at = last;
            }
        }
    }
}

static void HS_ATTN(const struct hs_attn * a, int ith, int nth) {
    nth = nth < a->p->n_threads_max ? nth : a->p->n_threads_max;
    if (ith >= nth) {
        return;
    }
    struct core w = { .a = a, .work = thread_work(a, ith) };
    const bool selects = a->branch[0].sel != NULL;
    int32_t tq = a->plan.tq;
    const bool pieces = hs_plan_cuts(count_tiles(a, tq) * (a->plan.n_head / a->plan.chunk), nth);
    if (pieces) {
        tq = selects ? 1 : tq;
        run_pieces(&w, tq, ith, nth, false);
    } else {
        run_items(&w, tq);
    }
    if (__atomic_add_fetch(&a->p->sync_done, 1, __ATOMIC_ACQ_REL) == nth) { // everybody is done
        if (pieces) {
            run_pieces(&w, tq, ith, nth, true);
        }
        __atomic_store_n(&a->p->sync_next, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&a->p->sync_done, 0, __ATOMIC_RELAXED);
    }
}
