// Fuzz target over everything that reads a model file: the GGUF reader, every look-up, hs_model_load (as the file says and in oracle mode), and
// what is accepted must run: a session and nine tokens. Built with libFuzzer (HYSPARSE_BUILD_FUZZ), or plainly as corpus_replay: a main that runs each file of
// the folders given, each prefix of the small ones, and the small ones with bytes changed.
#define _GNU_SOURCE // mkstemps
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gguf_object.h"
#include "hparams.h"

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

// The model as hs_model_load makes it, in one of its ways; and a few tokens through its graph, when that is small.
static void load_model(const char * path, bool oracle) {
    const int32_t   full[] = {0};
    hs_model_params p      = hs_model_default_params();
    p.use_mmap      = !oracle;
    p.repack        = !oracle;
    p.check_tensors = true; // NaN weights: no claim about logits
    if (oracle) {
        p.oracle               = 2;
        p.oracle_full_layers   = full;
        p.n_oracle_full_layers = 1;
    }
    hs_model * m = NULL;
    hs_error   err;
    if (hs_model_load(path, &p, &m, &err) != HS_OK) {
        expect(m == NULL && err.message[0], "a failed load left an object, or no message");
        return;
    }
    hs_model_info info;
    hs_layer_info layer;
    hs_model_info_get(m, &info);
    expect(info.weight_bytes < 64 * INPUT_MAX, "more memory was taken than the file accounts for");
    for (int32_t il = 0; il < info.n_layer; il++) {
        expect(hs_model_layer(m, il, &layer) == HS_OK && layer.kind, "a layer has no description");
    }
    hs_session_params sp = hs_session_default_params();
    sp.n_ctx = 24;
    sp.n_ubatch = 4;
    sp.n_threads = sp.n_threads_batch = 1;
    hs_memory    plan;
    hs_session * s = NULL;
    if (hs_memory_plan(m, &sp, &plan, &err) == HS_OK && plan.pages + plan.rings < 1u << 20 && hs_session_new(m, &sp, &s, &err) == HS_OK) {
        int32_t tokens[9];
        float * logits = malloc((size_t) info.n_vocab * sizeof *logits);
        expect(logits != NULL, "out of memory");
        for (int32_t i = 0; i < 9; i++) {
            tokens[i] = i % info.n_vocab;
        }
        expect(hs_eval(s, 9, tokens, NULL, NULL, logits, &err) == HS_OK, "nine tokens cannot be evaluated");
        read_bytes(logits, (size_t) info.n_vocab * sizeof *logits);
        free(logits);
        hs_session_free(s);
    }
    hs_model_free(m);
}

static int  model_fd = -1;
static char model_path[] = "/tmp/hs-fuzz-XXXXXX.gguf";

static void remove_model_file(void) {
    unlink(model_path);
}

// The input as a file, since that is what hs_model_load takes: one file, overwritten each time.
static const char * model_file(const uint8_t * data, size_t size) {
    if (model_fd < 0) {
        model_fd = mkstemps(model_path, 5);
        atexit(remove_model_file);
    }
    expect(model_fd >= 0 && ftruncate(model_fd, 0) == 0 && pwrite(model_fd, data, size, 0) == (ssize_t) size, "cannot write the model file");
    return model_path;
}

static void no_log(int32_t level, const char * text, void * user) {
    (void) level;
    (void) text;
    (void) user;
}

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    hs_gguf * g = NULL;
    hs_error  err;
    hs_log_set(no_log, NULL);
    if (size > INPUT_MAX || hs_gguf_open_memory(data, size, &g, &err) != HS_OK) {
        return 0;
    }
    look_up_keys(g);
    read_tensors(g);
    struct hs_hparams * hp = malloc(sizeof *hp);
    expect(hp != NULL, "out of memory");
    bool model = hs_hparams_read(g, hp, &err) == HS_OK;
    free(hp);
    hs_gguf_free(g);
    if (model) {
        load_model(model_file(data, size), false);
        load_model(model_path, true);
    }
    return 0;
}

#ifdef HS_LIBFUZZER

size_t LLVMFuzzerMutate(uint8_t * data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t * data, size_t size, size_t max_size, unsigned int seed);

// Half of the mutations change values of keys in a file that still parses: bytes changed anywhere seldom get past the reader.
size_t LLVMFuzzerCustomMutator(uint8_t * data, size_t size, size_t max_size, unsigned int seed) {
    static const int32_t integers[] = {-2, -1, 0, 1, 2, 3, 4, 5, 8, 16, 24, 31, 32, 33, 64, 96, 128, 192, 256, 1024, 65535, 65536, 1 << 20, 1 << 24, INT32_MAX};
    static const float   floats[]   = {0, 1, -1, 0.5f, 1e-30f, 1e30f, 1e4f, 3.4e38f, 1e-45f};
    hs_gguf * g = NULL;
    if (seed % 2 || hs_gguf_open_memory(data, size, &g, NULL) != HS_OK || hs_gguf_n_kv(g) == 0) {
        hs_gguf_free(g);
        return LLVMFuzzerMutate(data, size, max_size);
    }
    for (int changes = 1 + (int) (seed >> 1) % 3; changes > 0; changes--) {
        seed = seed * 1103515245u + 12345u;
        const struct hs_gguf_kv * kv = &g->shards[0]->kv[(seed >> 8) % (unsigned) hs_gguf_n_kv(g)];
        hs_gguf_type              t  = kv->type == HS_GGUF_ARR ? kv->arr_type : kv->type;
        size_t                    n = hs_gguf_type_size(t), count = n ? (size_t) kv->raw_size / n : 0;
        if (count == 0) {
            continue;
        }
        seed = seed * 1103515245u + 12345u;
        uint8_t * at = data + kv->raw + (seed >> 8) % count * n;
        seed = seed * 1103515245u + 12345u;
        unsigned pick = seed >> 8;
        if (t == HS_GGUF_F32) {
            memcpy(at, &floats[pick % (sizeof floats / sizeof *floats)], n);
        } else if (t == HS_GGUF_BOOL) {
            *at = pick & 1;
        } else {
            int64_t v = integers[pick % (sizeof integers / sizeof *integers)];
            memcpy(at, &v, n);
        }
    }
    hs_gguf_free(g);
    return size;
}

#else

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
