// Window attention over rings, as hs_ops.h states it.
#include "ref.h"

static bool above(const void * ctx, int64_t j) {
    return j > *(const int64_t *) ctx;
}

void hs_ref_attn_window(struct ggml_tensor * dst, int ith, int nth, void * userdata) {
    (void) nth;
    if (ith != 0) {
        return;
    }
    const struct hs_op_params * p = userdata;
    const struct ggml_tensor * q = dst->src[HS_WINDOW_Q], * k = dst->src[HS_WINDOW_K], * v = dst->src[HS_WINDOW_V];
    const struct ggml_tensor * pos_seq = dst->src[HS_WINDOW_POS_SEQ], * sinks = dst->src[HS_WINDOW_SINKS];
    const int64_t d_v = v->ne[0], n_head = q->ne[1], n_tokens = q->ne[2];
    for (int64_t i = 0; i < n_tokens; i++) {
        const int32_t t = ((const int32_t *) pos_seq->data)[i], seq = ((const int32_t *) pos_seq->data)[n_tokens + i];
        const int64_t before = (int64_t) t - p->window; // the last position that the query does not see
        for (int64_t h = 0; h < n_head; h++) {
            const int64_t g = h / (n_head / k->ne[2]);
            const struct hs_ref_cache kc = { k, NULL, seq, g }, vc = { v, NULL, seq, g };
            double o[HS_HEAD_DIM_MAX];
            hs_ref_softmax((const float *) q->data + (i * n_head + h) * q->ne[0], &kc, &vc, t, p->scale,
                sinks ? (const float *) sinks->data + h : NULL, above, &before, o);
            for (int64_t d = 0; d < d_v; d++) {
                ((float *) dst->data)[(i * n_head + h) * d_v + d] = (float) o[d];
            }
        }
    }
}
