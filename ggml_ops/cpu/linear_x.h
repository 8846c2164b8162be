// x of a linear node in 8 bits, and SwiGLU: the same for every level, in vectors of simd.h. Included once per level.
#pragma once

#include "linear_level.h"
#include "simd.h"

// Replaces quantize_row_q8_0/q8_1 of ggml's products; the factor stays f32. Sums of a block are exact.
static void linear_quantize(const float * src, int64_t n_in, int64_t n_tokens, const struct hs_linear_x * x) {
    for (int64_t b = 0; b < n_tokens * n_in / HS_LINEAR_BLOCK; b++) {
        const float * s = src + b * HS_LINEAR_BLOCK;
        int8_t * q = x->q + b * HS_LINEAR_BLOCK;
        float most = 0.0f;
        for (int i = 0; i < HS_LINEAR_BLOCK; i += VL) {
            const vf v = vf_load(s + i), a = vf_max(v, vf_sub(vf_set(0.0f), v));
            const float m = vf_hmax(a);
            most = m <= most ? most : m; // a NaN stays
        }
        const float inv = most > 1e-30f ? 127.0f / most : 0.0f;
        int32_t sum = 0;
        float r[HS_LINEAR_BLOCK];
        for (int i = 0; i < HS_LINEAR_BLOCK; i += VL) {
            vf_store(r + i, vf_round(vf_mul(vf_load(s + i), vf_set(inv))));
        }
        for (int i = 0; i < HS_LINEAR_BLOCK; i++) {
            q[i] = r[i] >= -127.0f && r[i] <= 127.0f ? (int8_t) r[i] : 0; // NaN: the factor carries it
            sum += q[i];
        }
        x->d[b] = most / 127.0f;
        x->d_sum[b] = x->d[b] * (float) sum;
        x->offset[b] = -8 * sum;
    }
}

static void linear_swiglu(float * out, const float * up, int64_t n) {
    for (int64_t i = 0; i < n; i += VL) {
        const vf g = vf_load(out + i);
        vf_store(out + i, vf_mul(vf_mul(g, vf_sigmoid(g)), vf_load(up + i)));
    }
}
