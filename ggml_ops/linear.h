// What builder, kernel and reference of the linear op share: the 8-bit form of x.
#pragma once

#include "hs_ops.h"

#define HS_LINEAR_BLOCK 32
#define HS_LINEAR_LINE  64 // bytes: the workspace begins on one, and its parts do

// The activations of a node: bytes [n_tokens][n_in], and for every block of 32, [n_tokens][n_blocks] each, the factor d and what the offset of the
// weights needs: d * (sum of q) for q4_1 (value = u d' + m), -8 * (sum of q) for q4_0 (value = (u - 8) d') and, times 16, q8_0 ((u - 128) d').
struct hs_linear_x {
    int8_t * q;
    float * d, * d_sum;
    int32_t * offset;
};

static inline int64_t hs_linear_round(int64_t bytes) { return (bytes + HS_LINEAR_LINE - 1) / HS_LINEAR_LINE * HS_LINEAR_LINE; }

// Few tokens: every thread quantises them all for itself, which costs less than waiting for the others.
static inline bool hs_linear_alone(int64_t n_tokens) { return n_tokens <= 4; }

// f32 elements of one copy of the activations.
static inline int64_t hs_linear_work(int64_t n_in, int64_t n_tokens) {
    return (hs_linear_round(n_tokens * n_in) + 3 * hs_linear_round(n_tokens * n_in / HS_LINEAR_BLOCK * 4)) / (int64_t) sizeof(float);
}

// The copy that begins at `at` (on a cache line).
static inline struct hs_linear_x hs_linear_at(void * at, int64_t n_in, int64_t n_tokens) {
    char * p = at;
    const int64_t q = hs_linear_round(n_tokens * n_in), f = hs_linear_round(n_tokens * n_in / HS_LINEAR_BLOCK * 4);
    return (struct hs_linear_x) { (int8_t *) p, (float *) (void *) (p + q), (float *) (void *) (p + q + f), (int32_t *) (void *) (p + q + 2 * f) };
}
