// Which instruction-set level of the attention engine runs: the best that this build has and this machine can run, unless a test asks for another.
#if defined(__APPLE__)
#define _DARWIN_C_SOURCE // sys/sysctl.h uses types that POSIX does not have
#endif
#include "attn.h"

#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define HS_X86
extern const struct hs_cpu_level hs_cpu_level_avx2, hs_cpu_level_avx512, hs_cpu_level_avx512vnni;
#elif defined(__aarch64__)
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
extern const struct hs_cpu_level hs_cpu_level_neon, hs_cpu_level_neon_dotprod;
#endif
extern const struct hs_cpu_level hs_cpu_level_scalar;

#if defined(HS_X86)
static bool has_f16c(void) { // not every compiler's __builtin_cpu_supports knows it
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
}

static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

static bool has_avx512vnni(void) {
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__)
static bool has_dotprod(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    int yes = 0;
    size_t size = sizeof(yes);
    // macOS 11 does not know the name; every Mac with an M chip has it
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &yes, &size, NULL, 0) != 0 || yes != 0;
#else
    return false;
#endif
}
#endif

// Level i that this machine can run, lowest first; NULL behind the last.
static const struct hs_cpu_level * level_at(int i) {
    const struct hs_cpu_level * found[5];
    int n = 0;
    found[n++] = &hs_cpu_level_scalar;
#if defined(HS_X86)
    if (has_avx2()) {
        found[n++] = &hs_cpu_level_avx2;
    }
    if (has_avx512()) {
        found[n++] = &hs_cpu_level_avx512;
    }
    if (has_avx512vnni()) {
        found[n++] = &hs_cpu_level_avx512vnni;
    }
#elif defined(__aarch64__)
    found[n++] = &hs_cpu_level_neon;
    if (has_dotprod()) {
        found[n++] = &hs_cpu_level_neon_dotprod;
    }
#endif
    return i >= 0 && i < n ? found[i] : NULL;
}

int hs_cpu_level_count(void) {
    int n = 0;
    while (level_at(n)) {
        n++;
    }
    return n;
}

const char * hs_cpu_level_name(int i) {
    const struct hs_cpu_level * level = level_at(i);
    return level ? level->name : NULL;
}

// The choice. Every thread of a graph that finds it empty writes the same value.
static const struct hs_cpu_level * chosen;

const struct hs_cpu_level * hs_cpu_level_current(void) {
    const struct hs_cpu_level * level = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
    if (!level) {
        level = level_at(hs_cpu_level_count() - 1);
        __atomic_store_n(&chosen, level, __ATOMIC_RELAXED);
    }
    return level;
}

bool hs_cpu_level_set(const char * name) {
    for (int i = 0; i < hs_cpu_level_count(); i++) {
        if (strcmp(level_at(i)->name, name) == 0) {
            __atomic_store_n(&chosen, level_at(i), __ATOMIC_RELAXED);
            return true;
        }
    }
    return false;
}

const char * hs_cpu_level(void) {
    return hs_cpu_level_current()->name;
}
