// One thing to time: an op of ours, or ggml's attention, as a graph with its inputs.
#pragma once

#include "ggml-backend.h"
#include "hs_ops.h"

// "KIND TYPE HEADS/KVxD NEW@KEYS", e.g. "full f16 32/8x128 1@4096": NEW queries, the last of KEYS positions. Kinds:
//   full           hs_attn_full with scores of blocks of 64
//   full-noscores  the same without scores
//   flash          ggml_flash_attn_ext: contiguous cache, causal mask for more than one query; no scores
//   sparse         hs_attn_sparse: 16 blocks of 64, a window of 128 with its own ring, a gate a head. Selections as a model's: neighbouring queries
//                  share about 0.73 of their blocks, queries 16 apart 0.66, and 64 queries choose about 53 different ones. (Measured on SmolLM2-135M,
//                  oracle mode, code, 6000 tokens: 0.59 to 0.94, 0.43 to 0.92 and 21 to 77, by layer; means 0.75, 0.66 and 52.)
//   sparse-random  the same, every query with its own random blocks
//   select         hs_select_blocks, 16 of all
//   window         hs_attn_window, 128
enum hs_perf_kind { HS_PERF_FULL, HS_PERF_FULL_NOSCORES, HS_PERF_FLASH, HS_PERF_SPARSE, HS_PERF_SPARSE_RANDOM, HS_PERF_SELECT, HS_PERF_WINDOW,
                    HS_PERF_KIND_COUNT };

struct hs_perf_spec {
    enum hs_perf_kind kind;
    enum ggml_type type; // of K and V; select: not used
    int n_head, n_head_kv, d, n_new, n_keys;
};

struct hs_perf_node {
    struct hs_perf_spec spec;
    struct ggml_context * ctx;
    ggml_backend_buffer_t buffer;
    struct ggml_cgraph * graph;
    struct ggml_tensor * k, * v, * table; // pages; a later node of the same cache borrows them
    struct ggml_tensor * out;
    struct hs_op_params params;
    int copies;          // of the node in the graph: 1 on the CPU
    double bytes, flops; // of one copy: least work: K and V (select: scores) that must be read once, and 2 a multiply-add of visible keys
    char error[320];
};

// false: not of that form.
bool hs_perf_parse(const char * text, struct hs_perf_spec * spec);
// others[0 .. n_other): nodes built before in this group and alive as long; a cache of the same shape is shared with them, so that a difference
// between two nodes is none of their memory. false: n->error. Free it in either case.
bool hs_perf_build(struct hs_perf_node * n, ggml_backend_t backend, const struct hs_perf_spec * spec, int threads,
    const struct hs_perf_node * others, int n_other);
void hs_perf_free(struct hs_perf_node * n);
