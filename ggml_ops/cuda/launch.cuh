// Kernels of our nodes, launched on ggml's stream. Each takes what `supported` lets through.
#pragma once

#include "../hs_ops.h"
#include "common.cuh" // ggml-cuda's

bool hs_cuda_attn_supported(const ggml_tensor * node);
void hs_cuda_attn_full(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const hs_op_params * p);
void hs_cuda_attn_sparse(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const hs_op_params * p);
void hs_cuda_attn_window(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const hs_op_params * p);
void hs_cuda_select_blocks(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const hs_op_params * p);

// Not a node of ours but one of ggml's, which we multiply faster: matmul.cu.
bool hs_cuda_matmul_takes(const ggml_tensor * node, int cc);
void hs_cuda_matmul(ggml_backend_cuda_context & ctx, ggml_tensor * node);
// Nor these: a product with one token's vector, with what follows it where that is one launch (gemv.cu). The number of nodes from i on, 0: not taken.
int hs_cuda_gemv_takes(const ggml_cgraph * graph, int i, int cc);
void hs_cuda_gemv(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, int i, int n_nodes);
