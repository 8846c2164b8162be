// x of a linear node normed and in 8 bits, and SwiGLU: the same for every level, in vectors of simd.h. Included once per level.
#pragma once

#include "linear_level.h"
#include "simd.h"

// Replaces quantize_row_q8_0/q8_1 of ggml's products; the factor stays f32. Sums of a block are exact.
static void linear_quantize_block(const float * s, char * record, int64_t width, int64_t slot) {
    int8_t * q = hs_linear_q(record, slot);
    vf most = vf_set(0.0f), check = most;
    for (int i = 0; i < HS_LINEAR_BLOCK; i += VL) {
        const vf v = vf_load(s + i);
        most = vf_max(vf_max(v, vf_sub(vf_set(0.0f), v)), most);
        check = vf_add(check, vf_sub(v, v)); // 0, or NaN where v is NaN or infinite: it goes on into the result
    }
    const float max = vf_hmax(most), inv = max > 1e-30f ? 127.0f / max : 0.0f, d = max / 127.0f + vf_sum(check);
    vi all = vi_round(vf_set(0.0f));
    for (int i = 0; i < HS_LINEAR_BLOCK; i += VL) {
        const vi r = vi_round(vf_mul(vf_load(s + i), vf_set(inv)));
        vi_store_i8(q + i, r);
        all = vi_add(all, r);
    }
    const int32_t sum = vi_sum(all);
    hs_linear_d(record, width)[slot] = d;
    hs_linear_d_sum(record, width)[slot] = d * (float) sum;
    hs_linear_offset(record, width, false)[slot] = (int32_t) (-8u * (uint32_t) sum); // unsigned: after an infinite x the sum can be anything
    hs_linear_offset(record, width, true)[slot] = (int32_t) (-128u * (uint32_t) sum);
}

// 1 / sqrt(mean(s^2) + eps); the sum in f64, so that its order does not show.
static float linear_rms(const float * s, int64_t n, float eps) {
    double sum[HS_LINEAR_BLOCK / 2] = { 0 }, all = 0.0;
    for (int64_t i = 0; i < n; i += HS_LINEAR_BLOCK / 2) {
        for (int x = 0; x < HS_LINEAR_BLOCK / 2; x++) {
            sum[x] += (double) s[i + x] * s[i + x];
        }
    }
    for (int x = 0; x < HS_LINEAR_BLOCK / 2; x++) {
        all += sum[x];
    }
    return 1.0f / sqrtf((float) (all / (double) n) + eps);
}

static void linear_quantize(const float * src, const float * norm, float eps, int64_t tok0, int64_t n_tokens, const struct hs_linear_x * x) {
    const int64_t n_in = x->n_blocks * HS_LINEAR_BLOCK;
    for (int64_t t = tok0; t < tok0 + n_tokens; t++) {
        const float * s = src + t * n_in;
        const float scale = norm ? linear_rms(s, n_in, eps) : 1.0f;
        char * record = hs_linear_tile_at(x, t);
        for (int64_t b = 0; b < x->n_blocks; b++, record += x->width * HS_LINEAR_RECORD) {
            float y[HS_LINEAR_BLOCK];
            for (int i = 0; i < HS_LINEAR_BLOCK && norm; i += VL) {
                const int64_t at = b * HS_LINEAR_BLOCK + i;
                vf_store(y + i, vf_mul(vf_mul(vf_load(s + at), vf_set(scale)), vf_load(norm + at)));
            }
            linear_quantize_block(norm ? y : s + b * HS_LINEAR_BLOCK, record, x->width, t % x->width);
        }
    }
}

static void linear_swiglu(float * out, const float * up, int64_t n) {
    for (int64_t i = 0; i < n; i += VL) {
        const vf g = vf_load(out + i);
        vf_store(out + i, vf_mul(vf_mul(g, vf_sigmoid(g)), vf_load(up + i)));
    }
}
