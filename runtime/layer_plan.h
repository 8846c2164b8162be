// The layer plan: for each layer where its keys and values come from, where its block selection comes from, its local part, gates, sinks,
// RoPE, dense or MoE (SPEC 5). Graph, caches, memory report and `inspect` read this table; nobody recomputes `il % n`.
#pragma once

#include "hparams.h"

enum hs_layer_kind { HS_LAYER_FULL, HS_LAYER_SPARSE, HS_LAYER_SLIDING };
enum hs_local      { HS_LOCAL_NONE, HS_LOCAL_OWN, HS_LOCAL_FORCED };
enum hs_gate       { HS_GATE_NONE, HS_GATE_HEAD, HS_GATE_CHANNEL };

struct hs_layer {
    enum hs_layer_kind kind;
    int32_t kv_source;        // layer whose paged cache the global branch reads; -1 none
    int32_t selection_source; // full layer whose selection it uses; -1: attends to everything, or has no global branch
    enum hs_local local;
    enum hs_gate  gate;
    enum hs_rope_set rope;
    bool    emits_scores;     // some later layer uses its selection
    bool    owns_pages;       // its k and v go to pages (full layers; sparse ones in oracle mode)
    bool    owns_ring;        // its k and v go to a window ring
    bool    moe;
    int32_t n_head, n_head_kv, head_dim_k, head_dim_v; // of its own cache
    int32_t n_ff;             // dense FFN width
    int32_t rows;             // index into plan.rows: which row numbers its cache writes use
};

// Row numbers for cache writes depend only on (pages or ring, n_head_kv): computed once per ubatch for each distinct pair.
struct hs_row_set { bool ring; int32_t n_head_kv; };
#define HS_MAX_ROW_SETS 8

struct hs_layer_plan {
    int32_t n_layer;
    struct hs_layer * layers;
    int32_t window;               // w of all local parts, 0: none
    int32_t block_size, top_k;    // 0: no layer selects
    int32_t page_size;            // P: the block size where that is a sensible page (16..256), else 64
    struct hs_row_set rows[HS_MAX_ROW_SETS];
    int32_t n_rows;
    bool    oracle;               // training-free oracle mode (SPEC 5)
};

// What oracle mode was asked for; full_layers NULL: the file's list. Zeros: the file's values, else 64, 1024, 128.
struct hs_oracle_request { const int32_t * full_layers; int32_t n_full_layers, block_size, top_k_tokens, window; };

// Build and check the plan. oracle NULL: as the file says. HS_E_MODEL: the file is inconsistent; HS_E_ARG: the oracle request is.
int  hs_layer_plan_build(const struct hs_hparams * hp, const struct hs_oracle_request * oracle, struct hs_layer_plan * out, hs_error * err);
void hs_layer_plan_free(struct hs_layer_plan * plan);

const char * hs_layer_kind_name(enum hs_layer_kind kind);
const char * hs_local_name(enum hs_local local);
const char * hs_gate_name(enum hs_gate gate);
