// How an attention op is cut into work items, and where everything lies in a thread's workspace. Builder and kernel compute it from the same shapes.
//
// An item is (query tile, head chunk). A tile is up to `tq` consecutive tokens of one sequence. A chunk is the least number of query heads that
// covers whole KV heads in every branch (one KV head's group, unless the window branch has another n_head_kv). Inside a branch the rows of an item
// are grouped by KV head: row = kv * sub_rows + query * n_rep + rep, so all rows of one KV head are one matrix.
#pragma once

#include "../hs_ops.h"

#define HS_LANES      16   // rows are padded to this: the widest vector of any level
#define HS_TILE_KEYS  64   // keys converted and multiplied at a time
#define HS_PANEL_ROWS 192  // rows whose logits exist at a time: 48 KB
#define HS_ROWS_MIN   64   // rows of one KV head in a query tile, about: at least, if there are so many,
#define HS_ROWS_FULL  512  // at most, in full and window attention: a converted tile of keys serves them all,
#define HS_ROWS_SEL   2048 // at most, with selections: the more queries, the more of them meet in a block. Their q and o still fit a second cache
#define HS_BLOCK_MAX  (1 << 20) // block maxima of a query tile, at most, above HS_LANES rows; of them only those of the present length are touched

struct hs_plan {
    int32_t d_qk, d_v, n_head;
    int32_t n_branch;    // softmaxes a query head: 1, or 2 (global and window)
    int32_t tq, chunk;
    int32_t n_rep[2];    // query heads a KV head, by branch
    int32_t sub_rows[2]; // rows of one KV head, padded to HS_LANES
    int32_t rows[2];     // rows of all KV heads of a chunk
    int32_t n_blocks;    // block maxima a row; 0: no scores
    int64_t n_picks;     // selections: blocks that one query can see
    // Offsets in f32 elements. A state (running maxima, denominators, outputs, block maxima of an item) exists twice where items
    // can be cut (schedule.h).
    int64_t m[2], l[2], o[2], block_max, state_elems; // inside a state; its first HS_LANES elements are struct hs_state_head
    int64_t q, qt, s, kv, row_fix; // inside the workspace, behind the states; of a query tile of one, but for q, s and kv
    int64_t kt, vt, see, start, picks;             // of larger ones (prefill.h)
    int64_t work_elems;
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

// Too few items to deal out whole? Then the threads share them, and a thread may hold parts of two (schedule.h).
static inline bool hs_plan_cuts(int64_t n_items, int64_t nth) {
    return nth > 1 && n_items < 3 * nth;
}

// Tokens of a query tile.
static inline int32_t hs_plan_tq(enum hs_op_id op, int64_t n_chunks, int32_t n_rep, int64_t n_tokens, int64_t n_blocks, const struct hs_op_params * p) {
    int64_t rows = op == HS_OP_ATTN_SPARSE ? HS_ROWS_SEL : HS_ROWS_FULL;
    if (n_blocks * rows > HS_BLOCK_MAX) { // many small blocks
        rows = HS_BLOCK_MAX / n_blocks > HS_LANES ? HS_BLOCK_MAX / n_blocks : HS_LANES;
    }
    int64_t tq = rows / n_rep > 1 ? rows / n_rep : 1;
    tq = tq < n_tokens ? tq : n_tokens;
    while (tq > 1 && tq * n_rep >= 2 * HS_ROWS_MIN && n_chunks * ((n_tokens + tq - 1) / tq) < 4 * p->n_threads_max) { // enough items for all threads
        tq = (tq + 1) / 2;
    }
    const int64_t n_tiles = (n_tokens + tq - 1) / tq;
    return (int32_t) ((n_tokens + n_tiles - 1) / n_tiles); // of equal size
}

// n_head_kv[1] = 0: one branch. p: the builder's, with n_blocks_max set (full attention without scores: 0).
static inline struct hs_plan hs_plan_make(enum hs_op_id op, int64_t d_qk, int64_t d_v, int64_t n_head, const int64_t n_head_kv[2], int64_t n_tokens,
    const struct hs_op_params * p) {
    struct hs_plan pl = { .d_qk = (int32_t) d_qk, .d_v = (int32_t) d_v, .n_head = (int32_t) n_head, .n_branch = n_head_kv[1] ? 2 : 1 };
    pl.n_rep[0] = (int32_t) (n_head / n_head_kv[0]);
    pl.n_rep[1] = pl.n_branch == 2 ? (int32_t) (n_head / n_head_kv[1]) : pl.n_rep[0];
    pl.chunk = pl.n_rep[0] / hs_gcd(pl.n_rep[0], pl.n_rep[1]) * pl.n_rep[1];
    pl.n_blocks = op == HS_OP_ATTN_FULL ? p->n_blocks_max : 0;
    const int32_t n_rep = pl.n_rep[0] > pl.n_rep[1] ? pl.n_rep[0] : pl.n_rep[1];
    const bool selects = op == HS_OP_ATTN_SPARSE;
    if (selects && p->block_size < HS_LANES) {
        pl.tq = 1; // one query at a time, its blocks packed into full tiles
    } else {
        pl.tq = hs_plan_tq(op, n_head / pl.chunk, n_rep, n_tokens, pl.n_blocks, p);
    }
    // Selected blocks; with a forced window also block 0 and the blocks that hold it.
    pl.n_picks = selects ? (int64_t) p->top_k + (p->forced ? p->window / p->block_size + 3 : 0) : 0;
    int64_t end = HS_LANES, sub_max = 0;
    for (int b = 0; b < pl.n_branch; b++) {
        pl.sub_rows[b] = hs_round_lanes(pl.tq * pl.n_rep[b]);
        pl.rows[b] = pl.chunk / pl.n_rep[b] * pl.sub_rows[b];
        sub_max = pl.sub_rows[b] > sub_max ? pl.sub_rows[b] : sub_max;
        pl.m[b] = hs_take(&end, pl.rows[b]);
        pl.l[b] = hs_take(&end, pl.rows[b]);
        pl.o[b] = hs_take(&end, (int64_t) pl.rows[b] * d_v);
    }
    pl.block_max = hs_take(&end, (int64_t) pl.n_blocks * pl.rows[0]);
    pl.state_elems = end;
    const int64_t n_items = (n_tokens + pl.tq - 1) / pl.tq * (n_head / pl.chunk);
    end *= hs_plan_cuts(n_items, p->n_threads_max) ? 2 : 1;
    const int64_t one = pl.n_blocks ? sub_max : hs_round_lanes(n_rep); // block maxima share the stride of the rows
    pl.q = hs_take(&end, (pl.tq > 1 ? sub_max : one) * d_qk);
    pl.qt = hs_take(&end, one * d_qk);
    pl.s = hs_take(&end, (one > HS_PANEL_ROWS ? one : HS_PANEL_ROWS) * HS_TILE_KEYS);
    pl.kv = hs_take(&end, HS_TILE_KEYS * (d_qk > d_v ? d_qk : d_v)); // keys, then values: one buffer stays in the first cache
    pl.row_fix = hs_take(&end, sub_max);
    if (pl.tq > 1) {
        pl.kt = hs_take(&end, HS_TILE_KEYS * d_qk);
        pl.vt = hs_take(&end, HS_TILE_KEYS * d_v);
        pl.see = hs_take(&end, 3 * (int64_t) pl.tq);
        pl.start = hs_take(&end, selects ? p->n_blocks_max + 1 : 0);
        pl.picks = hs_take(&end, pl.tq * pl.n_picks);
    }
    pl.work_elems = end + HS_LANES; // slack: the kernel aligns its start to a cache line
    return pl;
}
