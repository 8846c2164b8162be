// Where bound tensors lie: headers in a context for each place, then buffers. Their bytes: weights_fill.c.
#include "weights_load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hs_ops.h"
#include "status.h"

enum { HOST_ALIGN = 32 };

static int add_place(struct hs_binder * b, ggml_backend_buffer_type_t buft, int32_t device, int * place) {
    for (int i = HS_PLACE_CPU; i < b->n_places; i++) {
        if (b->places[i].buft == buft) {
            *place = i;
            return HS_OK;
        }
    }
    if (b->n_places == HS_MAX_PLACES) return hs_fail(b->err, HS_E_INTERNAL, "more than %d buffer types for weights", HS_MAX_PLACES);
    struct ggml_init_params ip = { .mem_size = ggml_tensor_overhead() * (size_t) (b->n_max + b->hp->n_layer + 1), .no_alloc = true };
    struct ggml_context * ctx = ggml_init(ip);
    if (!ctx) return hs_fail(b->err, HS_E_MEMORY, "weights: cannot allocate %zu bytes for tensor headers", ip.mem_size);
    b->places[b->n_places] = (struct hs_place) { buft, ctx, device };
    b->w->ctxs[b->w->n_ctxs++] = ctx;
    *place = b->n_places++;
    return HS_OK;
}

int hs_binder_init(struct hs_binder * b, const hs_gguf * g, struct hs_hparams * hp, const struct hs_placement * placement, const struct hs_weights_params * p,
                   struct hs_weights * w, hs_error * err) {
    memset(b, 0, sizeof *b);
    b->gguf = g;
    b->hp = hp;
    b->placement = placement;
    b->p = p;
    b->w = w;
    b->err = err;
    b->n_max = hs_gguf_n_tensors(g) + 1 + HS_ROPE_COUNT * placement->n_gpus; // every tensor once, the tied embedding twice, RoPE factors for each device
    b->used  = calloc((size_t) b->n_max, 1);
    b->bound = calloc((size_t) b->n_max, sizeof *b->bound);
    w->layers = calloc((size_t) hp->n_layer, sizeof *w->layers);
    w->ctxs   = calloc(HS_MAX_PLACES, sizeof *w->ctxs);
    w->bufs   = calloc((size_t) HS_MAX_PLACES + (size_t) hs_gguf_n_files(g), sizeof *w->bufs);
    if (!b->used || !b->bound || !w->layers || !w->ctxs || !w->bufs) return hs_fail(err, HS_E_MEMORY, "weights: cannot allocate tables for %lld tensors", (long long) b->n_max);
    int place;
    HS_TRY(add_place(b, NULL, HS_ON_CPU, &place));
    return add_place(b, hs_device_buft(HS_ON_CPU), HS_ON_CPU, &place);
}

void hs_binder_free(struct hs_binder * b) {
    free(b->used);
    free(b->bound);
    memset(b, 0, sizeof *b);
}

// The place of what is not mapped and not repacked.
static int plain_place(struct hs_binder * b, int32_t device, int * place) {
    *place = HS_PLACE_CPU;
    return device == HS_ON_CPU ? HS_OK : add_place(b, hs_device_buft(device), device, place);
}

static int list(struct hs_binder * b, struct hs_bound entry, const char * name, struct ggml_tensor ** out) {
    if (b->n_bound == b->n_max) return hs_fail(b->err, HS_E_MODEL, "tensor %s: bound twice", name);
    ggml_set_name(entry.dst, name);
    b->bound[b->n_bound++] = entry;
    b->w->bytes += ggml_nbytes(entry.dst);
    b->w->bytes_on[1 + b->places[entry.place].device] += ggml_nbytes(entry.dst);
    *out = entry.dst;
    return HS_OK;
}

static int add(struct hs_binder * b, struct hs_bound entry, enum ggml_type type, const int64_t * ne, const char * name, struct ggml_tensor ** out) {
    entry.dst = ggml_new_tensor_3d(b->places[entry.place].ctx, type, ne[0], ne[1], ne[2]);
    return list(b, entry, name, out);
}

// The next rows of the joined matrix.
static int add_part(struct hs_binder * b, struct hs_bound entry, struct ggml_tensor ** out) {
    const struct hs_gguf_tensor * t = entry.src;
    entry.dst = ggml_view_2d(b->places[entry.place].ctx, b->joined, t->ne[0], t->ne[1], b->joined->nb[1], (size_t) b->joined_rows * b->joined->nb[1]);
    b->joined_rows += t->ne[1];
    return list(b, entry, t->name, out);
}

int hs_binder_join(struct hs_binder * b, const char * const * names, int n, int il, int32_t device) {
    const struct hs_gguf_tensor * first = NULL;
    int64_t rows = 0;
    int count = 0, place;
    for (int i = 0; i < n && device != HS_ON_CPU; i++) {
        char name[96];
        snprintf(name, sizeof name, "blk.%d.%s", il, names[i]);
        const int64_t at = hs_gguf_find_tensor(b->gguf, name);
        const struct hs_gguf_tensor * t = at < 0 ? NULL : hs_gguf_tensor_at(b->gguf, at);
        if (i == 0 && !t) return HS_OK;
        first = i == 0 ? t : first;
        if (!t || t->type != first->type || t->ne[0] != first->ne[0] || t->ne[2] != 1 || t->ne[3] != 1) continue;
        rows += t->ne[1];
        count++;
    }
    const int64_t ne[3] = { first ? first->ne[0] : 0, rows, 1 };
    if (count < 2 || rows > INT32_MAX || !hs_device_multiplies(device, hs_device_buft(device), first->type, ne, false)) return HS_OK;
    HS_TRY(plain_place(b, device, &place));
    b->joined = ggml_new_tensor_2d(b->places[place].ctx, first->type, ne[0], rows);
    b->joined_rows = 0;
    ggml_format_name(b->joined, "blk.%d.joined", il);
    return HS_OK;
}

void hs_binder_end_join(struct hs_binder * b) { b->joined = NULL; }

int hs_binder_add(struct hs_binder * b, const struct hs_gguf_tensor * t, int32_t device, ggml_backend_buffer_type_t buft, struct ggml_tensor ** out) {
    struct hs_bound e = { .src = t };
    if (device != HS_ON_CPU) {
        HS_TRY(plain_place(b, device, &e.place));
        if (b->joined && t->type == b->joined->type && t->ne[0] == b->joined->ne[0] && b->joined_rows + t->ne[1] <= b->joined->ne[1]) return add_part(b, e, out);
    } else if (buft) {
        HS_TRY(add_place(b, buft, HS_ON_CPU, &e.place));
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

int hs_binder_add_f32(struct hs_binder * b, const struct hs_gguf_tensor * t, int32_t device, struct ggml_tensor ** out, int64_t n) {
    struct hs_bound e = { .src = t, .to_f32 = true };
    HS_TRY(check_widens(b, t));
    HS_TRY(plain_place(b, device, &e.place));
    const int64_t ne[3] = {n, 1, 1};
    return add(b, e, GGML_TYPE_F32, ne, t->name, out);
}

int hs_binder_add_sinks(struct hs_binder * b, const struct hs_gguf_tensor * global, const struct hs_gguf_tensor * window, int32_t device, int64_t n,
                        struct ggml_tensor ** out) {
    struct hs_bound e = { .src = global, .src2 = window, .sinks = true };
    HS_TRY(plain_place(b, device, &e.place));
    if (global) HS_TRY(check_widens(b, global));
    if (window) HS_TRY(check_widens(b, window));
    const int64_t ne[3] = {n, 2, 1};
    return add(b, e, GGML_TYPE_F32, ne, global ? global->name : window->name, out);
}

int32_t hs_binder_device(const struct hs_binder * b, const struct ggml_tensor * t) {
    for (int64_t i = 0; i < b->n_bound; i++) {
        if (b->bound[i].dst == t) return b->places[b->bound[i].place].device;
    }
    return HS_ON_CPU;
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
            uint64_t free_bytes, total;
            hs_device_free_memory(b->places[i].device, &free_bytes, &total);
            return hs_fail(b->err, HS_E_MEMORY, "weights: cannot allocate %zu bytes of %s memory, %llu of %llu are free",
                ggml_backend_alloc_ctx_tensors_from_buft_size(b->places[i].ctx, b->places[i].buft), ggml_backend_buft_name(b->places[i].buft),
                (unsigned long long) free_bytes, (unsigned long long) total);
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
