// CPU kernel of block selection: rows (KV head, token) are dealt out in runs; select_row.h has the work on one of them.
// The result does not depend on the number of threads.
#include "attn.h"
#include "cpu.h"

void hs_cpu_select_blocks(struct ggml_tensor * dst, int ith, int nth, void * userdata) {
    const struct hs_op_params * p = userdata;
    const struct ggml_tensor * scores = dst->src[HS_SELECT_SCORES];
    const int32_t * pos = dst->src[HS_SELECT_POS_SEQ]->data;
    const int64_t n_head_kv = scores->ne[1], n_rows = n_head_kv * scores->ne[2];
    const struct hs_cpu_level * level = hs_cpu_level_current();
    for (int64_t row = n_rows * ith / nth; row < n_rows * (ith + 1) / nth; row++) {
        const int32_t n_visible = pos[row / n_head_kv] / p->block_size + 1;
        level->select_row((const float *) scores->data + row * scores->ne[0], n_visible, p->top_k, (int32_t *) dst->data + row * p->top_k);
    }
}

// Everything that the builder lets through.
bool hs_cpu_select_blocks_supported(const struct ggml_tensor * node) {
    const struct hs_op_row * row = hs_op_find(node);
    return row && row->id == HS_OP_SELECT_BLOCKS;
}
