// Keys and values on their way from a cache to f32 rows. Included once per level, after simd.h.
#pragma once

#include "attn.h"

struct q8_0_block { // ggml's block_q8_0: 32 values, one half as the factor
    uint16_t d;
    int8_t q[32];
};

// n elements (a multiple of 32) to f32.
static void convert_row(enum ggml_type type, const void * src, float * dst, int64_t n) {
    if (type == GGML_TYPE_F16) {
        for (int64_t i = 0; i < n; i += VL) {
            vf_store(dst + i, vf_load_f16((const uint16_t *) src + i));
        }
    } else if (type == GGML_TYPE_Q8_0) {
        const struct q8_0_block * b = src;
        for (int64_t i = 0; i < n / 32; i++) {
            const vf d = vf_set(hs_f16(b[i].d));
            HS_UNROLL
            for (int x = 0; x < 32; x += VL) {
                vf_store(dst + i * 32 + x, vf_mul(d, vf_load_i8(b[i].q + x)));
            }
        }
    } else {
        memcpy(dst, src, (size_t) n * sizeof(float));
    }
}

// Positions j .. j + n - 1 of one KV head, in f32: rows [n][d] in dst, or the cache's own memory where that is f32 and in one run.
// `whole`: dst will hold nothing else, so not copying is allowed.
static const float * load_rows(const struct hs_cache * c, int64_t seq, int64_t head_kv, int64_t j, int64_t n, float * dst, bool whole) {
    const struct ggml_tensor * t = c->t;
    const int64_t d = t->ne[0], n_slots = t->ne[1];
    const int32_t * pages = c->table ? (const int32_t *) c->table->data + seq * c->table->ne[0] : NULL;
    for (int64_t done = 0; done < n;) {
        const int64_t slot = (j + done) % n_slots, run = n_slots - slot < n - done ? n_slots - slot : n - done;
        const int64_t page = pages ? pages[(j + done) / n_slots] : seq;
        const char * src = (const char *) t->data + slot * t->nb[1] + head_kv * t->nb[2] + page * t->nb[3];
        if (whole && run == n && t->type == GGML_TYPE_F32) {
            return (const float *) (const void *) src;
        }
        convert_row(t->type, src, dst + done * d, run * d);
        done += run;
    }
    return dst;
}
