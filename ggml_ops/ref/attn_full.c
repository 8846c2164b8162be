// Full attention with block scores, as hs_ops.h states it.
#include "ref.h"

static bool every_key(const void * ctx, int64_t j) {
    (void) ctx;
    (void) j;
    return true;
}

// scores[g,t,i] = max over the heads of group g and the keys of block i of logit - L: one head's part
static void block_scores(const struct hs_op_params * p, const float * q, const struct hs_ref_cache * k, int64_t t, double lse, float * scores) {
    for (int64_t j = 0; j <= t; j++) {
        float * s = &scores[j / p->block_size];
        *s = fmaxf(*s, (float) (hs_ref_logit(q, k, j, p->scale) - lse));
    }
}

void hs_ref_attn_full(struct ggml_tensor * dst, int ith, int nth, void * userdata) {
    (void) nth;
    if (ith != 0) {
        return;
    }
    const struct hs_op_params * p = userdata;
    const struct ggml_tensor * q = dst->src[HS_FULL_Q], * k = dst->src[HS_FULL_K], * v = dst->src[HS_FULL_V];
    const struct ggml_tensor * table = dst->src[HS_FULL_TABLE], * pos_seq = dst->src[HS_FULL_POS_SEQ], * sinks = dst->src[HS_FULL_SINKS];
    const int64_t d_v = v->ne[0], n_head = q->ne[1], n_tokens = q->ne[2], n_head_kv = k->ne[2];
    float * out = dst->data, * scores = out + p->out_elems;
    for (int64_t i = 0; i < n_tokens; i++) {
        const int32_t t = ((const int32_t *) pos_seq->data)[i], seq = ((const int32_t *) pos_seq->data)[n_tokens + i];
        const int32_t * pages = (const int32_t *) table->data + seq * table->ne[0];
        for (int64_t g = 0; g < n_head_kv; g++) {
            const struct hs_ref_cache kc = { k, pages, seq, g }, vc = { v, pages, seq, g };
            float * s = scores + (i * n_head_kv + g) * p->n_blocks_max;
            for (int64_t b = 0; p->emit_scores && b <= t / p->block_size; b++) {
                s[b] = -HUGE_VALF;
            }
            for (int64_t h = g * n_head / n_head_kv; h < (g + 1) * n_head / n_head_kv; h++) {
                const float * qh = (const float *) q->data + (i * n_head + h) * q->ne[0];
                double o[HS_HEAD_DIM_MAX];
                const double lse = hs_ref_softmax(qh, &kc, &vc, t, p->scale, sinks ? (const float *) sinks->data + h : NULL, every_key, NULL, o);
                for (int64_t d = 0; d < d_v; d++) {
                    out[(i * n_head + h) * d_v + d] = (float) o[d];
                }
                if (p->emit_scores) {
                    block_scores(p, qh, &kc, t, lse, s);
                }
            }
        }
    }
}
