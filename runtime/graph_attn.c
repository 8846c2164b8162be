// The attention half of a layer (SPEC 3 to 5), read from the layer plan: project, norm, rotate; write k and v to the layer's cache; attend.
#include "graph.h"

#include <math.h>

#include "status.h"

static struct ggml_tensor * rope(struct hs_build * b, int il, const struct hs_layer * l, struct ggml_tensor * x) {
    const struct hs_rope * r = &b->model->hp.rope[l->rope];
    if (r->n_rot == 0) return ggml_cont(b->ctx, x);
    struct ggml_tensor * pos = ggml_view_1d(b->ctx, b->g->pos_seq, b->g->n_tokens, 0);
    return ggml_rope_ext(b->ctx, x, pos, b->model->weights.rope_factors[r->factors_of][1 + b->model->placement.layer[il]], r->n_rot, r->mode, r->n_ctx_orig, r->freq_base, r->freq_scale,
        r->ext_factor, r->attn_factor, r->beta_fast, r->beta_slow);
}

// [head_dim, heads, n_tokens]; the gates' two halves [n_gate, n_tokens], NULL without gates
struct projected { struct ggml_tensor * q, * k, * v, * gate[2]; };

// Rows first .. first + d * n of x as [d, n, n_tokens].
static struct ggml_tensor * heads(struct hs_build * b, struct ggml_tensor * x, int64_t d, int64_t n, int64_t first) {
    return ggml_view_3d(b->ctx, x, d, n, x->ne[1], x->nb[0] * (size_t) d, x->nb[1], x->nb[0] * (size_t) first);
}

// With the strides of its shape: those of one token's part of a wider matrix are others, although nothing lies between.
static struct ggml_tensor * contiguous(struct hs_build * b, struct ggml_tensor * x) { return ggml_is_contiguous(x) ? ggml_reshape(b->ctx, x, x) : ggml_cont(b->ctx, x); }

// The two halves of the gates in one: as they stand where the loader joined them, else copied together.
static struct ggml_tensor * gates_of(struct hs_build * b, struct ggml_tensor * const gate[2]) {
    const int64_t n_gate = gate[0]->ne[0];
    struct ggml_tensor * all = gate[0]->view_src;
    if (!all || all != gate[1]->view_src || gate[1]->view_offs != gate[0]->view_offs + (size_t) n_gate * all->nb[0]) return ggml_concat(b->ctx, gate[0], gate[1], 0);
    return contiguous(b, ggml_view_2d(b->ctx, all, 2 * n_gate, all->ne[1], all->nb[1], gate[0]->view_offs));
}

static struct projected project(struct hs_build * b, int il, const struct hs_layer * l, struct hs_input * in) {
    struct ggml_context * ctx = b->ctx;
    const struct hs_layer_weights * w = &b->model->weights.layers[il];
    const int64_t dk = l->head_dim_k, dv = l->head_dim_v;
    struct projected r = { 0 };
    const struct hs_linear gates[2] = { { w->gate_sparse, NULL }, { w->gate_swa, NULL } };
    const int n_gate = w->gate_sparse && l->kind == HS_LAYER_SPARSE ? 2 : 0;
    if (w->qkv.w) {
        struct ggml_tensor * all;
        hs_build_linears(b, in, &w->qkv, 1, &all);
        if (n_gate) hs_build_linears(b, in, gates, n_gate, r.gate);
        const int64_t n_q = dk * l->n_head, n_k = dk * l->n_head_kv;
        r.q = heads(b, all, dk, l->n_head, 0);
        r.k = heads(b, all, dk, l->n_head_kv, n_q);
        r.v = contiguous(b, heads(b, all, dv, l->n_head_kv, n_q + n_k));
    } else {
        const struct hs_linear all[5] = { w->q, w->k, w->v, gates[0], gates[1] };
        struct ggml_tensor * out[5];
        hs_build_linears(b, in, all, 3 + n_gate, out);
        for (int i = 0; i < n_gate; i++) r.gate[i] = out[3 + i];
        r.q = heads(b, out[0], dk, l->n_head, 0);
        r.k = heads(b, out[1], dk, l->n_head_kv, 0);
        r.v = contiguous(b, heads(b, out[2], dv, l->n_head_kv, 0));
    }
    if (w->q_norm) {
        r.q = hs_build_norm(b, r.q, w->q_norm);
        r.k = hs_build_norm(b, r.k, w->k_norm);
    }
    r.q = hs_named(rope(b, il, l, r.q), "Qcur", il);
    r.k = hs_named(rope(b, il, l, r.k), "Kcur", il);
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
    if (c->gate[0]) a.gates = hs_named(gates_of(b, c->gate), "gates", il);
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
