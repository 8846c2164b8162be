// What an attention kernel is given: the node's operands as plain pointers and numbers, the same for all kernels (full, sparse, window).
#pragma once

#include "cache.cuh"

// One softmax: everything up to the query, a window, or a selection.
struct hs_dev_branch {
    hs_dev_cache k, v;
    const float * sinks;                // [n_head] or NULL
    const int32_t * sel;                // [top_k, n_head_kv, n_tokens], or NULL: dense
    int n_rep, n_head_kv;
    int window;                         // dense: keys seen, INT32_MAX for all; with sel: width of the forced window (and block 0 with it), 0 for none
};

struct hs_dev_attn {
    hs_dev_branch b[2];                 // [1]: the window branch of a sparse layer
    int n_branch;
    const float * q, * gates;           // q [d_qk, n_head, n_tokens]; gates logits [2 * n_head * gate_channels, n_tokens] or NULL
    const int32_t * pos, * seq;         // [n_tokens]
    float * out;                        // [d_v, n_head, n_tokens]
    float * scores;                     // [n_blocks, n_head_kv, n_tokens], or NULL: none wanted
    int d_qk, d_v, n_head, n_tokens, n_blocks, block_size, top_k, gate_channels;
    float scale;
};

static __device__ __forceinline__ float hs_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Weight of a branch in channel x of a head's output.
static __device__ __forceinline__ float hs_dev_gate(const hs_dev_attn & a, int token, int head, int branch, int x) {
    if (!a.gates) {
        return 1.0f;
    }
    const int n_gate = a.n_head * a.gate_channels;
    return hs_sigmoid(a.gates[((int64_t) token * 2 + branch) * n_gate + head * a.gate_channels + (a.gate_channels > 1 ? x : 0)]);
}

// --- the kernels: does one take this node on a device of compute capability cc (900: Hopper), and its launch. Decided by shapes and types only. ---

// Many queries on q8_0 caches: what they may see of the caches is widened to f16 in scratch, and the rest is as for f16 caches: widen.cu. `run` is called
// with the widened node.
bool hs_cuda_widen_takes(const hs_dev_attn & a, int cc);
void hs_cuda_widen(ggml_backend_cuda_context & ctx, const hs_dev_attn & a, void (*run)(ggml_backend_cuda_context & ctx, const hs_dev_attn & a));
// Any shape: attn_plain.cu.
void hs_cuda_attn_plain(ggml_backend_cuda_context & ctx, const hs_dev_attn & a);
// Few queries, split over the keys: decode*.cu.
bool hs_cuda_decode_takes(const hs_dev_attn & a, int cc);
void hs_cuda_decode(ggml_backend_cuda_context & ctx, const hs_dev_attn & a);
// Many queries, dense: prefill*.cu (tensor cores of 8.0 and up), prefill_sm90*.cu (Hopper's).
bool hs_cuda_prefill_takes(const hs_dev_attn & a, int cc);
void hs_cuda_prefill(ggml_backend_cuda_context & ctx, const hs_dev_attn & a);
bool hs_cuda_prefill_sm90_takes(const hs_dev_attn & a, int cc);
void hs_cuda_prefill_sm90(ggml_backend_cuda_context & ctx, const hs_dev_attn & a);
// Many queries, each with its own selection: prefill_sparse*.cu, on Hopper prefill_sparse_sm90*.cu.
bool hs_cuda_prefill_sparse_sm90_takes(const hs_dev_attn & a, int cc);
void hs_cuda_prefill_sparse_sm90(ggml_backend_cuda_context & ctx, const hs_dev_attn & a);
bool hs_cuda_prefill_sparse_takes(const hs_dev_attn & a, int cc);
void hs_cuda_prefill_sparse(ggml_backend_cuda_context & ctx, const hs_dev_attn & a);
