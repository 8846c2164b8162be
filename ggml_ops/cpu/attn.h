// What the drivers (attn_full.c, attn_sparse.c, attn_window.c) hand to the attention engine, which is compiled once per instruction-set level.
#pragma once

#include "../hs_ops.h"
#include "plan.h"

// A key or value cache: pages (table set) or rings (table NULL).
struct hs_cache {
    const struct ggml_tensor * t;
    const struct ggml_tensor * table;
};

// One softmax of every query head: over a window of positions, or over selected blocks.
struct hs_branch {
    struct hs_cache k, v;
    const float * sinks;              // [n_head] or NULL
    int32_t window;                   // keys t-window < j <= t; with `sel`: the forced window, 0 = none. INT32_MAX: all
    const struct ggml_tensor * sel;   // i32 [top_k, n_head_kv, n_tokens] or NULL: no selection, the window alone
};

struct hs_attn {
    struct hs_plan plan;
    struct hs_op_params * p;
    const float * q;                  // [d_qk, n_head, n_tokens]
    const int32_t * pos, * seq;       // [n_tokens]
    int32_t n_tokens;
    struct hs_branch branch[2];
    const struct ggml_tensor * gates; // [2 * n_gate, n_tokens] or NULL
    float * out;                      // [d_v, n_head, n_tokens]
    float * scores;                   // [n_blocks, n_head_kv, n_tokens] or NULL
    float * work;                     // of thread 0; work_elems a thread
};

struct hs_linear_level;

struct hs_cpu_level {
    const char * name;
    void (*attn)(const struct hs_attn * a, int ith, int nth);
    void (*select_row)(const float * scores, int32_t n, int32_t top_k, int32_t * sel); // select_row.h
    const struct hs_linear_level * linear; // linear_level.h
};

const struct hs_cpu_level * hs_cpu_level_current(void);
