// The layer loop: embeddings -> (norm, attention, residual, norm, FFN, residual) x n_layer -> norm -> logits. Pre-norm, as in Llama, Qwen, MiMo.
#include "graph.h"

#include <string.h>

#include "status.h"

size_t hs_graph_max_nodes(const struct hs_model * m) {
    return 256 + (size_t) m->hp.n_layer * (96 + 2 * (size_t) m->hp.moe.n_expert_used);
}

int32_t hs_graph_max_params(const struct hs_model * m) { return 2 + 12 * m->hp.n_layer; }

struct ggml_tensor * hs_named(struct ggml_tensor * t, const char * name, int il) {
    if (il >= 0) ggml_format_name(t, "%s-%d", name, il);
    else ggml_set_name(t, name);
    return t;
}

static struct ggml_tensor * input(struct hs_build * b, enum ggml_type type, int64_t ne0, int64_t ne1, const char * name) {
    struct ggml_tensor * t = ggml_new_tensor_2d(b->ctx, type, ne0, ne1);
    ggml_set_input(t);
    // In the graph whether or not a node reads it, so that it always has memory to be set.
    ggml_build_forward_expand(b->g->gf, hs_named(t, name, -1));
    return t;
}

static void build_inputs(struct hs_build * b) {
    struct hs_graph * g = b->g;
    const struct hs_layer_plan * plan = &b->model->plan;
    g->tokens  = input(b, GGML_TYPE_I32, g->n_tokens, 1, "inp_tokens");
    g->pos_seq = input(b, GGML_TYPE_I32, g->n_tokens, 2, "inp_pos_seq");
    for (int32_t i = 0; i < plan->n_rows; i++) {
        g->rows[i] = input(b, GGML_TYPE_I64, (int64_t) plan->rows[i].n_head_kv * g->n_tokens, 1, plan->rows[i].ring ? "inp_rows_ring" : "inp_rows_pages");
        if (!plan->rows[i].ring && !g->table) g->table = input(b, GGML_TYPE_I32, b->kv->n_pages, b->kv->shape.n_seq, "inp_table");
    }
    if (g->n_out > 0 && g->n_out < g->n_tokens) g->out_ids = input(b, GGML_TYPE_I32, g->n_out, 1, "inp_out_ids");
}

int hs_graph_build(struct hs_build * b, int32_t n_tokens, int32_t n_out, struct hs_graph * out) {
    const struct hs_weights * w = &b->model->weights;
    const int n_layer = b->model->hp.n_layer;
    struct ggml_context * ctx = b->ctx;
    memset(out, 0, sizeof *out);
    out->n_tokens = n_tokens;
    out->n_out = n_out;
    out->plain = b->plain;
    out->gf = ggml_new_graph_custom(ctx, hs_graph_max_nodes(b->model), false);
    b->g = out;
    b->n_params = 0;
    b->rc = HS_OK;
    build_inputs(b);

    struct ggml_tensor * x = hs_named(ggml_get_rows(ctx, w->token_embd, out->tokens), "inp_embd", -1);
    for (int il = 0; il < n_layer; il++) {
        const bool last = il == n_layer - 1;
        const bool write_only = last && n_out == 0; // no logits wanted: the last layer only has to fill its cache
        struct hs_input in = { .x = x, .norm = w->layers[il].attn_norm, .name = "attn_norm", .il = il };
        x = hs_build_attn(b, il, &in, write_only, last && out->out_ids); // from the last attention on only the rows that become logits
        if (b->rc != HS_OK) return b->rc;
        if (write_only) return HS_OK;
        x = hs_named(hs_build_ffn(b, il, hs_named(x, "ffn_inp", il)), "l_out", il);
    }
    struct hs_input in = { .x = x, .norm = w->output_norm, .name = "result_norm", .il = -1 };
    out->logits = hs_named(hs_build_linear(b, &in, w->output), "result_output", -1);
    if (b->rc != HS_OK) return b->rc;
    ggml_set_output(out->logits);
    ggml_build_forward_expand(out->gf, out->logits);
    return HS_OK;
}
