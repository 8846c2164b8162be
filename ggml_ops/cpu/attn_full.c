// CPU kernel of the full attention op: one branch over the pages, causal, with block scores.
#include "attn.h"
#include "cpu.h"

void hs_cpu_attn_full(struct ggml_tensor * dst, int ith, int nth, void * userdata) {
    struct hs_op_params * p = userdata;
    const struct ggml_tensor * q = dst->src[HS_FULL_Q], * k = dst->src[HS_FULL_K], * v = dst->src[HS_FULL_V], * table = dst->src[HS_FULL_TABLE];
    const struct ggml_tensor * sinks = dst->src[HS_FULL_SINKS];
    const int32_t * pos = dst->src[HS_FULL_POS_SEQ]->data;
    const int64_t n_tokens = q->ne[2], n_head_kv[2] = { k->ne[2], 0 };
    float * out = dst->data;
    const struct hs_attn a = {
        .plan = hs_plan_make(HS_OP_ATTN_FULL, q->ne[0], v->ne[0], q->ne[1], n_head_kv, n_tokens, p),
        .p = p, .q = q->data, .pos = pos, .seq = pos + n_tokens, .n_tokens = (int32_t) n_tokens,
        .branch = { { .k = { k, table }, .v = { v, table }, .sinks = sinks ? sinks->data : NULL, .window = INT32_MAX } },
        .out = out, .scores = p->emit_scores ? out + p->out_elems : NULL, .work = out + p->work_offset,
    };
    hs_cpu_level_current()->attn(&a, ith, nth);
}

// Everything that the builder lets through.
bool hs_cpu_attn_full_supported(const struct ggml_tensor * node) {
    const struct hs_op_row * row = hs_op_find(node);
    return row && row->id == HS_OP_ATTN_FULL;
}
