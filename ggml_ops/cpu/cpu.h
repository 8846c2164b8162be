// The CPU kernels as hs_op_table sees them.
#pragma once

#include "../hs_ops.h"

void hs_cpu_attn_full(struct ggml_tensor * dst, int ith, int nth, void * userdata);
void hs_cpu_select_blocks(struct ggml_tensor * dst, int ith, int nth, void * userdata);
void hs_cpu_attn_sparse(struct ggml_tensor * dst, int ith, int nth, void * userdata);
void hs_cpu_attn_window(struct ggml_tensor * dst, int ith, int nth, void * userdata);
void hs_cpu_linear(struct ggml_tensor * dst, int ith, int nth, void * userdata);

bool hs_cpu_attn_full_supported(const struct ggml_tensor * node);
bool hs_cpu_select_blocks_supported(const struct ggml_tensor * node);
bool hs_cpu_attn_sparse_supported(const struct ggml_tensor * node);
bool hs_cpu_attn_window_supported(const struct ggml_tensor * node);
bool hs_cpu_linear_supported(const struct ggml_tensor * node);
