// What the panel kernels (panel.h) need of a level beyond simd.h. Included once per level.
//
//   PANEL_ROWS, PANEL_COLS  register block of the product: rows x vectors; PANEL_COLS * VL = PANEL_W columns make a strip
//   vf_transpose            VL rows of VL floats to VL columns, times f
//   vf_any_above(x, y)      is some lane of x above that of y?
//   vf_max4                 four horizontal maxima at once
//   vf_only(x, f, lo, hi)   lanes lo..hi of x, f elsewhere
//   vf_exp2                 2^x for x <= 126, 1e-7 relative; 2^-126 for everything below that
#pragma once

#include "simd.h"

#include <stdbool.h>
#include <stddef.h>

#define PANEL_MAGIC 12582912.0f // 1.5 * 2^23: added to a small x, its integer part sits in the low bits

#if defined(HS_SIMD_AVX512)
#define PANEL_ROWS 6
#define PANEL_COLS 4
HS_INLINE bool vf_any_above(vf x, vf y) { return _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ) != 0; }
HS_INLINE __m256 vf_half_max(vf x) { return _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)); }
HS_INLINE void vf_max4(vf a, vf b, vf c, vf d, float * out) {
    const __m256 x = vf_half_max(a), y = vf_half_max(b), z = vf_half_max(c), w = vf_half_max(d);
    const __m256 xy = _mm256_max_ps(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y)); // x y x y
    const __m256 zw = _mm256_max_ps(_mm256_unpacklo_ps(z, w), _mm256_unpackhi_ps(z, w));
    const __m256 m = _mm256_max_ps(_mm256_shuffle_ps(xy, zw, 0x44), _mm256_shuffle_ps(xy, zw, 0xee));
    _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1)));
}
HS_INLINE vf vf_only(vf x, float fill, int lo, int hi) {
    const uint32_t from = lo <= 0 ? 0xffffu : lo < VL ? 0xffffu << lo : 0, to = hi >= VL - 1 ? 0xffffu : hi >= 0 ? (2u << hi) - 1 : 0;
    return _mm512_mask_blend_ps((__mmask16) (from & to), _mm512_set1_ps(fill), x);
}
HS_INLINE vf vf_shift_exponent(vf e, vf z) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(e), _mm512_slli_epi32(_mm512_castps_si512(z), 23)));
}
// Two of the four exchange steps are done by the loads: a vector takes 4 columns of rows i, i + 4, i + 8, i + 12.
HS_INLINE vf vf_load_4x4(const float * p, ptrdiff_t row) {
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(p));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 4 * row), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 8 * row), 2);
    return _mm512_insertf32x4(x, _mm_loadu_ps(p + 12 * row), 3);
}
HS_INLINE void vf_transpose(const float * src, ptrdiff_t src_row, float * dst, ptrdiff_t dst_row, vf f) {
    // Lanes of the result: the row order 0 4 8 12 within 128-bit lanes is undone by loading rows 4i .. 4i + 3 into one lane.
    HS_UNROLL
    for (int c = 0; c < 16; c += 4) {
        const __m512 r0 = vf_load_4x4(src + c, src_row), r1 = vf_load_4x4(src + c + src_row, src_row);
        const __m512 r2 = vf_load_4x4(src + c + 2 * src_row, src_row), r3 = vf_load_4x4(src + c + 3 * src_row, src_row);
        const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(r0, r1)), b = _mm512_castps_pd(_mm512_unpacklo_ps(r2, r3));
        const __m512d x = _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1)), y = _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3));
        _mm512_storeu_ps(dst + c * dst_row, _mm512_mul_ps(f, _mm512_castpd_ps(_mm512_unpacklo_pd(a, b))));
        _mm512_storeu_ps(dst + (c + 1) * dst_row, _mm512_mul_ps(f, _mm512_castpd_ps(_mm512_unpackhi_pd(a, b))));
        _mm512_storeu_ps(dst + (c + 2) * dst_row, _mm512_mul_ps(f, _mm512_castpd_ps(_mm512_unpacklo_pd(x, y))));
        _mm512_storeu_ps(dst + (c + 3) * dst_row, _mm512_mul_ps(f, _mm512_castpd_ps(_mm512_unpackhi_pd(x, y))));
    }
}

#elif defined(HS_SIMD_AVX2)
#define PANEL_ROWS 6
#define PANEL_COLS 2
HS_INLINE bool vf_any_above(vf x, vf y) { return _mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_GT_OQ)) != 0; }
HS_INLINE void vf_max4(vf x, vf y, vf z, vf w, float * out) {
    const __m256 xy = _mm256_max_ps(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y)); // x y x y
    const __m256 zw = _mm256_max_ps(_mm256_unpacklo_ps(z, w), _mm256_unpackhi_ps(z, w));
    const __m256 m = _mm256_max_ps(_mm256_shuffle_ps(xy, zw, 0x44), _mm256_shuffle_ps(xy, zw, 0xee));
    _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1)));
}
HS_INLINE vf vf_only(vf x, float fill, int lo, int hi) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i out = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), lane), _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(hi)));
    return _mm256_blendv_ps(x, _mm256_set1_ps(fill), _mm256_castsi256_ps(out));
}
HS_INLINE vf vf_shift_exponent(vf e, vf z) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(e), _mm256_slli_epi32(_mm256_castps_si256(z), 23)));
}
HS_INLINE vf vf_load_2x4(const float * p, ptrdiff_t row) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4 * row), 1);
}
HS_INLINE void vf_transpose(const float * src, ptrdiff_t src_row, float * dst, ptrdiff_t dst_row, vf f) {
    HS_UNROLL
    for (int c = 0; c < 8; c += 4) {
        const __m256 r0 = vf_load_2x4(src + c, src_row), r1 = vf_load_2x4(src + c + src_row, src_row);
        const __m256 r2 = vf_load_2x4(src + c + 2 * src_row, src_row), r3 = vf_load_2x4(src + c + 3 * src_row, src_row);
        const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(r0, r1)), b = _mm256_castps_pd(_mm256_unpacklo_ps(r2, r3));
        const __m256d x = _mm256_castps_pd(_mm256_unpackhi_ps(r0, r1)), y = _mm256_castps_pd(_mm256_unpackhi_ps(r2, r3));
        _mm256_storeu_ps(dst + c * dst_row, _mm256_mul_ps(f, _mm256_castpd_ps(_mm256_unpacklo_pd(a, b))));
        _mm256_storeu_ps(dst + (c + 1) * dst_row, _mm256_mul_ps(f, _mm256_castpd_ps(_mm256_unpackhi_pd(a, b))));
        _mm256_storeu_ps(dst + (c + 2) * dst_row, _mm256_mul_ps(f, _mm256_castpd_ps(_mm256_unpacklo_pd(x, y))));
        _mm256_storeu_ps(dst + (c + 3) * dst_row, _mm256_mul_ps(f, _mm256_castpd_ps(_mm256_unpackhi_pd(x, y))));
    }
}

#elif defined(HS_SIMD_NEON)
#define PANEL_ROWS 6
#define PANEL_COLS 4
HS_INLINE bool vf_any_above(vf x, vf y) { return vmaxvq_u32(vcgtq_f32(x, y)) != 0; }
HS_INLINE void vf_max4(vf a, vf b, vf c, vf d, float * out) { vst1q_f32(out, vpmaxq_f32(vpmaxq_f32(a, b), vpmaxq_f32(c, d))); }
HS_INLINE vf vf_only(vf x, float fill, int lo, int hi) {
    const int32_t lanes[4] = { 0, 1, 2, 3 };
    const int32x4_t lane = vld1q_s32(lanes);
    return vbslq_f32(vandq_u32(vcgeq_s32(lane, vdupq_n_s32(lo)), vcleq_s32(lane, vdupq_n_s32(hi))), x, vdupq_n_f32(fill));
}
HS_INLINE vf vf_shift_exponent(vf e, vf z) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(e), vshlq_n_s32(vreinterpretq_s32_f32(z), 23)));
}
HS_INLINE void vf_transpose(const float * src, ptrdiff_t src_row, float * dst, ptrdiff_t dst_row, vf f) {
    const float32x4_t r0 = vld1q_f32(src), r1 = vld1q_f32(src + src_row), r2 = vld1q_f32(src + 2 * src_row), r3 = vld1q_f32(src + 3 * src_row);
    const float32x4x2_t a = vtrnq_f32(r0, r1), b = vtrnq_f32(r2, r3);
    vst1q_f32(dst, vmulq_f32(f, vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]))));
    vst1q_f32(dst + dst_row, vmulq_f32(f, vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]))));
    vst1q_f32(dst + 2 * dst_row, vmulq_f32(f, vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]))));
    vst1q_f32(dst + 3 * dst_row, vmulq_f32(f, vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]))));
}

#else
#define PANEL_ROWS 2
#define PANEL_COLS 4
HS_INLINE bool vf_any_above(vf x, vf y) { return x > y; }
HS_INLINE void vf_max4(vf a, vf b, vf c, vf d, float * out) { out[0] = a, out[1] = b, out[2] = c, out[3] = d; }
HS_INLINE vf vf_only(vf x, float fill, int lo, int hi) { return lo <= 0 && hi >= 0 ? x : fill; }
HS_INLINE void vf_transpose(const float * src, ptrdiff_t src_row, float * dst, ptrdiff_t dst_row, vf f) {
    (void) src_row;
    (void) dst_row;
    *dst = *src * f;
}
HS_INLINE vf vf_exp2(vf x) { return exp2f(x > -126.0f ? x : -126.0f); }
#endif

#define PANEL_W (PANEL_COLS * VL)

#if !defined(HS_SIMD_SCALAR)
// 2^x = 2^n 2^r, n = round(x), |r| <= 1/2; 2^r by the polynomial of degree 5 with the least relative error (9e-8), exact at 0. The rounding leaves n
// in the low bits of z, from where a shift adds it to the exponent.
HS_INLINE vf vf_exp2(vf x) {
    const vf c = vf_max(x, vf_set(-126.0f)), z = vf_add(c, vf_set(PANEL_MAGIC)), r = vf_sub(c, vf_sub(z, vf_set(PANEL_MAGIC)));
    vf e = vf_fma(r, vf_set(0.001326472731307149f), vf_set(0.009671512991189957f));
    e = vf_fma(e, r, vf_set(0.05550733581185341f));
    e = vf_fma(e, r, vf_set(0.24022242426872253f));
    e = vf_fma(e, r, vf_set(0.6931470036506653f));
    e = vf_fma(e, r, vf_set(1.0f));
    return vf_shift_exponent(e, z);
}
#endif
