// From inputs to a graph on a backend, and back to results.
#include "op_graph.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARD_SIZE 256
#define GUARD_BYTE 0xa5

struct upload { struct ggml_tensor * t; const void * data; };

struct builder {
    struct ggml_context * ctx;
    const struct hs_inputs * in;
    struct upload up[16];
    int n;
};

static struct ggml_tensor * input(struct builder * b, enum ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3, const void * data) {
    struct ggml_tensor * t = ggml_new_tensor_4d(b->ctx, type, ne0, ne1, ne2, ne3);
    b->up[b->n++] = (struct upload) { t, data };
    return t;
}

static bool fail(struct hs_case_graph * g, const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(g->error, sizeof(g->error), fmt, args);
    va_end(args);
    return false;
}

static struct ggml_tensor * guard(struct builder * b) {
    return ggml_new_tensor_1d(b->ctx, GGML_TYPE_I8, GUARD_SIZE);
}

static void build_full(struct hs_case_graph * g, struct builder * b, enum hs_op_impl impl, struct ggml_tensor * q, struct ggml_tensor * pos_seq) {
    const struct hs_case * c = &b->in->c;
    struct ggml_tensor * k = input(b, c->type_k, c->d_qk, c->page, c->n_head_kv, b->in->n_pages, b->in->k_pages);
    struct ggml_tensor * v = input(b, c->type_v, c->d_v, c->page, c->n_head_kv, b->in->n_pages, b->in->v_pages);
    struct ggml_tensor * table = input(b, GGML_TYPE_I32, b->in->max_pages, c->n_seq, 1, 1, b->in->table);
    struct ggml_tensor * sinks = c->sink != HS_SINK_OFF ? input(b, GGML_TYPE_F32, c->n_head, 1, 1, 1, b->in->sinks) : NULL;
    g->params.emit_scores = c->op == HS_OP_ATTN_FULL && c->block > 0;
    g->guard[0] = guard(b);
    g->res = hs_attn_full(b->ctx, impl, &g->params, q, k, v, table, pos_seq, sinks);
    g->guard[1] = guard(b);
    if (g->res.scores && c->top_k > 0) {
        g->select_params = (struct hs_op_params) { .block_size = c->block, .top_k = c->top_k, .n_threads_max = HS_CASE_THREADS_MAX };
        g->select = hs_select_blocks(b->ctx, impl, &g->select_params, g->res.scores, pos_seq);
    }
    g->guard[2] = guard(b);
}

static void build_sparse(struct hs_case_graph * g, struct builder * b, enum hs_op_impl impl, struct ggml_tensor * q, struct ggml_tensor * pos_seq) {
    const struct hs_inputs * in = b->in;
    const struct hs_case * c = &in->c;
    struct hs_attn_sparse_args a = { .q = q, .pos_seq = pos_seq };
    a.k = input(b, c->type_k, c->d_qk, c->page, c->n_head_kv, in->n_pages, in->k_pages);
    a.v = input(b, c->type_v, c->d_v, c->page, c->n_head_kv, in->n_pages, in->v_pages);
    a.table = input(b, GGML_TYPE_I32, in->max_pages, c->n_seq, 1, 1, in->table);
    a.sel = input(b, GGML_TYPE_I32, c->top_k, c->n_head_kv, in->n_tokens, 1, in->sel);
    if (c->n_head_kv_win > 0) {
        a.win_k = input(b, c->type_k, c->d_qk, c->ring, c->n_head_kv_win, c->n_seq, in->k_ring);
        a.win_v = input(b, c->type_v, c->d_v, c->ring, c->n_head_kv_win, c->n_seq, in->v_ring);
    }
    a.sinks = c->sink != HS_SINK_OFF ? input(b, GGML_TYPE_F32, c->n_head, 2, 1, 1, in->sinks) : NULL;
    if (c->gate != HS_GATE_OFF) {
        a.gates = input(b, GGML_TYPE_F32, 2 * c->n_head * (c->gate == HS_GATE_CHANNEL ? c->d_v : 1), in->n_tokens, 1, 1, in->gates);
    }
    g->guard[0] = guard(b);
    g->res = hs_attn_sparse(b->ctx, impl, &g->params, &a);
    g->guard[1] = guard(b);
}

static void build_linear(struct hs_case_graph * g, struct builder * b, enum hs_op_impl impl) {
    const struct hs_case * c = &b->in->c;
    struct hs_linear_args a = { .x = input(b, GGML_TYPE_F32, c->n_in, b->in->n_tokens, 1, 1, b->in->x) };
    for (; a.n_w < HS_LINEAR_MAX && c->n_out[a.n_w] > 0; a.n_w++) {
        a.w[a.n_w] = input(b, c->type_k, c->n_in, c->n_out[a.n_w], 1, 1, b->in->w[a.n_w]);
        hs_linear_mark(a.w[a.n_w]);
    }
    a.norm = c->norm ? input(b, GGML_TYPE_F32, c->n_in, 1, 1, 1, b->in->norm) : NULL;
    a.add = c->add ? input(b, GGML_TYPE_F32, c->n_out[0], b->in->n_tokens, 1, 1, b->in->add) : NULL;
    g->params.swiglu = c->swiglu;
    g->params.eps = 1e-5f;
    g->guard[0] = guard(b);
    g->res = hs_linear(b->ctx, impl, &g->params, &a);
    g->guard[1] = guard(b);
    if (g->res.node) { // the results of all matrices lie one behind the other
        g->res.out = ggml_view_1d(b->ctx, g->res.node, g->params.out_elems, 0);
    }
}

static void build_op(struct hs_case_graph * g, struct builder * b, enum hs_op_id op, enum hs_op_impl impl) {
    const struct hs_inputs * in = b->in;
    const struct hs_case * c = &in->c;
    if (op == HS_OP_LINEAR) {
        build_linear(g, b, impl);
        return;
    }
    struct ggml_tensor * pos_seq = input(b, GGML_TYPE_I32, in->n_tokens, 2, 1, 1, in->pos_seq);
    if (op == HS_OP_SELECT_BLOCKS) {
        struct ggml_tensor * scores = input(b, GGML_TYPE_F32, in->n_blocks, c->n_head_kv, in->n_tokens, 1, in->scores);
        g->guard[0] = guard(b);
        g->res = hs_select_blocks(b->ctx, impl, &g->params, scores, pos_seq);
        g->guard[1] = guard(b);
        return;
    }
    struct ggml_tensor * q = input(b, GGML_TYPE_F32, c->d_qk, c->n_head, in->n_tokens, 1, in->q);
    if (op == HS_OP_ATTN_FULL) {
        build_full(g, b, impl, q, pos_seq);
    } else if (op == HS_OP_ATTN_SPARSE) {
        build_sparse(g, b, impl, q, pos_seq);
    } else {
        struct ggml_tensor * k = input(b, c->type_k, c->d_qk, c->ring, c->n_head_kv, c->n_seq, in->k_ring);
        struct ggml_tensor * v = input(b, c->type_v, c->d_v, c->ring, c->n_head_kv, c->n_seq, in->v_ring);
        struct ggml_tensor * sinks = c->sink != HS_SINK_OFF ? input(b, GGML_TYPE_F32, c->n_head, 1, 1, 1, in->sinks) : NULL;
        g->guard[0] = guard(b);
        g->res = hs_attn_window(b->ctx, impl, &g->params, q, k, v, pos_seq, sinks);
        g->guard[1] = guard(b);
    }
}

bool hs_graph_build(struct hs_case_graph * g, ggml_backend_t backend, const struct hs_inputs * in, enum hs_op_id op, enum hs_op_impl impl) {
    const struct hs_case * c = &in->c;
    *g = (struct hs_case_graph) { 0 };
    g->params = (struct hs_op_params) { .scale = 1.0f / sqrtf((float) c->d_qk), .block_size = c->block, .top_k = c->top_k, .window = c->window,
        .forced = c->forced, .n_threads_max = HS_CASE_THREADS_MAX };
    const struct ggml_init_params ip = { 64 * ggml_tensor_overhead() + ggml_graph_overhead(), NULL, true };
    g->ctx = ggml_init(ip);
    if (!g->ctx) {
        return fail(g, "out of memory");
    }
    struct builder b = { .ctx = g->ctx, .in = in };
    build_op(g, &b, op, impl);
    if (!g->res.node || (g->select.error[0] != '\0')) {
        return fail(g, "builder refused: %s", g->res.node ? g->select.error : g->res.error);
    }
    if (!ggml_backend_supports_op(backend, g->res.node)) {
        g->unsupported = true;
        return fail(g, "the backend does not support the node");
    }
    g->graph = ggml_new_graph(g->ctx);
    ggml_build_forward_expand(g->graph, g->select.node ? g->select.node : g->res.node);
    g->buffer = ggml_backend_alloc_ctx_tensors(g->ctx, backend);
    if (!g->buffer) {
        return fail(g, "cannot allocate the tensors");
    }
    for (int i = 0; i < b.n; i++) {
        ggml_backend_tensor_set(b.up[i].t, b.up[i].data, 0, ggml_nbytes(b.up[i].t));
    }
    return true;
}

void hs_graph_free(struct hs_case_graph * g) {
    if (g->buffer) {
        ggml_backend_buffer_free(g->buffer);
    }
    if (g->ctx) {
        ggml_free(g->ctx);
    }
    g->buffer = NULL;
    g->ctx = NULL;
}

static void * read_back(const struct ggml_tensor * t) {
    void * data = malloc(ggml_nbytes(t));
    if (data) {
        ggml_backend_tensor_get(t, data, 0, ggml_nbytes(t));
    }
    return data;
}

bool hs_graph_run(struct hs_case_graph * g, ggml_backend_t backend, struct hs_case_result * r) {
    *r = (struct hs_case_result) { .bad_guard = -1 };
    ggml_backend_tensor_memset(g->res.node, 0xff, 0, ggml_nbytes(g->res.node));
    if (g->select.node) {
        ggml_backend_tensor_memset(g->select.node, 0xff, 0, ggml_nbytes(g->select.node));
    }
    for (int i = 0; i < HS_GUARDS && g->guard[i]; i++) {
        ggml_backend_tensor_memset(g->guard[i], GUARD_BYTE, 0, GUARD_SIZE);
    }
    const enum ggml_status status = ggml_backend_graph_compute(backend, g->graph);
    if (status != GGML_STATUS_SUCCESS) {
        return fail(g, "graph_compute: %s", ggml_status_to_string(status));
    }
    for (int i = 0; i < HS_GUARDS && g->guard[i]; i++) {
        unsigned char bytes[GUARD_SIZE];
        ggml_backend_tensor_get(g->guard[i], bytes, 0, GUARD_SIZE);
        for (int x = 0; x < GUARD_SIZE; x++) {
            r->bad_guard = bytes[x] != GUARD_BYTE ? i : r->bad_guard;
        }
    }
    const struct ggml_tensor * sel = g->select.node ? g->select.out : g->params.op == HS_OP_SELECT_BLOCKS ? g->res.out : NULL;
    bool ok = true;
    if (g->params.op != HS_OP_SELECT_BLOCKS) {
        r->out = read_back(g->res.out);
        r->n_out = ggml_nelements(g->res.out);
        ok = ok && r->out;
    }
    if (g->res.scores) {
        r->scores = read_back(g->res.scores);
        r->n_scores = ggml_nelements(g->res.scores);
        ok = ok && r->scores;
    }
    if (sel) {
        r->sel = read_back(sel);
        r->n_sel = ggml_nelements(sel);
        ok = ok && r->sel;
    }
    return ok || fail(g, "out of memory");
}

void hs_result_free(struct hs_case_result * r) {
    free(r->out);
    free(r->scores);
    free(r->sel);
    *r = (struct hs_case_result) { 0 };
}
