// Builder of the full attention op: checks and sizes. The contract is in hs_ops.h.
#include "build.h"
#include "cpu/plan.h"

struct hs_op_result hs_attn_full(struct ggml_context * ctx, enum hs_op_impl impl, struct hs_op_params * p, struct ggml_tensor * q,
    struct ggml_tensor * k, struct ggml_tensor * v, struct ggml_tensor * table, struct ggml_tensor * pos_seq, struct ggml_tensor * sinks) {
    struct hs_op_result res = { 0 };
    const struct hs_build b = { "attn_full", &res };
    if (!hs_check_q(&b, q) || !hs_check_cache(&b, "k", k, "v", v, q) || !hs_check_table(&b, table) || !hs_check_pos_seq(&b, pos_seq, q->ne[2]) ||
        !hs_check_sinks(&b, sinks, q->ne[1], 1) || !hs_check_scale(&b, p->scale) || !hs_check_min(&b, "n_threads_max", p->n_threads_max, 1) ||
        (p->emit_scores && !hs_check_min(&b, "block_size", p->block_size, 1))) {
        return res;
    }
    const int64_t n_head = q->ne[1], n_tokens = q->ne[2], n_head_kv = k->ne[2];
    p->n_blocks_max = p->emit_scores ? (int32_t) ((table->ne[0] * k->ne[1] + p->block_size - 1) / p->block_size) : 0;
    p->out_elems = v->ne[0] * n_head * n_tokens;
    p->score_elems = p->n_blocks_max * n_head_kv * n_tokens;
    p->work_elems = hs_plan_make(HS_OP_ATTN_FULL, q->ne[0], v->ne[0], n_head, (int64_t[2]) { n_head_kv, 0 }, n_tokens, p).work_elems;
    struct ggml_tensor * src[] = {
        [HS_FULL_Q] = q, [HS_FULL_K] = k, [HS_FULL_V] = v, [HS_FULL_TABLE] = table, [HS_FULL_POS_SEQ] = pos_seq, [HS_FULL_SINKS] = sinks,
    };
    hs_make_packed(&b, ctx, impl, HS_OP_ATTN_FULL, p, v->ne[0], n_head, n_head_kv, n_tokens, src, HS_FULL_SINKS + 1);
    return res;
}
