// The attention engine for AVX-512 with integer dot products (Ice Lake, Zen 4 and later); see level_avx512.c. HS_VNNI chooses the kernels that need them.
#define HS_SIMD_AVX512
#define HS_VNNI
#define HS_ATTN hs_attn_avx512vnni
#include "schedule.h"
#include "select_row.h"
#include "linear_avx512vnni.h"

static const struct hs_linear_level linear = { linear_quantize, linear_tile, linear_swiglu, true };

extern const struct hs_cpu_level hs_cpu_level_avx512vnni;
const struct hs_cpu_level hs_cpu_level_avx512vnni = { "avx512vnni", hs_attn_avx512vnni, select_row, &linear };
