// Block selection for one row of scores. Included once per level.
//
// Replaces: a heap of the best blocks and a sort of their indices. Saves: nearly all comparisons that a branch hangs on. The K-th largest score is found
// by bisection over the order of floats as integers, which ends as soon as exactly K scores reach a threshold, about log2(n) passes; what reaches
// it is taken in ascending order, equal scores until K are there (the tie rule). Long rows are thinned out first: dealt out to lanes, the K-th
// largest of the lanes' maxima bounds the K-th largest score from below.
// Nothing is summed.
#pragma once

#include "../hs_ops.h"
#include "simd.h"

#define SELECT_LANES 64   // of a long row
#define SELECT_NEAR  1024 // scores of a long row that reach the bound, at most; more (many equal scores, a large K): the whole row is bisected

// Lanes of x that reach t, as bits.
HS_INLINE uint32_t vf_reach(vf x, vf t) {
#if defined(HS_SIMD_AVX512)
    return _mm512_cmp_ps_mask(x, t, _CMP_GE_OQ);
#elif defined(HS_SIMD_AVX2)
    return (uint32_t) _mm256_movemask_ps(_mm256_cmp_ps(x, t, _CMP_GE_OQ));
#elif defined(HS_SIMD_NEON)
    const uint32_t bits[4] = { 1, 2, 4, 8 };
    return vaddvq_u32(vandq_u32(vcgeq_f32(x, t), vld1q_u32(bits)));
#else
    return x >= t;
#endif
}

// Floats to integers of the same order and back; -0 counts as 0.
static int32_t key_of(float x) {
    int32_t i;
    x += 0.0f;
    memcpy(&i, &x, sizeof(i));
    return i ^ (int32_t) ((uint32_t) (i >> 31) >> 1);
}

static float of_key(int32_t i) {
    float x;
    i ^= (int32_t) ((uint32_t) (i >> 31) >> 1);
    memcpy(&x, &i, sizeof(x));
    return x;
}

// Which of values i .. i + VL - 1 (below n) reach t, as bits.
HS_INLINE uint32_t reach_bits(const float * x, int32_t i, int32_t n, float t) {
    if (i + VL <= n) {
        return vf_reach(vf_load(x + i), vf_set(t));
    }
    uint32_t bits = 0;
    for (int32_t l = i; l < n; l++) {
        bits |= (uint32_t) (x[l] >= t) << (l - i);
    }
    return bits;
}

static int32_t count_reach(const float * x, int32_t n, float t) {
    int32_t count = 0;
    for (int32_t i = 0; i < n; i += VL) {
        count += __builtin_popcount(reach_bits(x, i, n, t));
    }
    return count;
}

// A threshold that at least k of n values reach and fewer than k exceed; 0 < k <= n.
static float kth_largest(const float * x, int32_t n, int32_t k) {
    float most = x[0], least = x[0];
    int32_t i = 0;
    if (n >= VL) {
        vf a = vf_load(x), b = vf_sub(vf_set(0.0f), a);
        for (i = VL; i + VL <= n; i += VL) {
            const vf v = vf_load(x + i);
            a = vf_max(a, v);
            b = vf_max(b, vf_sub(vf_set(0.0f), v));
        }
        most = vf_hmax(a);
        least = -vf_hmax(b);
    }
    for (; i < n; i++) {
        most = x[i] > most ? x[i] : most;
        least = x[i] < least ? x[i] : least;
    }
    int32_t lo = key_of(least), hi = key_of(most);
    while (lo < hi) {
        const int32_t mid = (int32_t) (((int64_t) lo + hi + 1) >> 1), count = count_reach(x, n, of_key(mid));
        if (count == k) {
            return of_key(mid);
        }
        lo = count > k ? mid : lo;
        hi = count > k ? hi : mid - 1;
    }
    return of_key(lo);
}

// A threshold that at least k of n scores reach, k <= SELECT_LANES <= n: the k-th largest of the lanes' maxima.
static float lanes_bound(const float * s, int32_t n, int32_t k) {
    float most[SELECT_LANES];
    memcpy(most, s, sizeof(most));
    int32_t i = SELECT_LANES;
    for (; i + SELECT_LANES <= n; i += SELECT_LANES) {
        for (int32_t l = 0; l < SELECT_LANES; l += VL) {
            vf_store(most + l, vf_max(vf_load(most + l), vf_load(s + i + l)));
        }
    }
    for (int32_t l = 0; i + l < n; l++) {
        most[l] = s[i + l] > most[l] ? s[i + l] : most[l];
    }
    return kth_largest(most, SELECT_LANES, k);
}

// Values of n that reach t, ascending, with their indices; how many of them, at most `room`.
static int32_t take_reach(const float * s, int32_t n, float t, int32_t room, float * value, int32_t * index) {
    int32_t count = 0;
    for (int32_t i = 0; i < n; i += VL) {
        for (uint32_t bits = reach_bits(s, i, n, t); bits; bits &= bits - 1) {
            const int32_t at = i + __builtin_ctz(bits);
            if (count == room) {
                return count;
            }
            value[count] = s[at];
            index[count++] = at;
        }
    }
    return count;
}

// The top_k blocks with the largest of n scores, ascending, then HS_BLOCK_NONE.
static void select_row(const float * s, int32_t n, int32_t top_k, int32_t * sel) {
    float value[SELECT_NEAR];
    int32_t index[SELECT_NEAR];
    const int32_t want = n < top_k ? n : top_k;
    for (int32_t i = 0; i < top_k; i++) {
        sel[i] = i < want ? i : HS_BLOCK_NONE;
    }
    if (n <= top_k) {
        return;
    }
    const float * from = s;
    int32_t n_from = n;
    if (n >= 2 * SELECT_LANES && top_k <= SELECT_LANES) {
        const int32_t n_near = take_reach(s, n, lanes_bound(s, n, top_k), SELECT_NEAR, value, index);
        if (n_near < SELECT_NEAR) {
            from = value;
            n_from = n_near;
        }
    }
    const float t = kth_largest(from, n_from, top_k);
    int32_t equal = top_k - count_reach(from, n_from, of_key(key_of(t) + 1)); // so many of the scores that equal the threshold
    int32_t taken = 0;
    for (int32_t i = 0; i < n_from && taken < top_k; i += VL) {
        for (uint32_t bits = reach_bits(from, i, n_from, t); bits && taken < top_k; bits &= bits - 1) {
            const int32_t at = i + __builtin_ctz(bits);
            const bool same = from[at] == t;
            if (!same || equal > 0) {
                sel[taken++] = from == s ? at : index[at];
            }
            equal -= same;
        }
    }
    for (int32_t i = 0; i < top_k && taken < top_k; i++) { // scores that are no numbers: any blocks, but ascending and each once
        sel[i] = i;
    }
}
