// The attention engine compiled for one instruction set; ops.cmake gives this file its flags, dispatch.c asks the machine before using it.
#define HS_SIMD_AVX2
#define HS_ATTN hs_attn_avx2
#include "schedule.h"
#include "select_row.h"
#include "linear_avx2.h"

static const struct hs_linear_level linear = { linear_quantize, linear_tile, linear_swiglu, true };

extern const struct hs_cpu_level hs_cpu_level_avx2;
const struct hs_cpu_level hs_cpu_level_avx2 = { "avx2", hs_attn_avx2, select_row, &linear };
