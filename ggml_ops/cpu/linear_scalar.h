// A tile of the linear op in plain C: levels without integer dot products, where the runtime leaves the weights to ggml.
// Order of summation: a block's products as integers, blocks ascending in f32.
#pragma once

#include "linear_x.h"

static void linear_tile(const struct hs_linear_tile * t) {
    const bool has_min = t->type == GGML_TYPE_Q4_1, bytes = t->type == GGML_TYPE_Q8_0;
    const size_t block = ggml_type_size(t->type) * HS_PACK_ROWS;
    const int64_t width = t->x.width;
    for (int64_t i = 0; i < t->n_tokens; i++) {
        char * tile = hs_linear_tile_at(&t->x, t->tok0 + i);
        const int64_t slot = i % width;
        for (int r = 0; r < HS_PACK_ROWS; r++) {
            float sum = 0.0f;
            for (int64_t b = 0; b < t->x.n_blocks; b++) {
                const uint8_t * w = t->w + (size_t) b * block, * q = w + (has_min ? 4 : 2) * HS_PACK_ROWS;
                char * record = tile + b * width * HS_LINEAR_RECORD;
                const int8_t * x = hs_linear_q(record, slot);
                int32_t dot = has_min ? 0 : hs_linear_offset(record, width, bytes)[slot];
                for (int c = 0; c < HS_LINEAR_BLOCK; c++) {
                    const int u = bytes ? q[(c / 4 * HS_PACK_ROWS + r) * 4 + c % 4] : q[(c % 16 / 4 * HS_PACK_ROWS + r) * 4 + c % 4] >> (c / 16 * 4) & 15;
                    dot += u * x[c];
                }
                uint16_t half[2] = { 0, 0 };
                memcpy(half, w + 2 * r, 2);
                sum += hs_f16(half[0]) * hs_linear_d(record, width)[slot] * (float) dot;
                if (has_min) {
                    memcpy(half + 1, w + 2 * (HS_PACK_ROWS + r), 2);
                    sum += hs_f16(half[1]) * hs_linear_d_sum(record, width)[slot];
                }
            }
            t->out[i * t->stride + r] = sum;
        }
    }
}
