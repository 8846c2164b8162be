// Builder of the window attention op. The contract is in hs_ops.h.
#include "build.h"
#include "cpu/plan.h"

struct hs_op_result hs_attn_window(struct ggml_context * ctx, enum hs_op_impl impl, struct hs_op_params * p, struct ggml_tensor * q,
    struct ggml_tensor * k_ring, struct ggml_tensor * v_ring, struct ggml_tensor * pos_seq, struct ggml_tensor * sinks) {
    struct hs_op_result res = { 0 };
    const struct hs_build b = { "attn_window", &res };
    if (!hs_check_q(&b, q) || !hs_check_cache(&b, "k_ring", k_ring, "v_ring", v_ring, q) || !hs_check_pos_seq(&b, pos_seq, q->ne[2]) ||
        !hs_check_sinks(&b, sinks, q->ne[1], 1) || !hs_check_scale(&b, p->scale) || !hs_check_min(&b, "window", p->window, 1) ||
        !hs_check_min(&b, "n_threads_max", p->n_threads_max, 1)) {
        return res;
    }
    const int64_t d_v = v_ring->ne[0], n_head = q->ne[1], n_tokens = q->ne[2], n_head_kv = k_ring->ne[2];
    p->n_blocks_max = 0;
    p->out_elems = d_v * n_head * n_tokens;
    p->score_elems = 0;
    p->work_elems = hs_plan_make(HS_OP_ATTN_WINDOW, q->ne[0], d_v, n_head, (int64_t[2]) { n_head_kv, 0 }, n_tokens, p).work_elems;
    struct ggml_tensor * src[] = {
        [HS_WINDOW_Q] = q, [HS_WINDOW_K] = k_ring, [HS_WINDOW_V] = v_ring, [HS_WINDOW_POS_SEQ] = pos_seq, [HS_WINDOW_SINKS] = sinks,
    };
    hs_make_packed(&b, ctx, impl, HS_OP_ATTN_WINDOW, p, d_v, n_head, n_head_kv, n_tokens, src, HS_WINDOW_SINKS + 1);
    return res;
}
