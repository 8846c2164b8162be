// Weights: every tensor bound to a field and checked once (name, type, shape), so that graph code needs no look-ups and no null checks beyond
// the optional tensors named here.
#pragma once

#include "backend.h"
#include "placement.h"

struct hs_linear { struct ggml_tensor * w, * b; };   // w [n_in, n_out]; b f32 [n_out] or NULL

struct hs_layer_weights {
    struct ggml_tensor * attn_norm;                  // f32 [n_embd]
    struct hs_linear q, k, v, o;                     // either q, k, v
    struct hs_linear qkv;                            // or these three in one (rows Q, K, V)
    struct ggml_tensor * q_norm, * k_norm;           // f32 [head_dim_k], optional
    struct ggml_tensor * sinks;                      // f32 [n_head]; a sparse layer: [n_head, 2], row 0 global, row 1 window; optional
    struct ggml_tensor * gate_sparse, * gate_swa;    // both or neither
    struct ggml_tensor * ffn_norm;
    struct ggml_tensor * gate, * up, * down;         // dense
    struct ggml_tensor * router, * router_bias;      // MoE: [n_embd, n_expert]; f32 [n_expert] optional
    struct ggml_tensor * gate_exps, * up_exps, * down_exps;    // [.., .., n_expert]
    struct ggml_tensor * gate_shexp, * up_shexp, * down_shexp; // optional
};

struct hs_weights {
    struct ggml_tensor * token_embd, * output_norm, * output;  // output: tied models get token_embd's data
    struct ggml_tensor * rope_factors[HS_ROPE_COUNT][HS_MAX_DEVICES + 1]; // f32 [n_rot/2] or NULL; a copy on each device in use, [1 + device]
    struct hs_layer_weights * layers;
    uint64_t n_params, bytes;                                  // bytes: of the tensors as bound (mapped and allocated)
    uint64_t bytes_on[HS_MAX_DEVICES + 1];                     // the same by device, [1 + device]
    bool has_sinks, has_sparse_sinks, has_qk_norm;

    // storage
    struct ggml_context ** ctxs; int n_ctxs;
    ggml_backend_buffer_t * bufs; int n_bufs;
};

struct hs_weights_params { bool repack, check; bool (*progress)(float, void *); void * progress_user; };

// Sets hp->n_vocab. HS_E_MODEL (a tensor missing, unknown, of a wrong type or shape), HS_E_MEMORY, HS_E_IO, HS_E_CANCELLED; *out is empty then.
int  hs_weights_load(const hs_gguf * g, struct hs_hparams * hp, const struct hs_layer_plan * plan, const struct hs_placement * placement,
    const struct hs_weights_params * p, struct hs_weights * out, hs_error * err);
void hs_weights_free(struct hs_weights * w);
uint64_t hs_weights_bytes_on(const struct hs_weights * w, int32_t device);
