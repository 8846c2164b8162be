// Quantised weights times one token: which nodes of a graph are one launch, and the launch. The kernel: gemv.cuh.
#include "gemv.cuh"

#include <algorithm>

#include "early.cuh"
#include "ggml-backend.h"
#include "ggml-impl.h"

#define HS_GEMV_IN 32768 // values of the vector, at most: 48 KiB of shared memory
#define HS_GEMV_ROWS 4   // of a thread block, at least

static bool takes_type(ggml_type type) {
    return type == GGML_TYPE_Q4_K || type == GGML_TYPE_Q6_K || type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q5_K || type == GGML_TYPE_Q4_0;
}

// A vector of f32 in one piece; aligned: read 16 bytes at a time
static bool is_vector(const ggml_tensor * x, bool aligned) {
    return x->type == GGML_TYPE_F32 && ggml_nrows(x) == 1 && ggml_is_contiguous(x) && x->data && (!aligned || (uintptr_t) x->data % 16 == 0);
}

static ggml_backend_buffer_t buffer_of(const ggml_tensor * x) { return x->view_src ? x->view_src->buffer : x->buffer; }

static bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    const char * x = (const char *) a->data, * y = (const char *) b->data;
    return x < y + ggml_nbytes(b) && y < x + ggml_nbytes(a);
}

static bool is_product(const ggml_tensor * node) {
    if (node->op != GGML_OP_MUL_MAT || !(node->flags & GGML_TENSOR_FLAG_COMPUTE) || !is_vector(node, false) || !is_vector(node->src[1], true)) {
        return false;
    }
    const ggml_tensor * w = node->src[0];
    return takes_type(w->type) && w->ne[0] % HS_GEMV_RUN == 0 && w->ne[0] <= HS_GEMV_IN && w->ne[1] <= INT32_MAX && w->ne[2] == 1 && w->ne[3] == 1 &&
           ggml_is_contiguous(w) && w->data && (uintptr_t) w->data % 16 == 0 && buffer_of(w) &&
           !ggml_backend_buffer_is_host(buffer_of(w)) && !overlap(node, node->src[1]);
}

// gate and up of the same vector, and silu(gate) * up. The result may lie where an operand did that ends with these nodes: not where the vector is,
// which the kernel reads while it writes.
static bool is_swiglu(const ggml_cgraph * graph, int i) {
    if (i + 2 >= graph->n_nodes) {
        return false;
    }
    const ggml_tensor * gate = graph->nodes[i], * up = graph->nodes[i + 1], * out = graph->nodes[i + 2];
    return is_product(up) && out->op == GGML_OP_GLU && (out->flags & GGML_TENSOR_FLAG_COMPUTE) && ggml_get_glu_op(out) == GGML_GLU_OP_SWIGLU &&
           out->src[0] == gate && out->src[1] == up && gate->src[1] == up->src[1] && gate->src[0]->type == up->src[0]->type &&
           ggml_are_same_shape(gate->src[0], up->src[0]) &&
           ggml_node_has_n_uses(graph, i, 1) && ggml_node_has_n_uses(graph, i + 1, 1) && is_vector(out, false) && !overlap(out, gate->src[1]);
}

// What is added to a product right behind it, NULL: nothing.
static const ggml_tensor * added(const ggml_cgraph * graph, int i) {
    if (i + 1 >= graph->n_nodes) {
        return nullptr;
    }
    const ggml_tensor * product = graph->nodes[i], * out = graph->nodes[i + 1];
    if (out->op != GGML_OP_ADD || !(out->flags & GGML_TENSOR_FLAG_COMPUTE) || (out->src[0] == product) == (out->src[1] == product)) {
        return nullptr;
    }
    const ggml_tensor * add = out->src[out->src[0] == product];
    const bool fits = is_vector(add, false) && ggml_are_same_shape(add, product) && is_vector(out, false) &&
                      (out->data == add->data || !overlap(out, add));
    return fits && ggml_node_has_n_uses(graph, i, 1) && !overlap(out, product->src[1]) ? add : nullptr;
}

int hs_cuda_gemv_takes(const ggml_cgraph * graph, int i, int cc) {
    if (cc < 800 || !is_product(graph->nodes[i])) {
        return 0;
    }
    return is_swiglu(graph, i) ? 3 : added(graph, i) ? 2 : 1;
}

template <ggml_type TYPE> static void launch(ggml_backend_cuda_context & ctx, const hs_gemv & a, bool early) {
    const auto & device = ggml_cuda_info().devices[ctx.device];
    const size_t vector = gemv_vector::bytes(a.n_in);
    const int warps = (int) std::min<size_t>(HS_GEMV_WARPS, (device.smpbo - vector) / gemv_layout<TYPE>::ring);
    const size_t shared = vector + warps * gemv_layout<TYPE>::ring;
    CUDA_CHECK(cudaFuncSetAttribute((const void *) gemv_kernel<TYPE>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) shared));
    // with all of an SM's memory for it, the next kernel finds room beside this one
    CUDA_CHECK(cudaFuncSetAttribute((const void *) gemv_kernel<TYPE>, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
    const unsigned blocks = (unsigned) std::min(device.nsm, (a.n_out + HS_GEMV_ROWS - 1) / HS_GEMV_ROWS);
    hs_launch_early(ctx, early, gemv_kernel<TYPE>, dim3(blocks), 32 * warps, shared, a);
}

void hs_cuda_gemv(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, int i, int n_nodes) {
    const ggml_tensor * product = graph->nodes[i], * w = product->src[0], * second = n_nodes == 3 ? graph->nodes[i + 1]->src[0] : nullptr;
    const ggml_tensor * add = n_nodes == 2 ? added(graph, i) : nullptr;
    hs_gemv a = {};
    a.w[0] = (const char *) w->data;
    a.w[1] = second ? (const char *) second->data : nullptr;
    a.x = (const float *) product->src[1]->data;
    a.add = add ? (const float *) add->data : nullptr;
    a.out = (float *) graph->nodes[i + n_nodes - 1]->data;
    a.n_in = (int) w->ne[0];
    a.n_out = (int) w->ne[1];
    a.row_bytes = (int64_t) w->nb[1];
    // weights are read before the kernel before has ended: those that no kernel writes
    const bool early = ggml_backend_buffer_get_usage(buffer_of(w)) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS &&
                       (!second || ggml_backend_buffer_get_usage(buffer_of(second)) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    switch (w->type) {
        case GGML_TYPE_Q4_K: launch<GGML_TYPE_Q4_K>(ctx, a, early); break;
        case GGML_TYPE_Q5_K: launch<GGML_TYPE_Q5_K>(ctx, a, early); break;
        case GGML_TYPE_Q6_K: launch<GGML_TYPE_Q6_K>(ctx, a, early); break;
        case GGML_TYPE_Q8_0: launch<GGML_TYPE_Q8_0>(ctx, a, early); break;
        default:             launch<GGML_TYPE_Q4_0>(ctx, a, early); break;
    }
}
