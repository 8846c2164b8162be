// The attention engine compiled for one instruction set; ops.cmake gives this file its flags, dispatch.c asks the machine before using it.
#define HS_SIMD_NEON
#define HS_ATTN hs_attn_neon
#include "schedule.h"
#include "select_row.h"
#include "linear_neon.h"

static const struct hs_linear_level linear = { linear_quantize, linear_tile, linear_swiglu, true };

extern const struct hs_cpu_level hs_cpu_level_neon;
const struct hs_cpu_level hs_cpu_level_neon = { "neon", hs_attn_neon, select_row, &linear };
