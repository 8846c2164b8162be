// Bytes of bound tensors, on several threads: mapped tensors are there already, the others are copied, packed for our linear op, repacked (ggml's
// buffer types do it in set_tensor) or widened to f32. A thread takes the next piece of the list: a tensor, or some rows of one to be packed.
#include "weights_load.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "hs_ops.h"
#include "status.h"

enum { MAX_THREADS = 8, PIECE_BYTES = 1 << 18 }; // packing is bound by memory soon

struct piece { const struct hs_bound * e; int64_t index, row, n; }; // rows row .. row + n - 1

struct filling {
    struct hs_binder * b;
    pthread_mutex_t lock;      // of all below
    int64_t next, row;         // first piece that nobody has taken: tensor and row
    uint64_t done;             // bytes
    int64_t failed;            // tensor of the error in b->err, the first in the list; n_max: none
    int rc;
};

// One thread, with memory for what is read from the file.
struct filler {
    struct filling * all;
    void * tmp;
    size_t cap;
    hs_error err;
};

static bool take(struct filling * f, struct piece * p) {
    pthread_mutex_lock(&f->lock);
    const bool any = f->rc == HS_OK && f->next < f->b->n_bound;
    if (any) {
        const struct hs_bound * e = &f->b->bound[f->next];
        int64_t n = ggml_nrows(e->dst) - f->row;
        if (e->packed) {
            const int64_t most = PIECE_BYTES / (int64_t) e->dst->nb[1] / HS_PACK_ROWS * HS_PACK_ROWS;
            n = most < HS_PACK_ROWS ? HS_PACK_ROWS : n < most ? n : most;
        }
        *p = (struct piece) { e, f->next, f->row, n };
        f->row += n;
        if (f->row == ggml_nrows(e->dst)) f->next++, f->row = 0;
    }
    pthread_mutex_unlock(&f->lock);
    return any;
}

// `size` bytes of a tensor: in the mapping, or read into w->tmp.
static int file_bytes(struct filler * w, const struct hs_gguf_tensor * t, uint64_t offset, uint64_t size, const void ** data) {
    const uint8_t * mapped = hs_gguf_tensor_mapped(w->all->b->gguf, t);
    if (!mapped && size > w->cap) {
        free(w->tmp);
        w->tmp = malloc((size_t) size);
        w->cap = w->tmp ? (size_t) size : 0;
    }
    *data = mapped ? mapped + offset : w->tmp;
    if (!*data) return hs_fail(&w->err, HS_E_MEMORY, "tensor %s: cannot allocate %llu bytes", t->name, (unsigned long long) size);
    if (!mapped) HS_TRY(hs_gguf_read_tensor(w->all->b->gguf, t, offset, size, w->tmp, &w->err));
    if (!w->all->b->p->check || ggml_validate_row_data(t->type, *data, (size_t) size)) return HS_OK;
    return hs_fail(&w->err, HS_E_MODEL, "tensor %s: holds values that are not finite (or invalid quantised blocks), expected finite ones", t->name);
}

static int widen(struct filler * w, const struct hs_gguf_tensor * t, float * dst, int64_t n) {
    const void * data;
    HS_TRY(file_bytes(w, t, 0, t->size, &data));
    if (t->type == GGML_TYPE_F32) memcpy(dst, data, (size_t) n * sizeof *dst);
    else ggml_get_type_traits(t->type)->to_float(data, dst, n);
    return HS_OK;
}

// A vector as f32, or the two rows of sinks.
static int fill_vector(struct filler * w, const struct hs_bound * e, float * dst) {
    const int64_t n = e->dst->ne[0];
    if (!e->sinks) return widen(w, e->src, dst, n);
    for (int64_t i = 0; i < 2 * n; i++) dst[i] = HS_SINK_ABSENT;
    if (e->src)  HS_TRY(widen(w, e->src, dst, n));
    if (e->src2) HS_TRY(widen(w, e->src2, dst + n, n));
    return HS_OK;
}

static int fill(struct filler * w, const struct piece * p) {
    const struct hs_bound * e = p->e;
    if (e->to_f32 || e->sinks) {
        const size_t size = ggml_nbytes(e->dst);
        const bool host = ggml_backend_buffer_is_host(e->dst->buffer);
        float * dst = host ? e->dst->data : malloc(size);
        if (!dst) return hs_fail(&w->err, HS_E_MEMORY, "tensor %s: cannot allocate %zu bytes", e->dst->name, size);
        const int rc = fill_vector(w, e, dst);
        if (host) return rc;
        if (rc == HS_OK) ggml_backend_tensor_set(e->dst, dst, 0, size);
        free(dst);
        return rc;
    }
    if (e->place == HS_PLACE_MAPPED && !w->all->b->p->check) return HS_OK;
    const void * data;
    const uint64_t row_size = e->dst->nb[1];
    HS_TRY(file_bytes(w, e->src, (uint64_t) p->row * row_size, (uint64_t) p->n * row_size, &data));
    if (e->packed) hs_linear_pack(e->dst->type, e->dst->ne[0], p->row, p->n, data, e->dst->data);
    else if (e->place != HS_PLACE_MAPPED) ggml_backend_tensor_set(e->dst, data, 0, (size_t) e->src->size);
    return HS_OK;
}

static void fail(struct filling * f, int64_t index, int rc, const hs_error * err) {
    pthread_mutex_lock(&f->lock);
    if (index < f->failed) {
        f->failed = index;
        f->rc = rc;
        if (f->b->err) *f->b->err = *err;
    }
    pthread_mutex_unlock(&f->lock);
}

// Take pieces until there are none. report: call the caller's progress function, in the caller's thread only.
static void work(struct filling * f, bool report) {
    struct filler w = { .all = f };
    const struct hs_weights_params * q = f->b->p;
    struct piece p;
    while (take(f, &p)) {
        const int rc = fill(&w, &p);
        if (rc != HS_OK) {
            fail(f, p.index, rc, &w.err);
            break;
        }
        pthread_mutex_lock(&f->lock);
        f->done += (uint64_t) p.n * p.e->dst->nb[1];
        const float part = (float) ((double) f->done / (double) f->b->w->bytes);
        pthread_mutex_unlock(&f->lock);
        if (report && q->progress && part < 1 && !q->progress(part, q->progress_user)) {
            fail(f, -1, hs_fail(&w.err, HS_E_CANCELLED, "loading was cancelled"), &w.err);
        }
    }
    free(w.tmp);
}

static void * work_beside(void * f) {
    work(f, false);
    return NULL;
}

int hs_binder_fill(struct hs_binder * b) {
    struct filling f = { .b = b, .failed = b->n_max };
    if (pthread_mutex_init(&f.lock, NULL) != 0) return hs_fail(b->err, HS_E_MEMORY, "weights: cannot make a lock");
    pthread_t threads[MAX_THREADS];
    const int32_t cores = hs_physical_cores();
    // This thread works too; one that cannot be started is one fewer. A file that is not mapped is read by one: every reader needs memory for a tensor.
    const int32_t most = b->n_bound > 0 && hs_gguf_tensor_mapped(b->gguf, b->bound[0].src) ? cores : 1;
    int32_t n = 0;
    while (n + 1 < most && n + 1 < MAX_THREADS && pthread_create(&threads[n], NULL, work_beside, &f) == 0) n++;
    work(&f, true);
    for (int32_t i = 0; i < n; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&f.lock);
    if (f.rc != HS_OK || !b->p->progress || b->p->progress(1.0f, b->p->progress_user)) return f.rc;
    return hs_fail(b->err, HS_E_CANCELLED, "loading was cancelled");
}
