// Shared by the builders: shape checks that end in an error value, and the making of a node.
#pragma once

#include "hs_ops.h"

#define HS_HEAD_DIM_MAX 256 // d_qk and d_v: multiples of HS_HEAD_DIM_STEP up to this
#define HS_HEAD_DIM_STEP 32 // one q8_0 block

// One builder call: where errors go. A check that fails returns false and fills res->error ("op: argument: found ..., expected ..."); the builder
// stops at the first.
struct hs_build {
    const char * op;
    struct hs_op_result * res;
};

bool hs_op_fail(const struct hs_build * b, const char * arg, const char * fmt, ...) __attribute__((format(printf, 3, 4)));

// The tensor is there, has this type and is contiguous.
bool hs_check_tensor(const struct hs_build * b, const char * arg, const struct ggml_tensor * t, enum ggml_type type);
// One extent of a tensor has the expected value; `why` says where the value comes from.
bool hs_check_ne(const struct hs_build * b, const char * arg, const struct ggml_tensor * t, int dim, int64_t expected, const char * why);
// A parameter is at least `min`.
bool hs_check_min(const struct hs_build * b, const char * arg, int64_t found, int64_t min);
// A scale is finite and positive.
bool hs_check_scale(const struct hs_build * b, float scale);

// q: f32 [d_qk, n_head, n_tokens].
bool hs_check_q(const struct hs_build * b, const struct ggml_tensor * q);
// A pair of caches (pages or rings) that fits q: types, head dims, equal n_slots, n_head_kv and n_pages, n_head a multiple of n_head_kv.
bool hs_check_cache(const struct hs_build * b, const char * k_arg, const struct ggml_tensor * k, const char * v_arg, const struct ggml_tensor * v,
    const struct ggml_tensor * q);
bool hs_check_table(const struct hs_build * b, const struct ggml_tensor * table);
// pos_seq: i32 [n_tokens, 2].
bool hs_check_pos_seq(const struct hs_build * b, const struct ggml_tensor * pos_seq, int64_t n_tokens);
// sinks: f32 [n_head, n_rows] or NULL.
bool hs_check_sinks(const struct hs_build * b, const struct ggml_tensor * sinks, int64_t n_head, int64_t n_rows);

// Make the node: sources at their fixed places (NULL stays NULL), type and extents given. Fills res->node.
void hs_make_node(const struct hs_build * b, struct ggml_context * ctx, enum hs_op_impl impl, enum hs_op_id id, struct hs_op_params * p,
    enum ggml_type type, const int64_t ne[3], struct ggml_tensor * const * src, int n_src);
// Lay out the packed result of an attention op from out_elems, score_elems and work_elems, make it, and fill res->{node, out, scores}.
void hs_make_packed(const struct hs_build * b, struct ggml_context * ctx, enum hs_op_impl impl, enum hs_op_id id, struct hs_op_params * p,
    int64_t d_v, int64_t n_head, int64_t n_head_kv, int64_t n_tokens, struct ggml_tensor * const * src, int n_src);
