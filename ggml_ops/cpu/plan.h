// How an attention op is cut into work items, and where everything lies in a thread's workspace. Builder and kernel compute it from the same shapes.
//
// An item is (query tile, head chunk). A tile is up to `tq` consecutive tokens of one sequence. A chunk is the least number of query heads that
// covers whole KV heads in every branch (one KV head's group, unless the window branch has another n_head_kv). Inside a branch the rows of an item
// are grouped by KV head: row = kv * sub_rows + query * n_rep + rep, so all rows of one KV head are one matrix.
#pragma once

#include <stdint.h>

#define HS_LANES     16 // rows are padded to this: the widest vector of any level
#define HS_TILE_KEYS 64 // keys converted and multiplied at a time
#define HS_TILE_ROWS 64 // rows of one KV head in a tile, about

struct hs_plan {
    int32_t d_qk, d_v, n_head;
    int32_t n_branch;    // softmaxes a query head: 1, or 2 (global and window)
    int32_t tq, chunk;
    int32_t n_rep[2];    // query heads a KV head, by branch
    int32_t sub_rows[2]; // rows of one KV head, padded to HS_LANES
    int32_t rows[2];     // rows of all KV heads of a chunk
    int32_t n_blocks;    // block maxima a row; 0: no scores
    // Offsets in f32 elements. A state (running maxima, denominators, outputs, block maxima of an item) exists twice: see attn.h.
    int64_t m[2], l[2], o[2], block_max, state_elems; // inside a state; its first HS_LANES elements are struct hs_state_head
    int64_t q, qt, s, kv, row_lo, row_hi, row_fix, work_elems; // inside the workspace, behind the two states
};

// Blocks whose maxima a state holds: first <= block < end.
struct hs_state_head { int32_t first_block, end_block; };

static inline int32_t hs_round_lanes(int32_t x) {
    return (x + HS_LANES - 1) / HS_LANES * HS_LANES;
}

static inline int32_t hs_gcd(int32_t a, int32_t b) {
    while (b) {
        const int32_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static inline int64_t hs_take(int64_t * end, int64_t n) {
    const int64_t at = *end;
    *end += (n + HS_LANES - 1) / HS_LANES * HS_LANES;
    return at;
}

// n_head_kv[1] = 0: one branch.
static inline struct hs_plan hs_plan_make(int64_t d_qk, int64_t d_v, int64_t n_head, const int64_t n_head_kv[2], int64_t n_tokens, int64_t n_blocks) {
    struct hs_plan p = { .d_qk = (int32_t) d_qk, .d_v = (int32_t) d_v, .n_head = (int32_t) n_head, .n_branch = n_head_kv[1] ? 2 : 1,
        .n_blocks = (int32_t) n_blocks };
    p.n_rep[0] = (int32_t) (n_head / n_head_kv[0]);
    p.n_rep[1] = p.n_branch == 2 ? (int32_t) (n_head / n_head_kv[1]) : p.n_rep[0];
    p.chunk = p.n_rep[0] / hs_gcd(p.n_rep[0], p.n_rep[1]) * p.n_rep[1];
    // Many small blocks: fewer rows a tile, so that the block maxima stay within a few MB a thread.
    const int32_t want = n_blocks > 8192 ? HS_LANES : HS_TILE_ROWS;
    const int32_t n_rep = p.n_rep[0] > p.n_rep[1] ? p.n_rep[0] : p.n_rep[1];
    p.tq = want / n_rep > 1 ? want / n_rep : 1;
    p.tq = p.tq > n_tokens ? (int32_t) n_tokens : p.tq;
    int32_t sub_max = 0;
    int64_t end = HS_LANES;
    for (int b = 0; b < p.n_branch; b++) {
        p.sub_rows[b] = hs_round_lanes(p.tq * p.n_rep[b]);
        p.rows[b] = p.chunk / p.n_rep[b] * p.sub_rows[b];
        sub_max = p.sub_rows[b] > sub_max ? p.sub_rows[b] : sub_max;
        p.m[b] = hs_take(&end, p.rows[b]);
        p.l[b] = hs_take(&end, p.rows[b]);
        p.o[b] = hs_take(&end, (int64_t) p.rows[b] * d_v);
    }
    p.block_max = hs_take(&end, n_blocks * p.rows[0]);
    p.state_elems = end;
    end *= 2;
    p.q = hs_take(&end, sub_max * d_qk);
    p.qt = hs_take(&end, sub_max * d_qk);
    p.s = hs_take(&end, (int64_t) sub_max * HS_TILE_KEYS);
    p.kv = hs_take(&end, HS_TILE_KEYS * (d_qk > d_v ? d_qk : d_v)); // keys, then values: one buffer stays in the first cache
    p.row_lo = hs_take(&end, sub_max);
    p.row_hi = hs_take(&end, sub_max);
    p.row_fix = hs_take(&end, sub_max);
    p.work_elems = end + HS_LANES; // slack: the kernel aligns its start to a cache line
    return p;
}
