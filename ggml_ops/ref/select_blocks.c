// Block selection, as hs_ops.h states it: take the best visible block that is not taken yet, K times; then put them in ascending order.
#include "ref.h"

void hs_ref_select_blocks(struct ggml_tensor * dst, int ith, int nth, void * userdata) {
    (void) nth;
    if (ith != 0) {
        return;
    }
    const struct hs_op_params * p = userdata;
    const struct ggml_tensor * scores = dst->src[HS_SELECT_SCORES], * pos_seq = dst->src[HS_SELECT_POS_SEQ];
    const int64_t n_head_kv = scores->ne[1], n_tokens = scores->ne[2];
    for (int64_t row = 0; row < n_head_kv * n_tokens; row++) {
        const float * s = (const float *) scores->data + row * scores->ne[0];
        int32_t * sel = (int32_t *) dst->data + row * p->top_k;
        const int32_t n_visible = ((const int32_t *) pos_seq->data)[row / n_head_kv] / p->block_size + 1;
        int32_t n = 0;
        while (n < p->top_k && n < n_visible) {
            int32_t best = HS_BLOCK_NONE;
            for (int32_t i = 0; i < n_visible; i++) {
                bool taken = false;
                for (int32_t c = 0; c < n; c++) {
                    taken = taken || sel[c] == i;
                }
                if (!taken && (best == HS_BLOCK_NONE || s[i] > s[best])) {
                    best = i;
                }
            }
            sel[n++] = best;
        }
        for (int32_t a = 1; a < n; a++) { // insertion sort
            const int32_t x = sel[a];
            int32_t b = a;
            for (; b > 0 && sel[b - 1] > x; b--) {
                sel[b] = sel[b - 1];
            }
            sel[b] = x;
        }
        for (; n < p->top_k; n++) {
            sel[n] = HS_BLOCK_NONE;
        }
    }
}
