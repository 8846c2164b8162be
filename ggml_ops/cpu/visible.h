// Which positions one query sees, as runs in ascending order without overlap. Independent of the instruction set.
#pragma once

#include "attn.h"

struct hs_run { int64_t first, end; }; // first <= j < end; empty: first >= end

// Walks the runs of one (query, KV head) of a selection: block 0 and the selected blocks below the forced window, then that window.
// Without a forced window: the selected blocks up to t.
struct hs_runs {
    const int32_t * sel;
    int32_t top_k, i;
    int64_t block_size, t, window_first; // window_first = t + 1: no forced window
    bool zero, tail;                     // still to come: block 0, the window
};

static inline struct hs_runs hs_runs_of(const struct hs_attn * a, const struct hs_branch * br, int64_t token, int64_t head_kv) {
    const int64_t t = a->pos[token];
    const bool forced = br->window > 0;
    return (struct hs_runs) {
        .sel = (const int32_t *) br->sel->data + (token * br->sel->ne[1] + head_kv) * br->sel->ne[0],
        .top_k = (int32_t) br->sel->ne[0], .block_size = a->p->block_size, .t = t,
        .window_first = !forced ? t + 1 : t - br->window + 1 > 0 ? t - br->window + 1 : 0,
        .zero = forced, .tail = forced,
    };
}

// The next run; empty at the end.
static inline struct hs_run hs_next_run(struct hs_runs * r) {
    for (;;) {
        int64_t block;
        if (r->zero) {
            r->zero = false;
            block = 0;
            if (r->top_k > 0 && r->sel[0] == 0) {
                r->i = 1;
            }
        } else if (r->i < r->top_k && r->sel[r->i] >= 0) {
            block = r->sel[r->i++];
        } else if (r->tail) {
            r->tail = false;
            return (struct hs_run) { r->window_first, r->t + 1 };
        } else {
            return (struct hs_run) { 0, 0 };
        }
        const int64_t first = block * r->block_size, end = first + r->block_size;
        if (first < r->window_first) {
            return (struct hs_run) { first, end < r->window_first ? end : r->window_first };
        }
    }
}

// Number of positions in all runs.
static inline int64_t hs_count_visible(struct hs_runs r) {
    int64_t n = 0;
    for (struct hs_run run = hs_next_run(&r); run.first < run.end; run = hs_next_run(&r)) {
        n += run.end - run.first;
    }
    return n;
}
