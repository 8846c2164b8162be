// Builder of the block selection op. The contract is in hs_ops.h.
#include "build.h"

struct hs_op_result hs_select_blocks(struct ggml_context * ctx, enum hs_op_impl impl, struct hs_op_params * p, struct ggml_tensor * scores,
    struct ggml_tensor * pos_seq) {
    struct hs_op_result res = { 0 };
    const struct hs_build b = { "select_blocks", &res };
    if (!hs_check_tensor(&b, "scores", scores, GGML_TYPE_F32) || !hs_check_ne(&b, "scores", scores, 3, 1, "[n_blocks_max, n_head_kv, n_tokens]") ||
        !hs_check_pos_seq(&b, pos_seq, scores->ne[2]) || !hs_check_min(&b, "block_size", p->block_size, 1) ||
        !hs_check_min(&b, "top_k", p->top_k, 1) || !hs_check_min(&b, "n_threads_max", p->n_threads_max, 1)) {
        return res;
    }
    p->n_blocks_max = (int32_t) scores->ne[0];
    p->out_elems = p->top_k * scores->ne[1] * scores->ne[2];
    p->score_elems = p->work_elems = p->work_offset = 0;
    struct ggml_tensor * src[] = { [HS_SELECT_SCORES] = scores, [HS_SELECT_POS_SEQ] = pos_seq };
    const int64_t ne[3] = { p->top_k, scores->ne[1], scores->ne[2] };
    hs_make_node(&b, ctx, impl, HS_OP_SELECT_BLOCKS, p, GGML_TYPE_I32, ne, src, HS_SELECT_POS_SEQ + 1);
    res.out = res.node;
    return res;
}
