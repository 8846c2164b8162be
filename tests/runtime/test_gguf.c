// The GGUF reader and its typed look-ups from C: values, ranges, messages, mapped and read data, and files that change under us.
#define _XOPEN_SOURCE 700 // mkdtemp
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "gguf_read.h"
#include "status.h"

// A file in the making.
struct file { uint8_t bytes[8192]; size_t size; uint64_t n_tensors, n_kv; };

static void put(struct file * f, const void * p, size_t n) {
    memcpy(f->bytes + f->size, p, n);
    f->size += n;
}

static void put_u32(struct file * f, uint32_t v) { put(f, &v, sizeof v); }
static void put_u64(struct file * f, uint64_t v) { put(f, &v, sizeof v); }

static void put_text(struct file * f, const char * s) {
    put_u64(f, strlen(s));
    put(f, s, strlen(s));
}

static void kv(struct file * f, const char * key, hs_gguf_type type, const void * value, size_t n) {
    put_text(f, key);
    put_u32(f, type);
    put(f, value, n);
    f->n_kv++;
}

static void kv_array(struct file * f, const char * key, hs_gguf_type type, uint64_t len, const void * values, size_t n) {
    put_text(f, key);
    put_u32(f, HS_GGUF_ARR);
    put_u32(f, type);
    put_u64(f, len);
    put(f, values, n);
    f->n_kv++;
}

#define KV(f, key, type, ctype, value) kv(f, key, type, &(ctype) {value}, sizeof(ctype))

static void start(struct file * f) {
    memset(f, 0, sizeof *f);
    put(f, "GGUF\3\0\0\0", 8);
    f->size = 24; // the counts come last
}

static void end(struct file * f) {
    memcpy(f->bytes + 8, &f->n_tensors, 8);
    memcpy(f->bytes + 16, &f->n_kv, 8);
}

// Keys of every type, and two tensors: "first" q8_0 [32, 2] whose data are the bytes 0..67, "second" f32 [3].
static void sample_file(struct file * f) {
    start(f);
    KV(f, "u8", HS_GGUF_U8, uint8_t, 200);
    KV(f, "i8", HS_GGUF_I8, int8_t, -100);
    KV(f, "u16", HS_GGUF_U16, uint16_t, 60000);
    KV(f, "i16", HS_GGUF_I16, int16_t, -30000);
    KV(f, "u32", HS_GGUF_U32, uint32_t, 4000000000u);
    KV(f, "i32", HS_GGUF_I32, int32_t, -2000000000);
    KV(f, "u64", HS_GGUF_U64, uint64_t, UINT64_MAX);
    KV(f, "u64.small", HS_GGUF_U64, uint64_t, 12);
    KV(f, "i64", HS_GGUF_I64, int64_t, INT64_MIN);
    KV(f, "f32", HS_GGUF_F32, float, 0.25f);
    KV(f, "f64", HS_GGUF_F64, double, -0.5);
    KV(f, "f64.big", HS_GGUF_F64, double, 1e300);
    KV(f, "nan", HS_GGUF_F32, uint32_t, 0x7FC00000);
    KV(f, "inf", HS_GGUF_F32, uint32_t, 0xFF800000);
    KV(f, "yes", HS_GGUF_BOOL, uint8_t, 1);
    KV(f, "no", HS_GGUF_BOOL, uint8_t, 0);
    kv(f, "text", HS_GGUF_STR, "\3\0\0\0\0\0\0\0abc", 11);
    kv(f, "text.empty", HS_GGUF_STR, "\0\0\0\0\0\0\0\0", 8);
    kv_array(f, "bytes", HS_GGUF_U8, 3, "\1\2\3", 3);
    kv_array(f, "shorts", HS_GGUF_I16, 3, &(int16_t[3]) {5, -6, 7}, 6);
    kv_array(f, "longs", HS_GGUF_U64, 2, &(uint64_t[2]) {1, UINT64_MAX}, 16);
    kv_array(f, "bools", HS_GGUF_BOOL, 2, "\1\0", 2);
    kv_array(f, "floats", HS_GGUF_F32, 1, &(float) {1}, 4);
    kv_array(f, "none", HS_GGUF_I32, 0, "", 0);
    kv_array(f, "texts", HS_GGUF_STR, 2, "\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0x", 17);
    put_text(f, "first");
    put_u32(f, 2);
    put_u64(f, 32);
    put_u64(f, 2);
    put_u32(f, GGML_TYPE_Q8_0);
    put_u64(f, 0);
    put_text(f, "second");
    put_u32(f, 1);
    put_u64(f, 3);
    put_u32(f, GGML_TYPE_F32);
    put_u64(f, 96);
    f->n_tensors = 2;
    f->size = (f->size + 31) / 32 * 32;
    for (int i = 0; i < 68; i++) {
        put(f, &(uint8_t) {(uint8_t) i}, 1);
    }
    f->size += 28;
    put(f, &(float[3]) {1, 2, 3}, 12);
    end(f);
}

static hs_gguf * open_sample(struct file * f) {
    hs_gguf * g = NULL;
    hs_error err;
    sample_file(f);
    int rc = hs_gguf_open_memory(f->bytes, f->size, &g, &err);
    CHECK(rc == HS_OK && g, "%d %s", rc, err.message);
    if (!g) {
        exit(1);
    }
    return g;
}

static void test_integers(const hs_gguf * g) {
    static const struct { const char * key; int64_t value; } good[] = {{"u8", 200}, {"i8", -100}, {"u16", 60000}, {"i16", -30000}, {"u32", 4000000000ll},
        {"i32", -2000000000}, {"u64.small", 12}, {"i64", INT64_MIN}};
    hs_error err;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        int64_t v = 1;
        CHECK(hs_gguf_get_i64(g, good[i].key, true, INT64_MIN, INT64_MAX, &v, &err) == HS_OK && v == good[i].value, "%s is %lld", good[i].key, (long long) v);
        CHECK(hs_gguf_get_i64(g, good[i].key, true, good[i].value, good[i].value, &v, &err) == HS_OK, "%s at both edges", good[i].key);
        if (good[i].value > INT64_MIN) {
            CHECK(hs_gguf_get_i64(g, good[i].key, true, INT64_MIN, good[i].value - 1, &v, &err) == HS_E_MODEL, "%s above its range", good[i].key);
        }
        CHECK(hs_gguf_get_i64(g, good[i].key, true, good[i].value + 1, INT64_MAX, &v, &err) == HS_E_MODEL, "%s below its range", good[i].key);
        CHECK(strstr(err.message, good[i].key), "%s", err.message);
    }
    int64_t v = 77;
    int32_t w = 77;
    CHECK(hs_gguf_get_i64(g, "u64", true, 0, INT64_MAX, &v, &err) == HS_E_MODEL, "2^64-1 does not fit");
    CHECK(strstr(err.message, "'u64' is 18446744073709551615, expected 0 to 9223372036854775807"), "%s", err.message);
    CHECK(hs_gguf_get_i32(g, "u32", true, INT32_MIN, INT32_MAX, &w, &err) == HS_E_MODEL && strstr(err.message, "4000000000"), "%s", err.message);
    CHECK(hs_gguf_get_i32(g, "absent", false, 0, 1, &w, &err) == HS_OK, "an optional key may be absent");
    CHECK(hs_gguf_get_i32(g, "absent", true, 0, 1, &w, &err) == HS_E_MODEL && strstr(err.message, "'absent' is missing"), "%s", err.message);
    CHECK(v == 77 && w == 77, "a failed look-up changed its result");
    const char * const wrong[] = {"f32", "yes", "text", "bytes"};
    for (size_t i = 0; i < 4; i++) {
        CHECK(hs_gguf_get_i64(g, wrong[i], false, INT64_MIN, INT64_MAX, &v, &err) == HS_E_MODEL && strstr(err.message, "expected an integer"), "%s", err.message);
    }
    CHECK(hs_gguf_get_i64(g, "text", true, 0, 1, &v, NULL) == HS_E_MODEL, "err may be NULL");
}

static void test_others(const hs_gguf * g) {
    hs_error err;
    float f = 9;
    bool b = false;
    const char * s = NULL;
    size_t n = 99;
    CHECK(hs_gguf_get_f32(g, "f32", true, &f, &err) == HS_OK && f == 0.25f, "%g", (double) f);
    CHECK(hs_gguf_get_f32(g, "f64", true, &f, &err) == HS_OK && f == -0.5f, "%g", (double) f);
    const char * const bad[] = {"f64.big", "nan", "inf"};
    for (size_t i = 0; i < 3; i++) {
        CHECK(hs_gguf_get_f32(g, bad[i], true, &f, &err) == HS_E_MODEL && strstr(err.message, "expected a finite f32"), "%s", err.message);
    }
    CHECK(hs_gguf_get_f32(g, "u8", true, &f, &err) == HS_E_MODEL && strstr(err.message, "has type u8, expected f32"), "%s", err.message);
    CHECK(hs_gguf_get_f32(g, "absent", false, &f, &err) == HS_OK && f == -0.5f, "%g", (double) f);
    CHECK(hs_gguf_get_bool(g, "yes", true, &b, &err) == HS_OK && b, "yes");
    CHECK(hs_gguf_get_bool(g, "no", true, &b, &err) == HS_OK && !b, "no");
    CHECK(hs_gguf_get_bool(g, "u8", true, &b, &err) == HS_E_MODEL && strstr(err.message, "has type u8, expected bool"), "%s", err.message);
    CHECK(hs_gguf_get_str(g, "text", true, &s, &n, &err) == HS_OK && n == 3 && memcmp(s, "abc", 3) == 0, "text");
    CHECK(hs_gguf_get_str(g, "text.empty", true, &s, &n, &err) == HS_OK && n == 0, "text.empty");
    CHECK(hs_gguf_get_str(g, "texts", true, &s, &n, &err) == HS_E_MODEL && strstr(err.message, "array of string, expected string"), "%s", err.message);
}

static void test_arrays(const hs_gguf * g) {
    hs_error err;
    int32_t v[4] = {9, 9, 9, 9};
    int64_t n = -1;
    CHECK(hs_gguf_get_i32_arr(g, "shorts", true, 3, -6, 7, v, &n, &err) == HS_OK && n == 3 && v[0] == 5 && v[1] == -6 && v[2] == 7 && v[3] == 9, "shorts");
    CHECK(hs_gguf_get_i32_arr(g, "bools", true, 2, 0, 1, v, NULL, &err) == HS_OK && v[0] == 1 && v[1] == 0, "bools");
    CHECK(hs_gguf_get_i32_arr(g, "u8", true, 3, 0, 255, v, &n, &err) == HS_OK && n == 3 && v[0] == 200 && v[1] == 200 && v[2] == 200, "a scalar is repeated");
    CHECK(hs_gguf_get_i32_arr(g, "u8", true, -3, 0, 255, v, &n, &err) == HS_OK && n == 1, "a scalar counts as one");
    CHECK(hs_gguf_get_i32_arr(g, "none", true, -3, 0, 255, v, &n, &err) == HS_OK && n == 0, "no elements");
    CHECK(hs_gguf_get_i32_arr(g, "absent", false, 3, 0, 255, v, &n, &err) == HS_OK && n == 0 && v[0] == 200, "absent");
    v[0] = v[1] = v[2] = 50;
    CHECK(hs_gguf_get_i32_arr(g, "shorts", true, 3, 0, 7, v, &n, &err) == HS_E_MODEL && strstr(err.message, "'shorts'[1] is -6, expected 0 to 7"), "%s", err.message);
    CHECK(hs_gguf_get_i32_arr(g, "shorts", true, 4, -6, 7, v, &n, &err) == HS_E_MODEL && strstr(err.message, "3 elements, expected 4"), "%s", err.message);
    CHECK(hs_gguf_get_i32_arr(g, "shorts", true, 2, -6, 7, v, &n, &err) == HS_E_MODEL && strstr(err.message, "3 elements, expected 2"), "%s", err.message);
    CHECK(hs_gguf_get_i32_arr(g, "shorts", true, -2, -6, 7, v, &n, &err) == HS_E_MODEL && strstr(err.message, "at most 2"), "%s", err.message);
    CHECK(hs_gguf_get_i32_arr(g, "longs", true, 2, 0, INT32_MAX, v, &n, &err) == HS_E_MODEL && strstr(err.message, "'longs'[1] is 18446744073709551615"), "%s", err.message);
    CHECK(hs_gguf_get_i32_arr(g, "floats", true, 1, 0, 9, v, &n, &err) == HS_E_MODEL && strstr(err.message, "array of f32"), "%s", err.message);
    CHECK(hs_gguf_get_i32_arr(g, "texts", true, 2, 0, 9, v, &n, &err) == HS_E_MODEL && strstr(err.message, "array of string"), "%s", err.message);
    CHECK(hs_gguf_get_i32_arr(g, "absent", true, 2, 0, 9, v, &n, &err) == HS_E_MODEL && strstr(err.message, "missing"), "%s", err.message);
    CHECK(v[0] == 50 && v[1] == 50 && v[2] == 50, "a failed look-up changed its result");
}

static void test_public_calls(const hs_gguf * g, size_t file_size) {
    hs_tensor_info info;
    CHECK(hs_gguf_n_kv(g) == 25 && hs_gguf_n_tensors(g) == 2, "%d keys", (int) hs_gguf_n_kv(g));
    CHECK(hs_gguf_n_bytes(g) == (int64_t) file_size && hs_gguf_n_files(g) == 1, "sizes");
    CHECK(hs_gguf_find(g, "absent") == -1 && hs_gguf_find(g, "") == -1 && hs_gguf_find(g, "u8x") == -1, "absent keys");
    CHECK(hs_gguf_find(g, "u8") == 0 && strcmp(hs_gguf_key(g, 24), "texts") == 0, "keys keep the file's order");
    CHECK(hs_gguf_arr_len(g, 24) == 2 && hs_gguf_kv_type(g, 24) == HS_GGUF_ARR && hs_gguf_arr_type(g, 24) == HS_GGUF_STR, "texts");
    size_t n = 0;
    CHECK(hs_gguf_raw(g, 24, &n) && n == 17, "raw strings have %zu bytes", n);
    const int64_t outside[] = {-1, 25, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < 4; i++) {
        CHECK(!hs_gguf_key(g, outside[i]) && !hs_gguf_raw(g, outside[i], &n) && n == 0 && hs_gguf_arr_len(g, outside[i]) == 0, "no such key");
        CHECK(hs_gguf_tensor(g, outside[i], &info) == HS_E_ARG && !hs_gguf_tensor_at(g, outside[i]), "no such tensor");
    }
    CHECK(hs_gguf_tensor(g, 0, &info) == HS_OK && strcmp(info.name, "first") == 0 && strcmp(info.type, "q8_0") == 0, "first");
    CHECK(info.ne[0] == 32 && info.ne[1] == 2 && info.ne[2] == 1 && info.ne[3] == 1 && info.n_dims == 2 && info.size == 68 && info.file == 0, "first");
    CHECK(hs_gguf_find_tensor(g, "second") == 1 && hs_gguf_find_tensor(g, "third") == -1, "names");
}

static void test_data(const hs_gguf * g, bool mapped) {
    hs_error err;
    uint8_t buf[68];
    float f[3];
    const struct hs_gguf_tensor * first = hs_gguf_tensor_at(g, 0), * second = hs_gguf_tensor_at(g, 1);
    CHECK(hs_gguf_read_tensor(g, first, 0, 68, buf, &err) == HS_OK && buf[0] == 0 && buf[67] == 67, "%s", err.message);
    CHECK(hs_gguf_read_tensor(g, first, 60, 8, buf, &err) == HS_OK && buf[0] == 60 && buf[7] == 67, "a part");
    CHECK(hs_gguf_read_tensor(g, second, 0, 12, f, &err) == HS_OK && f[0] == 1 && f[2] == 3, "second");
    CHECK(hs_gguf_read_tensor(g, first, 61, 8, buf, &err) == HS_E_ARG && strstr(err.message, "'first'"), "%s", err.message);
    CHECK(hs_gguf_read_tensor(g, first, UINT64_MAX, 2, buf, &err) == HS_E_ARG, "a range that wraps");
    CHECK(hs_gguf_read_tensor(g, first, 0, UINT64_MAX, buf, &err) == HS_E_ARG, "a size that wraps");
    const uint8_t * p = hs_gguf_tensor_mapped(g, first);
    size_t size = 1;
    const uint8_t * base = hs_gguf_file_base(g, 0, &size);
    CHECK(!!p == mapped && !!base == mapped, "mapped");
    if (mapped && p && base) {
        CHECK(size == (size_t) hs_gguf_n_bytes(g) && p == base + first->offset && p[67] == 67, "the mapping");
    }
    CHECK(!hs_gguf_file_base(g, 1, &size) && size == 0 && !hs_gguf_path(g, 1), "no such file");
}

// From disk, mapped and not; then the file is cut short: reading its data is an error, the metadata stay as checked.
static void test_disk(struct file * f, const char * folder, bool use_mmap) {
    char path[512];
    hs_error err;
    hs_gguf * g = NULL;
    snprintf(path, sizeof path, "%s/sample.gguf", folder);
    FILE * out = fopen(path, "wb");
    CHECK(out && fwrite(f->bytes, 1, f->size, out) == f->size && fclose(out) == 0, "%s", strerror(errno));
    CHECK(hs_gguf_open(path, use_mmap, &g, &err) == HS_OK && err.code == HS_OK && !err.message[0], "%s", err.message);
    test_public_calls(g, f->size);
    test_integers(g);
    test_data(g, use_mmap);
    CHECK(strcmp(hs_gguf_path(g, 0), path) == 0, "%s", hs_gguf_path(g, 0));
    CHECK(truncate(path, 100) == 0, "%s", strerror(errno));
    uint8_t buf[68];
    CHECK(hs_gguf_read_tensor(g, hs_gguf_tensor_at(g, 0), 0, 68, buf, &err) == HS_E_IO && strstr(err.message, "ends at"), "%s", err.message);
    test_integers(g);
    test_arrays(g);
    hs_gguf_free(g);
    remove(path);
}

static void test_refusals(struct file * f) {
    hs_error err;
    hs_gguf * g = (hs_gguf *) f; // must stay as it is
    CHECK(hs_gguf_open(NULL, true, &g, &err) == HS_E_ARG && hs_gguf_open("x", true, NULL, &err) == HS_E_ARG, "NULL arguments");
    CHECK(hs_gguf_open_memory(NULL, 4, &g, &err) == HS_E_ARG, "NULL memory");
    CHECK(hs_gguf_open_memory(NULL, 0, &g, &err) == HS_E_FORMAT && strstr(err.message, "empty"), "%s", err.message);
    CHECK(hs_gguf_open("/no/such/folder/model.gguf", true, &g, &err) == HS_E_IO && strstr(err.message, "/no/such/folder/model.gguf"), "%s", err.message);
    char long_path[5000];
    memset(long_path, 'p', sizeof long_path - 1);
    long_path[sizeof long_path - 1] = 0;
    CHECK(hs_gguf_open(long_path, true, &g, &err) == HS_E_IO && strstr(err.message, "...ppp") && strstr(err.message, "cannot open"), "%s", err.message);
    CHECK(hs_gguf_open(long_path, true, &g, NULL) == HS_E_IO, "err may be NULL");
    sample_file(f);
    for (size_t n = 0; n < f->size; n++) {
        CHECK(hs_gguf_open_memory(f->bytes, n, &g, &err) == HS_E_FORMAT && err.message[0], "%zu bytes of %zu were accepted", n, f->size);
    }
    start(f);
    KV(f, "split.count", HS_GGUF_U16, uint16_t, 2);
    end(f);
    CHECK(hs_gguf_open_memory(f->bytes, f->size, &g, &err) == HS_E_FORMAT && strstr(err.message, "'split.count' is 2"), "%s", err.message);
    start(f); // what llama.cpp's merge leaves behind
    KV(f, "split.count", HS_GGUF_U16, uint16_t, 0);
    KV(f, "split.no", HS_GGUF_U16, uint16_t, 0);
    end(f);
    hs_gguf * merged = NULL;
    CHECK(hs_gguf_open_memory(f->bytes, f->size, &merged, &err) == HS_OK && hs_gguf_n_tensors(merged) == 0, "%s", err.message);
    hs_gguf_free(merged);
    CHECK(g == (hs_gguf *) f, "a failed open changed its result");
    hs_gguf_free(NULL);
}

// A huge count of keys that all differ in their last byte only, and then one twice.
static void test_many_keys(void) {
    enum { N = 50000 };
    struct { uint64_t len; char key[8]; uint32_t type; uint8_t value; } __attribute__((packed)) * kvs = malloc(N * sizeof *kvs);
    uint8_t * bytes = malloc(24 + N * sizeof *kvs);
    for (int i = 0; kvs && i < N; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%07d", (i * 7919) % N); // 7919 is prime to N: every number once
        kvs[i].len = 8;
        memcpy(kvs[i].key, key, 8);
        kvs[i].type = HS_GGUF_U8;
        kvs[i].value = 1;
    }
    CHECK(kvs && bytes, "out of memory");
    if (kvs && bytes) {
        hs_gguf * g = NULL;
        hs_error err;
        memcpy(bytes, "GGUF\3\0\0\0\0\0\0\0\0\0\0", 16);
        memcpy(bytes + 16, &(uint64_t) {N}, 8);
        memcpy(bytes + 24, kvs, N * sizeof *kvs);
        CHECK(hs_gguf_open_memory(bytes, 24 + N * sizeof *kvs, &g, &err) == HS_OK && hs_gguf_n_kv(g) == N, "%s", err.message);
        CHECK(hs_gguf_find(g, "k0007919") == 1 && hs_gguf_find(g, "k0050000") == -1, "find");
        hs_gguf_free(g);
        memcpy(bytes + 24 + (N - 1) * sizeof *kvs + 8, kvs[0].key, 8);
        CHECK(hs_gguf_open_memory(bytes, 24 + N * sizeof *kvs, &g, &err) == HS_E_FORMAT && strstr(err.message, "repeats"), "%s", err.message);
    }
    free(kvs);
    free(bytes);
}

static void keep_line(int32_t level, const char * text, void * user) {
    snprintf(user, 64, "%d:%s", level, text);
}

static void test_status(void) {
    char line[64] = "";
    hs_log_set(keep_line, line);
    hs_log(2, "loaded %d", 7);
    CHECK(strcmp(line, "2:loaded 7\n") == 0, "%s", line);
    hs_log_set(NULL, NULL);
    line[0] = 0;
    hs_log(1, "debug messages go nowhere by default");
    CHECK(line[0] == 0, "%s", line);
    hs_error err;
    CHECK(hs_fail(&err, HS_E_MODEL, "%s", "one") == HS_E_MODEL && err.code == HS_E_MODEL && strcmp(err.message, "one") == 0, "%s", err.message);
    hs_fail(&err, HS_E_IO, "%s two", err.message); // wraps itself
    CHECK(strcmp(err.message, "one two") == 0, "%s", err.message);
    hs_fail(&err, HS_E_IO, "%5000d", 1);
    CHECK(strlen(err.message) == sizeof err.message - 1, "%zu", strlen(err.message));
    CHECK(hs_fail(NULL, HS_E_IO, "x") == HS_E_IO && hs_ok(NULL) == HS_OK && hs_ok(&err) == HS_OK && !err.message[0] && err.code == 0, "NULL err");
    const char * v = hs_version();
    CHECK(v == hs_version() && strstr(v, "(ggml ") && strstr(v, "; CPU:") && strstr(v, "; kernels: ") && v[strlen(v) - 1] == ')', "%s", v);
}

int main(void) {
    static struct file f;
    hs_gguf * g = open_sample(&f);
    test_integers(g);
    test_others(g);
    test_arrays(g);
    test_public_calls(g, f.size);
    test_data(g, false);
    hs_gguf_free(g);
    char folder[] = "/tmp/hs-test-gguf-XXXXXX";
    CHECK(mkdtemp(folder), "%s", strerror(errno));
    test_disk(&f, folder, true);
    test_disk(&f, folder, false);
    rmdir(folder);
    test_refusals(&f);
    test_many_keys();
    test_status();
    printf("gguf: %d checks, %d failed\n", n_checks, n_failed);
    return n_failed != 0;
}
