// A case as a ggml graph on one backend.
#pragma once

#include "ggml-backend.h"
#include "op_data.h"

#define HS_GUARDS 3

struct hs_case_graph {
    struct ggml_context * ctx;
    ggml_backend_buffer_t buffer;
    struct ggml_cgraph * graph;
    struct hs_op_params params, select_params;
    struct hs_op_result res, select; // select: attn_full with top_k > 0
    struct ggml_tensor * guard[HS_GUARDS]; // before, between and behind the nodes
    bool unsupported;   // the backend says so; error is set too
    char error[320];
};

struct hs_case_result {
    float * out, * scores; // NULL: the case has none
    int32_t * sel;
    int64_t n_out, n_scores, n_sel;
    int bad_guard; // -1: all intact
};

// Build `op` (the case's own, or HS_OP_ATTN_FULL for a property) and allocate it on the backend. false: g->error. Free it in either case.
bool hs_graph_build(struct hs_case_graph * g, ggml_backend_t backend, const struct hs_inputs * in, enum hs_op_id op, enum hs_op_impl impl);
void hs_graph_free(struct hs_case_graph * g);
// Fill the nodes with NaN and the guards with a pattern, compute, read back. false: g->error. Free the result in either case.
bool hs_graph_run(struct hs_case_graph * g, ggml_backend_t backend, struct hs_case_result * r);
void hs_result_free(struct hs_case_result * r);
