// What the files of cases share: a growing list, and the base case that they vary.
#pragma once

#include <stdlib.h>

#include "op_cases.h"

#define F32 GGML_TYPE_F32
#define F16 GGML_TYPE_F16
#define Q8 GGML_TYPE_Q8_0
#define COUNT(a) ((int) (sizeof(a) / sizeof((a)[0])))

struct hs_case_list {
    struct hs_case * at;
    int n, cap;
    bool failed;
};

static inline void add(struct hs_case_list * l, struct hs_case c) {
    if (l->n == l->cap) {
        const int cap = l->cap ? 2 * l->cap : 256;
        struct hs_case * at = realloc(l->at, (size_t) cap * sizeof(*at));
        if (!at) {
            l->failed = true;
            return;
        }
        l->at = at;
        l->cap = cap;
    }
    l->at[l->n++] = c;
}

// One sequence, `fresh` tokens behind `past`.
static inline struct hs_case base(enum hs_op_id op, int past, int fresh) {
    return (struct hs_case) { .op = op, .d_qk = 64, .d_v = 64, .n_head = 4, .n_head_kv = 2, .type_k = F16, .type_v = F16, .page = 16, .ring = 0,
        .block = 16, .top_k = 3, .window = 24, .n_seq = 1, .past = { past }, .fresh = { fresh } };
}

// The ring that the contract asks for: w - 1 positions and the ubatch.
static inline struct hs_case fit_ring(struct hs_case c) {
    int fresh = 0;
    for (int s = 0; s < c.n_seq; s++) {
        fresh = c.fresh[s] > fresh ? c.fresh[s] : fresh;
    }
    c.ring = c.window - 1 + fresh;
    return c;
}

// Every op gets the same lengths, head shapes, types and contents; `set` turns a base case into one of that op.
typedef struct hs_case (*shape_fn)(struct hs_case);

static inline struct hs_case as_is(struct hs_case c) { return c; }
static inline struct hs_case with_window(struct hs_case c) { c.n_head_kv_win = c.n_head_kv; return fit_ring(c); }
static inline struct hs_case with_forced(struct hs_case c) { c.forced = true; return c; }

// --- op_cases_tiles.c ---
void hs_cases_of_tiles(struct hs_case_list * l);
