// Weights times activations. Packed weights go to our own op: several matrices that share their input in one node, with the norm before them and the
// residual sum behind (in a plain graph, which shows every stage, norm and sum are nodes of their own). All other weights go to ggml's products; on a GPU
// those that the loader joined (weights_load.h) by one product, whose parts are views.
#include "graph.h"

#include "status.h"

static bool all_packed(struct ggml_tensor * const * w, int n) {
    for (int i = 0; i < n; i++) {
        if (!hs_linear_is_packed(w[i])) return false;
    }
    return true;
}

struct ggml_tensor * hs_build_norm(struct hs_build * b, struct ggml_tensor * x, struct ggml_tensor * weight) {
    return ggml_mul(b->ctx, ggml_rms_norm(b->ctx, x, b->model->hp.rms_eps), weight);
}

struct ggml_tensor * hs_build_input(struct hs_build * b, struct hs_input * in) {
    if (!in->y) in->y = in->norm ? hs_named(hs_build_norm(b, in->x, in->norm), in->name, in->il) : in->x;
    return in->y;
}

// A node on packed weights: its results in out[], or false (b->rc is set, or the op is not for these).
static bool packed(struct hs_build * b, struct hs_linear_args a, bool swiglu, struct ggml_tensor ** out) {
    if (!all_packed(a.w, a.n_w)) return false;
    struct hs_op_params * p = &b->params[b->n_params++];
    *p = (struct hs_op_params) { .swiglu = swiglu, .eps = b->model->hp.rms_eps, .n_threads_max = b->n_threads_max };
    const struct hs_op_result r = hs_linear(b->ctx, b->impl, p, &a);
    if (!r.node) {
        b->rc = hs_fail(b->err, HS_E_INTERNAL, "%s", r.error);
        return false;
    }
    for (int i = 0; i < (swiglu ? 1 : a.n_w); i++) out[i] = r.outs[i];
    return true;
}

// x, norm and n matrices as a node takes them.
static struct hs_linear_args args_of(struct hs_build * b, struct hs_input * in, struct ggml_tensor * const * w, int n) {
    const bool normed = b->plain || in->y;
    struct hs_linear_args a = { .x = normed ? hs_build_input(b, in) : in->x, .norm = normed ? NULL : in->norm };
    for (; a.n_w < n; a.n_w++) a.w[a.n_w] = w[a.n_w];
    return a;
}

static struct ggml_tensor * product(struct hs_build * b, struct ggml_tensor * w, struct ggml_tensor * x) {
    struct hs_linear_args a = { .x = x, .w = { w }, .n_w = 1 };
    struct ggml_tensor * out;
    return packed(b, a, false, &out) ? out : ggml_mul_mat(b->ctx, w, x);
}

void hs_build_linears(struct hs_build * b, struct hs_input * in, const struct hs_linear * l, int n, struct ggml_tensor ** out) {
    struct ggml_tensor * w[HS_LINEAR_MAX] = { NULL };
    for (int i = 0; i < n; i++) w[i] = l[i].w;
    const bool done = packed(b, args_of(b, in, w, n), false, out);
    struct ggml_tensor * all = NULL; // the product of the joined matrix that w[i] is a part of
    for (int i = 0; i < n; i++) {
        if (!done && w[i]->view_src) {
            if (!all) all = product(b, w[i]->view_src, hs_build_input(b, in));
            out[i] = ggml_view_2d(b->ctx, all, w[i]->ne[1], all->ne[1], all->nb[1], w[i]->view_offs / w[i]->nb[1] * all->nb[0]);
        } else if (!done) {
            out[i] = product(b, w[i], hs_build_input(b, in));
        }
        if (l[i].b) out[i] = ggml_add(b->ctx, out[i], l[i].b);
    }
}

struct ggml_tensor * hs_build_linear(struct hs_build * b, struct hs_input * in, struct ggml_tensor * w) {
    const struct hs_linear l = { w, NULL };
    struct ggml_tensor * out;
    hs_build_linears(b, in, &l, 1, &out);
    return out;
}

struct ggml_tensor * hs_build_residual(struct hs_build * b, const struct hs_linear * l, struct ggml_tensor * x, struct ggml_tensor * add, const char * name,
                                       int il) {
    struct ggml_tensor * out;
    if (!b->plain && !l->b && packed(b, (struct hs_linear_args) { .x = x, .add = add, .w = { l->w }, .n_w = 1 }, false, &out)) return out;
    out = product(b, l->w, x);
    if (l->b) out = ggml_add(b->ctx, out, l->b);
    return ggml_add(b->ctx, add, hs_named(out, name, il));
}

struct ggml_tensor * hs_build_swiglu(struct hs_build * b, struct hs_input * in, struct ggml_tensor * gate, struct ggml_tensor * up) {
    struct ggml_tensor * const w[2] = { gate, up };
    struct ggml_tensor * out;
    if (gate->type == up->type && packed(b, args_of(b, in, w, 2), true, &out)) return out;
    return ggml_swiglu_split(b->ctx, hs_build_linear(b, in, gate), hs_build_linear(b, in, up));
}
