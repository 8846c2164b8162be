// Builder of the shared-cache sparse attention op. The contract is in hs_ops.h.
#include "build.h"
#include "cpu/plan.h"

static bool check_gates(const struct hs_build * b, const struct ggml_tensor * gates, int64_t d_v, int64_t n_head, int64_t n_tokens) {
    if (!gates) {
        return true;
    }
    if (!hs_check_tensor(b, "gates", gates, GGML_TYPE_F32) || !hs_check_ne(b, "gates", gates, 1, n_tokens, "n_tokens")) {
        return false;
    }
    if (gates->ne[0] != 2 * n_head && gates->ne[0] != 2 * n_head * d_v) {
        return hs_op_fail(b, "gates", "found ne[0] = %lld, expected 2 * n_head = %lld or 2 * d_v * n_head = %lld", (long long) gates->ne[0],
            (long long) (2 * n_head), (long long) (2 * n_head * d_v));
    }
    return true;
}

static bool check_window(const struct hs_build * b, const struct hs_op_params * p, const struct hs_attn_sparse_args * a) {
    if (!a->win_k != !a->win_v) {
        return hs_op_fail(b, a->win_k ? "win_v" : "win_k", "found NULL, expected both rings of the window branch or neither");
    }
    if (a->win_k && p->forced) {
        return hs_op_fail(b, "forced", "found true together with win_k, expected at most one of the forced window and the window branch");
    }
    if ((a->win_k || p->forced) && !hs_check_min(b, "window", p->window, 1)) {
        return false;
    }
    if (!a->win_k) {
        return true;
    }
    if (!hs_check_cache(b, "win_k", a->win_k, "win_v", a->win_v, a->q) ||
        !hs_check_ne(b, "win_v", a->win_v, 0, a->v->ne[0], "d_v of v: the branches are added")) {
        return false;
    }
    if (a->win_k->ne[3] < a->table->ne[1]) {
        return hs_op_fail(b, "win_k", "found ne[3] = %lld rings, expected at least n_seq = %lld", (long long) a->win_k->ne[3],
            (long long) a->table->ne[1]);
    }
    return true;
}

struct hs_op_result hs_attn_sparse(struct ggml_context * ctx, enum hs_op_impl impl, struct hs_op_params * p, const struct hs_attn_sparse_args * a) {
    struct hs_op_result res = { 0 };
    const struct hs_build b = { "attn_sparse", &res };
    if (!hs_check_q(&b, a->q) || !hs_check_cache(&b, "k", a->k, "v", a->v, a->q) || !hs_check_table(&b, a->table) ||
        !hs_check_pos_seq(&b, a->pos_seq, a->q->ne[2]) || !hs_check_min(&b, "block_size", p->block_size, 1) ||
        !hs_check_min(&b, "top_k", p->top_k, 1) || !hs_check_scale(&b, p->scale) || !hs_check_min(&b, "n_threads_max", p->n_threads_max, 1) ||
        !hs_check_tensor(&b, "sel", a->sel, GGML_TYPE_I32) || !hs_check_ne(&b, "sel", a->sel, 0, p->top_k, "top_k") ||
        !hs_check_ne(&b, "sel", a->sel, 1, a->k->ne[2], "n_head_kv of k") || !hs_check_ne(&b, "sel", a->sel, 2, a->q->ne[2], "n_tokens") ||
        !check_window(&b, p, a) || !hs_check_sinks(&b, a->sinks, a->q->ne[1], 2) ||
        !check_gates(&b, a->gates, a->v->ne[0], a->q->ne[1], a->q->ne[2])) {
        return res;
    }
    const int64_t d_v = a->v->ne[0], n_head = a->q->ne[1], n_tokens = a->q->ne[2];
    p->n_blocks_max = (int32_t) ((a->table->ne[0] * a->k->ne[1] + p->block_size - 1) / p->block_size);
    p->out_elems = d_v * n_head * n_tokens;
    p->score_elems = 0;
    const int64_t n_head_kv[2] = { a->k->ne[2], a->win_k ? a->win_k->ne[2] : 0 };
    p->work_elems = hs_plan_make(HS_OP_ATTN_SPARSE, a->q->ne[0], d_v, n_head, n_head_kv, n_tokens, p).work_elems;
    struct ggml_tensor * src[] = {
        [HS_SPARSE_Q] = a->q, [HS_SPARSE_K] = a->k, [HS_SPARSE_V] = a->v, [HS_SPARSE_SEL] = a->sel, [HS_SPARSE_TABLE] = a->table,
        [HS_SPARSE_POS_SEQ] = a->pos_seq, [HS_SPARSE_WIN_K] = a->win_k, [HS_SPARSE_WIN_V] = a->win_v, [HS_SPARSE_SINKS] = a->sinks,
        [HS_SPARSE_GATES] = a->gates,
    };
    hs_make_packed(&b, ctx, impl, HS_OP_ATTN_SPARSE, p, d_v, n_head, a->k->ne[2], n_tokens, src, HS_SPARSE_GATES + 1);
    return res;
}
