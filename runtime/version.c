// What this build is (HS_VERSION comes from CMake): our version, ggml's, the CPU features ggml uses, and the level of our kernels.
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "ggml-cpu.h"
#include "ggml.h"
#include "hs_ops.h"
#include "hysparse.h"

static const struct { const char * name; int (*has)(void); } cpu_features[] = {
    {"SSE3", ggml_cpu_has_sse3}, {"SSSE3", ggml_cpu_has_ssse3}, {"AVX", ggml_cpu_has_avx}, {"AVX2", ggml_cpu_has_avx2}, {"FMA", ggml_cpu_has_fma},
    {"F16C", ggml_cpu_has_f16c}, {"BMI2", ggml_cpu_has_bmi2}, {"AVX_VNNI", ggml_cpu_has_avx_vnni}, {"AVX512", ggml_cpu_has_avx512},
    {"AVX512_VBMI", ggml_cpu_has_avx512_vbmi}, {"AVX512_VNNI", ggml_cpu_has_avx512_vnni}, {"AVX512_BF16", ggml_cpu_has_avx512_bf16},
    {"AMX_INT8", ggml_cpu_has_amx_int8}, {"NEON", ggml_cpu_has_neon}, {"ARM_FMA", ggml_cpu_has_arm_fma}, {"FP16_VA", ggml_cpu_has_fp16_va},
    {"DOTPROD", ggml_cpu_has_dotprod}, {"MATMUL_INT8", ggml_cpu_has_matmul_int8}, {"SVE", ggml_cpu_has_sve}, {"SME", ggml_cpu_has_sme},
};

static char           version[640];
static pthread_once_t version_once = PTHREAD_ONCE_INIT;

static void write_version(void) {
    int at = snprintf(version, sizeof version, HS_VERSION " (ggml %s; CPU:", ggml_version());
    for (size_t i = 0; i < sizeof cpu_features / sizeof *cpu_features; i++) {
        if (cpu_features[i].has()) {
            at += snprintf(version + at, sizeof version - (size_t) at, " %s", cpu_features[i].name);
        }
    }
    snprintf(version + at, sizeof version - (size_t) at, "; kernels: %s)", hs_cpu_level());
}

const char * hs_version(void) {
    pthread_once(&version_once, write_version);
    return version;
}
