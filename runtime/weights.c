// Tensor table -> bound weights. Binding says what a model is made of (weights_bind below reads like the list in docs/gguf.md); loading then
// maps, copies or repacks the bytes (weights_load.c).
#include "weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hs_ops.h"
#include "status.h"
#include "weights_load.h"

enum { BIND_OPTIONAL = 1, BIND_EXPERTS = 2, BIND_LOOKUP = 4 };

static const char * tensor_name(struct hs_binder * b, const char * fmt, int il) {
    if (il >= 0) snprintf(b->name, sizeof b->name, "blk.%d.%s", il, fmt);
    else snprintf(b->name, sizeof b->name, "%s", fmt);
    return b->name;
}

// The file's tensor of that name, marked as used, or NULL (absent and optional) with *rc HS_OK.
static const struct hs_gguf_tensor * take(struct hs_binder * b, const char * fmt, int il, int flags, int * rc) {
    const int64_t i = hs_gguf_find_tensor(b->gguf, tensor_name(b, fmt, il));
    *rc = HS_OK;
    if (i < 0) {
        if (!(flags & BIND_OPTIONAL)) *rc = hs_fail(b->err, HS_E_MODEL, "tensor %s: missing, expected in a %s model", b->name, hs_arch_name(b->hp->arch));
        return NULL;
    }
    b->used[i] = 1;
    return hs_gguf_tensor_at(b->gguf, i);
}

static int check_shape(struct hs_binder * b, const struct hs_gguf_tensor * t, int64_t ne0, int64_t ne1, int64_t ne2) {
    const int64_t want[4] = {ne0, ne1, ne2, 1};
    for (int i = 0; i < 4; i++) {
        if (t->ne[i] != want[i]) {
            return hs_fail(b->err, HS_E_MODEL, "tensor %s: has ne[%d] = %lld, expected %lld (shape [%lld, %lld, %lld])", t->name, i, (long long) t->ne[i],
                (long long) want[i], (long long) ne0, (long long) ne1, (long long) ne2);
        }
    }
    return HS_OK;
}

// Where a layer's tensors lie; those after the last layer (il -1) lie with the output.
static int32_t device_of(const struct hs_binder * b, int il) { return il >= 0 ? b->placement->layer[il] : b->placement->output; }

// A matrix (or a stack of experts): kept in the file's type.
static int bind_matrix(struct hs_binder * b, const char * fmt, int il, int flags, int64_t ne0, int64_t ne1, int64_t ne2, struct ggml_tensor ** out) {
    int rc;
    const struct hs_gguf_tensor * t = take(b, fmt, il, flags, &rc);
    if (!t) return rc;
    HS_TRY(check_shape(b, t, ne0, ne1, ne2));
    if (flags & BIND_LOOKUP ? ggml_get_type_traits(t->type)->to_float == NULL && t->type != GGML_TYPE_F32 : !hs_cpu_can_multiply(t->type)) {
        return hs_fail(b->err, HS_E_MODEL, "tensor %s: has type %s, expected a float or quantised weight type", t->name, ggml_type_name(t->type));
    }
    const int32_t device = flags & BIND_LOOKUP ? b->placement->input : flags & BIND_EXPERTS && b->placement->cpu_moe[il] ? HS_ON_CPU : device_of(b, il);
    if (device != HS_ON_CPU && (flags & BIND_LOOKUP ? hs_device_looks_up(device, hs_device_buft(device), t->type, t->ne) :
                                                      hs_device_multiplies(device, hs_device_buft(device), t->type, t->ne, flags & BIND_EXPERTS))) {
        return hs_binder_add(b, t, device, NULL, out);
    }
    const bool repack = b->p->repack && !(flags & BIND_LOOKUP);
    if (repack && !(flags & BIND_EXPERTS) && hs_linear_is_fast(t->type) && hs_linear_can_pack(t->type, ne0, ne1)) return hs_binder_add_packed(b, t, out);
    return hs_binder_add(b, t, HS_ON_CPU, repack ? hs_repack_buft(t->type, t->ne, flags & BIND_EXPERTS) : NULL, out);
}

// A vector: f32 in memory whatever the file has.
static int bind_vector(struct hs_binder * b, const char * fmt, int il, int flags, int64_t n, struct ggml_tensor ** out) {
    int rc;
    const struct hs_gguf_tensor * t = take(b, fmt, il, flags, &rc);
    if (!t) return rc;
    HS_TRY(check_shape(b, t, n, 1, 1));
    return hs_binder_add_f32(b, t, device_of(b, il), out, n);
}

// A small vector that layers on every device read.
static int bind_rope_factors(struct hs_binder * b, const char * name, int64_t n, struct ggml_tensor ** out) {
    int rc;
    const struct hs_gguf_tensor * t = take(b, name, -1, BIND_OPTIONAL, &rc);
    if (!t) return rc;
    HS_TRY(check_shape(b, t, n, 1, 1));
    HS_TRY(hs_binder_add_f32(b, t, HS_ON_CPU, &out[1 + HS_ON_CPU], n));
    for (int32_t d = 0; d < b->placement->n_gpus; d++) HS_TRY(hs_binder_add_f32(b, t, b->placement->gpus[d], &out[1 + b->placement->gpus[d]], n));
    return HS_OK;
}

static int bind_linear(struct hs_binder * b, const char * stem, int il, int flags, int64_t n_in, int64_t n_out, struct hs_linear * out) {
    char name[64];
    snprintf(name, sizeof name, "%s.weight", stem);
    HS_TRY(bind_matrix(b, name, il, flags, n_in, n_out, 1, &out->w));
    if (!out->w) return HS_OK;
    snprintf(name, sizeof name, "%s.bias", stem);
    return bind_vector(b, name, il, BIND_OPTIONAL, n_out, &out->b);
}

// A sparse layer's two sinks become one tensor [n_head, 2] (global, window); an absent one is HS_SINK_ABSENT.
static int bind_sinks(struct hs_binder * b, int il, const struct hs_layer * l, struct hs_layer_weights * w) {
    if (l->kind != HS_LAYER_SPARSE || l->local != HS_LOCAL_OWN) {
        // A stock model in oracle mode keeps its one sink in row 0.
        HS_TRY(bind_vector(b, "attn_sinks.weight", il, BIND_OPTIONAL, l->n_head, &w->sinks));
        b->w->has_sinks = b->w->has_sinks || w->sinks;
        if (w->sinks && l->kind == HS_LAYER_SPARSE) return hs_fail(b->err, HS_E_MODEL, "tensor %s: sinks are not supported in oracle mode", b->name);
        return HS_OK;
    }
    int rc;
    const struct hs_gguf_tensor * global = take(b, "attn_sinks_sparse.weight", il, BIND_OPTIONAL, &rc);
    const struct hs_gguf_tensor * window = take(b, "attn_sinks.weight", il, BIND_OPTIONAL, &rc);
    if (!global && !window) return HS_OK;
    if (global) HS_TRY(check_shape(b, global, l->n_head, 1, 1));
    if (window) HS_TRY(check_shape(b, window, l->n_head, 1, 1));
    b->w->has_sinks = b->w->has_sinks || window;
    b->w->has_sparse_sinks = b->w->has_sparse_sinks || global;
    return hs_binder_add_sinks(b, global, window, device_of(b, il), l->n_head, &w->sinks);
}

// What reads the normed input: q, k and v (or the three in one) and the gates.
static int bind_projections(struct hs_binder * b, int il, const struct hs_layer * l, int64_t n_q, int64_t n_k, int64_t n_v, struct hs_layer_weights * w) {
    static const char * const joinable[] = { "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_gate_sparse.weight", "attn_gate_swa.weight" };
    const int64_t n_embd = b->hp->n_embd;
    HS_TRY(bind_linear(b, "attn_qkv", il, BIND_OPTIONAL, n_embd, n_q + n_k + n_v, &w->qkv));
    if (!w->qkv.w) {
        HS_TRY(hs_binder_join(b, joinable, l->gate != HS_GATE_NONE ? 5 : 3, il, device_of(b, il)));
        HS_TRY(bind_linear(b, "attn_q", il, 0, n_embd, n_q, &w->q));
        HS_TRY(bind_linear(b, "attn_k", il, 0, n_embd, n_k, &w->k));
        HS_TRY(bind_linear(b, "attn_v", il, 0, n_embd, n_v, &w->v));
    }
    if (l->gate != HS_GATE_NONE) {
        const int64_t n_gate = l->gate == HS_GATE_HEAD ? l->n_head : (int64_t) l->n_head * l->head_dim_v;
        HS_TRY(bind_matrix(b, "attn_gate_sparse.weight", il, 0, n_embd, n_gate, 1, &w->gate_sparse));
        HS_TRY(bind_matrix(b, "attn_gate_swa.weight", il, 0, n_embd, n_gate, 1, &w->gate_swa));
    }
    hs_binder_end_join(b);
    return HS_OK;
}

static int bind_attention(struct hs_binder * b, int il, const struct hs_layer_plan * plan, struct hs_layer_weights * w) {
    const struct hs_layer * l = &plan->layers[il];
    const int64_t n_embd = b->hp->n_embd, n_q = (int64_t) l->n_head * l->head_dim_k;
    const int64_t n_k = (int64_t) l->n_head_kv * l->head_dim_k, n_v = (int64_t) l->n_head_kv * l->head_dim_v, n_o = (int64_t) l->n_head * l->head_dim_v;
    HS_TRY(bind_vector(b, "attn_norm.weight", il, 0, n_embd, &w->attn_norm));
    HS_TRY(bind_projections(b, il, l, n_q, n_k, n_v, w));
    HS_TRY(bind_linear(b, "attn_output", il, 0, n_o, n_embd, &w->o));
    HS_TRY(bind_vector(b, "attn_q_norm.weight", il, BIND_OPTIONAL, l->head_dim_k, &w->q_norm));
    HS_TRY(bind_vector(b, "attn_k_norm.weight", il, BIND_OPTIONAL, l->head_dim_k, &w->k_norm));
    if (!w->q_norm != !w->k_norm) return hs_fail(b->err, HS_E_MODEL, "blk.%d: only one of attn_q_norm and attn_k_norm, expected both or neither", il);
    if (b->hp->arch == HS_ARCH_QWEN3 && !w->q_norm) return hs_fail(b->err, HS_E_MODEL, "tensor blk.%d.attn_q_norm.weight: missing, expected in a qwen3 model", il);
    b->w->has_qk_norm = b->w->has_qk_norm || w->q_norm;
    HS_TRY(bind_sinks(b, il, l, w));
    return HS_OK;
}

static int bind_ffn(struct hs_binder * b, int il, const struct hs_layer * l, struct hs_layer_weights * w) {
    const int64_t n_embd = b->hp->n_embd;
    HS_TRY(bind_vector(b, "ffn_norm.weight", il, 0, n_embd, &w->ffn_norm));
    if (!l->moe) {
        const int64_t n_ff = l->n_ff;
        if (n_ff < 1) return hs_fail(b->err, HS_E_MODEL, "%s.feed_forward_length: found %d for dense layer %d, expected at least 1", hs_arch_name(b->hp->arch), l->n_ff, il);
        HS_TRY(bind_matrix(b, "ffn_gate.weight", il, 0, n_embd, n_ff, 1, &w->gate));
        HS_TRY(bind_matrix(b, "ffn_up.weight", il, 0, n_embd, n_ff, 1, &w->up));
        return bind_matrix(b, "ffn_down.weight", il, 0, n_ff, n_embd, 1, &w->down);
    }
    const struct hs_moe_hparams * m = &b->hp->moe;
    HS_TRY(bind_matrix(b, "ffn_gate_inp.weight", il, 0, n_embd, m->n_expert, 1, &w->router));
    HS_TRY(bind_vector(b, "exp_probs_b.bias", il, BIND_OPTIONAL, m->n_expert, &w->router_bias));
    HS_TRY(bind_matrix(b, "ffn_gate_exps.weight", il, BIND_EXPERTS, n_embd, m->n_ff_exp, m->n_expert, &w->gate_exps));
    HS_TRY(bind_matrix(b, "ffn_up_exps.weight", il, BIND_EXPERTS, n_embd, m->n_ff_exp, m->n_expert, &w->up_exps));
    HS_TRY(bind_matrix(b, "ffn_down_exps.weight", il, BIND_EXPERTS, m->n_ff_exp, n_embd, m->n_expert, &w->down_exps));
    if (m->n_expert_shared == 0) return HS_OK;
    HS_TRY(bind_matrix(b, "ffn_gate_shexp.weight", il, 0, n_embd, m->n_ff_shexp, 1, &w->gate_shexp));
    HS_TRY(bind_matrix(b, "ffn_up_shexp.weight", il, 0, n_embd, m->n_ff_shexp, 1, &w->up_shexp));
    return bind_matrix(b, "ffn_down_shexp.weight", il, 0, m->n_ff_shexp, n_embd, 1, &w->down_shexp);
}

static int bind_model(struct hs_binder * b, const struct hs_layer_plan * plan) {
    struct hs_hparams * hp = b->hp;
    struct hs_weights * w = b->w;
    const int64_t i = hs_gguf_find_tensor(b->gguf, "token_embd.weight");
    if (i < 0) return hs_fail(b->err, HS_E_MODEL, "tensor token_embd.weight: missing");
    const int64_t n_vocab = hs_gguf_tensor_at(b->gguf, i)->ne[1];
    if (n_vocab > INT32_MAX) return hs_fail(b->err, HS_E_MODEL, "tensor token_embd.weight: has ne[1] = %lld, expected at most %d", (long long) n_vocab, INT32_MAX);
    hp->n_vocab = (int32_t) n_vocab;
    HS_TRY(bind_matrix(b, "token_embd.weight", -1, BIND_LOOKUP, hp->n_embd, n_vocab, 1, &w->token_embd));
    HS_TRY(bind_vector(b, "output_norm.weight", -1, 0, hp->n_embd, &w->output_norm));
    HS_TRY(bind_matrix(b, "output.weight", -1, BIND_OPTIONAL, hp->n_embd, n_vocab, 1, &w->output));
    // Tied: the same rows serve look-up and product; on the CPU a repackable type gets a second, repacked copy for the product (as llama.cpp does), and on
    // another device than the look-up's it is a copy anyway.
    if (!w->output && hs_binder_device(b, w->token_embd) != HS_ON_CPU && hs_binder_device(b, w->token_embd) == device_of(b, -1)) w->output = w->token_embd;
    if (!w->output) HS_TRY(bind_matrix(b, "token_embd.weight", -1, 0, hp->n_embd, n_vocab, 1, &w->output));
    for (int s = 0; s < HS_ROPE_COUNT; s++) {
        char name[64];
        snprintf(name, sizeof name, "rope_freqs%s.weight", hs_rope_suffix((enum hs_rope_set) s));
        if (hp->rope[s].factors_of == s) HS_TRY(bind_rope_factors(b, name, hp->rope[s].n_rot / 2, w->rope_factors[s]));
    }
    for (int il = 0; il < hp->n_layer; il++) {
        HS_TRY(bind_attention(b, il, plan, &w->layers[il]));
        HS_TRY(bind_ffn(b, il, &plan->layers[il], &w->layers[il]));
    }
    return HS_OK;
}

// A tensor nobody asked for means mathematics that this graph does not do: refuse, rather than answer wrongly. MTP layers may stay unused.
static int check_all_used(struct hs_binder * b) {
    for (int64_t i = 0; i < hs_gguf_n_tensors(b->gguf); i++) {
        if (b->used[i]) continue;
        const char * name = hs_gguf_tensor_at(b->gguf, i)->name;
        int il = -1;
        if (sscanf(name, "blk.%d.", &il) == 1 && il >= b->hp->n_layer && il < b->hp->n_layer_file) continue;
        return hs_fail(b->err, HS_E_MODEL, "tensor %s: not known in a %s model with this layer plan", name, hs_arch_name(b->hp->arch));
    }
    return HS_OK;
}

int hs_weights_load(const hs_gguf * g, struct hs_hparams * hp, const struct hs_layer_plan * plan, const struct hs_placement * placement,
                    const struct hs_weights_params * p, struct hs_weights * out, hs_error * err) {
    struct hs_binder b;
    memset(out, 0, sizeof *out);
    int rc = hs_binder_init(&b, g, hp, placement, p, out, err);
    if (rc == HS_OK) rc = bind_model(&b, plan);
    if (rc == HS_OK) rc = check_all_used(&b);
    if (rc == HS_OK) rc = hs_binder_load(&b);
    hs_binder_free(&b);
    if (rc != HS_OK) hs_weights_free(out);
    return rc;
}

void hs_weights_free(struct hs_weights * w) {
    for (int i = 0; i < w->n_bufs; i++) ggml_backend_buffer_free(w->bufs[i]);
    for (int i = 0; i < w->n_ctxs; i++) ggml_free(w->ctxs[i]);
    free(w->bufs);
    free(w->ctxs);
    free(w->layers);
    memset(w, 0, sizeof *w);
}

uint64_t hs_weights_bytes_on(const struct hs_weights * w, int32_t device) { return w->bytes_on[1 + device]; }
