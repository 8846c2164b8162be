// Making a session and running tokens through it in ubatches.
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "status.h"

hs_session_params hs_session_default_params(void) {
    return (hs_session_params) { .n_seq = 1, .n_batch = 2048, .n_ubatch = 512, .type_k = "f16", .type_v = "f16", .n_checkpoints = 32 };
}

static int cache_type(const char * arg, const char ** name, enum ggml_type * out, hs_error * err) {
    static const struct { const char * name; enum ggml_type type; } known[] = { {"f16", GGML_TYPE_F16}, {"f32", GGML_TYPE_F32}, {"q8_0", GGML_TYPE_Q8_0} };
    const char * want = *name ? *name : "f16";
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcasecmp(want, known[i].name)) continue;
        *name = known[i].name;
        *out = known[i].type;
        return HS_OK;
    }
    return hs_fail(err, HS_E_ARG, "%s: found '%.40s', expected f32, f16 or q8_0", arg, want);
}

static int in_range(const char * arg, int64_t v, int64_t min, int64_t max, hs_error * err) {
    if (v < min || v > max) return hs_fail(err, HS_E_ARG, "%s: found %lld, expected %lld to %lld", arg, (long long) v, (long long) min, (long long) max);
    return HS_OK;
}

int hs_session_resolve(const struct hs_hparams * hp, const hs_session_params * p, hs_session_params * out, struct hs_kv_shape * shape, hs_error * err) {
    *out = *p;
    if (out->n_ctx == 0) out->n_ctx = hp->n_ctx_train;
    HS_TRY(in_range("n_ctx", out->n_ctx, 1, 1 << 30, err));
    HS_TRY(in_range("n_seq", out->n_seq, 1, 4096, err));
    HS_TRY(in_range("n_batch", out->n_batch, 1, 1 << 20, err));
    HS_TRY(in_range("n_ubatch", out->n_ubatch, 1, 1 << 20, err));
    HS_TRY(in_range("n_checkpoints", out->n_checkpoints, 0, 1 << 16, err));
    if (out->n_ubatch > out->n_batch) out->n_ubatch = out->n_batch;
    if (out->n_ubatch > out->n_ctx) out->n_ubatch = out->n_ctx;
    *shape = (struct hs_kv_shape) { .n_ctx = out->n_ctx, .n_seq = out->n_seq, .n_ubatch = out->n_ubatch, .n_checkpoints = out->n_checkpoints };
    HS_TRY(cache_type("type_k", &out->type_k, &shape->type_k, err));
    return cache_type("type_v", &out->type_v, &shape->type_v, err);
}

int hs_session_enter(struct hs_session * s, hs_error * err) {
    if (atomic_flag_test_and_set(&s->busy)) return hs_fail(err, HS_E_BUSY, "another thread is using this session");
    return HS_OK;
}

void hs_session_leave(struct hs_session * s) { atomic_flag_clear(&s->busy); }

int hs_check_seq(const struct hs_session * s, int32_t seq, hs_error * err) {
    if (seq < 0 || seq >= s->params.n_seq) return hs_fail(err, HS_E_ARG, "seq: found %d, expected 0 to %d (n_seq %d)", seq, s->params.n_seq - 1, s->params.n_seq);
    return HS_OK;
}

static bool should_abort(void * user) { return atomic_load(&((struct hs_session *) user)->cancel); }

void hs_session_cancel(hs_session * s) { atomic_store(&s->cancel, true); }

// HS_E_MEMORY with what is free on each GPU.
static int out_of_memory(const struct hs_session * s, const char * what, int32_t n_tokens, hs_error * err) {
    const struct hs_placement * at = &s->model->placement;
    char gpus[512] = "";
    size_t n = 0;
    for (int32_t i = 0; i < at->n_gpus && n < sizeof gpus - 96; i++) {
        uint64_t free_bytes, total;
        hs_device_free_memory(at->gpus[i], &free_bytes, &total);
        n += (size_t) snprintf(gpus + n, sizeof gpus - n, "; %s has %llu of %llu bytes free", hs_device_name(at->gpus[i]), (unsigned long long) free_bytes,
            (unsigned long long) total);
    }
    return hs_fail(err, HS_E_MEMORY, "%s: cannot allocate the memory for %d tokens at once (n_ubatch %d, n_ctx %d)%s", what,
        n_tokens, s->params.n_ubatch, s->params.n_ctx, gpus);
}

static size_t each_input(struct hs_graph * g, ggml_backend_buffer_t buf) {
    struct ggml_tensor * list[4 + HS_MAX_ROW_SETS] = { g->table, g->tokens, g->pos_seq, g->out_ids }; // the table first: always at the same place
    for (int i = 0; i < HS_MAX_ROW_SETS; i++) list[4 + i] = g->rows[i];
    size_t at = 0;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        if (!list[i]) continue;
        const size_t align = buf ? ggml_backend_buffer_get_alignment(buf) : 256;
        if (buf) ggml_backend_tensor_alloc(buf, list[i], (char *) ggml_backend_buffer_get_base(buf) + at);
        at += (ggml_nbytes(list[i]) + align - 1) / align * align;
    }
    return at;
}

// Inputs into the buffer that lasts as long as the session. The first graph, of the largest ubatch, says how large it must be.
static int place_inputs(struct hs_session * s, struct hs_graph * g, hs_error * err) {
    const struct hs_placement * at = &s->model->placement;
    if (at->n_gpus != 1 || at->input == HS_ON_CPU || ggml_backend_buffer_is_host(s->model->weights.token_embd->buffer)) return HS_OK;
    if (!s->inputs_buf) {
        const size_t size = each_input(g, NULL) + 256 * 16 + (size_t) s->params.n_ubatch * sizeof(int32_t);
        s->inputs_buf = ggml_backend_buft_alloc_buffer(hs_device_buft(at->gpus[0]), size);
        if (!s->inputs_buf) return hs_fail(err, HS_E_MEMORY, "graph inputs: cannot allocate %zu bytes on %s", size, hs_device_name(at->gpus[0]));
    }
    each_input(g, s->inputs_buf);
    return HS_OK;
}

// A new graph in the same memory, with its buffers (reserve: only those are made, for graphs up to this one).
static int make_graph(struct hs_session * s, int32_t n_tokens, int32_t n_out, bool reserve, hs_error * err) {
    s->graph.n_tokens = 0;
    ggml_backend_sched_reset(s->sched);
    if (s->graph_ctx) ggml_free(s->graph_ctx);
    s->graph_ctx = ggml_init((struct ggml_init_params) { .mem_size = s->graph_mem_size, .mem_buffer = s->graph_mem, .no_alloc = true });
    if (!s->graph_ctx) return hs_fail(err, HS_E_MEMORY, "compute graph: cannot make a context of %zu bytes", s->graph_mem_size);
    struct hs_build b = { .model = s->model, .kv = &s->kv, .impl = s->params.use_ref ? HS_IMPL_REF : HS_IMPL_KERNEL, .ctx = s->graph_ctx,
        .n_threads_max = s->backends.n_threads > s->backends.n_threads_batch ? s->backends.n_threads : s->backends.n_threads_batch,
        .params = s->op_params, .selection = s->selection, .plain = s->capture != NULL, .err = err };
    struct hs_graph g;
    HS_TRY(hs_graph_build(&b, n_tokens, n_out, &g));
    HS_TRY(place_inputs(s, &g, err));
    const bool ok = reserve ? ggml_backend_sched_reserve(s->sched, g.gf) : ggml_backend_sched_alloc_graph(s->sched, g.gf);
    if (!ok) return out_of_memory(s, "compute buffers", n_tokens, err);
    if (!reserve) s->graph = g;
    return HS_OK;
}

// Compute buffers for a whole ubatch with so many rows of logits. The scheduler ignores a failure to grow them, so they are grown here first.
static int reserve_graph(struct hs_session * s, int32_t n_out, hs_error * err) {
    int32_t most = 1;
    while (most < n_out) most *= 2;
    if (most > s->params.n_ubatch) most = s->params.n_ubatch;
    s->reserved_out = -1; // a failure leaves none
    HS_TRY(make_graph(s, s->params.n_ubatch, most, true, err));
    s->reserved_out = most;
    s->reserved_plain = s->reserved_plain || s->capture;
    return HS_OK;
}

// The graph of this shape, ready for its inputs: the present one, or a new one.
static int prepare_graph(struct hs_session * s, int32_t n_tokens, int32_t n_out, hs_error * err) {
    const bool plain = s->capture != NULL;
    if (s->graph.n_tokens == n_tokens && s->graph.n_out == n_out && s->graph.plain == plain) return HS_OK;
    if (n_out > s->reserved_out || (plain && !s->reserved_plain)) HS_TRY(reserve_graph(s, n_out, err));
    return make_graph(s, n_tokens, n_out, false, err);
}

static int alloc_scratch(struct hs_session * s, hs_error * err) {
    const size_t n = (size_t) s->params.n_ubatch;
    int32_t heads = 1;
    for (int32_t i = 0; i < s->model->plan.n_rows; i++) {
        if (s->model->plan.rows[i].n_head_kv > heads) heads = s->model->plan.rows[i].n_head_kv;
    }
    const size_t nodes = hs_graph_max_nodes(s->model);
    s->graph_mem_size = ggml_tensor_overhead() * nodes * 2 + ggml_graph_overhead_custom(nodes, false);
    s->graph_mem = malloc(s->graph_mem_size);
    s->op_params = calloc((size_t) hs_graph_max_params(s->model), sizeof *s->op_params);
    s->selection = calloc((size_t) s->model->hp.n_layer, sizeof(struct ggml_tensor *));
    s->pos_seq = calloc(2 * n, sizeof *s->pos_seq);
    s->rows    = calloc(n * (size_t) heads * HS_MAX_ROW_SETS, sizeof *s->rows);
    s->out_ids = calloc(n, sizeof *s->out_ids);
    s->count   = calloc((size_t) s->params.n_seq, sizeof *s->count);
    if (!s->graph_mem || !s->op_params || !s->selection || !s->pos_seq || !s->rows || !s->out_ids || !s->count) {
        return hs_fail(err, HS_E_MEMORY, "session: cannot allocate scratch for n_ubatch %d", s->params.n_ubatch);
    }
    return HS_OK;
}

static int init(struct hs_session * s, const hs_session_params * p, hs_error * err) {
    struct hs_kv_shape shape;
    HS_TRY(hs_session_resolve(&s->model->hp, p, &s->params, &shape, err));
    const struct hs_placement * at = &s->model->placement;
    HS_TRY(hs_backends_new(p->n_threads, p->n_threads_batch, at->gpus, at->n_gpus, &s->backends, err));
    s->params.n_threads = s->backends.n_threads;
    s->params.n_threads_batch = s->backends.n_threads_batch;
    hs_backends_set_abort(&s->backends, should_abort, s);
    HS_TRY(hs_kv_new(&s->model->plan, &shape, at, &s->kv, err));
    HS_TRY(alloc_scratch(s, err));
    s->sched = ggml_backend_sched_new(s->backends.backend, NULL, s->backends.n, hs_graph_max_nodes(s->model) * 2, false, at->n_gpus > 0);
    if (!s->sched) return hs_fail(err, HS_E_MEMORY, "session: cannot make a scheduler");
    return reserve_graph(s, 1, err);
}

int hs_session_new(hs_model * m, const hs_session_params * p, hs_session ** out, hs_error * err) {
    if (!m || !out) return hs_fail(err, HS_E_ARG, "hs_session_new: %s is NULL", m ? "out" : "model");
    const hs_session_params defaults = hs_session_default_params();
    struct hs_session * s = calloc(1, sizeof *s);
    if (!s) return hs_fail(err, HS_E_MEMORY, "session: cannot allocate %zu bytes", sizeof *s);
    atomic_flag_clear(&s->busy);
    atomic_init(&s->cancel, false);
    s->model = m;
    const int rc = init(s, p ? p : &defaults, err);
    if (rc != HS_OK) {
        hs_session_free(s);
        return rc;
    }
    *out = s;
    return hs_ok(err);
}

void hs_session_free(hs_session * s) {
    if (!s) return;
    if (s->sched) ggml_backend_sched_free(s->sched);
    if (s->inputs_buf) ggml_backend_buffer_free(s->inputs_buf);
    if (s->graph_ctx) ggml_free(s->graph_ctx);
    hs_kv_free(&s->kv);
    hs_backends_free(&s->backends);
    free(s->graph_mem);
    free(s->op_params);
    free(s->selection);
    free(s->pos_seq);
    free(s->rows);
    free(s->out_ids);
    free(s->count);
    free(s->capture_buf);
    free(s);
}

void hs_session_params_get(const hs_session * s, hs_session_params * out) { *out = s->params; }

// In the stream's order, without waiting for it, where the inputs lie on the GPU (`data` has been read when this returns).
static void set_input(struct hs_session * s, struct ggml_tensor * t, const void * data, size_t size) {
    if (s->inputs_buf) ggml_backend_tensor_set_async(s->backends.backend[0], t, data, 0, size);
    else ggml_backend_tensor_set(t, data, 0, size);
}

// Positions, sequences and cache rows of this ubatch -> graph inputs. All but an unchanged page table on the GPU are set every time: the allocator may reuse
// their memory in between.
static void set_inputs(struct hs_session * s, int32_t n, const int32_t * tokens, const int32_t * seq) {
    const struct hs_graph * g = &s->graph;
    const struct hs_layer_plan * plan = &s->model->plan;
    int32_t * pos = s->pos_seq, * sq = s->pos_seq + n;
    memset(s->count, 0, (size_t) s->params.n_seq * sizeof *s->count);
    for (int32_t i = 0; i < n; i++) {
        sq[i] = seq ? seq[i] : 0;
        pos[i] = s->kv.seq[sq[i]].len + s->count[sq[i]]++;
    }
    set_input(s, g->tokens, tokens, (size_t) n * sizeof *tokens);
    set_input(s, g->pos_seq, s->pos_seq, 2 * (size_t) n * sizeof *s->pos_seq);
    if (g->table) {
        if (!s->inputs_buf || s->table_version != s->kv.table_version) set_input(s, g->table, s->kv.table, ggml_nbytes(g->table));
        s->table_version = s->kv.table_version;
    }
    int64_t at = 0;
    for (int32_t r = 0; r < plan->n_rows; r++) {
        const int32_t n_head_kv = plan->rows[r].n_head_kv;
        int64_t * rows = s->rows + at; // a place of its own for each set: an earlier one may still be on its way
        for (int32_t i = 0; i < n; i++) {
            for (int32_t h = 0; h < n_head_kv; h++) rows[(int64_t) i * n_head_kv + h] = hs_kv_row(&s->kv, &plan->rows[r], sq[i], pos[i], h);
        }
        at += (int64_t) n * n_head_kv;
        set_input(s, g->rows[r], rows, (size_t) n * (size_t) n_head_kv * sizeof *rows);
    }
    if (g->out_ids) set_input(s, g->out_ids, s->out_ids, (size_t) g->n_out * sizeof *s->out_ids);
}

static int compute(struct hs_session * s, hs_error * err) {
    s->capture_failed = false;
    const bool batch = s->graph.n_tokens > s->params.n_seq;
    HS_TRY(hs_backends_check_fork(&s->backends, batch, err));
    hs_backends_use_threads(&s->backends, batch);
    const enum ggml_status st = ggml_backend_sched_graph_compute(s->sched, s->graph.gf);
    if (atomic_load(&s->cancel) || st == GGML_STATUS_ABORTED) return hs_fail(err, HS_E_CANCELLED, "evaluation was cancelled");
    if (s->capture_failed) return hs_fail(err, HS_E_MEMORY, "capture: cannot allocate memory for a node's values");
    if (st == GGML_STATUS_ALLOC_FAILED) return out_of_memory(s, "evaluation", s->graph.n_tokens, err);
    if (st != GGML_STATUS_SUCCESS) return hs_fail(err, HS_E_INTERNAL, "evaluation: the backend failed (%s)", ggml_status_to_string(st));
    return HS_OK;
}

// One ubatch: pages for it, graph, compute, logits out; only then do the tokens belong to their sequences.
static int eval_ubatch(struct hs_session * s, int32_t n, const int32_t * tokens, const int32_t * seq, int32_t n_out, float * logits, hs_error * err) {
    const int32_t n_seq = s->params.n_seq;
    memset(s->count, 0, (size_t) n_seq * sizeof *s->count);
    for (int32_t i = 0; i < n; i++) s->count[seq ? seq[i] : 0]++;
    int rc = HS_OK;
    for (int32_t q = 0; q < n_seq && rc == HS_OK; q++) rc = hs_kv_reserve(&s->kv, q, s->count[q], err);
    bool ran = false;
    if (rc == HS_OK) rc = prepare_graph(s, n, n_out, err);
    if (rc == HS_OK) {
        set_inputs(s, n, tokens, seq);
        ran = true;
        rc = compute(s, err);
    }
    if (rc == HS_OK && n_out) ggml_backend_tensor_get(s->graph.logits, logits, 0, (size_t) n_out * (size_t) s->model->hp.n_vocab * sizeof *logits);
    if (rc != HS_OK) {
        for (int32_t q = 0; q < n_seq; q++) hs_kv_abandon(&s->kv, q, ran ? s->count[q] : 0);
        return rc;
    }
    for (int32_t i = 0; i < n; i++) hs_kv_commit(&s->kv, seq ? seq[i] : 0, tokens + i, 1);
    return HS_OK;
}

static int check_batch(const struct hs_session * s, int32_t n, const int32_t * tokens, const int32_t * seq, const int8_t * want, const float * logits, hs_error * err) {
    if (n < 1) return hs_fail(err, HS_E_ARG, "n: found %d, expected at least 1 token", n);
    if (!tokens) return hs_fail(err, HS_E_ARG, "tokens: is NULL");
    bool any = want == NULL;
    for (int32_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= s->model->hp.n_vocab) {
            return hs_fail(err, HS_E_ARG, "tokens[%d]: found %d, expected 0 to %d", i, tokens[i], s->model->hp.n_vocab - 1);
        }
        if (seq) HS_TRY(hs_check_seq(s, seq[i], err));
        any = any || want[i];
    }
    if (any && !logits && want) return hs_fail(err, HS_E_ARG, "logits: is NULL although rows are wanted");
    return HS_OK;
}

int hs_session_eval(struct hs_session * s, int32_t n, const int32_t * tokens, const int32_t * seq, const int8_t * want, float * logits, hs_error * err) {
    for (int32_t at = 0; at < n; ) {
        const int32_t m = n - at < s->params.n_ubatch ? n - at : s->params.n_ubatch;
        int32_t n_out = 0;
        for (int32_t i = 0; i < m; i++) {
            if (want ? want[at + i] != 0 : logits && at + i == n - 1) s->out_ids[n_out++] = i;
        }
        HS_TRY(eval_ubatch(s, m, tokens + at, seq ? seq + at : NULL, n_out, logits, err));
        if (logits) logits += (int64_t) n_out * s->model->hp.n_vocab;
        at += m;
    }
    return HS_OK;
}

// The tokens are appended whether or not their rings can be saved: without a checkpoint a later rewind only recomputes more.
void hs_session_checkpoint(struct hs_session * s, int32_t seq) {
    hs_error err;
    if (hs_kv_checkpoint(&s->kv, seq, &err) != HS_OK) hs_log(3, "%s\n", err.message);
}

int hs_eval(hs_session * s, int32_t n, const int32_t * tokens, const int32_t * seq, const int8_t * want, float * logits, hs_error * err) {
    HS_TRY(check_batch(s, n, tokens, seq, want, logits, err));
    HS_TRY(hs_session_enter(s, err));
    atomic_store(&s->cancel, false);
    int rc = hs_session_eval(s, n, tokens, seq, want, logits, err);
    // The end of a prompt is where people come back to (another answer, the next turn): keep the rings there.
    for (int32_t q = 0; q < s->params.n_seq && rc == HS_OK; q++) {
        int32_t mine = 0;
        for (int32_t i = 0; i < n && mine < 2; i++) mine += (seq ? seq[i] : 0) == q;
        if (mine > 1) hs_session_checkpoint(s, q);
    }
    hs_session_leave(s);
    return rc == HS_OK ? hs_ok(err) : rc;
}
