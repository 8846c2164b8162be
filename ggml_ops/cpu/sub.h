// The rows of one KV head at work, and what every path of the softmax does to them. Included once per level.
#pragma once

#include "gemm.h"
#include "rows.h"
#include "visible.h"

struct see; // prefill.h

// The rows of one KV head of one branch in the item at hand.
struct sub {
    const struct hs_attn * a;
    const struct hs_branch * br;
    int64_t seq, head_kv;
    int32_t nq, n_rep, rows;     // rows: padded, the stride of matrices that have rows in lanes
    int32_t block_size;          // > 0: keep block maxima
    bool lanes;                  // qt is filled
    float * m, * l, * o;         // [rows], [rows], [rows][d_v]
    float * block_max;           // [n_blocks][rows]
    struct hs_state_head * head;
    float * q, * qt, * s, * kv, * row_fix;
    float * kt, * vt;            // several queries: prefill.h
    struct see * see;
    int32_t * start, * picks;
};

// Block maxima of blocks up to that of position j_end - 1 are there, fresh ones as "nothing seen".
static void touch_blocks(struct sub * u, int64_t j0, int64_t j_end) {
    if (u->head->end_block < 0) {
        u->head->first_block = u->head->end_block = (int32_t) (j0 / u->block_size);
    }
    for (const int64_t end = (j_end - 1) / u->block_size + 1; u->head->end_block < end; u->head->end_block++) {
        for (int32_t r = 0; r < u->rows; r++) {
            u->block_max[(int64_t) u->head->end_block * u->rows + r] = HS_MASKED;
        }
    }
}

static void scale_row(float * o, float f, int32_t n) {
    for (int32_t d = 0; d < n; d += VL) {
        vf_store(o + d, vf_mul(vf_load(o + d), vf_set(f)));
    }
}

static const float * load_runs(struct sub * u, const struct hs_cache * c, const struct hs_run * runs, int32_t n_runs) {
    float * dst = u->kv;
    for (int32_t i = 0; i < n_runs; i++) {
        load_rows(c, u->seq, u->head_kv, runs[i].first, runs[i].end - runs[i].first, dst);
        dst += (runs[i].end - runs[i].first) * c->t->ne[0];
    }
    return u->kv;
}

// The largest of some logits.
static float row_max(const float * s, int32_t n) {
    float best = HS_MASKED;
    int32_t j = 0;
    if (n >= VL) {
        vf v = vf_load(s);
        for (j = VL; j + VL <= n; j += VL) {
            v = vf_max(v, vf_load(s + j));
        }
        best = vf_hmax(v);
    }
    for (; j < n; j++) {
        best = s[j] > best ? s[j] : best;
    }
    return best;
}
