// Choice of the instruction-set level of the CPU kernels.
#include "cpu.h"
#include "../ref/ref.h"

#include <string.h>

void hs_cpu_attn_full(struct ggml_tensor * dst, int ith, int nth, void * userdata) { hs_ref_attn_full(dst, ith, nth, userdata); }
void hs_cpu_select_blocks(struct ggml_tensor * dst, int ith, int nth, void * userdata) { hs_ref_select_blocks(dst, ith, nth, userdata); }
void hs_cpu_attn_sparse(struct ggml_tensor * dst, int ith, int nth, void * userdata) { hs_ref_attn_sparse(dst, ith, nth, userdata); }
void hs_cpu_attn_window(struct ggml_tensor * dst, int ith, int nth, void * userdata) { hs_ref_attn_window(dst, ith, nth, userdata); }

static bool is_op(const struct ggml_tensor * node, enum hs_op_id id) {
    const struct hs_op_row * row = hs_op_find(node);
    return row && row->id == id;
}

bool hs_cpu_attn_full_supported(const struct ggml_tensor * node) { return is_op(node, HS_OP_ATTN_FULL); }
bool hs_cpu_select_blocks_supported(const struct ggml_tensor * node) { return is_op(node, HS_OP_SELECT_BLOCKS); }
bool hs_cpu_attn_sparse_supported(const struct ggml_tensor * node) { return is_op(node, HS_OP_ATTN_SPARSE); }
bool hs_cpu_attn_window_supported(const struct ggml_tensor * node) { return is_op(node, HS_OP_ATTN_WINDOW); }

int hs_cpu_level_count(void) { return 1; }
const char * hs_cpu_level_name(int i) { return i == 0 ? "scalar" : NULL; }
bool hs_cpu_level_set(const char * name) { return strcmp(name, "scalar") == 0; }
const char * hs_cpu_level(void) { return "scalar"; }
