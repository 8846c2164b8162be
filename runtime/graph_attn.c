// The attention half of a layer (SPEC 3 to 5), read from the layer plan: project, norm, rotate; write k and v to the layer's cache; attend.
#include "graph.h"

#include <math.h>

#include "status.h"

static struct ggml_tensor * rope(struct hs_build * b, const struct hs_layer * l, struct ggml_tensor * x) {
    const struct hs_rope * r = &b->model->hp.rope[l->rope];
    if (r->n_rot == 0) return ggml_cont(b->ctx, x);
    struct ggml_tensor * pos = ggml_view_1d(b->ctx, b->g->pos_seq, b->g->n_tokens, 0);
    return ggml_rope_ext(b->ctx, x, pos, b->model->weights.rope_factors[r->factors_of], r->n_rot, r->mode, r->n_ctx_orig, r->freq_base, r->freq_scale,
        r->ext_factor, r->attn_factor, r->beta_fast, r->beta_slow);
}

// [head_dim, heads, n_tokens]; the gates' two halves [n_gate, n_tokens], NULL without gates
struct projected { struct ggml_tensor * q, * k, * v, * gate[2]; };

static struct projected project(struct hs_build * b, int il, const struct hs_layer * l, struct hs_input * in) {
    struct ggml_context * ctx = b->ctx;
    const struct hs_layer_weights * w = &b->model->weights.layers[il];
    const int64_t n = b->g->n_tokens, dk = l->head_dim_k, dv = l->head_dim_v;
    struct projected r = { 0 };
    const struct hs_linear gates[2] = { { w->gate_sparse, NULL }, { w->gate_swa, NULL } };
    const int n_gate = w->gate_sparse && l->kind == HS_LAYER_SPARSE ? 2 : 0;
    if (w->qkv.w) {
        struct ggml_tensor * all;
        hs_build_linears(b, in, &w->qkv, 1, &all);
        if (n_gate) hs_build_linears(b, in, gates, n_gate, r.gate);
        const size_t e = ggml_element_size(all), n_q = (size_t) (dk * l->n_head), n_k = (size_t) (dk * l->n_head_kv);
        r.q = ggml_view_3d(ctx, all, dk, l->n_head, n, e * (size_t) dk, all->nb[1], 0);
        r.k = ggml_view_3d(ctx, all, dk, l->n_head_kv, n, e * (size_t) dk, all->nb[1], e * n_q);
        r.v = ggml_cont(ctx, ggml_view_3d(ctx, all, dv, l->n_head_kv, n, e * (size_t) dv, all->nb[1], e * (n_q + n_k)));
    } else {
        const struct hs_linear all[5] = { w->q, w->k, w->v, gates[0], gates[1] };
        struct ggml_tensor * out[5];
        hs_build_linears(b, in, all, 3 + n_gate, out);
        for (int i = 0; i < n_gate; i++) r.gate[i] = out[3 + i];
        r.q = ggml_reshape_3d(ctx, out[0], dk, l->n_head, n);
        r.k = ggml_reshape_3d(ctx, out[1], dk, l->n_head_kv, n);
        r.v = ggml_reshape_3d(ctx, out[2], dv, l->n_head_kv, n);
    }
    if (w->q_norm) {
        r.q = hs_build_norm(b, r.q, w->q_norm);
        r.k = hs_build_norm(b, r.k, w->k_norm);
    }
    r.q = hs_named(rope(b, l, r.q), "Qcur", il);
    r.k = hs_named(rope(b, l, r.k), "Kcur", il);
    if (b->model->hp.value_scale != 1.0f) r.v = ggml_scale(ctx, r.v, b->model->hp.value_scale);
    hs_named(r.v, "Vcur", il);
    return r;
}

// k or v of this ubatch to the rows of the layer's own cache (pages or ring alike). In the graph before anything reads the cache.
static void write_cache(struct hs_build * b, const struct hs_layer * l, struct ggml_tensor * cache, struct ggml_tensor * x) {
    struct ggml_tensor * flat = ggml_reshape_2d(b->ctx, cache, cache->ne[0], cache->ne[1] * cache->ne[2] * cache->ne[3]);
    struct ggml_tensor * rows = ggml_reshape_2d(b->ctx, x, x->ne[0], x->ne[1] * x->ne[2]);
    ggml_build_forward_expand(b->g->gf, ggml_set_rows(b->ctx, flat, rows, b->g->rows[l->rows]));
}

static struct ggml_tensor * check(struct hs_build * b, struct hs_op_result r) {
    if (r.node) return r.out;
    b->rc = hs_fail(b->err, HS_E_INTERNAL, "%s", r.error);
    return NULL;
}

static struct hs_op_params * new_params(struct hs_build * b, const struct hs_layer * l) {
    const struct hs_layer_plan * plan = &b->model->plan;
    struct hs_op_params * p = &b->params[b->n_params++];
    *p = (struct hs_op_params) { .scale = 1.0f / sqrtf((float) l->head_dim_k), .block_size = plan->block_size, .top_k = plan->top_k, .window = plan->window,
        .n_threads_max = b->n_threads_max };
    return p;
}

static struct ggml_tensor * attend_full(struct hs_build * b, int il, const struct hs_layer * l, struct ggml_tensor * q) {
    struct hs_op_params * p = new_params(b, l);
    p->emit_scores = l->emits_scores;
    struct hs_op_result r = hs_attn_full(b->ctx, b->impl, p, q, b->kv->k[il], b->kv->v[il], b->g->table, b->g->pos_seq, b->model->weights.layers[il].sinks);
    struct ggml_tensor * out = check(b, r);
    if (!out || !l->emits_scores) return out;
    struct ggml_tensor * sel = check(b, hs_select_blocks(b->ctx, b->impl, new_params(b, l), r.scores, b->g->pos_seq));
    if (!sel) return NULL;
    b->selection[il] = hs_named(sel, "selection", il);
    hs_named(r.scores, "block_scores", il);
    ggml_build_forward_expand(b->g->gf, sel);
    return out;
}

static struct ggml_tensor * attend_sparse(struct hs_build * b, int il, const struct hs_layer * l, const struct projected * c) {
    const struct hs_layer_weights * w = &b->model->weights.layers[il];
    struct hs_op_params * p = new_params(b, l);
    p->forced = l->local == HS_LOCAL_FORCED;
    struct hs_attn_sparse_args a = { .q = c->q, .k = b->kv->k[l->kv_source], .v = b->kv->v[l->kv_source], .sel = b->selection[l->selection_source],
        .table = b->g->table, .pos_seq = b->g->pos_seq, .sinks = w->sinks };
    if (l->owns_ring) {
        a.win_k = b->kv->k[il];
        a.win_v = b->kv->v[il];
    }
    if (c->gate[0]) a.gates = hs_named(ggml_concat(b->ctx, c->gate[0], c->gate[1], 0), "gates", il);
    return check(b, hs_attn_sparse(b->ctx, b->impl, p, &a));
}

struct ggml_tensor * hs_build_attn(struct hs_build * b, int il, struct hs_input * in, bool write_only, bool picked) {
    const struct hs_layer * l = &b->model->plan.layers[il];
    const struct projected c = project(b, il, l, in);
    write_cache(b, l, b->kv->k[il], c.k);
    write_cache(b, l, b->kv->v[il], c.v);
    if (write_only) return NULL;

    struct ggml_tensor * out = NULL;
    switch (l->kind) {
        case HS_LAYER_FULL:   out = attend_full(b, il, l, c.q); break;
        case HS_LAYER_SPARSE: out = attend_sparse(b, il, l, &c); break;
        case HS_LAYER_SLIDING:
            out = check(b, hs_attn_window(b->ctx, b->impl, new_params(b, l), c.q, b->kv->k[il], b->kv->v[il], b->g->pos_seq, b->model->weights.layers[il].sinks));
            break;
    }
    if (!out) return NULL;
    hs_named(out, "attn_heads", il);
    out = ggml_reshape_2d(b->ctx, out, (int64_t) l->head_dim_v * l->n_head, b->g->n_tokens);
    struct ggml_tensor * x = in->x;
    if (picked) {
        out = ggml_get_rows(b->ctx, out, b->g->out_ids);
        x = ggml_get_rows(b->ctx, x, b->g->out_ids);
    }
    return hs_build_residual(b, &b->model->weights.layers[il].o, out, x, "attn_out", il);
}
