// The builders refuse what the contract forbids, with an error that names op, argument, found and expected; the table knows its own nodes only.
#include "hs_ops.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static int failures;

#define CHECK(cond, ...) do { \
    if (!(cond)) { failures++; printf("%s:%d: %s: ", __FILE__, __LINE__, #cond); printf(__VA_ARGS__); printf("\n"); } \
} while (0)

// Arguments of all ops, right until a case changes one of them.
struct args {
    struct ggml_context * ctx;
    struct ggml_tensor * q, * k, * v, * table, * pos_seq, * sinks, * sinks2, * sel, * win_k, * win_v, * gates, * scores;
    struct hs_linear_args lin;
    struct hs_op_params p;
};

static struct ggml_tensor * f32(struct args * a, int64_t ne0, int64_t ne1, int64_t ne2) {
    return ggml_new_tensor_3d(a->ctx, GGML_TYPE_F32, ne0, ne1, ne2);
}

static struct ggml_tensor * i32(struct args * a, int64_t ne0, int64_t ne1, int64_t ne2) {
    return ggml_new_tensor_3d(a->ctx, GGML_TYPE_I32, ne0, ne1, ne2);
}

static struct args good(struct ggml_context * ctx) {
    struct args a = { .ctx = ctx, .p = { .scale = 0.125f, .block_size = 16, .top_k = 3, .window = 8, .emit_scores = true, .n_threads_max = 2 } };
    a.q = f32(&a, 64, 4, 5);
    a.k = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, 64, 16, 2, 10);
    a.v = ggml_new_tensor_4d(ctx, GGML_TYPE_Q8_0, 96, 16, 2, 10);
    a.table = i32(&a, 4, 2, 1);
    a.pos_seq = i32(&a, 5, 2, 1);
    a.sinks = f32(&a, 4, 1, 1);
    a.sinks2 = f32(&a, 4, 2, 1);
    a.sel = i32(&a, 3, 2, 5);
    a.win_k = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, 64, 12, 4, 2);
    a.win_v = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, 96, 12, 4, 2);
    a.gates = f32(&a, 8, 5, 1);
    a.scores = f32(&a, 4, 2, 5);
    a.lin = (struct hs_linear_args) { .x = f32(&a, 64, 5, 1), .norm = f32(&a, 64, 1, 1), .n_w = 2 };
    for (int i = 0; i < HS_LINEAR_MAX; i++) {
        a.lin.w[i] = ggml_new_tensor_2d(ctx, GGML_TYPE_Q4_1, 64, 32);
        hs_linear_mark(a.lin.w[i]);
    }
    return a;
}

static struct hs_op_result build(struct args * a, enum hs_op_id op) {
    const struct hs_attn_sparse_args s = { a->q, a->k, a->v, a->sel, a->table, a->pos_seq, a->win_k, a->win_v, a->sinks2, a->gates };
    switch (op) {
        case HS_OP_ATTN_FULL: return hs_attn_full(a->ctx, HS_IMPL_KERNEL, &a->p, a->q, a->k, a->v, a->table, a->pos_seq, a->sinks);
        case HS_OP_SELECT_BLOCKS: return hs_select_blocks(a->ctx, HS_IMPL_KERNEL, &a->p, a->scores, a->pos_seq);
        case HS_OP_ATTN_SPARSE: return hs_attn_sparse(a->ctx, HS_IMPL_KERNEL, &a->p, &s);
        case HS_OP_LINEAR: return hs_linear(a->ctx, HS_IMPL_KERNEL, &a->p, &a->lin);
        default: return hs_attn_window(a->ctx, HS_IMPL_KERNEL, &a->p, a->q, a->win_k, a->win_v, a->pos_seq, a->sinks);
    }
}

static void refused(struct args a, enum hs_op_id op, const char * expected) {
    const struct hs_op_result r = build(&a, op);
    CHECK(!r.node && !r.out && !r.scores, "%s: a node in spite of '%s'", hs_op_table[op].name, expected);
    const bool named = strncmp(r.error, hs_op_table[op].name, strlen(hs_op_table[op].name)) == 0;
    CHECK(named && strstr(r.error, expected), "error '%s', expected '%s'", r.error, expected);
}

// Change one argument, expect a refusal that says `expected`, put it back.
#define REFUSED(op, change, expected) do { struct args saved = a; change; refused(a, op, expected); a = saved; } while (0)

static void test_refusals(struct ggml_context * ctx) {
    struct args a = good(ctx);
    REFUSED(HS_OP_ATTN_FULL, a.q = NULL, "q: found NULL");
    REFUSED(HS_OP_ATTN_FULL, a.q = i32(&a, 64, 4, 5), "q: found type i32, expected f32");
    REFUSED(HS_OP_ATTN_FULL, a.q = f32(&a, 48, 4, 5), "q: found ne[0] (head dim) = 48, expected a multiple of 32 from 32 to 256");
    REFUSED(HS_OP_ATTN_FULL, a.q = f32(&a, 288, 4, 5), "found ne[0] (head dim) = 288");
    REFUSED(HS_OP_ATTN_FULL, a.q = ggml_permute(ctx, a.q, 0, 2, 1, 3), "q: found a strided tensor");
    REFUSED(HS_OP_ATTN_FULL, a.q = f32(&a, 128, 4, 5), "k: found ne[0] = 64, expected 128 (d_qk of q)");
    REFUSED(HS_OP_ATTN_FULL, a.q = f32(&a, 64, 5, 5), "k: found ne[2] (n_head_kv) = 2, expected a divisor of n_head = 5");
    REFUSED(HS_OP_ATTN_FULL, a.k = NULL, "k: found NULL");
    REFUSED(HS_OP_ATTN_FULL, a.k = ggml_new_tensor_4d(ctx, GGML_TYPE_Q4_0, 64, 16, 2, 10), "k: found type q4_0, expected f32, f16 or q8_0");
    REFUSED(HS_OP_ATTN_FULL, a.v = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, 96, 8, 2, 10), "v: found ne[1] = 8, expected 16");
    REFUSED(HS_OP_ATTN_FULL, a.v = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, 96, 16, 1, 10), "v: found ne[2] = 1, expected 2");
    REFUSED(HS_OP_ATTN_FULL, a.v = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, 96, 16, 2, 9), "v: found ne[3] = 9, expected 10");
    REFUSED(HS_OP_ATTN_FULL, a.table = f32(&a, 4, 2, 1), "table: found type f32, expected i32");
    REFUSED(HS_OP_ATTN_FULL, a.pos_seq = i32(&a, 4, 2, 1), "pos_seq: found ne[0] = 4, expected 5 (n_tokens)");
    REFUSED(HS_OP_ATTN_FULL, a.pos_seq = i32(&a, 5, 1, 1), "pos_seq: found ne[1] = 1, expected 2");
    REFUSED(HS_OP_ATTN_FULL, a.sinks = f32(&a, 3, 1, 1), "sinks: found ne[0] = 3, expected 4");
    REFUSED(HS_OP_ATTN_FULL, a.sinks = a.sinks2, "sinks: found ne[1] = 2, expected 1");
    REFUSED(HS_OP_ATTN_FULL, a.p.scale = NAN, "scale: found nan");
    REFUSED(HS_OP_ATTN_FULL, a.p.scale = 0.0f, "scale: found 0");
    REFUSED(HS_OP_ATTN_FULL, a.p.block_size = 0, "block_size: found 0, expected at least 1");
    REFUSED(HS_OP_ATTN_FULL, a.p.n_threads_max = 0, "n_threads_max: found 0, expected at least 1");
    REFUSED(HS_OP_SELECT_BLOCKS, a.scores = NULL, "scores: found NULL");
    REFUSED(HS_OP_SELECT_BLOCKS, a.scores = f32(&a, 4, 2, 6), "pos_seq: found ne[0] = 5, expected 6");
    REFUSED(HS_OP_SELECT_BLOCKS, a.p.top_k = 0, "top_k: found 0, expected at least 1");
    REFUSED(HS_OP_SELECT_BLOCKS, a.p.block_size = -1, "block_size: found -1");
    REFUSED(HS_OP_ATTN_SPARSE, a.sel = i32(&a, 4, 2, 5), "sel: found ne[0] = 4, expected 3 (top_k)");
    REFUSED(HS_OP_ATTN_SPARSE, a.sel = i32(&a, 3, 4, 5), "sel: found ne[1] = 4, expected 2");
    REFUSED(HS_OP_ATTN_SPARSE, a.sel = i32(&a, 3, 2, 4), "sel: found ne[2] = 4, expected 5");
    REFUSED(HS_OP_ATTN_SPARSE, a.sel = f32(&a, 3, 2, 5), "sel: found type f32, expected i32");
    REFUSED(HS_OP_ATTN_SPARSE, a.win_v = NULL, "win_v: found NULL, expected both rings");
    REFUSED(HS_OP_ATTN_SPARSE, a.win_k = NULL, "win_k: found NULL, expected both rings");
    REFUSED(HS_OP_ATTN_SPARSE, a.p.forced = true, "forced: found true together with win_k");
    REFUSED(HS_OP_ATTN_SPARSE, a.p.window = 0, "window: found 0, expected at least 1");
    struct ggml_tensor * k1 = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, 64, 12, 4, 1), * v1 = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, 96, 12, 4, 1);
    REFUSED(HS_OP_ATTN_SPARSE, (a.win_k = k1, a.win_v = v1), "win_k: found ne[3] = 1 rings, expected at least n_seq = 2");
    REFUSED(HS_OP_ATTN_SPARSE, a.win_v = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, 64, 12, 4, 2), "win_v: found ne[0] = 64, expected 96 (d_v of v");
    REFUSED(HS_OP_ATTN_SPARSE, a.gates = f32(&a, 9, 5, 1), "gates: found ne[0] = 9, expected 2 * n_head = 8 or 2 * d_v * n_head = 768");
    REFUSED(HS_OP_ATTN_SPARSE, a.gates = f32(&a, 8, 4, 1), "gates: found ne[1] = 4, expected 5");
    REFUSED(HS_OP_ATTN_SPARSE, a.sinks2 = a.sinks, "sinks: found ne[1] = 1, expected 2");
    REFUSED(HS_OP_ATTN_WINDOW, a.p.window = 0, "window: found 0, expected at least 1");
    REFUSED(HS_OP_ATTN_WINDOW, a.win_k = NULL, "k_ring: found NULL");
    REFUSED(HS_OP_ATTN_WINDOW, a.win_v = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, 96, 11, 4, 2), "v_ring: found ne[1] = 11, expected 12");
    REFUSED(HS_OP_LINEAR, a.lin.x = NULL, "x: found NULL");
    REFUSED(HS_OP_LINEAR, a.lin.x = f32(&a, 64, 5, 2), "x: found ne[2] = 2, expected 1");
    REFUSED(HS_OP_LINEAR, (a.lin.norm = NULL, a.lin.x = f32(&a, 96, 5, 1)), "w: found ne[0] = 64, expected 96 (n_in of x)");
    REFUSED(HS_OP_LINEAR, a.lin.n_w = 6, "n_w: found 6, expected 1 to 5");
    REFUSED(HS_OP_LINEAR, (a.lin.n_w = 3, a.p.swiglu = true), "n_w: found 3, expected 2 (gate and up)");
    REFUSED(HS_OP_LINEAR, a.lin.w[1] = ggml_new_tensor_2d(ctx, GGML_TYPE_Q4_1, 64, 32), "w: matrix 1 is not packed");
    REFUSED(HS_OP_LINEAR, (a.lin.w[0] = ggml_new_tensor_2d(ctx, GGML_TYPE_Q4_1, 64, 24), hs_linear_mark(a.lin.w[0])), "w: found q4_1 [64, 24]");
    REFUSED(HS_OP_LINEAR, (a.lin.w[0] = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, 64, 32), hs_linear_mark(a.lin.w[0])), "w: found f16 [64, 32]");
    REFUSED(HS_OP_LINEAR, (a.lin.w[1] = ggml_new_tensor_2d(ctx, GGML_TYPE_Q4_1, 64, 48), hs_linear_mark(a.lin.w[1]), a.p.swiglu = true), "w: found ne[1] = 48, expected 32");
    REFUSED(HS_OP_LINEAR, a.lin.norm = f32(&a, 32, 1, 1), "norm: found ne[0] = 32, expected 64");
    REFUSED(HS_OP_LINEAR, a.p.eps = NAN, "eps: found nan, expected a finite value");
    REFUSED(HS_OP_LINEAR, a.lin.add = f32(&a, 32, 5, 1), "n_w: found 2, expected 1 (with add)");
    REFUSED(HS_OP_LINEAR, (a.lin.n_w = 1, a.lin.add = f32(&a, 32, 4, 1)), "add: found ne[1] = 4, expected 5");
    REFUSED(HS_OP_LINEAR, a.p.n_threads_max = 0, "n_threads_max: found 0");
}

static void test_nodes(struct ggml_context * ctx) {
    for (int op = 0; op < HS_OP_COUNT; op++) {
        struct args a = good(ctx);
        const struct hs_op_result r = build(&a, (enum hs_op_id) op);
        CHECK(r.node && r.out && r.error[0] == '\0', "%s: '%s'", hs_op_table[op].name, r.error);
        if (!r.node) {
            continue;
        }
        CHECK(hs_op_find(r.node) == &hs_op_table[op], "%s", hs_op_table[op].name);
        CHECK(hs_op_node_params(r.node) == &a.p, "%s", hs_op_table[op].name);
        CHECK(hs_op_table[op].cpu_supported(r.node), "%s", hs_op_table[op].name);
        CHECK(!hs_op_table[(op + 1) % HS_OP_COUNT].cpu_supported(r.node), "%s", hs_op_table[op].name);
        CHECK((r.scores != NULL) == (op == HS_OP_ATTN_FULL), "%s", hs_op_table[op].name);
        CHECK(a.p.sync_next == 0 && a.p.sync_done == 0, "%s", hs_op_table[op].name);
        if (op == HS_OP_ATTN_SPARSE) {
            CHECK(r.node->src[HS_SPARSE_GATES] == a.gates && r.node->src[HS_SPARSE_WIN_K] == a.win_k, "sources at their places");
            a.gates = a.sinks2 = a.win_k = a.win_v = NULL;
            const struct hs_op_result bare = build(&a, HS_OP_ATTN_SPARSE);
            CHECK(bare.node && !bare.node->src[HS_SPARSE_GATES] && !bare.node->src[HS_SPARSE_SINKS] && bare.node->src[HS_SPARSE_POS_SEQ] == a.pos_seq,
                "absent sources stay NULL: '%s'", bare.error);
        }
    }
    struct args a = good(ctx);
    struct ggml_tensor * sum = ggml_add(ctx, a.q, a.q);
    CHECK(!hs_op_find(sum) && !hs_op_node_params(sum) && !hs_op_find(a.q) && !hs_op_find(NULL), "nodes of others");
    CHECK(!hs_cpu_level_set("mmx") && hs_cpu_level_name(-1) == NULL && hs_cpu_level_name(hs_cpu_level_count()) == NULL, "unknown levels");
}

int main(void) {
    struct ggml_context * ctx = ggml_init((struct ggml_init_params) { 4 << 20, NULL, true });
    if (!ctx) {
        printf("out of memory\n");
        return 1;
    }
    test_refusals(ctx);
    test_nodes(ctx);
    ggml_free(ctx);
    printf("%d failures\n", failures);
    return failures != 0;
}
