// CPU kernel of the sparse attention op: a branch over the selected blocks of the pages (and the forced window, in the same softmax), a branch over
// the rings, and the gates, all in one pass over the query tile.
#include "attn.h"
#include "cpu.h"

void hs_cpu_attn_sparse(struct ggml_tensor * dst, int ith, int nth, void * userdata) {
    struct hs_op_params * p = userdata;
    const struct ggml_tensor * q = dst->src[HS_SPARSE_Q], * k = dst->src[HS_SPARSE_K], * v = dst->src[HS_SPARSE_V];
    const struct ggml_tensor * table = dst->src[HS_SPARSE_TABLE], * win_k = dst->src[HS_SPARSE_WIN_K], * win_v = dst->src[HS_SPARSE_WIN_V];
    const struct ggml_tensor * sinks = dst->src[HS_SPARSE_SINKS];
    const int32_t * pos = dst->src[HS_SPARSE_POS_SEQ]->data;
    const float * sink = sinks ? sinks->data : NULL;
    const int64_t n_tokens = q->ne[2], n_head_kv[2] = { k->ne[2], win_k ? win_k->ne[2] : 0 };
    float * out = dst->data;
    const struct hs_attn a = {
        .plan = hs_plan_make(HS_OP_ATTN_SPARSE, q->ne[0], v->ne[0], q->ne[1], n_head_kv, n_tokens, p),
        .p = p, .q = q->data, .pos = pos, .seq = pos + n_tokens, .n_tokens = (int32_t) n_tokens,
        .branch = {
            { .k = { k, table }, .v = { v, table }, .sinks = sink, .window = p->forced ? p->window : 0, .sel = dst->src[HS_SPARSE_SEL] },
            { .k = { win_k, NULL }, .v = { win_v, NULL }, .sinks = sink ? sink + q->ne[1] : NULL, .window = p->window },
        },
        .gates = dst->src[HS_SPARSE_GATES], .out = out, .work = out + p->work_offset,
    };
    hs_cpu_level_current()->attn(&a, ith, nth);
}

// Everything that the builder lets through.
bool hs_cpu_attn_sparse_supported(const struct ggml_tensor * node) {
    const struct hs_op_row * row = hs_op_find(node);
    return row && row->id == HS_OP_ATTN_SPARSE;
}
