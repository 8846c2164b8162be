// Fuzz target over everything that reads a model file: the GGUF reader, every look-up, hyperparameters, layer plan (as the file says and in oracle
// mode) and the binding of the weights. Built with libFuzzer (HYSPARSE_BUILD_FUZZ), or plainly as corpus_replay: a main that runs each file of
// the folders given, each prefix of the small ones, and the small ones with bytes changed.
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_read.h"
#include "layer_plan.h"
#include "status.h"
#include "weights.h"

#define INPUT_MAX (64u << 10) // models are tiny; a file that claims more than it holds must fail before anything is allocated for the claim

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

static volatile uint64_t sink; // what is read must really be read

static void read_bytes(const void * p, size_t n) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += ((const uint8_t *) p)[i];
    }
    sink += sum;
}

static void expect(bool holds, const char * what) {
    if (!holds) {
        fprintf(stderr, "fuzz_gguf: %s\n", what);
        abort();
    }
}

static void look_up_keys(const hs_gguf * g) {
    for (int64_t i = 0; i < hs_gguf_n_kv(g); i++) {
        const char * key = hs_gguf_key(g, i);
        expect(hs_gguf_find(g, key) == i, "a key is not found under its own name");
        size_t       size = 0;
        const void * raw  = hs_gguf_raw(g, i, &size);
        read_bytes(raw, size);
        if (hs_gguf_kv_type(g, i) == HS_GGUF_ARR && hs_gguf_arr_type(g, i) == HS_GGUF_STR) { // strings end exactly where the array does
            const uint8_t * p = raw;
            for (uint64_t n = hs_gguf_arr_len(g, i); n > 0; n--) {
                uint64_t len = 0;
                memcpy(&len, p, sizeof len);
                p += sizeof len + len;
            }
            expect(p == (const uint8_t *) raw + size, "the strings of an array do not fill it");
        }
        hs_error     err;
        int64_t      i64 = 0, n = 0;
        int32_t      i32 = 0, many[64];
        float        f = 0;
        bool         b = false;
        const char * s = NULL;
        size_t       len = 0;
        int rc[] = {hs_gguf_get_i64(g, key, true, INT64_MIN, INT64_MAX, &i64, &err), hs_gguf_get_i32(g, key, true, -5, 5, &i32, &err),
            hs_gguf_get_f32(g, key, true, &f, &err), hs_gguf_get_bool(g, key, true, &b, &err), hs_gguf_get_str(g, key, true, &s, &len, &err),
            hs_gguf_get_i32_arr(g, key, true, 7, INT32_MIN, INT32_MAX, many, &n, &err),
            hs_gguf_get_i32_arr(g, key, true, -64, 0, 100, many, &n, &err)};
        for (size_t k = 0; k < sizeof rc / sizeof *rc; k++) {
            expect(rc[k] == HS_OK || rc[k] == HS_E_MODEL, "a look-up returned an unexpected status");
        }
        read_bytes(s, len);
        expect(i32 >= -5 && i32 <= 5, "a look-up left its range");
    }
}

static void read_tensors(const hs_gguf * g) {
    uint8_t buf[512];
    for (int64_t i = 0; i < hs_gguf_n_tensors(g); i++) {
        const struct hs_gguf_tensor * t = hs_gguf_tensor_at(g, i);
        expect(hs_gguf_find_tensor(g, t->name) == i, "a tensor is not found under its own name");
        expect(t->size == ggml_row_size(t->type, t->ne[0]) * (uint64_t) (t->ne[1] * t->ne[2] * t->ne[3]), "a tensor's size is not that of its shape");
        uint64_t n = t->size < sizeof buf ? t->size : sizeof buf;
        expect(hs_gguf_read_tensor(g, t, t->size - n, n, buf, NULL) == HS_OK, "a tensor's last bytes cannot be read");
        read_bytes(buf, (size_t) n);
        hs_tensor_info info;
        expect(hs_gguf_tensor(g, i, &info) == HS_OK && strlen(info.name) < 64 && info.type[0], "a tensor's description is missing");
    }
}

static void load_weights(const hs_gguf * g, struct hs_hparams * hp, const struct hs_oracle_request * oracle, bool repack) {
    hs_error             err;
    struct hs_layer_plan plan;
    if (hs_layer_plan_build(hp, oracle, &plan, &err) != HS_OK) {
        return;
    }
    struct hs_weights              w;
    const struct hs_weights_params p = {.repack = repack, .check = true};
    if (hs_weights_load(g, hp, &plan, &p, &w, &err) == HS_OK) {
        expect(w.bytes < 64 * INPUT_MAX, "more memory was taken than the file accounts for");
        read_bytes(w.output_norm->data, ggml_nbytes(w.output_norm));
        hs_weights_free(&w);
    }
    hs_layer_plan_free(&plan);
}

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    hs_gguf * g = NULL;
    hs_error  err;
    if (size > INPUT_MAX || hs_gguf_open_memory(data, size, &g, &err) != HS_OK) {
        return 0;
    }
    look_up_keys(g);
    read_tensors(g);
    struct hs_hparams * hp = malloc(sizeof *hp);
    expect(hp != NULL, "out of memory");
    if (hs_hparams_read(g, hp, &err) == HS_OK) {
        const int32_t                  full[]  = {0};
        const struct hs_oracle_request request = {.full_layers = full, .n_full_layers = 1};
        load_weights(g, hp, NULL, true);
        load_weights(g, hp, &request, false);
    }
    free(hp);
    hs_gguf_free(g);
    return 0;
}

#ifndef HS_LIBFUZZER

// A heap copy of exactly n bytes, so that a sanitizer sees a read past the end.
static void run_copy(const uint8_t * data, size_t n) {
    uint8_t * copy = malloc(n ? n : 1);
    expect(copy != NULL, "out of memory");
    memcpy(copy, data, n);
    LLVMFuzzerTestOneInput(copy, n);
    free(copy);
}

static int run_file(const char * path) {
    static uint8_t data[INPUT_MAX + 1];
    FILE *         f = fopen(path, "rb");
    if (!f) {
        perror(path);
        return 0;
    }
    size_t n = fread(data, 1, sizeof data, f);
    fclose(f);
    run_copy(data, n);
    if (n > 2048) {
        return 1;
    }
    for (size_t i = 0; i < n; i++) {
        run_copy(data, i);
        uint8_t saved = data[i];
        const uint8_t values[] = {0, 1, 0x7F, 0x80, 0xFF, (uint8_t) (saved + 1), (uint8_t) (saved ^ 0x20)};
        for (size_t k = 0; k < sizeof values; k++) {
            data[i] = values[k];
            run_copy(data, n);
        }
        data[i] = saved;
    }
    return 1;
}

int main(int argc, char ** argv) {
    int files = 0;
    for (int a = 1; a < argc; a++) {
        DIR * dir = opendir(argv[a]);
        if (!dir) {
            perror(argv[a]);
            return 1;
        }
        for (struct dirent * e; (e = readdir(dir)) != NULL;) {
            char path[4096];
            if (e->d_name[0] != '.' && snprintf(path, sizeof path, "%s/%s", argv[a], e->d_name) < (int) sizeof path) {
                files += run_file(path);
            }
        }
        closedir(dir);
    }
    printf("corpus_replay: %d files\n", files);
    return files == 0;
}

#endif
