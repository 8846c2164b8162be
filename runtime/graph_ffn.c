// The FFN half of a layer: SwiGLU, dense or a mixture of experts (routing as in DeepSeek-V3 and MiMo-V2: sigmoid or softmax scores, a correction bias
// that only steers the choice, optional groups, optional shared experts).
#include "graph.h"

// Keep the n_group_used groups with the largest sum of their two best scores; the others' scores become very small.
static struct ggml_tensor * mask_groups(struct hs_build * b, const struct hs_moe_hparams * m, struct ggml_tensor * choice) {
    struct ggml_context * ctx = b->ctx;
    const int64_t per_group = m->n_expert / m->n_group, n = choice->ne[1];
    struct ggml_tensor * groups = ggml_reshape_3d(ctx, choice, per_group, m->n_group, n);
    struct ggml_tensor * best = ggml_argsort_top_k(ctx, groups, 2);                                        // [2, n_group, n]
    best = ggml_get_rows(ctx, ggml_reshape_4d(ctx, groups, 1, per_group, m->n_group, n), best);            // [1, 2, n_group, n]
    best = ggml_sum_rows(ctx, ggml_reshape_3d(ctx, best, 2, m->n_group, n));                               // [1, n_group, n]
    struct ggml_tensor * ids = ggml_argsort_top_k(ctx, ggml_reshape_2d(ctx, best, m->n_group, n), m->n_group_used); // [n_group_used, n]
    struct ggml_tensor * kept = ggml_get_rows(ctx, groups, ids);                                           // [per_group, n_group_used, n]
    struct ggml_tensor * out = ggml_set_rows(ctx, ggml_fill(ctx, groups, -1e30f), kept, ids);
    return ggml_reshape_2d(ctx, out, m->n_expert, n);
}

static struct ggml_tensor * moe(struct hs_build * b, int il, struct ggml_tensor * x) {
    struct ggml_context * ctx = b->ctx;
    const struct hs_layer_weights * w = &b->model->weights.layers[il];
    const struct hs_moe_hparams * m = &b->model->hp.moe;
    const int64_t n_embd = x->ne[0], n = x->ne[1], used = m->n_expert_used;

    struct hs_input in = { .x = x };
    struct ggml_tensor * logits = hs_named(hs_build_linear(b, &in, w->router), "ffn_moe_logits", il);        // [n_expert, n]
    struct ggml_tensor * probs = m->gating == HS_GATING_SIGMOID ? ggml_sigmoid(ctx, logits) : ggml_soft_max(ctx, logits);
    struct ggml_tensor * choice = w->router_bias ? ggml_add(ctx, probs, w->router_bias) : probs;
    if (m->n_group > 1 && m->n_group_used < m->n_group) choice = mask_groups(b, m, choice);
    struct ggml_tensor * ids = hs_named(ggml_argsort_top_k(ctx, choice, (int) used), "ffn_moe_topk", il);  // [used, n]
    struct ggml_tensor * weights = ggml_get_rows(ctx, ggml_reshape_3d(ctx, probs, 1, m->n_expert, n), ids); // [1, used, n]
    if (m->norm_weights) {
        struct ggml_tensor * flat = ggml_reshape_2d(ctx, weights, used, n);
        struct ggml_tensor * sum = ggml_clamp(ctx, ggml_sum_rows(ctx, flat), 1e-20f, 1e30f);
        weights = ggml_reshape_3d(ctx, ggml_div(ctx, flat, sum), 1, used, n);
    }
    if (m->weight_scale != 1.0f) weights = ggml_scale(ctx, weights, m->weight_scale);
    hs_named(weights, "ffn_moe_weights", il);
    ggml_build_forward_expand(b->g->gf, weights);

    struct ggml_tensor * x3 = ggml_reshape_3d(ctx, x, n_embd, 1, n);
    struct ggml_tensor * up = ggml_mul_mat_id(ctx, w->up_exps, x3, ids);                                   // [n_ff_exp, used, n]
    struct ggml_tensor * gate = ggml_mul_mat_id(ctx, w->gate_exps, x3, ids);
    struct ggml_tensor * down = ggml_mul_mat_id(ctx, w->down_exps, ggml_swiglu_split(ctx, gate, up), ids); // [n_embd, used, n]
    down = ggml_mul(ctx, down, weights);
    struct ggml_tensor * out = NULL;
    for (int64_t i = 0; i < used; i++) { // sum over the chosen experts, in their order
        struct ggml_tensor * one = ggml_view_2d(ctx, down, n_embd, n, down->nb[2], (size_t) i * down->nb[1]);
        out = out ? ggml_add(ctx, out, one) : one;
    }
    if (used == 1) out = ggml_cont(ctx, out);
    if (w->gate_shexp) {
        const struct hs_linear shared = { w->down_shexp, NULL };
        out = hs_build_residual(b, &shared, hs_build_swiglu(b, &in, w->gate_shexp, w->up_shexp), out, "ffn_shexp", il);
    }
    return out;
}

struct ggml_tensor * hs_build_ffn(struct hs_build * b, int il, struct ggml_tensor * x) {
    const struct hs_layer_weights * w = &b->model->weights.layers[il];
    struct hs_input in = { .x = x, .norm = w->ffn_norm, .name = "ffn_norm", .il = il };
    if (b->model->plan.layers[il].moe) return ggml_add(b->ctx, x, hs_named(moe(b, il, hs_build_input(b, &in)), "ffn_out", il));
    const struct hs_linear down = { w->down, NULL };
    return hs_build_residual(b, &down, hs_build_swiglu(b, &in, w->gate, w->up), x, "ffn_out", il);
}
