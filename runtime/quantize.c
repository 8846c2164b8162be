// hs_quantize: a GGUF in, the same model with other tensor types out. The types: quantize_mix.c; rows: quantize_rows.c; the file: gguf_write.c.
//
// Tensors are streamed in slabs of whole rows, so memory does not grow with the model: about two slabs and a chunk a thread.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gguf_read.h"
#include "gguf_write.h"
#include "quantize_mix.h"
#include "quantize_rows.h"
#include "status.h"

enum { SLAB_BYTES = 32 << 20, MAX_THREADS = 512 };

struct quantizer {
    const hs_gguf * g;
    const hs_quantize_params * p;
    struct hs_mix mix;
    struct hs_gguf_writer * w;
    int32_t n_threads;
    uint8_t * in, * out;                 // the slabs
    size_t in_cap, out_cap;
    int64_t done, total;                 // bytes of the output's tensors
};

hs_quantize_params hs_quantize_default_params(void) { return (hs_quantize_params) { 0 }; }

static int reserve(uint8_t ** p, size_t * cap, size_t size, const char * name, hs_error * err) {
    if (size <= *cap) return HS_OK;
    free(*p);
    *cap = 0;
    *p = malloc(size);
    if (!*p) return hs_fail(err, HS_E_MEMORY, "tensor %s: cannot allocate %zu bytes", name, size);
    *cap = size;
    return HS_OK;
}

static uint64_t rows_of(const struct hs_gguf_tensor * t) { return (uint64_t) t->ne[1] * (uint64_t) t->ne[2] * (uint64_t) t->ne[3]; }

static bool report(const struct quantizer * q, const char * name) {
    return !q->p->progress || q->p->progress(q->done, q->total, name, q->p->progress_user);
}

// --- what the output holds ---
static bool is_split_key(const char * key) {
    return strcmp(key, "split.no") == 0 || strcmp(key, "split.count") == 0 || strcmp(key, "split.tensors.count") == 0;
}

// All keys as they are; the two that describe the quantisation are set in their places (or added), the ones of a split file go.
static int write_keys(struct quantizer * q, hs_error * err) {
    const char * const file_type = "general.file_type", * const version = "general.quantization_version";
    const bool copy = q->mix.ftype->number < 0;
    for (int64_t i = 0; i < hs_gguf_n_kv(q->g); i++) {
        const char * key = hs_gguf_key(q->g, i);
        if (is_split_key(key)) continue;
        if (!copy && strcmp(key, file_type) == 0) {
            HS_TRY(hs_gguf_writer_kv_u32(q->w, key, (uint32_t) q->mix.ftype->number, err));
        } else if (!copy && strcmp(key, version) == 0) {
            HS_TRY(hs_gguf_writer_kv_u32(q->w, key, GGML_QNT_VERSION, err));
        } else {
            HS_TRY(hs_gguf_writer_copy_kv(q->w, q->g, i, err));
        }
    }
    if (!copy && hs_gguf_find(q->g, file_type) < 0) HS_TRY(hs_gguf_writer_kv_u32(q->w, file_type, (uint32_t) q->mix.ftype->number, err));
    if (!copy && hs_gguf_find(q->g, version) < 0) HS_TRY(hs_gguf_writer_kv_u32(q->w, version, GGML_QNT_VERSION, err));
    return HS_OK;
}

static int write_table(struct quantizer * q, hs_error * err) {
    for (int64_t i = 0; i < hs_gguf_n_tensors(q->g); i++) {
        const struct hs_gguf_tensor * t = hs_gguf_tensor_at(q->g, i);
        const enum ggml_type to = hs_mix_type(&q->mix, t);
        if (to != t->type && ggml_is_quantized(t->type) && !q->p->allow_requantize) {
            return hs_fail(err, HS_E_ARG, "tensor %s: found type %s, expected f32, f16 or bf16 (allow_requantize permits a loss on top of a loss)",
                           t->name, ggml_type_name(t->type));
        }
        HS_TRY(hs_gguf_writer_tensor(q->w, t->name, to, t->n_dims, t->ne, err));
        q->total += (int64_t) (ggml_row_size(to, t->ne[0]) * rows_of(t));
    }
    return HS_OK;
}

// --- the data ---
static int write_tensor(struct quantizer * q, const struct hs_gguf_tensor * t, hs_error * err) {
    const enum ggml_type to = hs_mix_type(&q->mix, t);
    const size_t in_row = ggml_row_size(t->type, t->ne[0]), out_row = ggml_row_size(to, t->ne[0]);
    const int64_t n_rows = (int64_t) rows_of(t);
    int64_t slab = (int64_t) (SLAB_BYTES / (in_row > out_row ? in_row : out_row));
    slab = slab < 1 ? 1 : slab > n_rows ? n_rows : slab;
    HS_TRY(reserve(&q->in, &q->in_cap, (size_t) slab * in_row, t->name, err));
    if (to != t->type) HS_TRY(reserve(&q->out, &q->out_cap, (size_t) slab * out_row, t->name, err));
    for (int64_t row = 0; row < n_rows; row += slab) {
        const int64_t n = n_rows - row < slab ? n_rows - row : slab;
        HS_TRY(hs_gguf_read_tensor(q->g, t, (uint64_t) row * in_row, (uint64_t) n * in_row, q->in, err));
        if (to != t->type) HS_TRY(hs_quantize_rows(t->name, t->type, q->in, to, q->out, row, n, t->ne[0], q->n_threads, err));
        HS_TRY(hs_gguf_writer_data(q->w, to == t->type ? q->in : q->out, (size_t) n * out_row, err));
        q->done += n * (int64_t) out_row;
        if (!report(q, t->name)) return hs_fail(err, HS_E_CANCELLED, "quantising was cancelled in tensor %s", t->name);
    }
    return HS_OK;
}

static int run(struct quantizer * q, uint64_t * size_out, hs_error * err) {
    HS_TRY(write_keys(q, err));
    HS_TRY(write_table(q, err));
    if (size_out) *size_out = hs_gguf_writer_size(q->w);
    if (q->p->dry_run) return HS_OK;
    if (!report(q, "")) return hs_fail(err, HS_E_CANCELLED, "quantising was cancelled before the first tensor");
    HS_TRY(hs_gguf_writer_begin(q->w, err));
    for (int64_t i = 0; i < hs_gguf_n_tensors(q->g); i++) HS_TRY(write_tensor(q, hs_gguf_tensor_at(q->g, i), err));
    return hs_gguf_writer_finish(q->w, err);
}

// --- arguments ---
// The output may not be one of the input's files, under whatever name.
static int check_paths(const hs_gguf * g, const char * path_out, hs_error * err) {
    struct stat in, out;
    if (stat(path_out, &out) != 0) return HS_OK;
    if (S_ISDIR(out.st_mode)) return hs_fail(err, HS_E_ARG, "path_out: found %s, which is a directory, expected a file", path_out);
    for (int32_t i = 0; i < hs_gguf_n_files(g); i++) {
        if (stat(hs_gguf_path(g, i), &in) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino) {
            return hs_fail(err, HS_E_ARG, "path_out: found %s, which is the input %s itself, expected another file", path_out, hs_gguf_path(g, i));
        }
    }
    return HS_OK;
}

static int32_t alignment_of(const hs_gguf * g) {
    int32_t a = 32;
    hs_gguf_get_i32(g, "general.alignment", false, 1, INT32_MAX, &a, NULL);
    return a;
}

static int32_t threads_of(int32_t asked) {
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    const int64_t n = asked > 0 ? asked : cores > 0 ? cores : 1;
    return n > MAX_THREADS ? MAX_THREADS : (int32_t) n;
}

int hs_quantize(const char * path_in, const char * path_out, const char * type, const hs_quantize_params * p, uint64_t * size_out, hs_error * err) {
    const hs_quantize_params defaults = hs_quantize_default_params();
    if (!p) p = &defaults;
    if (!path_in || !type || (!path_out && !p->dry_run)) {
        return hs_fail(err, HS_E_ARG, "%s: found a null pointer, expected a string", !path_in ? "path_in" : !type ? "type" : "path_out");
    }
    const struct hs_ftype * ftype = hs_ftype_find(type);
    if (!ftype) {
        return hs_fail(err, HS_E_ARG, "type: found \"%.32s\", expected Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S "
                       "Q5_K_M Q6_K IQ4_NL IQ4_XS F16 BF16 F32 or COPY", type);
    }
    if (p->n_threads < 0) return hs_fail(err, HS_E_ARG, "n_threads: found %" PRId32 ", expected 0 (all cores) or more", p->n_threads);

    hs_gguf * g = NULL;
    HS_TRY(hs_gguf_open(path_in, false, &g, err));       // not mapped: slabs are read once, and a file cut short is an error, not a signal
    struct quantizer q = { .g = g, .p = p, .n_threads = threads_of(p->n_threads) };
    uint64_t size = 0;
    int rc = path_out ? check_paths(g, path_out, err) : HS_OK;
    if (rc == HS_OK) rc = hs_mix_init(&q.mix, g, ftype, p, err);
    if (rc == HS_OK) rc = hs_gguf_writer_new(path_out ? path_out : "", (uint32_t) alignment_of(g), &q.w, err);
    if (rc == HS_OK) rc = run(&q, &size, err);
    hs_gguf_writer_free(q.w);
    hs_mix_free(&q.mix);
    free(q.in);
    free(q.out);
    hs_gguf_free(g);
    if (rc != HS_OK) return rc;
    if (size_out) *size_out = size;
    return hs_ok(err);
}
