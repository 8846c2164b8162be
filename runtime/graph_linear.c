// Weights times activations: packed weights by our own op, several matrices that share their input in one node; all others by ggml's product.
#include "graph.h"

#include "status.h"

static bool all_packed(struct ggml_tensor * const * w, int n) {
    for (int i = 0; i < n; i++) {
        if (!hs_linear_is_packed(w[i])) return false;
    }
    return true;
}

// The node's result, or NULL with b->rc set.
static bool packed(struct hs_build * b, struct ggml_tensor * x, struct ggml_tensor * const * w, int n, bool swiglu, struct ggml_tensor ** out) {
    struct hs_op_params * p = &b->params[b->n_params++];
    *p = (struct hs_op_params) { .swiglu = swiglu, .n_threads_max = b->n_threads_max };
    const struct hs_op_result r = hs_linear(b->ctx, b->impl, p, x, w, n);
    if (!r.node) {
        b->rc = hs_fail(b->err, HS_E_INTERNAL, "%s", r.error);
        return false;
    }
    for (int i = 0; i < (swiglu ? 1 : n); i++) out[i] = r.outs[i];
    return true;
}

void hs_build_linears(struct hs_build * b, struct ggml_tensor * x, const struct hs_linear * l, int n, struct ggml_tensor ** out) {
    struct ggml_tensor * w[HS_LINEAR_MAX] = { NULL };
    for (int i = 0; i < n; i++) w[i] = l[i].w;
    if (!all_packed(w, n) || !packed(b, x, w, n, false, out)) {
        for (int i = 0; i < n; i++) out[i] = hs_build_linear(b, w[i], x);
    }
    for (int i = 0; i < n; i++) {
        if (l[i].b) out[i] = ggml_add(b->ctx, out[i], l[i].b);
    }
}

struct ggml_tensor * hs_build_linear(struct hs_build * b, struct ggml_tensor * w, struct ggml_tensor * x) {
    struct ggml_tensor * out;
    return hs_linear_is_packed(w) && packed(b, x, &w, 1, false, &out) ? out : ggml_mul_mat(b->ctx, w, x);
}

struct ggml_tensor * hs_build_swiglu(struct hs_build * b, struct ggml_tensor * gate, struct ggml_tensor * up, struct ggml_tensor * x) {
    struct ggml_tensor * const w[2] = { gate, up };
    struct ggml_tensor * out;
    if (gate->type == up->type && all_packed(w, 2) && packed(b, x, w, 2, true, &out)) return out;
    return ggml_swiglu_split(b->ctx, hs_build_linear(b, gate, x), hs_build_linear(b, up, x));
}
