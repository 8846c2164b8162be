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

// Positions j .. j + n - 1 of one KV head: where the first of them lies, and how many of them follow it in memory.
static int64_t cache_run(const struct hs_cache * c, int64_t seq, int64_t head_kv, int64_t j, int64_t n, const void ** at) {
    const struct ggml_tensor * t = c->t;
    const int64_t n_slots = t->ne[1], slot = j % n_slots;
    const int64_t page = c->table ? ((const int32_t *) c->table->data)[seq * c->table->ne[0] + j / n_slots] : seq;
    *at = (const char *) t->data + slot * t->nb[1] + head_kv * t->nb[2] + page * t->nb[3];
    return n_slots - slot < n ? n_slots - slot : n;
}

// Positions j .. j + n - 1 of one KV head, in f32: rows [n][d] in dst.
static void load_rows(const struct hs_cache * c, int64_t seq, int64_t head_kv, int64_t j, int64_t n, float * dst) {
    const int64_t d = c->t->ne[0];
    for (int64_t done = 0; done < n;) {
        const void * at;
        const int64_t run = cache_run(c, seq, head_kv, j + done, n - done, &at);
        convert_row(c->t->type, at, dst + done * d, run * d);
        done += run;
    }
}
