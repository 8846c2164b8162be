// Hyperparameters of a model: GGUF keys read, ranged and defaulted once (docs/gguf.md). What each layer does is layer_plan.h's subject.
#pragma once

#include "gguf_read.h"

#define HS_MAX_LAYER 1024

enum hs_arch { HS_ARCH_HYSPARSE, HS_ARCH_LLAMA, HS_ARCH_QWEN2, HS_ARCH_QWEN3, HS_ARCH_MIMO2, HS_ARCH_COUNT };

// RoPE differs by layer kind (SPEC 6, rope_parameters): one set each. GGUF suffixes: "", "_sparse", "_swa".
enum hs_rope_set { HS_ROPE_FULL, HS_ROPE_SPARSE, HS_ROPE_SWA, HS_ROPE_COUNT };

struct hs_rope {
    int32_t n_rot;                 // rotated dims of each head, even, <= head_dim
    int32_t mode;                  // GGML_ROPE_TYPE_NEOX, or NORMAL in `llama` files (interleaved rows)
    float   freq_base, freq_scale; // theta; 1/factor for linear and yarn
    float   ext_factor, attn_factor, beta_fast, beta_slow; // yarn, in ggml's meaning: it multiplies attn_factor by 1 + 0.1 ln(factor)
    int32_t n_ctx_orig;
    int32_t factors_of;            // which set's rope_freqs tensor applies, when the file has it: its own, or HS_ROPE_FULL when inherited
};

enum hs_gating { HS_GATING_SOFTMAX = 1, HS_GATING_SIGMOID = 2 }; // GGUF's expert_gating_func

struct hs_moe_hparams {
    int32_t n_expert, n_expert_used, n_ff_exp, n_expert_shared, n_ff_shexp;
    int32_t n_group, n_group_used; // 1: no groups
    int32_t gating;                // enum hs_gating
    bool    norm_weights;          // divide the chosen weights by their sum
    float   weight_scale;
};

struct hs_hparams {
    enum hs_arch arch;
    int32_t n_layer;               // without MTP layers
    int32_t n_layer_file;          // block_count: with them
    int32_t n_embd, n_ctx_train;
    int32_t n_vocab;               // rows of token_embd (set by weights.c)
    float   rms_eps, value_scale;
    int32_t head_dim_k, head_dim_v, head_dim_k_swa, head_dim_v_swa;
    struct hs_rope rope[HS_ROPE_COUNT];
    struct hs_moe_hparams moe;
    // per layer
    int32_t n_head[HS_MAX_LAYER], n_head_kv[HS_MAX_LAYER], n_ff[HS_MAX_LAYER];
    // hysparse and mimo2: the layer description of SPEC 5 as it stands in the file (others: all full)
    int32_t kv_source[HS_MAX_LAYER], selection_source[HS_MAX_LAYER], local[HS_MAX_LAYER], is_moe[HS_MAX_LAYER];
    int32_t window, gate, block_size, top_k_blocks;
    // oracle list stored in the file, n 0 when absent
    int32_t oracle_layers[HS_MAX_LAYER], n_oracle_layers, oracle_block_size, oracle_top_k_tokens, oracle_window;
};

const char * hs_arch_name(enum hs_arch arch);
const char * hs_rope_suffix(enum hs_rope_set set); // "", "_sparse", "_swa"

// Read and check everything. HS_E_MODEL names the key, the value found and the value expected.
int hs_hparams_read(const hs_gguf * g, struct hs_hparams * hp, hs_error * err);
