// Shared-cache sparse attention with its window branch and gates, as hs_ops.h states it.
#include "ref.h"

// What one query sees of the global cache and of the ring.
struct query {
    const struct hs_op_params * p;
    const int32_t * sel; // top_k blocks
    int64_t t;
};

static bool in_window(const void * ctx, int64_t j) {
    const struct query * a = ctx;
    return j > a->t - a->p->window;
}

static bool in_selection(const void * ctx, int64_t j) {
    const struct query * a = ctx;
    const int64_t block = j / a->p->block_size;
    if (a->p->forced && (block == 0 || in_window(ctx, j))) {
        return true;
    }
    for (int32_t i = 0; i < a->p->top_k; i++) {
        if (a->sel[i] == block) {
            return true;
        }
    }
    return false;
}

static double sigmoid(double x) {
    return 1.0 / (1.0 + exp(-x));
}

// Gate of one branch (0: sparse, 1: window) for one token, head and channel; no gates: 1.
static double gate(const struct ggml_tensor * gates, int branch, int64_t token, int64_t h, int64_t d, int64_t n_head) {
    if (!gates) {
        return 1.0;
    }
    const int64_t n_gate = gates->ne[0] / 2;
    const int64_t i = n_gate == n_head ? h : h * (n_gate / n_head) + d;
    return sigmoid(((const float *) gates->data)[token * gates->ne[0] + branch * n_gate + i]);
}

void hs_ref_attn_sparse(struct ggml_tensor * dst, int ith, int nth, void * userdata) {
    (void) nth;
    if (ith != 0) {
        return;
    }
    const struct hs_op_params * p = userdata;
    const struct ggml_tensor * q = dst->src[HS_SPARSE_Q], * k = dst->src[HS_SPARSE_K], * v = dst->src[HS_SPARSE_V];
    const struct ggml_tensor * sel = dst->src[HS_SPARSE_SEL], * table = dst->src[HS_SPARSE_TABLE], * pos_seq = dst->src[HS_SPARSE_POS_SEQ];
    const struct ggml_tensor * win_k = dst->src[HS_SPARSE_WIN_K], * win_v = dst->src[HS_SPARSE_WIN_V];
    const struct ggml_tensor * sinks = dst->src[HS_SPARSE_SINKS], * gates = dst->src[HS_SPARSE_GATES];
    const int64_t d_v = v->ne[0], n_head = q->ne[1], n_tokens = q->ne[2];
    for (int64_t i = 0; i < n_tokens; i++) {
        const int32_t t = ((const int32_t *) pos_seq->data)[i], seq = ((const int32_t *) pos_seq->data)[n_tokens + i];
        const int32_t * pages = (const int32_t *) table->data + seq * table->ne[0];
        for (int64_t h = 0; h < n_head; h++) {
            const float * qh = (const float *) q->data + (i * n_head + h) * q->ne[0];
            const int64_t g = h / (n_head / k->ne[2]);
            const struct query query = { p, (const int32_t *) sel->data + (i * k->ne[2] + g) * p->top_k, t };
            const struct hs_ref_cache kc = { k, pages, seq, g }, vc = { v, pages, seq, g };
            const float * sink = sinks ? (const float *) sinks->data + h : NULL;
            double global[HS_HEAD_DIM_MAX], local[HS_HEAD_DIM_MAX] = { 0 };
            hs_ref_softmax(qh, &kc, &vc, t, p->scale, sink, in_selection, &query, global);
            if (win_k) {
                const int64_t gw = h / (n_head / win_k->ne[2]);
                const struct hs_ref_cache wk = { win_k, NULL, seq, gw }, wv = { win_v, NULL, seq, gw };
                hs_ref_softmax(qh, &wk, &wv, t, p->scale, sink ? sink + n_head : NULL, in_window, &query, local);
            }
            for (int64_t d = 0; d < d_v; d++) {
                ((float *) dst->data)[(i * n_head + h) * d_v + d] =
                    (float) (gate(gates, 0, i, h, d, n_head) * global[d] + gate(gates, 1, i, h, d, n_head) * local[d]);
            }
        }
    }
}
