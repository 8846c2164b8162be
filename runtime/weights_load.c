// Where bound tensors lie: headers in a context for each place, then buffers. Their bytes: weights_fill.c.
#include "weights_load.h"

#include <stdlib.h>
#include <string.h>

#include "hs_ops.h"
#include "status.h"

enum { HOST_ALIGN = 32 };

static int add_place(struct hs_binder * b, ggml_backend_buffer_type_t buft, int * place) {
    for (int i = HS_PLACE_CPU; i < b->n_places; i++) {
        if (b->places[i].buft == buft) {
            *place = i;
            return HS_OK;
        }
    }
    if (b->n_places == HS_MAX_PLACES) return hs_fail(b->err, HS_E_INTERNAL, "more than %d buffer types for weights", HS_MAX_PLACES);
    struct ggml_init_params ip = { .mem_size = ggml_tensor_overhead() * (size_t) (b->n_max + 1), .no_alloc = true };
    struct ggml_context * ctx = ggml_init(ip);
    if (!ctx) return hs_fail(b->err, HS_E_MEMORY, "weights: cannot allocate %zu bytes for tensor headers", ip.mem_size);
    b->places[b->n_places] = (struct hs_place) { buft, ctx };
    b->w->ctxs[b->w->n_ctxs++] = ctx;
    *place = b->n_places++;
    return HS_OK;
}

int hs_binder_init(struct hs_binder * b, const hs_gguf * g, struct hs_hparams * hp, const struct hs_weights_params * p, struct hs_weights * w, hs_error * err) {
    memset(b, 0, sizeof *b);
    b->gguf = g;
    b->hp = hp;
    b->p = p;
    b->w = w;
    b->err = err;
    b->n_max = hs_gguf_n_tensors(g) + 1; // every tensor once, the tied embedding twice
    b->used  = calloc((size_t) b->n_max, 1);
    b->bound = calloc((size_t) b->n_max, sizeof *b->bound);
    w->layers = calloc((size_t) hp->n_layer, sizeof *w->layers);
    w->ctxs   = calloc(HS_MAX_PLACES, sizeof *w->ctxs);
    w->bufs   = calloc((size_t) HS_MAX_PLACES + (size_t) hs_gguf_n_files(g), sizeof *w->bufs);
    if (!b->used || !b->bound || !w->layers || !w->ctxs || !w->bufs) return hs_fail(err, HS_E_MEMORY, "weights: cannot allocate tables for %lld tensors", (long long) b->n_max);
    int place;
    HS_TRY(add_place(b, NULL, &place));
    return add_place(b, hs_cpu_buft(), &place);
}

void hs_binder_free(struct hs_binder * b) {
    free(b->used);
    free(b->bound);
    memset(b, 0, sizeof *b);
}

static int add(struct hs_binder * b, struct hs_bound entry, enum ggml_type type, const int64_t * ne, const char * name, struct ggml_tensor ** out) {
    if (b->n_bound == b->n_max) return hs_fail(b->err, HS_E_MODEL, "tensor %s: bound twice", name);
    entry.dst = ggml_new_tensor_3d(b->places[entry.place].ctx, type, ne[0], ne[1], ne[2]);
    ggml_set_name(entry.dst, name);
    b->bound[b->n_bound++] = entry;
    b->w->bytes += ggml_nbytes(entry.dst);
    *out = entry.dst;
    return HS_OK;
}

int hs_binder_add(struct hs_binder * b, const struct hs_gguf_tensor * t, ggml_backend_buffer_type_t buft, struct ggml_tensor ** out) {
    struct hs_bound e = { .src = t };
    if (buft) {
        HS_TRY(add_place(b, buft, &e.place));
    } else {
        const void * at = hs_gguf_tensor_mapped(b->gguf, t);
        e.place = at && (uintptr_t) at % HOST_ALIGN == 0 ? HS_PLACE_MAPPED : HS_PLACE_CPU;
    }
    return add(b, e, t->type, t->ne, t->name, out);
}

int hs_binder_add_packed(struct hs_binder * b, const struct hs_gguf_tensor * t, struct ggml_tensor ** out) {
    HS_TRY(add(b, (struct hs_bound) { .src = t, .place = HS_PLACE_CPU, .packed = true }, t->type, t->ne, t->name, out));
    hs_linear_mark(*out);
    return HS_OK;
}

static int check_widens(struct hs_binder * b, const struct hs_gguf_tensor * t) {
    if (t->type == GGML_TYPE_F32 || ggml_get_type_traits(t->type)->to_float) return HS_OK;
    return hs_fail(b->err, HS_E_MODEL, "tensor %s: has type %s, expected a float type", t->name, ggml_type_name(t->type));
}

int hs_binder_add_f32(struct hs_binder * b, const struct hs_gguf_tensor * t, struct ggml_tensor ** out, int64_t n) {
    HS_TRY(check_widens(b, t));
    const int64_t ne[3] = {n, 1, 1};
    return add(b, (struct hs_bound) { .src = t, .place = HS_PLACE_CPU, .to_f32 = true }, GGML_TYPE_F32, ne, t->name, out);
}

int hs_binder_add_sinks(struct hs_binder * b, const struct hs_gguf_tensor * global, const struct hs_gguf_tensor * window, int64_t n, struct ggml_tensor ** out) {
    if (global) HS_TRY(check_widens(b, global));
    if (window) HS_TRY(check_widens(b, window));
    const int64_t ne[3] = {n, 2, 1};
    return add(b, (struct hs_bound) { .src = global, .src2 = window, .place = HS_PLACE_CPU, .sinks = true }, GGML_TYPE_F32, ne,
        global ? global->name : window->name, out);
}

// One buffer over each file's mapping, so that mapped tensors have a buffer like any other.
static int map_files(struct hs_binder * b) {
    ggml_backend_buffer_t * of_file = calloc((size_t) hs_gguf_n_files(b->gguf), sizeof *of_file);
    if (!of_file) return hs_fail(b->err, HS_E_MEMORY, "weights: cannot allocate a table of files");
    int rc = HS_OK;
    for (int64_t i = 0; i < b->n_bound && rc == HS_OK; i++) {
        const struct hs_bound * e = &b->bound[i];
        if (e->place != HS_PLACE_MAPPED) continue;
        const int32_t f = e->src->file;
        if (!of_file[f]) {
            size_t size = 0;
            void * base = hs_gguf_file_base(b->gguf, f, &size);
            ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
            of_file[f] = ggml_backend_dev_buffer_from_host_ptr(cpu, base, size, size);
            if (!of_file[f]) {
                rc = hs_fail(b->err, HS_E_MEMORY, "%s: cannot make a buffer over the mapping", hs_gguf_path(b->gguf, f));
                break;
            }
            ggml_backend_buffer_set_usage(of_file[f], GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
            b->w->bufs[b->w->n_bufs++] = of_file[f];
        }
        void * at = (void *) (uintptr_t) hs_gguf_tensor_mapped(b->gguf, e->src);
        if (ggml_backend_tensor_alloc(of_file[f], e->dst, at) != GGML_STATUS_SUCCESS) rc = hs_fail(b->err, HS_E_INTERNAL, "tensor %s: cannot be placed", e->src->name);
    }
    free(of_file);
    return rc;
}

int hs_binder_load(struct hs_binder * b) {
    HS_TRY(map_files(b));
    for (int i = HS_PLACE_CPU; i < b->n_places; i++) {
        if (!ggml_get_first_tensor(b->places[i].ctx)) continue;
        ggml_backend_buffer_t buf = ggml_backend_alloc_ctx_tensors_from_buft(b->places[i].ctx, b->places[i].buft);
        if (!buf) {
            return hs_fail(b->err, HS_E_MEMORY, "weights: cannot allocate %zu bytes of %s memory",
                ggml_backend_alloc_ctx_tensors_from_buft_size(b->places[i].ctx, b->places[i].buft), ggml_backend_buft_name(b->places[i].buft));
        }
        ggml_backend_buffer_set_usage(buf, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        hs_buffer_use_huge_pages(buf);
        b->w->bufs[b->w->n_bufs++] = buf;
    }
    for (int64_t i = 0; i < hs_gguf_n_tensors(b->gguf); i++) {
        const struct hs_gguf_tensor * t = hs_gguf_tensor_at(b->gguf, i);
        b->w->n_params += (uint64_t) t->ne[0] * (uint64_t) t->ne[1] * (uint64_t) t->ne[2] * (uint64_t) t->ne[3];
    }
    return hs_binder_fill(b);
}
