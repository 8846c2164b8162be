// Quantising through hs_quantize on small files written with gguf_write.c: types, refusals, cancelling, files left behind.
// (Values and llama.cpp's own choices: tests/python/test_quantize.py.)
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "gguf_write.h"
#include "hysparse.h"

static char dir[] = "/tmp/hs-quantize-XXXXXX";

static const char * at(const char * name) {
    static char paths[8][256];
    static int next;
    next = (next + 1) % 8;
    snprintf(paths[next], sizeof paths[next], "%s/%s", dir, name);
    return paths[next];
}

static int n_files(void) {
    int n = 0;
    DIR * d = opendir(dir);
    for (struct dirent * e = d ? readdir(d) : NULL; e; e = readdir(d)) n += e->d_name[0] != '.';
    if (d) closedir(d);
    return n;
}

static int64_t size_of(const char * path) {
    struct stat s;
    return stat(path, &s) == 0 ? (int64_t) s.st_size : -1;
}

struct shape { const char * name; int32_t n_dims; int64_t ne[3]; };

// A file of f32 tensors; value j of tensor i is sin(i + j), but `bad` at the tensor's value 700.
static bool write_model(const char * path, const struct shape * shapes, int n, uint32_t alignment, float bad) {
    struct hs_gguf_writer * w = NULL;
    hs_error err;
    int rc = hs_gguf_writer_new(path, alignment, &w, &err);
    if (rc == HS_OK) rc = hs_gguf_writer_kv(w, "general.architecture", HS_GGUF_STR, "llama", 5, &err);
    if (rc == HS_OK && alignment != 32) rc = hs_gguf_writer_kv_u32(w, "general.alignment", alignment, &err);
    if (rc == HS_OK) rc = hs_gguf_writer_kv_u32(w, "general.file_type", 0, &err);
    if (rc == HS_OK) rc = hs_gguf_writer_kv_u32(w, "llama.attention.head_count", 8, &err);
    if (rc == HS_OK) rc = hs_gguf_writer_kv_u32(w, "llama.attention.head_count_kv", 2, &err);
    for (int i = 0; i < n && rc == HS_OK; i++) rc = hs_gguf_writer_tensor(w, shapes[i].name, GGML_TYPE_F32, shapes[i].n_dims, shapes[i].ne, &err);
    if (rc == HS_OK) rc = hs_gguf_writer_begin(w, &err);
    for (int i = 0; i < n && rc == HS_OK; i++) {
        int64_t count = 1;
        for (int d = 0; d < shapes[i].n_dims; d++) count *= shapes[i].ne[d];
        float * x = malloc((size_t) count * sizeof *x);
        for (int64_t j = 0; j < count; j++) x[j] = j == 700 && bad != 0 ? bad : sinf((float) (i + j));
        const size_t half = (size_t) count / 2 * sizeof *x;          // in two pieces
        rc = hs_gguf_writer_data(w, x, half, &err);
        if (rc == HS_OK) rc = hs_gguf_writer_data(w, (char *) x + half, (size_t) count * sizeof *x - half, &err);
        free(x);
    }
    const uint64_t size = w ? hs_gguf_writer_size(w) : 0;
    if (rc == HS_OK) rc = hs_gguf_writer_finish(w, &err);
    hs_gguf_writer_free(w);
    CHECK(rc == HS_OK, "%s: rc %d %s", path, rc, err.message);
    CHECK(size_of(path) == (int64_t) size, "%s: %lld bytes, announced %llu", path, (long long) size_of(path), (unsigned long long) size);
    return rc == HS_OK;
}

static const struct shape shapes[] = {
    { "token_embd.weight",            2, { 256, 40 } },     { "output.weight",                2, { 256, 40 } },
    { "output_norm.weight",           1, { 256 } },         { "rope_freqs.weight",            1, { 16 } },
    { "blk.0.attn_q.weight",          2, { 256, 256 } },    { "blk.0.attn_v.weight",          2, { 256, 64 } },
    { "blk.0.attn_q_norm.weight",     2, { 256, 2 } },      { "blk.0.attn_sinks.weight",      2, { 256, 2 } },
    { "blk.0.attn_gate_swa.weight",   2, { 256, 8 } },      { "blk.0.ffn_gate_inp.weight",    2, { 256, 4 } },
    { "blk.0.exp_probs_b.bias",       1, { 4 } },           { "blk.0.attn_q.bias",            2, { 256, 2 } },
    { "blk.0.ffn_down_exps.weight",   3, { 256, 8, 4 } },   { "blk.0.attn_k.weight",          2, { 64, 9 } },
    { "blk.0.attn_output.weight",     2, { 33, 5 } },       { "blk.1.attn_v.weight",          2, { 256, 64 } },
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static int quantize(const char * in, const char * out, const char * type, const hs_quantize_params * p, uint64_t * size, hs_error * err) {
    hs_quantize_params q = p ? *p : hs_quantize_default_params();
    if (q.n_threads == 0) q.n_threads = 3;
    return hs_quantize(in, out, type, &q, size, err);
}

static void expect_types(const char * type, const hs_quantize_params * p, const char * const want[N_SHAPES]) {
    hs_error err;
    uint64_t size = 0, dry = 0;
    CHECK(quantize(at("in.gguf"), at("out.gguf"), type, p, &size, &err) == HS_OK, "%s: %s", type, err.message);
    hs_quantize_params d = p ? *p : hs_quantize_default_params();
    d.dry_run = true;
    CHECK(quantize(at("in.gguf"), at("out.gguf"), type, &d, &dry, &err) == HS_OK && dry == size, "%s: dry run %llu, written %llu", type,
          (unsigned long long) dry, (unsigned long long) size);
    CHECK(quantize(at("in.gguf"), NULL, type, &d, &dry, &err) == HS_OK && dry == size, "a dry run needs no output path");
    hs_gguf * g = NULL;
    CHECK(hs_gguf_open(at("out.gguf"), true, &g, &err) == HS_OK, "%s: %s", type, err.message);
    if (!g) return;
    CHECK(hs_gguf_n_tensors(g) == N_SHAPES && hs_gguf_n_bytes(g) == (int64_t) size, "%s: %lld tensors", type, (long long) hs_gguf_n_tensors(g));
    for (int i = 0; i < N_SHAPES && i < hs_gguf_n_tensors(g); i++) {
        hs_tensor_info t;
        hs_gguf_tensor(g, i, &t);
        CHECK(strcmp(t.name, shapes[i].name) == 0 && strcmp(t.type, want[i]) == 0, "%s: %s is %s, expected %s", type, t.name, t.type, want[i]);
        CHECK(t.offset % 64 == 0, "%s: %s at %llu", type, t.name, (unsigned long long) t.offset);
    }
    size_t n;
    const int64_t k = hs_gguf_find(g, "general.quantization_version");
    CHECK(k >= 0 && *(const uint8_t *) hs_gguf_raw(g, k, &n) == 2 && n == 4, "%s: no general.quantization_version", type);
    hs_gguf_free(g);
    unlink(at("out.gguf"));
}

#define K "f32"
static void test_types(void) {
    if (!write_model(at("in.gguf"), shapes, N_SHAPES, 64, 0)) return;
    //                                embd    output  1-D     q       v       norm,sink gate  router   bias  experts  k (64)  33    v of layer 1
    expect_types("Q4_K_M", NULL, (const char * const[]) {
        "q4_K", "q6_K", K, K, "q4_K", "q4_K", K, K, "q4_K", K, K, K, "q4_K", "q5_0", "f16", "q6_K" });        // 2 layers: 7n/8 = 1
    expect_types("q3_k_m", NULL, (const char * const[]) {
        "q3_K", "q6_K", K, K, "q3_K", "q5_K", K, K, "q3_K", K, K, K, "q4_K", "q4_0", "f16", "q5_K" });
    expect_types("Q8_0", NULL, (const char * const[]) {
        "q8_0", "q8_0", K, K, "q8_0", "q8_0", K, K, "q8_0", K, K, K, "q8_0", "q8_0", "f16", "q8_0" });
    expect_types("IQ4_XS", NULL, (const char * const[]) {
        "iq4_xs", "q6_K", K, K, "iq4_xs", "q5_K", K, K, "iq4_xs", K, K, K, "iq4_xs", "iq4_nl", "f16", "q5_K" });
    expect_types("BF16", NULL, (const char * const[]) {
        "bf16", "bf16", K, K, "bf16", "bf16", K, K, "bf16", K, K, K, "bf16", "bf16", "bf16", "bf16" });
    hs_quantize_params p = hs_quantize_default_params();
    p.leave_output_tensor = true, p.token_embedding_type = "q8_0";
    expect_types("Q2_K", &p, (const char * const[]) {
        "q8_0", K, K, K, "q2_K", "q4_K", K, K, "q2_K", K, K, K, "q3_K", "q4_0", "f16", "q4_K" });
    p = hs_quantize_default_params(), p.pure = true, p.output_tensor_type = "F16";
    expect_types("Q5_K_S", &p, (const char * const[]) {
        "q5_K", "f16", K, K, "q5_K", "q5_K", K, K, "q5_K", K, K, K, "q5_K", "q5_1", "f16", "q5_K" });
    CHECK(n_files() == 1, "%d files", n_files());
}

static int calls_left;
static bool stop(int64_t done, int64_t total, const char * tensor, void * user) {
    CHECK(done >= 0 && done <= total && tensor && user == &calls_left, "progress %lld of %lld", (long long) done, (long long) total);
    return calls_left-- > 0;
}

static void refuse(int code, const char * text, const char * in, const char * out, const char * type, const hs_quantize_params * p) {
    const int before = n_files();
    hs_error err = { 0, "" };
    uint64_t size = 77;
    const int rc = quantize(in, out, type, p, &size, &err);
    CHECK(rc == code && strstr(err.message, text), "expected %d \"%s\": rc %d \"%s\"", code, text, rc, err.message);
    CHECK(n_files() == before, "%s: %d files, before %d", text, n_files(), before);
    CHECK(size == 77, "%s: a failed call wrote the size", text);
}

static void test_refusals(void) {
    refuse(HS_E_ARG, "type: found \"Q9\", expected", at("in.gguf"), at("out.gguf"), "Q9", NULL);
    refuse(HS_E_ARG, "type: found", at("in.gguf"), at("out.gguf"), "", NULL);
    refuse(HS_E_ARG, "path_out", at("in.gguf"), NULL, "Q8_0", NULL);
    refuse(HS_E_ARG, "path_in", NULL, at("out.gguf"), "Q8_0", NULL);
    refuse(HS_E_IO, "nosuch.gguf", at("nosuch.gguf"), at("out.gguf"), "Q8_0", NULL);
    refuse(HS_E_IO, "cannot create", at("in.gguf"), at("no/out.gguf"), "Q8_0", NULL);
    refuse(HS_E_ARG, "is the input", at("in.gguf"), at("in.gguf"), "Q8_0", NULL);
    CHECK(link(at("in.gguf"), at("hard.gguf")) == 0 && symlink(at("in.gguf"), at("soft.gguf")) == 0, "links");
    refuse(HS_E_ARG, "is the input", at("in.gguf"), at("hard.gguf"), "Q8_0", NULL);
    refuse(HS_E_ARG, "is the input", at("soft.gguf"), at("hard.gguf"), "Q8_0", NULL);
    unlink(at("hard.gguf"));
    unlink(at("soft.gguf"));
    refuse(HS_E_ARG, "directory", at("in.gguf"), dir, "Q8_0", NULL);
    hs_quantize_params p = hs_quantize_default_params();
    p.output_tensor_type = "iq1_s";                         // needs an importance matrix
    refuse(HS_E_ARG, "output_tensor_type: found \"iq1_s\", expected", at("in.gguf"), at("out.gguf"), "Q8_0", &p);
    p = hs_quantize_default_params(), p.n_threads = -2;
    refuse(HS_E_ARG, "n_threads: found -2", at("in.gguf"), at("out.gguf"), "Q8_0", &p);

    hs_error err;
    CHECK(quantize(at("in.gguf"), at("q8.gguf"), "Q8_0", NULL, NULL, &err) == HS_OK, "%s", err.message);
    refuse(HS_E_ARG, "found type q8_0", at("q8.gguf"), at("out.gguf"), "Q4_0", NULL);
    p = hs_quantize_default_params(), p.allow_requantize = true;
    CHECK(quantize(at("q8.gguf"), at("out.gguf"), "Q4_0", &p, NULL, &err) == HS_OK, "%s", err.message);

    const int64_t old = size_of(at("out.gguf"));
    p.progress = stop, p.progress_user = &calls_left;
    for (int n = 0; n < 6; n++) {
        calls_left = n;
        refuse(HS_E_CANCELLED, "cancelled", at("in.gguf"), at("out.gguf"), "Q5_0", &p);
        CHECK(size_of(at("out.gguf")) == old, "a cancelled call changed the old output");
    }
    unlink(at("out.gguf"));
    unlink(at("q8.gguf"));
}

static void test_bad_values(void) {
    const struct shape big = { "blk.0.attn_q.weight", 2, { 256, 3000 } };
    const char * const kinds[] = { "Q4_0", "Q8_0", "Q4_K_S", "Q6_K", "IQ4_NL", "F16", "BF16" };
    const float bad[] = { NAN, INFINITY, -INFINITY };
    for (int b = 0; b < 3; b++) {
        if (!write_model(at("bad.gguf"), &big, 1, 32, bad[b])) return;
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
            refuse(HS_E_FORMAT, "tensor blk.0.attn_q.weight, row 2: found a NaN or infinite value", at("bad.gguf"), at("out.gguf"), kinds[i], NULL);
        }
    }
    if (!write_model(at("bad.gguf"), &big, 1, 32, 1e30f)) return;
    refuse(HS_E_FORMAT, "too large for type f16", at("bad.gguf"), at("out.gguf"), "F16", NULL);
    refuse(HS_E_FORMAT, "too large for type q8_0", at("bad.gguf"), at("out.gguf"), "Q8_0", NULL);
    hs_error err;
    CHECK(quantize(at("bad.gguf"), at("out.gguf"), "BF16", NULL, NULL, &err) == HS_OK, "%s", err.message);
    CHECK(truncate(at("bad.gguf"), 1000000) == 0, "truncate");
    refuse(HS_E_FORMAT, "", at("bad.gguf"), at("out.gguf"), "Q8_0", NULL);
    unlink(at("bad.gguf"));
    unlink(at("out.gguf"));
}

// The writer refuses what would make a wrong file, and leaves nothing behind.
static void test_writer(void) {
    struct hs_gguf_writer * w = NULL;
    hs_error err;
    const int64_t ne[2] = { 32, 2 };
    CHECK(hs_gguf_writer_new(at("w.gguf"), 48, &w, &err) == HS_E_ARG, "alignment 48");
    CHECK(hs_gguf_writer_new(at("w.gguf"), 32, &w, &err) == HS_OK, "%s", err.message);
    CHECK(hs_gguf_writer_tensor(w, "t", GGML_TYPE_F32, 2, ne, &err) == HS_OK, "%s", err.message);
    const float x[128] = { 0 };
    CHECK(hs_gguf_writer_data(w, x, 4, &err) == HS_E_INTERNAL, "data before begin");
    CHECK(hs_gguf_writer_begin(w, &err) == HS_OK && n_files() == 2, "%s", err.message);
    CHECK(hs_gguf_writer_begin(w, &err) == HS_E_INTERNAL, "begun twice");
    CHECK(hs_gguf_writer_data(w, x, 260, &err) == HS_E_INTERNAL, "more than the tensor holds");
    CHECK(hs_gguf_writer_data(w, x, 252, &err) == HS_OK, "%s", err.message);
    CHECK(hs_gguf_writer_finish(w, &err) == HS_E_INTERNAL, "4 bytes short");
    hs_gguf_writer_free(w);
    CHECK(n_files() == 1, "%d files", n_files());
}

int main(void) {
    if (!mkdtemp(dir)) return 2;
    test_types();
    test_refusals();
    test_bad_values();
    test_writer();
    unlink(at("in.gguf"));
    CHECK(rmdir(dir) == 0, "%s is not empty", dir);
    printf("quantize: %d checks, %d failed\n", n_checks, n_failed);
    return n_failed != 0;
}
