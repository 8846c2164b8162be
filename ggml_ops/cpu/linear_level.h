// What the driver of the linear op (linear.c) asks of an instruction-set level.
#pragma once

#include "../linear.h"

// Sixteen rows of a packed matrix times some tokens: the unit of work.
struct hs_linear_tile {
    enum ggml_type type;
    const uint8_t * w;        // the sixteen rows
    int64_t n_in;
    struct hs_linear_x x;     // of the first token
    int64_t n_tokens;
    float * out;              // [n_tokens] rows of 16, `stride` floats apart
    int64_t stride;
};

struct hs_linear_level {
    // n_tokens rows of n_in floats -> x
    void (*quantize)(const float * src, int64_t n_in, int64_t n_tokens, const struct hs_linear_x * x);
    void (*tile)(const struct hs_linear_tile * t);
    // out = silu(out) * up, n (a multiple of 16) floats
    void (*swiglu)(float * out, const float * up, int64_t n);
    bool fast;                // faster than ggml's own products of these types
};
