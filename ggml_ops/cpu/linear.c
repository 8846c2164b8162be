// CPU kernel of the linear op: x to 8 bits, then sixteen rows of a matrix after another, dealt out from a shared counter.
// Replaces: norm, one ggml product a matrix, SwiGLU or the residual sum, each with a barrier of all threads behind it (ggml's products have one more,
// behind their own rounding of x). Saves: those barriers, the norm's and the sum's work on one thread alone when there is one token, and their passes
// over memory when there are many.
#include "attn.h"
#include "cpu.h"
#include "linear_level.h"

#include "ggml-cpu.h"

#include <sched.h>

#define TOKENS_AT_ONCE 64 // so many tokens of x stay in the second cache while the rows pass

struct job {
    struct hs_op_params * p;
    const struct ggml_tensor * dst, * x;
    const struct hs_linear_level * level;
    struct hs_linear_x xq;
    int64_t n_in, n_tokens;
};

// Everybody has quantised a share; nobody goes on before. Short: no thread sleeps unless there are more of them than cores.
static void wait_for_all(struct hs_op_params * p, int nth) {
    __atomic_add_fetch(&p->sync_ready, 1, __ATOMIC_ACQ_REL);
    for (int i = 0; __atomic_load_n(&p->sync_ready, __ATOMIC_ACQUIRE) < nth; i++) {
        if (i > 4096) {
            sched_yield();
        }
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }
}

static void quantize(struct job * j, int ith, int nth) {
    const int64_t n = j->n_tokens;
    const bool alone = hs_linear_alone(n);
    const uintptr_t work = (uintptr_t) ((float *) j->dst->data + j->p->work_offset);
    const uintptr_t line = (work + HS_LINEAR_LINE - 1) / HS_LINEAR_LINE * HS_LINEAR_LINE;
    j->xq = (struct hs_linear_x) { (char *) ((float *) line + (alone ? ith * j->p->work_elems : 0)), hs_linear_width(n), j->n_in / HS_LINEAR_BLOCK };
    const int64_t from = alone ? 0 : n * ith / nth, to = alone ? n : n * (ith + 1) / nth;
    const struct ggml_tensor * norm = j->dst->src[HS_LINEAR_NORM];
    j->level->quantize(j->x->data, norm ? norm->data : NULL, j->p->eps, from, to - from, &j->xq);
    if (!alone) {
        wait_for_all(j->p, nth);
    }
}

// Rows 16 g .. 16 g + 15 of matrix w for n tokens from tok0 on.
static void rows(const struct job * j, const struct ggml_tensor * w, int64_t g, int64_t tok0, int64_t n, float * out, int64_t stride) {
    const struct hs_linear_tile t = { .type = w->type, .w = (const uint8_t *) w->data + (size_t) g * HS_PACK_ROWS * ggml_row_size(w->type, w->ne[0]),
        .x = j->xq, .tok0 = tok0, .n_tokens = n, .out = out, .stride = stride };
    j->level->tile(&t);
}

// The 16 rows' outputs `at` of n tokens: SwiGLU with the rows of `up`, or plus the residual stream.
static void finish(const struct job * j, int64_t g, int64_t tok0, int64_t n, float * at, int64_t n_out) {
    const struct ggml_tensor * add = j->dst->src[HS_LINEAR_ADD];
    if (j->p->swiglu) {
        float up[TOKENS_AT_ONCE * HS_PACK_ROWS];
        rows(j, j->dst->src[HS_LINEAR_W0 + 1], g, tok0, n, up, HS_PACK_ROWS);
        for (int64_t x = 0; x < n; x++) {
            j->level->swiglu(at + x * n_out, up + x * HS_PACK_ROWS, HS_PACK_ROWS);
        }
    }
    for (int64_t x = 0; x < n && add; x++) {
        const float * a = (const float *) add->data + (tok0 + x) * n_out + g * HS_PACK_ROWS;
        for (int i = 0; i < HS_PACK_ROWS; i++) {
            at[x * n_out + i] += a[i];
        }
    }
}

// Row groups from..to of the node, counted through all its matrices (SwiGLU: of the gate), for all tokens.
static void groups(const struct job * j, int64_t from, int64_t to) {
    for (int64_t tok0 = 0; tok0 < j->n_tokens; tok0 += TOKENS_AT_ONCE) {
        const int64_t n = j->n_tokens - tok0 < TOKENS_AT_ONCE ? j->n_tokens - tok0 : TOKENS_AT_ONCE;
        float * out = j->dst->data;
        int64_t first = 0; // group of the matrix's first rows
        for (int i = 0; i < HS_LINEAR_MAX && j->dst->src[HS_LINEAR_W0 + i]; i++) {
            const struct ggml_tensor * w = j->dst->src[HS_LINEAR_W0 + i];
            const int64_t n_out = w->ne[1], end = first + n_out / HS_PACK_ROWS;
            for (int64_t g = from > first ? from : first; g < to && g < end; g++) {
                float * at = out + tok0 * n_out + (g - first) * HS_PACK_ROWS;
                rows(j, w, g - first, tok0, n, at, n_out);
                finish(j, g - first, tok0, n, at, n_out);
            }
            if (j->p->swiglu) {
                break;
            }
            first = end;
            out += n_out * j->n_tokens;
        }
    }
}

void hs_cpu_linear(struct ggml_tensor * dst, int ith, int nth, void * userdata) {
    struct hs_op_params * p = userdata;
    const struct ggml_tensor * x = dst->src[HS_LINEAR_X];
    nth = nth < p->n_threads_max ? nth : p->n_threads_max;
    if (ith >= nth) {
        return;
    }
    struct job j = { .p = p, .dst = dst, .x = x, .level = hs_cpu_level_current()->linear, .n_in = x->ne[0], .n_tokens = x->ne[1] };
    quantize(&j, ith, nth);
    int64_t total = 0;
    for (int i = 0; i < (p->swiglu ? 1 : HS_LINEAR_MAX) && dst->src[HS_LINEAR_W0 + i]; i++) {
        total += dst->src[HS_LINEAR_W0 + i]->ne[1] / HS_PACK_ROWS;
    }
    // A thread that loses its core for a while leaves its share to the others; few large pieces keep a piece's weights one stream.
    const int64_t pieces = 6 * nth < total ? 6 * nth : total;
    for (int64_t i = ith; i < pieces; i = nth + __atomic_fetch_add(&p->sync_next, 1, __ATOMIC_RELAXED)) {
        groups(&j, total * i / pieces, total * (i + 1) / pieces);
    }
    if (__atomic_add_fetch(&p->sync_done, 1, __ATOMIC_ACQ_REL) == nth) {
        __atomic_store_n(&p->sync_next, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&p->sync_ready, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&p->sync_done, 0, __ATOMIC_RELAXED);
    }
}

// ggml built for Arm's i8mm multiplies two rows by two tokens in one instruction, on its own interleaved q4_0 and q8_0; counts in linear_neon.h.
static bool is_faster_in_ggml(enum ggml_type type) { return ggml_cpu_has_matmul_int8() && (type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q8_0); }

bool hs_linear_is_fast(enum ggml_type type) {
    return hs_cpu_level_current()->linear->fast && !is_faster_in_ggml(type) && hs_linear_can_pack(type, HS_LINEAR_BLOCK, HS_PACK_ROWS);
}

// Everything that the builder lets through.
bool hs_cpu_linear_supported(const struct ggml_tensor * node) {
    const struct hs_op_row * row = hs_op_find(node);
    return row && row->id == HS_OP_LINEAR;
}
