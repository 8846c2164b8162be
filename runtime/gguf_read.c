// Opening and reading GGUF files: the public calls and the internal view. Parsing: gguf_parse.c, gguf_tensors.c; split models: gguf_split.c.
#include "gguf_read.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_object.h"
#include "status.h"

void hs_gguf_free(hs_gguf * g) {
    if (!g) {
        return;
    }
    for (int32_t i = 0; i < g->n_shards; i++) {
        if (g->shards[i]) {
            hs_gguf_shard_free(g->shards[i]);
            free(g->shards[i]);
        }
    }
    free(g->shards);
    free(g->tensors);
    free(g->tensors_sorted);
    free(g);
}

// One table of the tensors of all files; a name may occur once in all of them.
static int index_tensors(hs_gguf * g, hs_error * err) {
    for (int32_t i = 0; i < g->n_shards; i++) {
        g->n_tensors += g->shards[i]->n_tensors;
    }
    size_t n          = g->n_tensors ? g->n_tensors : 1;
    g->tensors        = calloc(n, sizeof *g->tensors);
    g->tensors_sorted = calloc(n, sizeof *g->tensors_sorted);
    if (!g->tensors || !g->tensors_sorted) {
        return hs_fail(err, HS_E_MEMORY, "%s: cannot allocate an index of %zu tensors", hs_gguf_path(g, 0), g->n_tensors);
    }
    size_t at = 0;
    for (int32_t i = 0; i < g->n_shards; i++) {
        for (size_t j = 0; j < g->shards[i]->n_tensors; j++, at++) {
            struct hs_gguf_tensor * t = &g->tensors[at];
            *t                    = g->shards[i]->tensors[j];
            t->file               = i;
            g->tensors_sorted[at] = (struct hs_name_ref) {t->name, strlen(t->name), at};
        }
        free(g->shards[i]->tensors); // copied
        g->shards[i]->tensors = NULL;
    }
    uint64_t a = 0, b = 0;
    if (!hs_names_sort(g->tensors_sorted, g->n_tensors, &a, &b)) {
        const struct hs_gguf_tensor * ta = &g->tensors[a], * tb = &g->tensors[b];
        return hs_fail(err, HS_E_FORMAT, "%s: tensor '%s' (number %" PRIu64 ") repeats number %" PRIu64 " of %s, expected unique names",
            g->shards[tb->file]->source.label, hs_quote(tb->name, strlen(tb->name)).s, b, a, g->shards[ta->file]->source.label);
    }
    return HS_OK;
}

// Takes the opened source in `s` over.
static int open_source(struct hs_gguf_shard * s, bool use_mmap, hs_gguf ** out, hs_error * err) {
    int rc = hs_gguf_shard_parse(s, err);
    hs_gguf * g = rc == HS_OK ? calloc(1, sizeof *g) : NULL;
    if (!g) {
        rc = rc != HS_OK ? rc : hs_fail(err, HS_E_MEMORY, "cannot allocate %zu bytes", sizeof *g);
        hs_gguf_shard_free(s);
        free(s);
        return rc;
    }
    rc = hs_gguf_join(g, s, use_mmap, err);
    rc = rc == HS_OK ? index_tensors(g, err) : rc;
    if (rc != HS_OK) {
        hs_gguf_free(g);
        return rc;
    }
    *out = g;
    return hs_ok(err);
}

static int open_any(const char * path, bool use_mmap, const void * data, size_t size, hs_gguf ** out, hs_error * err) {
    hs_log_init();
    struct hs_gguf_shard * s = calloc(1, sizeof *s);
    if (!s) {
        return hs_fail(err, HS_E_MEMORY, "cannot allocate %zu bytes", sizeof *s);
    }
    int rc = path ? hs_source_open(&s->source, path, use_mmap, err) : hs_source_open_memory(&s->source, data, size, err);
    if (rc != HS_OK) {
        free(s);
        return rc;
    }
    return open_source(s, use_mmap, out, err);
}

int hs_gguf_open(const char * path, bool use_mmap, hs_gguf ** out, hs_error * err) {
    if (!path || !out) {
        return hs_fail(err, HS_E_ARG, "hs_gguf_open: path or out is NULL, expected a path and a place for the result");
    }
    return open_any(path, use_mmap, NULL, 0, out, err);
}

int hs_gguf_open_memory(const void * data, size_t size, hs_gguf ** out, hs_error * err) {
    if ((!data && size > 0) || !out) {
        return hs_fail(err, HS_E_ARG, "hs_gguf_open_memory: data or out is NULL, expected both");
    }
    return open_any(NULL, false, data ? data : "", size, out, err);
}

// --- keys: those of the first file --------------------------------------------------------------------------------------------------

static const struct hs_gguf_kv * kv_at(const hs_gguf * g, int64_t i) {
    return i >= 0 && (uint64_t) i < g->shards[0]->n_kv ? &g->shards[0]->kv[i] : NULL;
}

int64_t hs_gguf_n_kv(const hs_gguf * g) {
    return (int64_t) g->shards[0]->n_kv;
}

int64_t hs_gguf_find(const hs_gguf * g, const char * key) {
    return hs_gguf_shard_find(g->shards[0], key);
}

const char * hs_gguf_key(const hs_gguf * g, int64_t i) {
    const struct hs_gguf_kv * kv = kv_at(g, i);
    return kv ? g->shards[0]->keys.s + kv->key : NULL;
}

hs_gguf_type hs_gguf_kv_type(const hs_gguf * g, int64_t i) {
    const struct hs_gguf_kv * kv = kv_at(g, i);
    return kv ? kv->type : (hs_gguf_type) -1;
}

hs_gguf_type hs_gguf_arr_type(const hs_gguf * g, int64_t i) {
    const struct hs_gguf_kv * kv = kv_at(g, i);
    return kv && kv->type == HS_GGUF_ARR ? kv->arr_type : (hs_gguf_type) -1;
}

uint64_t hs_gguf_arr_len(const hs_gguf * g, int64_t i) {
    const struct hs_gguf_kv * kv = kv_at(g, i);
    return kv ? kv->arr_len : 0;
}

const void * hs_gguf_raw(const hs_gguf * g, int64_t i, size_t * size) {
    const struct hs_gguf_kv * kv = kv_at(g, i);
    if (size) {
        *size = kv ? (size_t) kv->raw_size : 0;
    }
    return kv ? g->shards[0]->source.meta + kv->raw : NULL;
}

// --- tensors --------------------------------------------------------------------------------------------------------------------------

int64_t hs_gguf_n_tensors(const hs_gguf * g) {
    return (int64_t) g->n_tensors;
}

int64_t hs_gguf_find_tensor(const hs_gguf * g, const char * name) {
    return hs_names_find(g->tensors_sorted, g->n_tensors, name);
}

const struct hs_gguf_tensor * hs_gguf_tensor_at(const hs_gguf * g, int64_t i) {
    return i >= 0 && (uint64_t) i < g->n_tensors ? &g->tensors[i] : NULL;
}

int hs_gguf_tensor(const hs_gguf * g, int64_t i, hs_tensor_info * out) {
    const struct hs_gguf_tensor * t = hs_gguf_tensor_at(g, i);
    if (!t || !out) {
        return HS_E_ARG;
    }
    *out = (hs_tensor_info) {.name = t->name, .type = ggml_type_name(t->type), .n_dims = t->n_dims, .size = t->size, .offset = t->offset, .file = t->file};
    memcpy(out->ne, t->ne, sizeof out->ne);
    return HS_OK;
}

const void * hs_gguf_tensor_mapped(const hs_gguf * g, const struct hs_gguf_tensor * t) {
    const uint8_t * map = g->shards[t->file]->source.map;
    return map ? map + t->offset : NULL;
}

int hs_gguf_read_tensor(const hs_gguf * g, const struct hs_gguf_tensor * t, uint64_t offset, uint64_t size, void * dst, hs_error * err) {
    if (size > t->size || offset > t->size - size) {
        return hs_fail(err, HS_E_ARG, "%s: tensor '%s': read of %" PRIu64 " bytes at %" PRIu64 ", expected a range inside its %" PRIu64 " bytes",
            g->shards[t->file]->source.label, t->name, size, offset, t->size);
    }
    return hs_source_read(&g->shards[t->file]->source, t->offset + offset, size, dst, err); // pread also when mapped: errors come back as such
}

// --- files ----------------------------------------------------------------------------------------------------------------------------

int64_t hs_gguf_n_bytes(const hs_gguf * g) {
    uint64_t n = 0;
    for (int32_t i = 0; i < g->n_shards; i++) {
        n += g->shards[i]->source.size;
    }
    return n > INT64_MAX ? INT64_MAX : (int64_t) n;
}

void * hs_gguf_file_base(const hs_gguf * g, int32_t file, size_t * size) {
    bool known = file >= 0 && file < g->n_shards && g->shards[file]->source.map;
    if (size) {
        *size = known ? (size_t) g->shards[file]->source.size : 0;
    }
    return known ? g->shards[file]->source.map : NULL;
}

int32_t hs_gguf_n_files(const hs_gguf * g) {
    return g->n_shards;
}

const char * hs_gguf_path(const hs_gguf * g, int32_t file) {
    return file >= 0 && file < g->n_shards ? g->shards[file]->source.path : NULL;
}
