// The ops as ggml nodes: their contracts (shapes, dtypes, tie rule) and their builders.
//
// Every op is a GGML_OP_CUSTOM node: the CPU kernel is the node's function and the function pointer is the node's identity, so other
// backends recognise it (see hs_op_find). Parameters live in a struct owned by the caller's arena (same lifetime as the graph).
// Shapes are ggml's: ne[0] first, contiguous unless said otherwise. All arithmetic is f32 (or as good: see docs/ops.md); inputs are finite.
//
// Names: n_rep = n_head / n_head_kv; query head h reads KV head h / n_rep. Positions are absolute in the sequence, 0-based.
//
//   q        f32  [d_qk, n_head, n_tokens]            after RoPE and norm, NOT scaled by 1/sqrt(d)
//   k pages  f32|f16|q8_0 [d_qk, P, n_head_kv, n_pages]   P tokens of one KV head are one contiguous run
//   v pages  same types   [d_v,  P, n_head_kv, n_pages]   d_qk and d_v multiples of 32, 32..256; k and v types may differ
//   table    i32  [max_pages, n_seq]                  position j of sequence s lies in page table[s][j / P], slot j % P
//   pos_seq  i32  [n_tokens, 2]                       row 0: position of each token, row 1: its sequence (row of table, ring index)
//   k ring   like pages: [d_qk, R, n_head_kv, n_seq]  position j of sequence s lies in slot j % R; v ring alike
//   sinks    f32  [n_head] (or [n_head, 2])           HS_SINK_ABSENT (or NULL tensor) = no sink
//
// The caller has already written the tokens of this ubatch to the caches. A query at position t sees keys j <= t of its own sequence only.
// No masks: causality, window and visible blocks come from pos_seq. Grids and shapes never depend on the current length.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HS_SINK_ABSENT (-1e30f) // a finite "no sink": exp(HS_SINK_ABSENT - m) is 0 for every real logit
#define HS_BLOCK_NONE  (-1)     // padding in a selection
#define HS_LINEAR_MAX  5        // matrices that one linear node multiplies by the same x
#define HS_PACK_ROWS   16       // rows of a packed matrix that lie interleaved

enum hs_op_id { HS_OP_ATTN_FULL, HS_OP_SELECT_BLOCKS, HS_OP_ATTN_SPARSE, HS_OP_ATTN_WINDOW, HS_OP_LINEAR, HS_OP_COUNT };

// Parameters of a node, its userdata. One struct for all ops so that a backend needs one cast. Fields that an op does not use are 0.
struct hs_op_params {
    enum hs_op_id op;
    float   scale;         // multiplies q.k before the softmax, usually 1/sqrt(d_qk)
    float   eps;           // linear with a norm: added to the mean of the squares
    int32_t block_size;    // B: tokens a block (attn_full with scores, select_blocks, attn_sparse)
    int32_t top_k;         // K: blocks selected per (KV head, query)
    int32_t window;        // w: keys seen by the window branch, the current token included; attn_sparse: also the forced window
    bool    emit_scores;   // attn_full
    bool    forced;        // attn_sparse: add block 0 and the last w positions to the selection, in the same softmax (SPEC 5)
    bool    swiglu;        // linear: the two matrices are gate and up; the result is silu(gate x) * (up x)
    int32_t n_threads_max; // upper bound of nth at run time; sizes the workspace at the end of the result
    // Derived by the builder, in f32 elements of the packed result.
    int64_t out_elems;     // d_v * n_head * n_tokens
    int64_t score_elems;   // n_blocks_max * n_head_kv * n_tokens, or 0
    int64_t work_elems;    // scratch of one thread (contents undefined before and after)
    int64_t work_offset;   // where the workspace of thread 0 begins; thread i works at work_offset + i * work_elems (linear with
                           // more than 4 tokens: one for all)
    int32_t n_blocks_max;  // ceil(max_pages * P / B)
    // Meeting point of the threads of one run: the next work item, and how many threads are done. Zeroed by the builder and by the last thread
    // of every run, so a graph can be computed any number of times and stopped between nodes. Accessed atomically; one struct a node.
    int32_t sync_next, sync_done;
    int32_t sync_ready;    // linear: threads that have quantised their share of x
};

// What a builder returns: nodes, or an error that names the op, the argument, the value found and the value expected.
struct hs_op_result {
    struct ggml_tensor * node;   // the GGML_OP_CUSTOM node (the packed result), NULL on error
    struct ggml_tensor * out;    // attention: view f32 [d_v, n_head, n_tokens]; select_blocks: i32 [top_k, n_head_kv, n_tokens]
    struct ggml_tensor * scores; // attn_full with emit_scores: view f32 [n_blocks_max, n_head_kv, n_tokens], else NULL
    struct ggml_tensor * outs[HS_LINEAR_MAX]; // linear: a view f32 [n_out, n_tokens] for each matrix (swiglu: one); outs[0] is `out`
    char error[256];             // "" on success
};

// Choice of implementation: the optimised kernel, or the plain scalar reference (never optimised, single thread, f64 accumulation).
enum hs_op_impl { HS_IMPL_KERNEL, HS_IMPL_REF };

// 1. Full attention with block scores (SPEC 3).
//   out[h,t]      = sum_j softmax_j(scale * q[h,t].k[g(h),j], sink_h) v[g(h),j],   j <= t
//   scores[g,t,i] = max over h in group g, j in block i, j <= t of (scale * q[h,t].k[g,j] - L[h,t]),  L = log of the softmax denominator
//                   (sink included). Block i holds positions [iB, (i+1)B); B need not divide P nor P divide B.
//   Entries of blocks that query t does not see (iB > t) are unspecified; readers must not look at them. scores are <= 0 up to rounding, finite.
// sinks may be NULL. p->{scale, n_threads_max} used; with emit_scores also block_size.
struct hs_op_result hs_attn_full(struct ggml_context * ctx, enum hs_op_impl impl, struct hs_op_params * p,
    struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v, struct ggml_tensor * table, struct ggml_tensor * pos_seq,
    struct ggml_tensor * sinks);

// 2. Block selection (SPEC 3).
//   sel[.,g,t] = the min(K, ceil((t+1)/B)) blocks with the largest scores among the visible ones, sorted ascending, then HS_BLOCK_NONE.
//   Tie rule: equal scores go to the lower block index, on every backend.
// scores: f32 [n_blocks_max, n_head_kv, n_tokens] (may be a view); result i32 [top_k, n_head_kv, n_tokens].
struct hs_op_result hs_select_blocks(struct ggml_context * ctx, enum hs_op_impl impl, struct hs_op_params * p,
    struct ggml_tensor * scores, struct ggml_tensor * pos_seq);

// 3. Shared-cache sparse attention, window branch and gates in the same node (SPEC 4; SPEC 5 when forced).
//   global[h,t] = softmax over {j <= t : block(j) in sel[g(h),t]} (with p->forced: union block 0 union {t-w < j <= t}) of q.K*, times V*, sink row 0
//   local[h,t]  = softmax over {t-w < j <= t} of q.k', times v', sink row 1                       (win_k, win_v NULL: no local branch)
//   out         = sigmoid(gates_sparse) * global + sigmoid(gates_window) * local                  (gates NULL: both 1)
// sel: i32 [top_k, n_head_kv(k), n_tokens]. win_k/win_v: rings, their n_head_kv may differ from k's (own n_rep).
// A row of sel is as select_blocks gives it: ascending, no repeats, HS_BLOCK_NONE only at its end. An empty row makes the branch 0.
// A position that is in the selection, in block 0 and in the forced window counts once. forced and a window branch exclude each other.
// sinks: f32 [n_head, 2] or NULL. gates: f32 [2 * n_gate, n_tokens], logits, sparse half first; n_gate = n_head or d_v * n_head.
// p->{scale, block_size, top_k, window, forced, n_threads_max} used.
// Ten sources: q k v sel table pos_seq win_k win_v sinks gates; absent ones are NULL in src[] at their fixed place (enum below).
struct hs_attn_sparse_args { struct ggml_tensor * q, * k, * v, * sel, * table, * pos_seq, * win_k, * win_v, * sinks, * gates; };
struct hs_op_result hs_attn_sparse(struct ggml_context * ctx, enum hs_op_impl impl, struct hs_op_params * p,
    const struct hs_attn_sparse_args * a);

// 4. Window attention (SPEC 5, "sliding").
//   out[h,t] = softmax over {t-w < j <= t, j >= 0} of q.k', times v', sink_h.  sinks f32 [n_head] or NULL.
// The ring must hold those positions: R >= w - 1 + tokens of one sequence in this ubatch.
struct hs_op_result hs_attn_window(struct ggml_context * ctx, enum hs_op_impl impl, struct hs_op_params * p,
    struct ggml_tensor * q, struct ggml_tensor * k_ring, struct ggml_tensor * v_ring, struct ggml_tensor * pos_seq, struct ggml_tensor * sinks);

// 5. Linear layers on packed weights: out_i = W_i y, for up to HS_LINEAR_MAX matrices; with p->swiglu two, gate and up, and
//   out = silu(W_gate y) * (W_up y). y is x, or with a norm RMSNorm(x): x * (1 / sqrt(mean(x^2) + eps)) * norm, the mean in f64, the rest in f32.
//   With one matrix and `add`, out = W y + add (the residual stream).
//   y is rounded to 8 bits a block of 32 first, in f32, as the dot products of ggml's quantised types do: d = max |y| / 127, q = rint(y * (127 / max)).
//   Sums over a block are exact integers; over blocks f32.
// x: f32 [n_in, n_tokens], contiguous. w[i]: [n_in, n_out_i], packed by hs_linear_pack (n_in a multiple of 32, n_out_i of HS_PACK_ROWS), which marks
// the tensor; ggml's own ops must not read it. norm: f32 [n_in] or NULL. add: f32 [n_out, n_tokens] or NULL. p->{swiglu, eps, n_threads_max} used.
struct hs_linear_args { struct ggml_tensor * x, * norm, * add, * w[HS_LINEAR_MAX]; int n_w; };
struct hs_op_result hs_linear(struct ggml_context * ctx, enum hs_op_impl impl, struct hs_op_params * p, const struct hs_linear_args * a);

// Is there a packed form of a matrix [ne0, ne1] of this type (q4_0, q4_1, q8_0)?
bool hs_linear_can_pack(enum ggml_type type, int64_t ne0, int64_t ne1);
// Has the level in use a kernel for it that is faster than ggml's own products?
bool hs_linear_is_fast(enum ggml_type type);
// Rows [row0, row0 + n) of W, packed from the file's layout; row0 and n multiples of HS_PACK_ROWS. src: those rows; dst: the whole matrix's bytes.
// Layout: for every 16 rows, for every block of 32 columns: 16 f16 factors; q4_1: 16 f16 minima; then 4 columns of row 0, the same of row 1, ...;
// q8_0 as unsigned bytes (value + 128), q4 with columns 0..15 in the low and 16..31 in the high halves. As many bytes as unpacked.
void hs_linear_pack(enum ggml_type type, int64_t ne0, int64_t row0, int64_t n, const void * src, void * dst);
void hs_linear_mark(struct ggml_tensor * w);
bool hs_linear_is_packed(const struct ggml_tensor * w);

// Fixed places in node->src[] (the same for kernel and reference).
enum hs_src_full   { HS_FULL_Q, HS_FULL_K, HS_FULL_V, HS_FULL_TABLE, HS_FULL_POS_SEQ, HS_FULL_SINKS };
enum hs_src_select { HS_SELECT_SCORES, HS_SELECT_POS_SEQ };
enum hs_src_sparse { HS_SPARSE_Q, HS_SPARSE_K, HS_SPARSE_V, HS_SPARSE_SEL, HS_SPARSE_TABLE, HS_SPARSE_POS_SEQ, HS_SPARSE_WIN_K, HS_SPARSE_WIN_V,
                     HS_SPARSE_SINKS, HS_SPARSE_GATES };
enum hs_src_linear { HS_LINEAR_X, HS_LINEAR_NORM, HS_LINEAR_ADD, HS_LINEAR_W0 };
enum hs_src_window { HS_WINDOW_Q, HS_WINDOW_K, HS_WINDOW_V, HS_WINDOW_POS_SEQ, HS_WINDOW_SINKS };

// One row an op (op_table.c): the one place that lists what exists. cuda and metal are filled by later backends.
struct hs_op_row {
    enum hs_op_id    id;
    const char *     name;      // "attn_full", ...
    ggml_custom_op_t cpu;       // optimised CPU kernel (dispatches to the best instruction set at run time)
    ggml_custom_op_t ref;       // scalar reference
    bool (*cpu_supported)(const struct ggml_tensor * node); // does the CPU kernel run this node? the rule lives beside the kernel
};
extern const struct hs_op_row hs_op_table[HS_OP_COUNT];

// The row of a GGML_OP_CUSTOM node made by one of the builders (kernel or reference), or NULL for any other node.
const struct hs_op_row * hs_op_find(const struct ggml_tensor * node);
// The parameters of such a node.
const struct hs_op_params * hs_op_node_params(const struct ggml_tensor * node);

// Instruction-set level of the CPU kernels: chosen once from the machine; tests force lower ones. Names: "scalar", "avx2", "avx512",
// "avx512vnni"; "neon", "neon_dotprod".
int          hs_cpu_level_count(void);           // levels that this build has and this machine can run
const char * hs_cpu_level_name(int i);           // from lowest to highest
bool         hs_cpu_level_set(const char * name); // false: unknown or not supported here. Not thread-safe: for tests and benches.
const char * hs_cpu_level(void);

#ifdef __cplusplus
}
#endif
