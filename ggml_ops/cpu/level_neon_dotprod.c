// The attention engine for Armv8.2 with dot products of bytes (most cores since 2018, every Apple M chip); ops.cmake gives this file its flags,
// dispatch.c asks the machine before using it. HS_DOTPROD chooses the kernels that need them.
#define HS_SIMD_NEON
#define HS_DOTPROD
#define HS_ATTN hs_attn_neon_dotprod
#include "schedule.h"
#include "select_row.h"
#include "linear_neon.h"

static const struct hs_linear_level linear = { linear_quantize, linear_tile, linear_swiglu, true };

extern const struct hs_cpu_level hs_cpu_level_neon_dotprod;
const struct hs_cpu_level hs_cpu_level_neon_dotprod = { "neon_dotprod", hs_attn_neon_dotprod, select_row, &linear };
