// Tokens -> logits as a ggml graph. graph.c has the layer loop, graph_attn.c and graph_ffn.c the two halves of a layer; each reads the layer plan.
// A graph depends on (n_tokens, n_out) and on the session's cache shape, never on lengths: decode replays one graph.
#pragma once

#include "hs_ops.h"
#include "kv_cache.h"
#include "model.h"

struct hs_graph {
    int32_t n_tokens, n_out;
    bool plain;
    struct ggml_cgraph * gf;
    // inputs
    struct ggml_tensor * tokens;                 // i32 [n_tokens]
    struct ggml_tensor * pos_seq;                // i32 [n_tokens, 2]
    struct ggml_tensor * table;                  // i32 [n_pages, n_seq], NULL when no layer has pages
    struct ggml_tensor * rows[HS_MAX_ROW_SETS];  // i64 [n_head_kv * n_tokens], one for each row set of the plan
    struct ggml_tensor * out_ids;                // i32 [n_out], NULL when n_out is 0 or n_tokens
    // output
    struct ggml_tensor * logits;                 // f32 [n_vocab, n_out], NULL when n_out is 0
};

// What the builder needs and keeps between layers.
struct hs_build {
    const struct hs_model * model;
    const struct hs_kv * kv;
    enum hs_op_impl impl;
    bool plain;                                      // every named stage is a node of its own, for hs_session_capture
    int32_t n_threads_max;
    struct ggml_context * ctx;
    struct hs_graph * g;
    struct hs_op_params * params; int32_t n_params;  // arena of the custom nodes' parameters, hs_graph_max_params
    struct ggml_tensor ** selection;                 // [n_layer] i32 [top_k, n_head_kv, n_tokens] of each layer that emits scores
    hs_error * err;
    int rc;
};

size_t hs_graph_max_nodes(const struct hs_model * m);
int32_t hs_graph_max_params(const struct hs_model * m);

// Build into b->ctx (fresh, no_alloc). b->params and b->selection are the caller's arrays. HS_E_INTERNAL if an op refuses its shapes.
int hs_graph_build(struct hs_build * b, int32_t n_tokens, int32_t n_out, struct hs_graph * out);

// A named node: "attn_norm-3" (il < 0: no number). Names are what hs_session_capture hands out.
struct ggml_tensor * hs_named(struct ggml_tensor * t, const char * name, int il);
struct ggml_tensor * hs_build_norm(struct hs_build * b, struct ggml_tensor * x, struct ggml_tensor * weight);

// --- graph_linear.c ---
// The input of some matrices: x [n_embd, n_tokens] and the norm before them (NULL: none). y: the normed value as a node, once somebody needs it.
struct hs_input { struct ggml_tensor * x, * norm, * y; const char * name; int il; };
struct ggml_tensor * hs_build_input(struct hs_build * b, struct hs_input * in); // y
// W y + b, [n_out, n_tokens]: of up to HS_LINEAR_MAX layers into out[] (rows contiguous, but perhaps part of a wider matrix); of one matrix without bias.
void hs_build_linears(struct hs_build * b, struct hs_input * in, const struct hs_linear * l, int n, struct ggml_tensor ** out);
struct ggml_tensor * hs_build_linear(struct hs_build * b, struct hs_input * in, struct ggml_tensor * w);
// W x + b + add; name: of W x + b, where it is a node.
struct ggml_tensor * hs_build_residual(struct hs_build * b, const struct hs_linear * l, struct ggml_tensor * x, struct ggml_tensor * add, const char * name,
    int il);
// silu(W_gate y) * (W_up y)
struct ggml_tensor * hs_build_swiglu(struct hs_build * b, struct hs_input * in, struct ggml_tensor * gate, struct ggml_tensor * up);

// --- the halves of a layer ---
// in: the residual stream and the layer's norm. Writes this layer's k and v to its cache; then, unless write_only, gives the residual stream with the
// attention output added. picked: of the tokens that become logits only.
struct ggml_tensor * hs_build_attn(struct hs_build * b, int il, struct hs_input * in, bool write_only, bool picked);
// The residual stream x with the FFN's output added.
struct ggml_tensor * hs_build_ffn(struct hs_build * b, int il, struct ggml_tensor * x);
