// A session: caches of n_seq sequences, one compute graph at a time, scratch for its inputs. session.c runs ubatches; session_seq.c rewinds,
// forks and checkpoints; session_file.c saves and loads.
#pragma once

#include <stdatomic.h>

#include "graph.h"

struct hs_session {
    const struct hs_model * model;
    hs_session_params params;          // as resolved
    struct hs_backends backends;
    ggml_backend_sched_t sched;
    struct hs_kv kv;

    struct hs_graph graph;             // the graph that is built and allocated; graph.n_tokens 0: none
    void * graph_mem; size_t graph_mem_size;
    struct ggml_context * graph_ctx;
    int32_t reserved_out; bool reserved_plain; // what the compute buffers suffice for: a ubatch with so many rows of logits, a plain graph too
    struct hs_op_params * op_params;
    struct ggml_tensor ** selection;

    ggml_backend_buffer_t inputs_buf;  // a model that lies on one GPU: inputs are written straight to it; else NULL, and the scheduler copies them
    uint64_t table_version;            // of the page table that inputs_buf holds, 0: none

    int32_t * pos_seq;                 // [2 * n_ubatch] scratch
    int64_t * rows;                    // [HS_MAX_ROW_SETS * n_ubatch * most n_head_kv]
    int32_t * out_ids;                 // [n_ubatch]
    int32_t * count;                   // [n_seq] tokens of the ubatch in each sequence

    atomic_flag busy;
    atomic_bool cancel;
    hs_capture_fn capture; void * capture_user;
    float * capture_buf; size_t capture_size;
    bool capture_failed;               // out of memory in the callback
};

// Parameters with their defaults filled in and ranges checked.
int hs_session_resolve(const struct hs_hparams * hp, const hs_session_params * p, hs_session_params * out, struct hs_kv_shape * shape, hs_error * err);

// Enter a call: HS_E_BUSY when another thread is inside.
int  hs_session_enter(struct hs_session * s, hs_error * err);
void hs_session_leave(struct hs_session * s);
int  hs_check_seq(const struct hs_session * s, int32_t seq, hs_error * err);

// hs_eval without entering and leaving.
int hs_session_eval(struct hs_session * s, int32_t n, const int32_t * tokens, const int32_t * seq, const int8_t * want, float * logits, hs_error * err);
// Save the rings of a sequence if there is memory for it.
void hs_session_checkpoint(struct hs_session * s, int32_t seq);
