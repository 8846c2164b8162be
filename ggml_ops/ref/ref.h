// The scalar reference: one thread, f64 arithmetic, one key at a time, and every logit computed again whenever it is needed. Never optimised.
#pragma once

#include "../build.h"

#include <math.h>
#include <string.h>

// The reference kernels (rows of hs_op_table). Only thread 0 works.
void hs_ref_attn_full(struct ggml_tensor * dst, int ith, int nth, void * userdata);
void hs_ref_select_blocks(struct ggml_tensor * dst, int ith, int nth, void * userdata);
void hs_ref_attn_sparse(struct ggml_tensor * dst, int ith, int nth, void * userdata);
void hs_ref_attn_window(struct ggml_tensor * dst, int ith, int nth, void * userdata);
void hs_ref_linear(struct ggml_tensor * dst, int ith, int nth, void * userdata);

// A key or value cache as one query head of one sequence sees it.
struct hs_ref_cache {
    const struct ggml_tensor * t;
    const int32_t * table; // page table of the sequence, or NULL: a ring
    int64_t seq;           // index of the ring
    int64_t head_kv;
};

// Row of position j, decoded to f32.
static inline void hs_ref_row(const struct hs_ref_cache * c, int64_t j, float * row) {
    const int64_t n_slots = c->t->ne[1];
    const int64_t page = c->table ? c->table[j / n_slots] : c->seq;
    const char * src = (const char *) c->t->data + (j % n_slots) * c->t->nb[1] + c->head_kv * c->t->nb[2] + page * c->t->nb[3];
    if (c->t->type == GGML_TYPE_F32) {
        memcpy(row, src, (size_t) c->t->ne[0] * sizeof(float));
    } else {
        ggml_get_type_traits(c->t->type)->to_float(src, row, c->t->ne[0]);
    }
}

// scale * q . k[j]
static inline double hs_ref_logit(const float * q, const struct hs_ref_cache * k, int64_t j, float scale) {
    float row[HS_HEAD_DIM_MAX];
    hs_ref_row(k, j, row);
    double sum = 0.0;
    for (int64_t d = 0; d < k->t->ne[0]; d++) {
        sum += (double) q[d] * row[d];
    }
    return scale * sum;
}

// Is key j visible to the query? `ctx` is the caller's.
typedef bool (*hs_ref_visible_t)(const void * ctx, int64_t j);

// One softmax of one query head: keys 0..t that are visible, and a sink (NULL or HS_SINK_ABSENT: none). Returns the log of the denominator.
// out: f64 [d_v]; no visible key: zeros.
static inline double hs_ref_softmax(const float * q, const struct hs_ref_cache * k, const struct hs_ref_cache * v, int64_t t, float scale,
    const float * sink, hs_ref_visible_t visible, const void * ctx, double * out) {
    const int64_t d_v = v->t->ne[0];
    const bool has_sink = sink && *sink > HS_SINK_ABSENT;
    double max = has_sink ? (double) *sink : -HUGE_VAL;
    for (int64_t j = 0; j <= t; j++) {
        if (visible(ctx, j)) {
            max = fmax(max, hs_ref_logit(q, k, j, scale));
        }
    }
    for (int64_t d = 0; d < d_v; d++) {
        out[d] = 0.0;
    }
    double sum = has_sink ? exp(*sink - max) : 0.0;
    for (int64_t j = 0; j <= t; j++) {
        if (visible(ctx, j)) {
            float row[HS_HEAD_DIM_MAX];
            hs_ref_row(v, j, row);
            const double p = exp(hs_ref_logit(q, k, j, scale) - max);
            sum += p;
            for (int64_t d = 0; d < d_v; d++) {
                out[d] += p * row[d];
            }
        }
    }
    for (int64_t d = 0; d < d_v && sum > 0.0; d++) {
        out[d] /= sum;
    }
    return max + log(sum);
}
