// Numbers as the tensor-core kernels take them: powers of two, pairs of halves. Without ggml.
#pragma once

#include <cstdint>
#include <cuda_fp16.h>

#define HS_LOG2E 1.4426950408889634f
#define HS_HALF_MAX 65504.0f

static __device__ __forceinline__ float hs_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ uint32_t hs_pack(float lo, float hi) {
    const half2 h = __floats2half2_rn(lo, hi);
    return *(const uint32_t *) &h;
}

// Of queries, which f16 may not hold.
static __device__ __forceinline__ uint32_t hs_pack_clamped(float lo, float hi) {
    return hs_pack(fminf(fmaxf(lo, -HS_HALF_MAX), HS_HALF_MAX), fminf(fmaxf(hi, -HS_HALF_MAX), HS_HALF_MAX));
}
