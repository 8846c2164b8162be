// No allocation in the decode loop after the first token: malloc and its kin are replaced by counting ones, and 200 tokens are decoded (over page and
// ring edges). ggml itself makes and frees an empty context a graph (ggml_cpu_init: two allocations of under 64 bytes): these are let through.
// argv[1]: a folder with the tiny models of the fuzz corpus. Not built under sanitizers, which replace malloc themselves.
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hysparse.h"

extern void * __libc_malloc(size_t);
extern void * __libc_calloc(size_t, size_t);
extern void * __libc_realloc(void *, size_t);
extern void * __libc_memalign(size_t, size_t);

enum { GGML_A_GRAPH = 2, GGML_SIZE = 64 };
static atomic_long n_allocs, n_large;

static void counted(size_t n) {
    n_allocs++;
    n_large += n > GGML_SIZE;
}

void * malloc(size_t n) { counted(n); return __libc_malloc(n); }
void * calloc(size_t n, size_t m) { counted(n * m); return __libc_calloc(n, m); }
void * realloc(void * p, size_t n) { counted(n); return __libc_realloc(p, n); }
void * aligned_alloc(size_t a, size_t n) { counted(n); return __libc_memalign(a, n); }
int posix_memalign(void ** out, size_t a, size_t n) {
    counted(n);
    *out = __libc_memalign(a, n);
    return *out ? 0 : ENOMEM;
}

static int check(int rc, const hs_error * err) {
    if (rc) fprintf(stderr, "status %d: %s\n", rc, err->message);
    return rc;
}

// Allocations of ours during 200 decoded tokens, or -1 on an error.
static long count(const char * path) {
    hs_error err;
    hs_model * m = NULL;
    hs_session * s = NULL;
    hs_sampler * smpl = NULL;
    long n = -1;
    if (check(hs_model_load(path, NULL, &m, &err), &err)) return -1;
    hs_model_info info;
    hs_model_info_get(m, &info);
    hs_session_params sp = hs_session_default_params();
    sp.n_ctx = 512;
    sp.n_ubatch = 16;
    sp.n_threads = 2;
    hs_sampler_params smp = hs_sampler_default_params();
    smp.seed = 7;
    smp.penalty_repeat = 1.1f;
    float * logits = malloc(sizeof *logits * (size_t) info.n_vocab);
    int32_t prompt[40], token = 1;
    for (int i = 0; i < 40; i++) prompt[i] = i % info.n_vocab;
    int rc = check(hs_session_new(m, &sp, &s, &err), &err) || check(hs_sampler_new(info.n_vocab, &smp, &smpl, &err), &err)
          || check(hs_eval(s, 40, prompt, NULL, NULL, logits, &err), &err);
    for (int i = 0; i < 201 && !rc; i++) {
        if (i == 1) n_allocs = n_large = 0; // the first token builds the decode graph
        rc = check(hs_sampler_sample(smpl, logits, &token, &err), &err) || check(hs_sampler_accept(smpl, token, &err), &err)
          || check(hs_eval(s, 1, &token, NULL, NULL, logits, &err), &err);
    }
    if (!rc) n = n_large + (n_allocs > 200 * GGML_A_GRAPH ? n_allocs - 200 * GGML_A_GRAPH : 0);
    free(logits);
    hs_sampler_free(smpl);
    hs_session_free(s);
    hs_model_free(m);
    return n;
}

int main(int argc, char ** argv) {
    static const char * const models[] = {"hysparse.gguf", "moe.gguf", "llama.gguf", "mimo2.gguf"};
    int failed = 0;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", argc > 1 ? argv[1] : ".", models[i]);
        const long n = count(path);
        printf("%s: %ld allocations in 200 tokens\n", models[i], n);
        failed += n != 0;
    }
    return failed != 0;
}
