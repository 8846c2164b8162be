// One row an op: the one place that lists which ops exist and which function runs each where.
#include "hs_ops.h"

#include "cpu/cpu.h"
#include "ref/ref.h"

#include <string.h>

const struct hs_op_row hs_op_table[HS_OP_COUNT] = {
    // id                  name             cpu                   reference             cpu_supported
    { HS_OP_ATTN_FULL,     "attn_full",     hs_cpu_attn_full,     hs_ref_attn_full,     hs_cpu_attn_full_supported },
    { HS_OP_SELECT_BLOCKS, "select_blocks", hs_cpu_select_blocks, hs_ref_select_blocks, hs_cpu_select_blocks_supported },
    { HS_OP_ATTN_SPARSE,   "attn_sparse",   hs_cpu_attn_sparse,   hs_ref_attn_sparse,   hs_cpu_attn_sparse_supported },
    { HS_OP_ATTN_WINDOW,   "attn_window",   hs_cpu_attn_window,   hs_ref_attn_window,   hs_cpu_attn_window_supported },
    { HS_OP_LINEAR,        "linear",        hs_cpu_linear,        hs_ref_linear,        hs_cpu_linear_supported },
};

// What ggml_custom_4d keeps in op_params (its struct is private to ggml; hs_make_node goes through ggml_custom_4d, so a change shows in every test).
struct custom_op_params {
    ggml_custom_op_t fun;
    int n_tasks;
    void * userdata;
};

static bool read_custom(const struct ggml_tensor * node, struct custom_op_params * out) {
    if (!node || node->op != GGML_OP_CUSTOM) {
        return false;
    }
    memcpy(out, node->op_params, sizeof(*out));
    return true;
}

const struct hs_op_row * hs_op_find(const struct ggml_tensor * node) {
    struct custom_op_params c;
    if (!read_custom(node, &c)) {
        return NULL;
    }
    for (int i = 0; i < HS_OP_COUNT; i++) {
        if (c.fun == hs_op_table[i].cpu || c.fun == hs_op_table[i].ref) {
            return &hs_op_table[i];
        }
    }
    return NULL;
}

const struct hs_op_params * hs_op_node_params(const struct ggml_tensor * node) {
    struct custom_op_params c;
    return hs_op_find(node) && read_custom(node, &c) ? c.userdata : NULL;
}
