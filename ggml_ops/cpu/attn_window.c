// CPU kernel of the window attention op: one branch over the rings.
#include "attn.h"
#include "cpu.h"

void hs_cpu_attn_window(struct ggml_tensor * dst, int ith, int nth, void * userdata) {
    struct hs_op_params * p = userdata;
    const struct ggml_tensor * q = dst->src[HS_WINDOW_Q], * k = dst->src[HS_WINDOW_K], * v = dst->src[HS_WINDOW_V];
    const struct ggml_tensor * sinks = dst->src[HS_WINDOW_SINKS];
    const int32_t * pos = dst->src[HS_WINDOW_POS_SEQ]->data;
    const int64_t n_tokens = q->ne[2], n_head_kv[2] = { k->ne[2], 0 };
    float * out = dst->data;
    const struct hs_attn a = {
        .plan = hs_plan_make(HS_OP_ATTN_WINDOW, q->ne[0], v->ne[0], q->ne[1], n_head_kv, n_tokens, p),
        .p = p, .q = q->data, .pos = pos, .seq = pos + n_tokens, .n_tokens = (int32_t) n_tokens,
        .branch = { { .k = { k, NULL }, .v = { v, NULL }, .sinks = sinks ? sinks->data : NULL, .window = p->window } },
        .out = out, .work = out + p->work_offset,
    };
    hs_cpu_level_current()->attn(&a, ith, nth);
}

// Everything that the builder lets through.
bool hs_cpu_attn_window_supported(const struct ggml_tensor * node) {
    const struct hs_op_row * row = hs_op_find(node);
    return row && row->id == HS_OP_ATTN_WINDOW;
}
