// What the driver of the linear op (linear.c) asks of an instruction-set level.
#pragma once

#include "../linear.h"

// Sixteen rows of a packed matrix times some tokens: the unit of work.
struct hs_linear_tile {
    enum ggml_type type;
    const uint8_t * w;        // the sixteen rows
    struct hs_linear_x x;
    int64_t tok0, n_tokens;   // tokens tok0 .. tok0 + n_tokens - 1; tok0 begins a tile of x
    float * out;              // [n_tokens] rows of 16, `stride` floats apart
    int64_t stride;
};

struct hs_linear_level {
    // Tokens tok0 .. tok0 + n_tokens - 1 of src [n_in, ...] into x; norm (f32 [n_in]) NULL: without RMSNorm.
    void (*quantize)(const float * src, const float * norm, float eps, int64_t tok0, int64_t n_tokens, const struct hs_linear_x * x);
    void (*tile)(const struct hs_linear_tile * t);
    // out = silu(out) * up, n (a multiple of 16) floats
    void (*swiglu)(float * out, const float * up, int64_t n);
    bool fast;                // faster than ggml's own products of these types
};
