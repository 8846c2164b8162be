// Sequences of a session: length, rewind, fork, remove, checkpoints, and the capture of graph nodes.
#include <stdlib.h>
#include <string.h>

#include "session.h"
#include "status.h"

int32_t hs_seq_len(const hs_session * s, int32_t seq) {
    return seq >= 0 && seq < s->params.n_seq ? s->kv.seq[seq].len : -1;
}

int hs_seq_tokens(const hs_session * s, int32_t seq, int32_t * out, int32_t n_max) {
    const int32_t len = hs_seq_len(s, seq);
    if (len > 0 && n_max > 0) memcpy(out, s->kv.seq[seq].tokens, (size_t) (len < n_max ? len : n_max) * sizeof *out);
    return len;
}

int32_t hs_session_free_pages(const hs_session * s) { return s->kv.n_free; }

// Go back to n tokens. Pages keep everything; rings may have forgotten: then the nearest checkpoint at or before n (or the start) is restored and the
// tokens from there to n are evaluated again, from a copy, because truncating forgets them.
static int rewind_to(struct hs_session * s, int32_t seq, int32_t n, hs_error * err) {
    struct hs_kv * kv = &s->kv;
    if (hs_kv_rings_hold(kv, seq, n)) {
        hs_kv_truncate(kv, seq, n);
        return HS_OK;
    }
    const struct hs_checkpoint * cp = hs_kv_find_checkpoint(kv, seq, n);
    const int32_t from = cp ? cp->pos : 0, again = n - from;
    int32_t * tokens = NULL, * seqs = NULL;
    if (again > 0) {
        tokens = malloc((size_t) again * sizeof *tokens);
        seqs = malloc((size_t) again * sizeof *seqs);
        if (!tokens || !seqs) {
            free(tokens);
            free(seqs);
            return hs_fail(err, HS_E_MEMORY, "rewind: cannot allocate %d tokens", again);
        }
        memcpy(tokens, kv->seq[seq].tokens + from, (size_t) again * sizeof *tokens);
        for (int32_t i = 0; i < again; i++) seqs[i] = seq;
    }
    hs_kv_truncate(kv, seq, from);
    if (cp) hs_kv_rings_write(kv, seq, from, cp->data);
    int rc = HS_OK;
    if (again > 0) {
        hs_log(1, "rewind: recomputing %d tokens from position %d\n", again, from);
        rc = hs_session_eval(s, again, tokens, seqs, NULL, NULL, err);
        if (rc == HS_OK) hs_session_checkpoint(s, seq);
    }
    free(tokens);
    free(seqs);
    return rc;
}

int hs_seq_rewind(hs_session * s, int32_t seq, int32_t n, hs_error * err) {
    HS_TRY(hs_check_seq(s, seq, err));
    HS_TRY(hs_session_enter(s, err));
    atomic_store(&s->cancel, false);
    int rc = HS_OK;
    if (n < 0 || n > s->kv.seq[seq].len) rc = hs_fail(err, HS_E_ARG, "n: found %d, expected 0 to %d, the length of sequence %d", n, s->kv.seq[seq].len, seq);
    else rc = rewind_to(s, seq, n, err);
    hs_session_leave(s);
    return rc == HS_OK ? hs_ok(err) : rc;
}

int hs_seq_fork(hs_session * s, int32_t src, int32_t dst, hs_error * err) {
    HS_TRY(hs_check_seq(s, src, err));
    HS_TRY(hs_check_seq(s, dst, err));
    HS_TRY(hs_session_enter(s, err));
    const int rc = hs_kv_fork(&s->kv, src, dst, err);
    hs_session_leave(s);
    return rc;
}

int hs_seq_remove(hs_session * s, int32_t seq, hs_error * err) {
    HS_TRY(hs_check_seq(s, seq, err));
    HS_TRY(hs_session_enter(s, err));
    hs_kv_truncate(&s->kv, seq, 0);
    hs_session_leave(s);
    return hs_ok(err);
}

int hs_seq_checkpoint(hs_session * s, int32_t seq, hs_error * err) {
    HS_TRY(hs_check_seq(s, seq, err));
    HS_TRY(hs_session_enter(s, err));
    const int rc = hs_kv_checkpoint(&s->kv, seq, err);
    hs_session_leave(s);
    return rc;
}

// Names we gave, not ggml's defaults ("node_12", "leaf_3", "x (view)").
static bool has_own_name(const struct ggml_tensor * t) {
    return t->name[0] && strncmp(t->name, "node_", 5) && strncmp(t->name, "leaf_", 5) && !strchr(t->name, ' ') && strncmp(t->name, "inp_", 4);
}

// A tensor (or a view with contiguous rows) without its gaps.
static void get_rows(const struct ggml_tensor * t, float * out) {
    for (int64_t i3 = 0; i3 < t->ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < t->ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < t->ne[1]; i1++, out += t->ne[0]) {
                ggml_backend_tensor_get(t, out, (size_t) i1 * t->nb[1] + (size_t) i2 * t->nb[2] + (size_t) i3 * t->nb[3], (size_t) t->ne[0] * sizeof *out);
            }
        }
    }
}

// The scheduler asks before a node (do we want it?) and hands it over after.
static bool on_node(struct ggml_tensor * t, bool ask, void * user) {
    struct hs_session * s = user;
    const bool wanted = has_own_name(t) && (t->type == GGML_TYPE_F32 || t->type == GGML_TYPE_I32) && ggml_is_contiguous_rows(t);
    if (ask) return wanted;
    if (!wanted) return true;
    const size_t n = (size_t) ggml_nelements(t);
    if (n * sizeof(float) > s->capture_size) {
        free(s->capture_buf);
        s->capture_buf = malloc(n * sizeof(float));
        s->capture_size = s->capture_buf ? n * sizeof(float) : 0;
        if (!s->capture_buf) {
            s->capture_failed = true;
            return false;
        }
    }
    get_rows(t, s->capture_buf);
    if (t->type == GGML_TYPE_I32) {
        for (size_t i = 0; i < n; i++) {
            int32_t v;
            memcpy(&v, s->capture_buf + i, sizeof v);
            s->capture_buf[i] = (float) v;
        }
    }
    if (s->capture(t->name, t->ne, s->capture_buf, s->capture_user)) return true;
    atomic_store(&s->cancel, true);
    return false;
}

int hs_session_capture(hs_session * s, hs_capture_fn fn, void * user, hs_error * err) {
    HS_TRY(hs_session_enter(s, err));
    s->capture = fn;
    s->capture_user = user;
    ggml_backend_sched_set_eval_callback(s->sched, fn ? on_node : NULL, s);
    hs_session_leave(s);
    return hs_ok(err);
}
