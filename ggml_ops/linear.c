// Builder of the linear op, and the packed form of its weights. The contract is in hs_ops.h.
#include "linear.h"

#include <math.h>
#include <string.h>

#include "build.h"

static const char packed_mark; // its address in tensor->extra says "packed"

void hs_linear_mark(struct ggml_tensor * w) { w->extra = (void *) (uintptr_t) &packed_mark; }

bool hs_linear_is_packed(const struct ggml_tensor * w) { return w->extra == &packed_mark; }

bool hs_linear_can_pack(enum ggml_type type, int64_t ne0, int64_t ne1) {
    return (type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q8_0) && ne0 % HS_LINEAR_BLOCK == 0 && ne1 % HS_PACK_ROWS == 0;
}

// Sixteen rows, one block of columns: factors, minima, then words of four columns, row after row.
static void pack_block(enum ggml_type type, const uint8_t * src, size_t row_size, uint8_t * dst) {
    const int n_half = type == GGML_TYPE_Q4_1 ? 2 : 1, n_word = type == GGML_TYPE_Q8_0 ? 8 : 4;
    const uint32_t flip = type == GGML_TYPE_Q8_0 ? 0x80808080u : 0;
    for (int r = 0; r < HS_PACK_ROWS; r++) {
        const uint8_t * row = src + (size_t) r * row_size;
        for (int i = 0; i < n_half; i++) {
            memcpy(dst + (i * HS_PACK_ROWS + r) * 2, row + 2 * i, 2);
        }
        for (int i = 0; i < n_word; i++) {
            uint32_t word;
            memcpy(&word, row + 2 * n_half + 4 * i, 4);
            word ^= flip;
            memcpy(dst + n_half * HS_PACK_ROWS * 2 + (i * HS_PACK_ROWS + r) * 4, &word, 4);
        }
    }
}

void hs_linear_pack(enum ggml_type type, int64_t ne0, int64_t row0, int64_t n, const void * src, void * dst) {
    const size_t block = ggml_type_size(type), row_size = ggml_row_size(type, ne0);
    for (int64_t r = 0; r < n; r += HS_PACK_ROWS) {
        const uint8_t * from = (const uint8_t *) src + (size_t) r * row_size;
        uint8_t * to = (uint8_t *) dst + (size_t) (row0 + r) * row_size;
        for (size_t b = 0; b < row_size / block; b++) {
            pack_block(type, from + b * block, row_size, to + b * block * HS_PACK_ROWS);
        }
    }
}

static bool check_weights(const struct hs_build * b, const struct hs_op_params * p, const struct hs_linear_args * a) {
    const int most = p->swiglu ? 2 : a->add ? 1 : HS_LINEAR_MAX;
    if (a->n_w < (p->swiglu ? 2 : 1) || a->n_w > most) {
        return hs_op_fail(b, "n_w", "found %d, expected %s%d%s", a->n_w, p->swiglu || a->add ? "" : "1 to ", most,
            p->swiglu ? " (gate and up)" : a->add ? " (with add)" : "");
    }
    for (int i = 0; i < a->n_w; i++) {
        const struct ggml_tensor * w = a->w[i];
        if (!w || !hs_linear_is_packed(w)) {
            return hs_op_fail(b, "w", "matrix %d is %s, expected one packed by hs_linear_pack", i, w ? "not packed" : "NULL");
        }
        if (!hs_check_ne(b, "w", w, 0, a->x->ne[0], "n_in of x") || !hs_check_ne(b, "w", w, 2, 1, "[n_in, n_out]") ||
            !hs_check_ne(b, "w", w, 3, 1, "[n_in, n_out]")) {
            return false;
        }
        if (!hs_linear_can_pack(w->type, w->ne[0], w->ne[1])) {
            return hs_op_fail(b, "w", "found %s [%lld, %lld], expected q4_0, q4_1 or q8_0 with whole blocks of 32 and %d rows", ggml_type_name(w->type),
                (long long) w->ne[0], (long long) w->ne[1], HS_PACK_ROWS);
        }
    }
    return !p->swiglu || (hs_check_ne(b, "w", a->w[1], 1, a->w[0]->ne[1], "rows of gate") && hs_check_tensor(b, "w", a->w[1], a->w[0]->type));
}

// x, norm and add.
static bool check_vectors(const struct hs_build * b, const struct hs_op_params * p, const struct hs_linear_args * a) {
    if (!hs_check_tensor(b, "x", a->x, GGML_TYPE_F32) || !hs_check_ne(b, "x", a->x, 2, 1, "[n_in, n_tokens]") ||
        !hs_check_ne(b, "x", a->x, 3, 1, "[n_in, n_tokens]")) {
        return false;
    }
    if (a->norm) {
        if (!hs_check_tensor(b, "norm", a->norm, GGML_TYPE_F32) || !hs_check_ne(b, "norm", a->norm, 0, a->x->ne[0], "n_in of x")) {
            return false;
        }
        if (!isfinite(p->eps) || p->eps < 0.0f) {
            return hs_op_fail(b, "eps", "found %g, expected a finite value, at least 0", (double) p->eps);
        }
    }
    return true;
}

static bool check_add(const struct hs_build * b, const struct hs_linear_args * a) {
    return !a->add || (hs_check_tensor(b, "add", a->add, GGML_TYPE_F32) && hs_check_ne(b, "add", a->add, 0, a->w[0]->ne[1], "n_out of w") &&
                       hs_check_ne(b, "add", a->add, 1, a->x->ne[1], "n_tokens of x") && hs_check_ne(b, "add", a->add, 2, 1, "[n_out, n_tokens]"));
}

struct hs_op_result hs_linear(struct ggml_context * ctx, enum hs_op_impl impl, struct hs_op_params * p, const struct hs_linear_args * a) {
    struct hs_op_result res = { 0 };
    const struct hs_build b = { "linear", &res };
    if (!check_vectors(&b, p, a) || !hs_check_min(&b, "n_threads_max", p->n_threads_max, 1) || !check_weights(&b, p, a) || !check_add(&b, a)) {
        return res;
    }
    const int64_t n_in = a->x->ne[0], n_tokens = a->x->ne[1], line = HS_LINEAR_LINE / (int64_t) sizeof(float);
    const int n_out = p->swiglu ? 1 : a->n_w;
    struct ggml_tensor * src[HS_LINEAR_W0 + HS_LINEAR_MAX] = { [HS_LINEAR_X] = a->x, [HS_LINEAR_NORM] = a->norm, [HS_LINEAR_ADD] = a->add };
    for (int i = 0; i < a->n_w; i++) {
        src[HS_LINEAR_W0 + i] = a->w[i];
    }
    p->out_elems = p->score_elems = 0;
    for (int i = 0; i < n_out; i++) {
        p->out_elems += a->w[i]->ne[1] * n_tokens;
    }
    p->work_elems = impl == HS_IMPL_REF ? 0 : hs_linear_work(n_in, n_tokens);
    p->work_offset = (p->out_elems + line - 1) / line * line;
    const int64_t copies = hs_linear_alone(n_tokens) ? p->n_threads_max : 1;
    const int64_t ne[3] = { p->work_offset + copies * p->work_elems + line, 1, 1 };
    hs_make_node(&b, ctx, impl, HS_OP_LINEAR, p, GGML_TYPE_F32, ne, src, HS_LINEAR_W0 + a->n_w);
    size_t at = 0;
    for (int i = 0; i < n_out; i++) {
        const size_t rows = (size_t) a->w[i]->ne[1];
        res.outs[i] = ggml_view_2d(ctx, res.node, a->w[i]->ne[1], n_tokens, rows * sizeof(float), at * sizeof(float));
        at += rows * (size_t) n_tokens;
    }
    res.out = res.outs[0];
    return res;
}
