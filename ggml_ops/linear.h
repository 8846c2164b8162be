// What builder, kernel and reference of the linear op share: the 8-bit form of x.
#pragma once

#include "hs_ops.h"

#define HS_LINEAR_BLOCK 32
#define HS_LINEAR_LINE  64 // bytes: the workspace begins on one, and its parts do

// The activations of a node in 8 bits: tiles of `width` tokens, and in a tile one record a block of 32 columns, so that a kernel walks one pointer.
// A record holds, for each of the tile's tokens: 32 bytes q; the factor d; and what the offset of the weights needs: d * (sum of q) for q4_1
// (value = u d' + m), -8 * (sum of q) for q4_0 (value = (u - 8) d'), -128 * (sum of q) for q8_0 (value = (u - 128) d').
#define HS_LINEAR_TILE 16
struct hs_linear_x {
    char * at;
    int64_t width, n_blocks;
};

#define HS_LINEAR_RECORD (HS_LINEAR_BLOCK + 16) // bytes a token of a record
static inline int8_t *  hs_linear_q(char * record, int64_t slot)                  { return (int8_t *) record + slot * HS_LINEAR_BLOCK; }
static inline float *   hs_linear_d(char * record, int64_t width)                 { return (float *) (void *) (record + width * HS_LINEAR_BLOCK); }
static inline float *   hs_linear_d_sum(char * record, int64_t width)             { return hs_linear_d(record, width) + width; }
static inline int32_t * hs_linear_offset(char * record, int64_t width, bool bytes) { return (int32_t *) (void *) (hs_linear_d(record, width) + (bytes ? 3 : 2) * width); }

static inline int64_t hs_linear_width(int64_t n_tokens) { return n_tokens == 1 ? 1 : HS_LINEAR_TILE; }

// The record of block 0 of the tile that token t is in.
static inline char * hs_linear_tile_at(const struct hs_linear_x * x, int64_t t) {
    return x->at + t / x->width * x->n_blocks * x->width * HS_LINEAR_RECORD;
}

// Few tokens: every thread quantises them all for itself, which costs less than waiting for the others.
static inline bool hs_linear_alone(int64_t n_tokens) { return n_tokens <= 4; }

// f32 elements of one copy of the activations, a multiple of a cache line.
static inline int64_t hs_linear_work(int64_t n_in, int64_t n_tokens) {
    const int64_t width = hs_linear_width(n_tokens), bytes = (n_tokens + width - 1) / width * width * (n_in / HS_LINEAR_BLOCK) * HS_LINEAR_RECORD;
    return (bytes + HS_LINEAR_LINE - 1) / HS_LINEAR_LINE * HS_LINEAR_LINE / (int64_t) sizeof(float);
}
