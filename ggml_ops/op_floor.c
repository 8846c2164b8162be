// Floors by measurement: sums over a buffer, and chains of multiply-adds that stay in registers. GCC's vector extensions, so that the same text
// is compiled for every width; on x86 the widest that the processor has is picked at run time.
#include "op_floor.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SAMPLES 7
#define SAMPLE_SECONDS 0.02
#define CHUNK 512 // bytes: what one step of a reading loop takes

// Twelve accumulators hide the latency of two multiply-add units and fit the sixteen registers of AVX2.
#define EACH_12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

// read: the sum of `bytes` (a multiple of CHUNK) as 64-bit integers. fma: n steps of 12 vector multiply-adds.
#define FLOOR_KERNELS(NAME, BYTES, TARGET)                                                                                                   \
    typedef uint64_t NAME##_u64 __attribute__((vector_size(BYTES), may_alias));                                                              \
    typedef float NAME##_f32 __attribute__((vector_size(BYTES)));                                                                            \
    TARGET static uint64_t NAME##_read(const char * data, size_t bytes) {                                                                    \
        NAME##_u64 s0 = { 0 }, s1 = { 0 }, s2 = { 0 }, s3 = { 0 }, s4 = { 0 }, s5 = { 0 }, s6 = { 0 }, s7 = { 0 };                           \
        for (size_t at = 0; at < bytes; at += 8 * BYTES) {                                                                                   \
            const NAME##_u64 * p = (const NAME##_u64 *) (data + at);                                                                         \
            s0 += p[0]; s1 += p[1]; s2 += p[2]; s3 += p[3]; s4 += p[4]; s5 += p[5]; s6 += p[6]; s7 += p[7];                                  \
        }                                                                                                                                    \
        s0 += s1 + s2 + s3 + s4 + s5 + s6 + s7;                                                                                              \
        return s0[0] + s0[1];                                                                                                                \
    }                                                                                                                                        \
    TARGET static float NAME##_fma(size_t n) {                                                                                               \
        const NAME##_f32 x = { 0 };                                                                                                          \
        const NAME##_f32 m = x + 0.9999f, b = x + 1e-4f;                                                                                     \
        EACH_12(NAME##_BEGIN)                                                                                                                \
        for (size_t i = 0; i < n; i++) {                                                                                                     \
            EACH_12(FMA_STEP)                                                                                                                \
        }                                                                                                                                    \
        const NAME##_f32 sum = a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11;                                                  \
        return sum[0];                                                                                                                       \
    }
#define FMA_STEP(I) a##I = a##I * m + b;

#define v16_BEGIN(I) v16_f32 a##I = x + (float) I;
FLOOR_KERNELS(v16, 16, )
#if defined(__x86_64__)
#define v32_BEGIN(I) v32_f32 a##I = x + (float) I;
FLOOR_KERNELS(v32, 32, __attribute__((target("avx2,fma"))))
#define v64_BEGIN(I) v64_f32 a##I = x + (float) I;
FLOOR_KERNELS(v64, 64, __attribute__((target("avx512f"))))
#endif

struct kernels { uint64_t (*read)(const char *, size_t); float (*fma)(size_t); size_t n_f32; };

static struct kernels best_kernels(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        return (struct kernels) { v64_read, v64_fma, 16 };
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return (struct kernels) { v32_read, v32_fma, 8 };
    }
#endif
    return (struct kernels) { v16_read, v16_fma, 4 };
}

struct job {
    struct kernels kernels;
    const char * data; // NULL: multiply-adds
    size_t bytes, steps, passes;
    double sink; // keeps the results alive
};

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

static void * work(void * arg) {
    struct job * j = arg;
    double sink = 0.0;
    for (size_t i = 0; i < j->passes; i++) {
        sink += j->data ? (double) j->kernels.read(j->data, j->bytes) : (double) j->kernels.fma(j->steps);
    }
    j->sink = sink;
    return NULL;
}

// Seconds that all jobs take together, the first in the calling thread; 0: a thread did not start.
static double run_once(struct job * jobs, int n) {
    pthread_t thread[HS_FLOOR_THREADS_MAX];
    int started = 1;
    const double start = seconds();
    while (started < n && pthread_create(&thread[started], NULL, work, &jobs[started]) == 0) {
        started++;
    }
    work(&jobs[0]);
    for (int i = 1; i < started; i++) {
        pthread_join(thread[i], NULL);
    }
    return started == n ? seconds() - start : 0.0;
}

// Seconds a pass, best of SAMPLES, each long enough that starting the threads does not show.
static double best_pass(struct job * jobs, int n) {
    size_t passes = 1;
    double best = 0.0;
    for (int i = 0; i < SAMPLES + 1; i++) {
        for (int k = 0; k < n; k++) {
            jobs[k].passes = passes;
        }
        const double t = run_once(jobs, n) / (double) passes;
        if (t <= 0.0) {
            return 0.0;
        }
        best = i == 0 || t < best ? t : best;
        passes = t < SAMPLE_SECONDS ? (size_t) (SAMPLE_SECONDS / t) + 1 : 1;
    }
    return best;
}

double hs_floor_fma_per_second(int threads) {
    struct job jobs[HS_FLOOR_THREADS_MAX];
    const size_t steps = 100000;
    if (threads < 1 || threads > HS_FLOOR_THREADS_MAX) {
        return 0.0;
    }
    const struct kernels kernels = best_kernels();
    for (int i = 0; i < threads; i++) {
        jobs[i] = (struct job) { .kernels = kernels, .steps = steps };
    }
    const double t = best_pass(jobs, threads);
    return t > 0.0 ? 12.0 * (double) (kernels.n_f32 * steps) * threads / t : 0.0;
}

double hs_floor_read_per_second(size_t bytes, int threads) {
    struct job jobs[HS_FLOOR_THREADS_MAX];
    if (threads < 1 || threads > HS_FLOOR_THREADS_MAX) {
        return 0.0;
    }
    const size_t part = (bytes / (size_t) threads + CHUNK - 1) / CHUNK * CHUNK;
    char * data = aligned_alloc(CHUNK, part * (size_t) threads);
    if (!data) {
        return 0.0;
    }
    memset(data, 1, part * (size_t) threads); // every page its own memory
    const struct kernels kernels = best_kernels();
    for (int i = 0; i < threads; i++) {
        jobs[i] = (struct job) { .kernels = kernels, .data = data + (size_t) i * part, .bytes = part };
    }
    const double t = best_pass(jobs, threads);
    free(data);
    return t > 0.0 ? (double) (part * (size_t) threads) / t : 0.0;
}
