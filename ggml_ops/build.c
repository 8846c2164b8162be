// Shape checks and node making, shared by the builders. Nothing here aborts on what a caller passes.
#include "build.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool hs_op_fail(const struct hs_build * b, const char * arg, const char * fmt, ...) {
    char * out = b->res->error;
    size_t size = sizeof(b->res->error);
    int n = snprintf(out, size, "%s: %s: ", b->op, arg);
    if (n > 0 && (size_t) n < size) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(out + n, size - (size_t) n, fmt, args);
        va_end(args);
    }
    return false;
}

bool hs_check_tensor(const struct hs_build * b, const char * arg, const struct ggml_tensor * t, enum ggml_type type) {
    if (!t) {
        return hs_op_fail(b, arg, "found NULL, expected a tensor of type %s", ggml_type_name(type));
    }
    if (t->type != type) {
        return hs_op_fail(b, arg, "found type %s, expected %s", ggml_type_name(t->type), ggml_type_name(type));
    }
    if (!ggml_is_contiguous(t)) {
        return hs_op_fail(b, arg, "found a strided tensor (nb1 = %zu for ne0 = %lld), expected a contiguous one", t->nb[1], (long long) t->ne[0]);
    }
    return true;
}

bool hs_check_ne(const struct hs_build * b, const char * arg, const struct ggml_tensor * t, int dim, int64_t expected, const char * why) {
    if (t->ne[dim] != expected) {
        return hs_op_fail(b, arg, "found ne[%d] = %lld, expected %lld (%s)", dim, (long long) t->ne[dim], (long long) expected, why);
    }
    return true;
}

bool hs_check_min(const struct hs_build * b, const char * arg, int64_t found, int64_t min) {
    if (found < min) {
        return hs_op_fail(b, arg, "found %lld, expected at least %lld", (long long) found, (long long) min);
    }
    return true;
}

bool hs_check_scale(const struct hs_build * b, float scale) {
    if (!isfinite(scale) || scale <= 0.0f) {
        return hs_op_fail(b, "scale", "found %g, expected a finite value above 0", (double) scale);
    }
    return true;
}

static bool check_head_dim(const struct hs_build * b, const char * arg, int64_t d) {
    if (d < HS_HEAD_DIM_STEP || d > HS_HEAD_DIM_MAX || d % HS_HEAD_DIM_STEP != 0) {
        return hs_op_fail(b, arg, "found ne[0] (head dim) = %lld, expected a multiple of %d from %d to %d", (long long) d, HS_HEAD_DIM_STEP,
            HS_HEAD_DIM_STEP, HS_HEAD_DIM_MAX);
    }
    return true;
}

bool hs_check_q(const struct hs_build * b, const struct ggml_tensor * q) {
    return hs_check_tensor(b, "q", q, GGML_TYPE_F32) && check_head_dim(b, "q", q->ne[0]) && hs_check_ne(b, "q", q, 3, 1, "[d_qk, n_head, n_tokens]");
}

static bool check_cache_tensor(const struct hs_build * b, const char * arg, const struct ggml_tensor * t) {
    if (!t) {
        return hs_op_fail(b, arg, "found NULL, expected a cache tensor");
    }
    if (t->type != GGML_TYPE_F32 && t->type != GGML_TYPE_F16 && t->type != GGML_TYPE_Q8_0) {
        return hs_op_fail(b, arg, "found type %s, expected f32, f16 or q8_0", ggml_type_name(t->type));
    }
    return hs_check_tensor(b, arg, t, t->type) && check_head_dim(b, arg, t->ne[0]);
}

bool hs_check_cache(const struct hs_build * b, const char * k_arg, const struct ggml_tensor * k, const char * v_arg, const struct ggml_tensor * v,
    const struct ggml_tensor * q) {
    if (!check_cache_tensor(b, k_arg, k) || !check_cache_tensor(b, v_arg, v)) {
        return false;
    }
    if (!hs_check_ne(b, k_arg, k, 0, q->ne[0], "d_qk of q") || !hs_check_ne(b, v_arg, v, 1, k->ne[1], "tokens a page or ring, as in k") ||
        !hs_check_ne(b, v_arg, v, 2, k->ne[2], "n_head_kv, as in k") || !hs_check_ne(b, v_arg, v, 3, k->ne[3], "pages or rings, as in k")) {
        return false;
    }
    if (q->ne[1] % k->ne[2] != 0) {
        return hs_op_fail(b, k_arg, "found ne[2] (n_head_kv) = %lld, expected a divisor of n_head = %lld", (long long) k->ne[2],
            (long long) q->ne[1]);
    }
    return true;
}

bool hs_check_table(const struct hs_build * b, const struct ggml_tensor * table) {
    return hs_check_tensor(b, "table", table, GGML_TYPE_I32) && hs_check_ne(b, "table", table, 2, 1, "[max_pages, n_seq]") &&
           hs_check_ne(b, "table", table, 3, 1, "[max_pages, n_seq]");
}

bool hs_check_pos_seq(const struct hs_build * b, const struct ggml_tensor * pos_seq, int64_t n_tokens) {
    return hs_check_tensor(b, "pos_seq", pos_seq, GGML_TYPE_I32) && hs_check_ne(b, "pos_seq", pos_seq, 0, n_tokens, "n_tokens") &&
           hs_check_ne(b, "pos_seq", pos_seq, 1, 2, "positions, then sequences") && hs_check_ne(b, "pos_seq", pos_seq, 2, 1, "[n_tokens, 2]");
}

bool hs_check_sinks(const struct hs_build * b, const struct ggml_tensor * sinks, int64_t n_head, int64_t n_rows) {
    if (!sinks) {
        return true;
    }
    return hs_check_tensor(b, "sinks", sinks, GGML_TYPE_F32) && hs_check_ne(b, "sinks", sinks, 0, n_head, "n_head") &&
           hs_check_ne(b, "sinks", sinks, 1, n_rows, "softmaxes of the op") && hs_check_ne(b, "sinks", sinks, 2, 1, "softmaxes of the op");
}

void hs_make_node(const struct hs_build * b, struct ggml_context * ctx, enum hs_op_impl impl, enum hs_op_id id, struct hs_op_params * p,
    enum ggml_type type, const int64_t ne[3], struct ggml_tensor * const * src, int n_src) {
    const struct hs_op_row * row = &hs_op_table[id];
    p->op = id;
    p->sync_next = 0;
    p->sync_done = 0;
    p->sync_ready = 0;
    struct ggml_tensor * node = ggml_custom_4d(ctx, type, ne[0], ne[1], ne[2], 1, NULL, 0, impl == HS_IMPL_REF ? row->ref : row->cpu,
        GGML_N_TASKS_MAX, p);
    for (int i = 0; i < n_src; i++) { // by hand: ggml_custom_4d takes one source less than a tensor holds
        node->src[i] = src[i];
    }
    ggml_set_name(node, row->name);
    b->res->node = node;
}

static int64_t round_up(int64_t x, int64_t step) {
    return (x + step - 1) / step * step;
}

void hs_make_packed(const struct hs_build * b, struct ggml_context * ctx, enum hs_op_impl impl, enum hs_op_id id, struct hs_op_params * p,
    int64_t d_v, int64_t n_head, int64_t n_head_kv, int64_t n_tokens, struct ggml_tensor * const * src, int n_src) {
    const size_t f = sizeof(float);
    p->work_elems = impl == HS_IMPL_REF ? 0 : round_up(p->work_elems, 16); // whole cache lines, so threads do not share one
    p->work_offset = round_up(p->out_elems + p->score_elems, 16);
    const int64_t ne[3] = { p->work_offset + p->n_threads_max * p->work_elems, 1, 1 };
    hs_make_node(b, ctx, impl, id, p, GGML_TYPE_F32, ne, src, n_src);
    struct hs_op_result * r = b->res;
    r->out = ggml_view_3d(ctx, r->node, d_v, n_head, n_tokens, d_v * f, d_v * n_head * f, 0);
    if (p->score_elems > 0) {
        const int64_t n_blocks = p->n_blocks_max;
        r->scores = ggml_view_3d(ctx, r->node, n_blocks, n_head_kv, n_tokens, n_blocks * f, n_blocks * n_head_kv * f, p->out_elems * f);
    }
}
