// One vector of floats behind a few functions. The including file chooses the level: HS_SIMD_AVX512, HS_SIMD_AVX2, HS_SIMD_NEON or HS_SIMD_SCALAR.
//
//   vf, VL              the vector and its lanes
//   DOT_ROWS            rows of the dot product kernel at a time; MM_ROWS: rows of the matrix kernel's block of MM_ROWS x 2 vectors
//   FEW_ROWS            up to so many rows, dot products beat the matrix kernel, whose rows are vector lanes
//   vf_fma(a, b, c)     a * b + c
//   vf_sum4             four horizontal sums at once
//   vf_exp              e^x for x <= 0, about 1 ulp; 0 below -87 (where f32 would turn denormal)
//   vf_load_f16/_i8     VL elements, converted
//   vi, vi_*            VL 32-bit integers: vi_round (to nearest even), vi_add, vi_sum, vi_store_i8 (values that fit)
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define HS_INLINE static inline __attribute__((always_inline, unused))
#if defined(__clang__)
#define HS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HS_UNROLL _Pragma("GCC unroll 16")
#endif

#define HS_MAX_START (-1e30f) // running maximum before the first key; finite, so differences never make a NaN
#define HS_MASKED    (-2e30f) // logit of a key that a row does not see: exp(HS_MASKED - HS_MAX_START) is 0

#if defined(HS_SIMD_AVX512)
#include <immintrin.h>
typedef __m512 vf;
#define VL 16
#define DOT_ROWS 4
#define MM_ROWS 8
#define FEW_ROWS 8
HS_INLINE vf vf_load(const float * p) { return _mm512_loadu_ps(p); }
HS_INLINE void vf_store(float * p, vf x) { _mm512_storeu_ps(p, x); }
HS_INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
HS_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
HS_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
HS_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
HS_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
HS_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
HS_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
HS_INLINE float vf_sum(vf x) { return _mm512_reduce_add_ps(x); }
HS_INLINE float vf_hmax(vf x) { return _mm512_reduce_max_ps(x); }
HS_INLINE __m256 vf_half_sum(vf x) { return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)); }
HS_INLINE void vf_sum4(vf a, vf b, vf c, vf d, float * out) {
    const __m256 ab = _mm256_hadd_ps(vf_half_sum(a), vf_half_sum(b)), cd = _mm256_hadd_ps(vf_half_sum(c), vf_half_sum(d));
    const __m256 s = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}
// Sums of 16 vectors, lane i that of x[i]: a tree of adds over shuffled pairs, 45 instructions instead of 16 horizontal sums.
HS_INLINE vf vf_sums(const vf * x) {
    vf a[8], b[4];
    HS_UNROLL
    for (int i = 0; i < 8; i++) { // pairs (leaf i, leaf i + 8); the order of leaves is such that lanes come out in order
        const int at = (i & 2) / 2 + (i & 1) * 2 + (i & 4) * 2;
        const vf p = x[at], q = x[at + 4];
        a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(p, q, 0x44), _mm512_shuffle_f32x4(p, q, 0xee));
    }
    HS_UNROLL
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
    }
    const vf c = _mm512_add_ps(_mm512_shuffle_ps(b[0], b[2], 0x44), _mm512_shuffle_ps(b[0], b[2], 0xee));
    const vf d = _mm512_add_ps(_mm512_shuffle_ps(b[1], b[3], 0x44), _mm512_shuffle_ps(b[1], b[3], 0xee));
    return _mm512_add_ps(_mm512_shuffle_ps(c, d, 0x88), _mm512_shuffle_ps(c, d, 0xdd));
}
// Likewise the maxima.
HS_INLINE vf vf_maxs(const vf * x) {
    vf a[8], b[4];
    HS_UNROLL
    for (int i = 0; i < 8; i++) {
        const int at = (i & 2) / 2 + (i & 1) * 2 + (i & 4) * 2;
        const vf p = x[at], q = x[at + 4];
        a[i] = _mm512_max_ps(_mm512_shuffle_f32x4(p, q, 0x44), _mm512_shuffle_f32x4(p, q, 0xee));
    }
    HS_UNROLL
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_max_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
    }
    const vf c = _mm512_max_ps(_mm512_shuffle_ps(b[0], b[2], 0x44), _mm512_shuffle_ps(b[0], b[2], 0xee));
    const vf d = _mm512_max_ps(_mm512_shuffle_ps(b[1], b[3], 0x44), _mm512_shuffle_ps(b[1], b[3], 0xee));
    return _mm512_max_ps(_mm512_shuffle_ps(c, d, 0x88), _mm512_shuffle_ps(c, d, 0xdd));
}
// Sums as in vf_sums, out as rows x keys (x[i * keys + j], rows * keys <= 16) to s[i * stride + j]; keys: 2, 4, 8 or 16, a constant.
HS_INLINE void vf_store_sums(const vf * x, const int rows, const int keys, float * s, int stride) {
    const vf sum = vf_sums(x);
    if (keys == 16) {
        _mm512_storeu_ps(s, sum);
        return;
    }
    const __m256 half[2] = { _mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1) };
    HS_UNROLL
    for (int i = 0; i < rows; i++) {
        const __m256 h = half[i * keys / 8];
        const __m128 quarter = i * keys % 8 < 4 ? _mm256_castps256_ps128(h) : _mm256_extractf128_ps(h, 1);
        if (keys == 8) {
            _mm256_storeu_ps(s + i * stride, h);
        } else if (keys == 4) {
            _mm_storeu_ps(s + i * stride, quarter);
        } else if (i % 2 == 0) {
            _mm_storel_pi((__m64 *) (void *) (s + i * stride), quarter);
        } else {
            _mm_storeh_pi((__m64 *) (void *) (s + i * stride), quarter);
        }
    }
}
HS_INLINE vf vf_load_f16(const uint16_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
HS_INLINE vf vf_load_i8(const int8_t * p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p))); }
typedef __m512i vi;
HS_INLINE vi vi_round(vf x) { return _mm512_cvtps_epi32(x); }
HS_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
HS_INLINE int32_t vi_sum(vi x) { return _mm512_reduce_add_epi32(x); }
HS_INLINE void vi_store_i8(int8_t * p, vi x) { _mm_storeu_si128((__m128i *) (void *) p, _mm512_cvtepi32_epi8(x)); }
HS_INLINE float hs_f16(uint16_t x) { return _cvtsh_ss(x); }
HS_INLINE vf vf_round(vf x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
HS_INLINE vf vf_scale2(vf x, vf n) { return _mm512_scalef_ps(x, n); }
HS_INLINE vf vf_zero_below(vf x, float limit, vf y) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GE_OQ), y); }

#elif defined(HS_SIMD_AVX2)
#include <immintrin.h>
typedef __m256 vf;
#define VL 8
#define DOT_ROWS 2
#define MM_ROWS 6
#define FEW_ROWS 8
HS_INLINE vf vf_load(const float * p) { return _mm256_loadu_ps(p); }
HS_INLINE void vf_store(float * p, vf x) { _mm256_storeu_ps(p, x); }
HS_INLINE vf vf_set(float x) { return _mm256_set1_ps(x); }
HS_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
HS_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
HS_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
HS_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
HS_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
HS_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
HS_INLINE void vf_sum4(vf a, vf b, vf c, vf d, float * out) {
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}
HS_INLINE float vf_sum(vf x) {
    const __m128 a = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 b = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
HS_INLINE float vf_hmax(vf x) {
    const __m128 a = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 b = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
HS_INLINE vf vf_load_f16(const uint16_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
HS_INLINE vf vf_load_i8(const int8_t * p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p))); }
typedef __m256i vi;
HS_INLINE vi vi_round(vf x) { return _mm256_cvtps_epi32(x); }
HS_INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
HS_INLINE int32_t vi_sum(vi x) {
    const __m128i a = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)), b = _mm_add_epi32(a, _mm_unpackhi_epi64(a, a));
    return _mm_cvtsi128_si32(_mm_add_epi32(b, _mm_shuffle_epi32(b, 1)));
}
HS_INLINE void vi_store_i8(int8_t * p, vi x) {
    const __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i *) (void *) p, _mm_packs_epi16(h, h));
}
HS_INLINE float hs_f16(uint16_t x) { return _cvtsh_ss(x); }
HS_INLINE vf vf_round(vf x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
HS_INLINE vf vf_scale2(vf x, vf n) { // x * 2^n for -126 <= n <= 0
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
HS_INLINE vf vf_zero_below(vf x, float limit, vf y) { return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_GE_OQ), y); }

#elif defined(HS_SIMD_NEON)
#include <arm_neon.h>
typedef float32x4_t vf;
#define VL 4
#define DOT_ROWS 4
#define MM_ROWS 8
#define FEW_ROWS 4
HS_INLINE vf vf_load(const float * p) { return vld1q_f32(p); }
HS_INLINE void vf_store(float * p, vf x) { vst1q_f32(p, x); }
HS_INLINE vf vf_set(float x) { return vdupq_n_f32(x); }
HS_INLINE vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
HS_INLINE vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
HS_INLINE vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
HS_INLINE vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
HS_INLINE vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
HS_INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
HS_INLINE float vf_sum(vf x) { return vaddvq_f32(x); }
HS_INLINE float vf_hmax(vf x) { return vmaxvq_f32(x); }
HS_INLINE void vf_sum4(vf a, vf b, vf c, vf d, float * out) { vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))); }
HS_INLINE vf vf_load_f16(const uint16_t * p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
HS_INLINE vf vf_load_i8(const int8_t * p) {
    int32_t four;
    memcpy(&four, p, sizeof(four));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
typedef int32x4_t vi;
HS_INLINE vi vi_round(vf x) { return vcvtnq_s32_f32(x); }
HS_INLINE vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
HS_INLINE int32_t vi_sum(vi x) { return vaddvq_s32(x); }
HS_INLINE void vi_store_i8(int8_t * p, vi x) {
    const int16x4_t h = vmovn_s32(x);
    const int32_t four = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(h, h))), 0);
    memcpy(p, &four, sizeof(four));
}
HS_INLINE float hs_f16(uint16_t x) { return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x))), 0); }
HS_INLINE vf vf_round(vf x) { return vrndnq_f32(x); }
HS_INLINE vf vf_scale2(vf x, vf n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vcvtq_s32_f32(n), 23)));
}
HS_INLINE vf vf_zero_below(vf x, float limit, vf y) {
    return vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(x, vdupq_n_f32(limit)), vreinterpretq_u32_f32(y)));
}

#else
#if !defined(HS_SIMD_SCALAR)
#error "no level chosen"
#endif
typedef float vf;
#define VL 1
#define DOT_ROWS 2
#define MM_ROWS 4
#define FEW_ROWS 2
HS_INLINE vf vf_load(const float * p) { return *p; }
HS_INLINE void vf_store(float * p, vf x) { *p = x; }
HS_INLINE vf vf_set(float x) { return x; }
HS_INLINE vf vf_add(vf a, vf b) { return a + b; }
HS_INLINE vf vf_sub(vf a, vf b) { return a - b; }
HS_INLINE vf vf_mul(vf a, vf b) { return a * b; }
HS_INLINE vf vf_max(vf a, vf b) { return a > b ? a : b; }
HS_INLINE vf vf_div(vf a, vf b) { return a / b; }
HS_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
HS_INLINE float vf_sum(vf x) { return x; }
HS_INLINE float vf_hmax(vf x) { return x; }
HS_INLINE void vf_sum4(vf a, vf b, vf c, vf d, float * out) { out[0] = a, out[1] = b, out[2] = c, out[3] = d; }
HS_INLINE vf vf_load_i8(const int8_t * p) { return *p; }
typedef int32_t vi;
HS_INLINE vi vi_round(vf x) { return x >= -1e6f && x <= 1e6f ? (int32_t) rintf(x) : 0; }
HS_INLINE vi vi_add(vi a, vi b) { return a + b; }
HS_INLINE int32_t vi_sum(vi x) { return x; }
HS_INLINE void vi_store_i8(int8_t * p, vi x) { *p = (int8_t) x; }
HS_INLINE float hs_f16(uint16_t x) { // IEEE half; the exponent is moved by a multiplication, which also makes subnormals right
    const uint32_t bits = (uint32_t) (x & 0x7fffu) << 13, sign = (uint32_t) (x & 0x8000u) << 16;
    float f;
    uint32_t u;
    memcpy(&f, &bits, sizeof(f));
    f *= 0x1p112f;
    memcpy(&u, &f, sizeof(u));
    u |= sign | ((x & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u); // inf and NaN
    memcpy(&f, &u, sizeof(f));
    return f;
}
HS_INLINE vf vf_load_f16(const uint16_t * p) { return hs_f16(*p); }
HS_INLINE vf vf_exp(vf x) { return x < -87.0f ? 0.0f : expf(x); }
#endif

#if !defined(HS_SIMD_SCALAR)
// e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2; e^r by a polynomial of degree 6 (Taylor's tail there is below 2^-23).
HS_INLINE vf vf_exp(vf x) {
    const vf c = vf_max(x, vf_set(-87.0f));
    const vf n = vf_round(vf_mul(c, vf_set(1.44269504088896341f)));
    vf r = vf_fma(n, vf_set(-0.693359375f), c); // ln 2 in two parts, the first exact in few bits
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf e = vf_fma(r, vf_set(1.0f / 720), vf_set(1.0f / 120));
    e = vf_fma(e, r, vf_set(1.0f / 24));
    e = vf_fma(e, r, vf_set(1.0f / 6));
    e = vf_fma(e, r, vf_set(0.5f));
    e = vf_fma(e, r, vf_set(1.0f));
    e = vf_fma(e, r, vf_set(1.0f));
    return vf_zero_below(x, -87.0f, vf_scale2(e, n));
}
#endif

// 1 / (1 + e^-x) without overflow at either end.
HS_INLINE vf vf_sigmoid(vf x) {
    const vf zero = vf_set(0.0f), minus = vf_sub(zero, x);
    const vf below = vf_sub(zero, vf_max(minus, zero)); // min(x, 0)
    return vf_div(vf_exp(below), vf_add(vf_set(1.0f), vf_exp(vf_sub(zero, vf_max(x, minus)))));
}
